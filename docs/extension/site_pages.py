"""
What the site adds to Sphinx: navigation from the lists of index.md, links to the repository, drawings, Markdown.

The pages stay as GitHub shows them. So index.md has no toctree: its sections and lists are the navigation, and a page
that none of them names comes last, under "More".
"""

from __future__ import annotations

import posixpath
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
#: What toolkit/set-up fetches: the library by which browsers draw, served with the site.
MERMAID = ROOT / ".mermaid" / "mermaid.min.js"
_ENTRY = re.compile(r"^- \[([^\]]+)\]\(([\w/-]+)\.md\)(?:: (.*))?$")
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)#\s]*)(#[^)\s]*)?\)")
_CODE = re.compile(r"(^ *```.*?^ *```$|`[^`\n]+`(?!\]))", re.DOTALL | re.MULTILINE)


class Entry(NamedTuple):
    """One line of the navigation: its section, the page's title there, its name without `.md`, and what it is about."""

    section: str
    title: str
    page: str
    about: str


def entries(index: str) -> Iterator[Entry]:
    """Yield what the lists of index.md name."""
    section = ""
    for line in index.splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        elif section and (found := _ENTRY.match(line)):
            yield Entry(section, found[1].replace("`", ""), found[2], found[3] or "")


def names() -> set[str]:
    """Return every page's name."""
    return {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")}


def toctrees(index: str) -> str:
    """Return the navigation as Sphinx wants it, one tree a section; what no list names comes last."""
    listed = list(entries(index))
    more = sorted(names() - {one.page for one in listed} - {"index"})
    sections: dict[str, list[str]] = {}
    for one in listed:
        sections.setdefault(one.section, []).append(f"{one.title} <{one.page}>")
    if more:
        sections["More"] = more
    return "".join(
        "\n```{toctree}\n:hidden:\n:caption: " + section + "\n\n" + "\n".join(lines) + "\n```\n"
        for section, lines in sections.items()
    )


def with_links(page: str, text: str, repository: str) -> str:
    """Return a page whose links to files outside docs lead to the repository; without one they are their text."""

    def link(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), found[2]))
        if target == "docs" or target.startswith("docs/"):
            return found[0]
        if not repository:
            return found[1]
        kind = "tree" if (ROOT / target).is_dir() else "blob"
        return f"[{found[1]}]({repository}/{kind}/main/{target}{found[3] or ''})"

    return "".join(part if number % 2 else _LINK.sub(link, part) for number, part in enumerate(_CODE.split(text)))


def on_read(app: Any, page: str, source: list[str]) -> None:
    """Hand Sphinx a page as it wants it."""
    source[0] = with_links(page, source[0], app.config.repository)
    if page == "index":
        source[0] += toctrees(source[0])


def on_page(app: Any, page: str, _: str, context: dict[str, Any], doctree: Any) -> None:
    """Name the page's Markdown in its head; load what draws where something is drawn."""
    if page == "search":
        app.add_js_file("search.js")
    if doctree is None:
        return
    up = "../" * page.count("/")
    context["metatags"] += f'<link rel="alternate" type="text/markdown" href="{up}{page}.md">'
    if 'class="mermaid"' in context.get("body", ""):
        app.add_js_file("mermaid.min.js")
        app.add_js_file("draw.js")


def on_finished(app: Any, failure: Exception | None) -> None:
    """Write what machines read beside the pages: each as Markdown, llms.txt, llms-full.txt."""
    if failure or app.builder.name != "html":
        return
    out = Path(app.outdir)
    shutil.copyfile(MERMAID, out / "_static" / "mermaid.min.js")
    shutil.copyfile(MERMAID.parent / "LICENSE", out / "_static" / "mermaid.LICENSE")
    for picture in (*DOCS.glob("*.svg"), *DOCS.glob("*.png")):
        shutil.copyfile(picture, out / picture.name)  # where the Markdown looks for it
    for name, text in for_machines(app.config.repository).items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text, encoding="utf-8")


def for_machines(repository: str) -> dict[str, str]:
    """
    Return the files that machines read, by name.

    Source: llmstxt.org: a heading, a summary as a quotation, sections with lists of links; llms-full.txt is all of it.
    """
    pages = {}
    for name in names():
        pages[name] = with_links(name, (DOCS / f"{name}.md").read_text(encoding="utf-8"), repository)
    index = pages["index"]
    order = ["index", *(one.page for one in entries(index))]
    order += sorted(names() - set(order))
    heading, _, rest = index.partition("\n\n")
    summary, _, rest = rest.partition("\n\n")
    lists = "## " + f"\n{rest}".partition("\n## ")[2].strip()
    quoted = "\n".join(f"> {line}" for line in summary.splitlines())
    whole = "\n\n".join(f"<!-- {name}.md -->\n\n{pages[name].strip()}" for name in order)
    return {f"{name}.md": text for name, text in pages.items()} | {
        "llms.txt": f"{heading}\n\n{quoted}\n\nAll pages in one file: [llms-full.txt](llms-full.txt)\n\n{lists}\n",
        "llms-full.txt": whole + "\n",
    }


def setup(app: Any) -> dict[str, bool]:
    """Register all of it with Sphinx."""
    from docutils import nodes
    from docutils.parsers.rst import Directive
    from pygments.lexers.sql import PostgresLexer
    from sphinx.search.en import SearchEnglish

    class Search(SearchEnglish):
        """English, and SQLSTATEs of digits: Sphinx leaves numbers out of the index. search.js asks for them."""

        def word_filter(self, word: str) -> bool:
            return re.fullmatch(r"[0-9]{5}", word) is not None or super().word_filter(word)

    class Mermaid(Directive):
        """A drawing, which the browser makes of its text."""

        has_content = True

        def run(self) -> list[Any]:
            text = nodes.Text("\n".join(self.content)).astext()
            for sign, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
                text = text.replace(sign, name)
            return [nodes.raw("", f'<div class="drawing"><pre class="mermaid">{text}</pre></div>', format="html")]

    app.add_config_value("repository", "", "env")
    app.add_directive("mermaid", Mermaid)
    app.add_search_language(Search)
    app.add_lexer("sql", PostgresLexer)  # with `$1` in it
    app.config.myst_fence_as_directive = {"mermaid"}
    app.connect("source-read", on_read)
    app.connect("html-page-context", on_page)
    app.connect("build-finished", on_finished)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
