"""The site of `make docs`: every page is in it, every link leads somewhere, and a real browser shows it well."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import re
import shutil
import subprocess
import threading
import time
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser import Browser

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SPHINX = ROOT / ".venv-docs" / "bin" / "sphinx-build"

_spec = importlib.util.spec_from_file_location("site_pages", DOCS / "extension" / "site_pages.py")
assert _spec is not None
assert _spec.loader is not None
pages = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pages)

ENTRIES = list(pages.entries((DOCS / "index.md").read_text(encoding="utf-8")))
_OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def build(docs: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Build as `make docs` does."""
    command = re.search(r"sphinx-build (-q [-\w ]*) -d", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert command is not None
    assert SPHINX.exists(), "make docs makes the environment that builds the site"
    arguments = [str(SPHINX), *command[1].split(), "-d", str(out) + "-cache", str(docs), str(out)]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "html"
    done = build(DOCS, out)
    assert (done.returncode, done.stderr) == (0, "")
    return out


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as running:
        yield running


def test_navigation_has_every_page_once() -> None:
    """A page that no list of index.md names would stand under "More", where nobody looks; one named twice misleads."""
    assert sorted(one.page for one in ENTRIES) == sorted(pages.names() - {"index"})
    assert [one.page for one in ENTRIES if not one.about] == []


def test_page_that_no_list_names_is_in_the_site_all_the_same() -> None:
    """It comes last, so that a page is never lost."""
    trees = pages.toctrees("# Index\n\n## Start\n\n- [Attach](attach.md): it\n")
    assert trees.count("Attach <attach>") == 1
    assert "wire\n" in trees.partition(":caption: More")[2]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("[nowhere](nowhere.md)", "nowhere.md"),
        ("[no such heading](index.md#no-such-heading)", "no-such-heading"),
        ("![no picture](no.svg)", "no.svg"),
    ],
)
def test_link_that_leads_nowhere_fails_the_build(tmp_path: Path, wrong: str, told: str) -> None:
    """A page, a heading and a picture that are not there are named, and the build fails."""
    (tmp_path / "layers").symlink_to(ROOT / "layers")
    (tmp_path / ".mermaid").symlink_to(ROOT / ".mermaid")
    docs = tmp_path / "docs"
    shutil.copytree(DOCS / "extension", docs / "extension")
    shutil.copy(DOCS / "conf.py", docs)
    (docs / "index.md").write_text("# Index\n\nWhat it is.\n\n## Start\n\n- [One](one.md): it\n", encoding="utf-8")
    (docs / "one.md").write_text("# One\n", encoding="utf-8")
    assert build(docs, tmp_path / "right").returncode == 0
    (docs / "one.md").write_text(f"# One\n\n{wrong}\n", encoding="utf-8")
    done = build(docs, tmp_path / "wrong")
    assert done.returncode != 0
    assert told in done.stderr


def test_links_out_of_docs_lead_to_the_repository() -> None:
    """A site has no files of the repository: where it is not known, such a link is its text; code stays what it is."""
    text = (
        "[a](b.md), [the code](../layers/plungepool/plungepool/tls.py#x), ![c](d.svg), `[e](../f)`, [it](../functions)"
    )
    assert pages.with_links("wire", text, "") == "[a](b.md), the code, ![c](d.svg), `[e](../f)`, it"
    there = "https://example.com/us"
    shown = text.replace("../layers", f"{there}/blob/main/layers").replace(
        "../functions", f"{there}/tree/main/functions"
    )
    assert pages.with_links("wire", text, there) == shown
    assert pages.with_links("reference/settings", "[a](../b.md) [c](../../README.md)", "") == "[a](../b.md) c"


def test_machines_find_every_page(site: Path) -> None:
    """llms.txt lists each page with what it is about, llms-full.txt holds them, and each stands there as Markdown."""
    short, whole = ((site / name).read_text(encoding="utf-8") for name in ("llms.txt", "llms-full.txt"))
    assert re.match(r"# Plungepool\n\n> ", short)
    links = re.findall(r"\]\(([^)]+)\)", short)
    assert {f"{name}.md" for name in pages.names() - {"index"}} <= set(links)
    assert [link for link in links if not (site / link).is_file()] == []
    for name in pages.names():
        title = (DOCS / f"{name}.md").read_text(encoding="utf-8").partition("\n")[0]
        assert f"\n{title}\n" in f"\n{whole}", name
        assert (site / f"{name}.md").read_text(encoding="utf-8").startswith(f"{title}\n")
        assert (site / f"{name}.html").is_file()


@pytest.mark.parametrize("page", ["index", "reference/settings", "architecture", "troubleshoot"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it(browser: Browser, address: str, page: str, width: int, scheme: str) -> None:
    """Nothing to scroll sideways, drawings that are drawn, no complaint, and nothing asked of anybody else."""
    browser.open(f"{address}/{page}.html", width=width, scheme=scheme)
    drawings = (DOCS / f"{page}.md").read_text(encoding="utf-8").count("```mermaid")
    wait_until(browser, f"document.querySelectorAll('pre.mermaid > svg').length == {drawings}")
    assert browser.evaluate(_OVERFLOW) == 0
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(255, 255, 255)" if scheme == "light" else "rgb(19, 20, 22)"
    )
    assert browser.complaints == []


def test_every_page_fits_a_phone(browser: Browser, address: str) -> None:
    """No page of the site has to be scrolled sideways, or complains; what is wide on it scrolls by itself."""
    wide = {}
    for name in sorted(pages.names()):
        browser.open(f"{address}/{name}.html", width=390, scheme="dark")
        if (over := browser.evaluate(_OVERFLOW)) or browser.complaints:
            wide[name] = (over, browser.complaints[:1])
    assert wide == {}


@pytest.mark.parametrize(
    ("word", "page"),
    [("snapshot", "snapstart.html"), ("PLUNGEPOOL_POOL_SIZE", "settings.html"), ("25006", "wire.html")],
)
def test_search_finds_a_page(browser: Browser, address: str, word: str, page: str) -> None:
    """What a reader types leads to the page that answers."""
    browser.open(f"{address}/search.html?q={word}", width=390, scheme="light")
    wait_until(browser, f"[...document.querySelectorAll('#search-results a')].some(a => a.href.includes('{page}'))")
    assert browser.complaints == []


def test_search_answers_whoever_asks_in_their_own_words(browser: Browser, address: str) -> None:
    """Each question of questions.txt finds the page that answers it, or the page of questions, which leads there."""
    unanswered = []
    for line in (Path(__file__).parent / "questions.txt").read_text(encoding="utf-8").splitlines():
        *_, page, _, _, words = (cell.strip() for cell in line.split(" | "))
        browser.open(f"{address}/search.html?{urllib.parse.urlencode({'q': words})}", width=390, scheme="light")
        wait_until(browser, "/finished|did not match/.test(document.getElementById('search-results').innerText)")
        found = browser.evaluate("[...document.querySelectorAll('#search-results li > a')].map(a => a.pathname)")
        if not {f"/{page}.html", "/questions.html"} & set(found):
            unanswered.append(words)
    assert unanswered == []


@pytest.mark.parametrize("picture", ["site.png", "storm-report.png", "dashboard.png"])
def test_picture_is_linked_and_as_wide_as_a_screen(picture: str) -> None:
    """What `make screenshots` has taken: a page 1,280 pixels wide, less its scroll bar, and a page of docs links it."""
    begin = (DOCS / picture).read_bytes()[:24]
    assert begin.startswith(b"\x89PNG")
    assert 1260 <= int.from_bytes(begin[16:20], "big") <= 1280
    linked = [page for page in (ROOT / "README.md", *DOCS.glob("*.md")) if f"{picture})" in page.read_text("utf-8")]
    assert linked


def wait_until(browser: Browser, expression: str) -> None:
    """Return when the page says that it is so; what it never says fails."""
    deadline = time.monotonic() + 60
    while not browser.evaluate(expression):
        assert time.monotonic() < deadline, expression
        time.sleep(0.05)
