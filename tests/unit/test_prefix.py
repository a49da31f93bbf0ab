"""Several databases: whose variables are read, that a typo stays loud, and that each error names its own variables."""

from __future__ import annotations

import ast
import dataclasses
import os
import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import plungepool
from plungepool import Settings, SettingsError, build_engine, dispose_engine, get_engine, tls
from plungepool.settings import _READERS, prefixes, variable

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(plungepool.__file__).parent
WHOLE = {"PLUNGEPOOL_HOST": "db.example", "PLUNGEPOOL_USER": "app", "PLUNGEPOOL_PASSWORD": "hunter2-hunter2"}


def prefixed(environ: dict[str, str], prefix: str = "REPORTS_") -> dict[str, str]:
    """The same variables with a prefix; AWS's own are everybody's."""
    return {name if name.startswith("AWS_") else prefix + name: value for name, value in environ.items()}


def problems(environ: dict[str, str], prefix: str = "") -> list[str]:
    """What from_env finds wrong; nothing for what it takes."""
    try:
        Settings.from_env(environ, prefix=prefix)
    except SettingsError as error:
        return list(error.problems)
    return []


@pytest.fixture(autouse=True)
def forget_engines(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start and end without a cached engine, and without variables of the machine."""
    for name in [name for name in os.environ if "PLUNGEPOOL_" in name]:
        monkeypatch.delenv(name)
    dispose_engine()
    yield
    dispose_engine()


def test_each_prefix_has_its_own_settings() -> None:
    """Nothing is shared and nothing is taken from elsewhere, but the region that Lambda says."""
    environ = WHOLE | {"PLUNGEPOOL_POOL_SIZE": "7", "PLUNGEPOOL_PORT": "6543", "AWS_REGION": "eu-west-1"}
    environ |= prefixed(WHOLE | {"PLUNGEPOOL_HOST": "reports.example", "PLUNGEPOOL_TLS": "disable"})
    shop, reports = Settings.from_env(environ), Settings.from_env(environ, prefix="REPORTS_")
    assert (shop.host, shop.port, shop.pool_size, shop.tls, shop.prefix) == (
        "db.example", 6543, 7, "verify-full", ""
    )  # fmt: skip
    assert (reports.host, reports.port, reports.pool_size, reports.tls, reports.prefix) == (
        "reports.example", 5432, 1, "disable", "REPORTS_"
    )  # fmt: skip
    assert (shop.region, reports.region) == ("eu-west-1", "eu-west-1")


wrong_values = st.sampled_from(
    ["", "0", "x", "5432", "db.example", "db:5432", "iam", "dsql", "disable", "direct", "a\n"]
)


@given(
    values=st.dictionaries(
        st.sampled_from([variable(name) for name in _READERS] + ["PLUNGEPOOL_HSOT", "PLUNGEPOOL_Port"]), wrong_values
    )
)
def test_problems_are_the_same_with_a_prefix(values: dict[str, str]) -> None:
    """Whatever is wrong without a prefix is wrong with one, in the same words, and each variable has its prefix."""
    environ = {"PLUNGEPOOL_DATABASE": "d"} | values
    expected = [one.replace("PLUNGEPOOL_", "REPORTS_PLUNGEPOOL_") for one in problems(environ)]
    assert problems(prefixed(environ), "REPORTS_") == expected


def test_the_options_of_an_engine_that_a_setting_decides_name_it() -> None:
    """As the settings call it."""
    settings = Settings.from_env(prefixed(WHOLE), prefix="REPORTS_")
    with pytest.raises(SettingsError, match="max_overflow: there is never an overflow; use REPORTS_PLUNGEPOOL_POOL_SI"):
        build_engine(settings, max_overflow=2)


def test_a_misspelt_prefix_says_which_there_are() -> None:
    """No variable of that prefix at all: it is said, and not only that each one is missing."""
    environ = WHOLE | prefixed(WHOLE) | prefixed(WHOLE, "AUDIT_")
    assert problems(environ, "REPORT_")[0] == (
        "no variable begins with REPORT_PLUNGEPOOL_; the prefixes in use are AUDIT_, REPORTS_"
    )
    assert problems({}, "REPORT_")[0] == "no variable begins with REPORT_PLUNGEPOOL_"


@pytest.mark.parametrize("typo", ["REPROTS_", "REPORT_", "REPORTS", "Reports_", "REPOTS_"])
def test_a_variable_with_a_misspelt_prefix_is_not_silent(typo: str) -> None:
    """It belongs to no database, since no other setting of that prefix says where one is."""
    environ = WHOLE | prefixed(WHOLE) | {f"{typo}PLUNGEPOOL_POOL_SIZE": "5"}
    (problem,) = problems(environ, "REPORTS_")
    assert problem == (f"{typo}PLUNGEPOOL_POOL_SIZE belongs to no database; did you mean REPORTS_PLUNGEPOOL_POOL_SIZE?")


def test_what_is_no_typo_is_left_alone() -> None:
    """Another database with a name as near, a name of one's own, and one that is nothing like it."""
    environ = prefixed(WHOLE, "READER1_") | prefixed(WHOLE, "READER2_") | WHOLE
    environ |= {"READER1_TABLE": "t", "TEST_PLUNGEPOOL_POOL_SIZE": "3", "READER_PLUNGEPOOL_VERSION": "1"}
    environ |= {"READER3_PLUNGEPOOL_POOL_SIZE": ""}
    assert [problems(environ, prefix) for prefix in ("", "READER1_", "READER2_")] == [[], [], []]


@pytest.mark.parametrize(
    "prefix", ["REPORTS", "reports_", "_", "1_", "RE PORTS_", "PLUNGEPOOL_", "REPORTS_PLUNGEPOOL_", "RÉ_", "A-B_"]
)
def test_a_prefix_that_can_be_none_is_refused(prefix: str) -> None:
    """Before a variable is named by it; the name of the package stands in every variable anyway."""
    (problem,) = problems(WHOLE, prefix)
    assert problem.startswith("prefix must ")
    assert problem.endswith(("such as REPORTS_", "such as REPORTS_, or empty"))
    with pytest.raises(SettingsError, match=r"^prefix must "):
        Settings(host="h", user="u", password="p", prefix=prefix)


def test_a_prefix_that_is_no_text_is_refused() -> None:
    """As any other wrong value, and not by an error of some method."""
    with pytest.raises(SettingsError, match="prefix must "):
        Settings(host="h", user="u", password="p", prefix=None)  # type: ignore[arg-type]


def test_prefixes_are_those_that_name_a_database() -> None:
    """For the doctor: with a host, a URL or a secret; "" for none."""
    environ = WHOLE | {"B_PLUNGEPOOL_URL": "postgresql://h/d", "A_PLUNGEPOOL_SECRET_ARN": "s"}
    environ |= {
        "C_PLUNGEPOOL_POOL_SIZE": "1",
        "D_PLUNGEPOOL_HOST": "",
        "E_PLUNGEPOOL_HOSTT": "h",
        "f_PLUNGEPOOL_HOST": "h",
    }
    assert prefixes(environ) == ["A_", "B_", ""]


def test_one_engine_for_each_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Each has its own, however often it is asked for, and also where two lead to the same database: what works on one
    stage, a connection of each at the same time, works on every stage.
    """
    for name, value in (WHOLE | prefixed(WHOLE)).items():
        monkeypatch.setenv(name, value)
    reports = get_engine(Settings.from_env(os.environ, prefix="REPORTS_"))
    assert reports is get_engine(Settings.from_env(os.environ, prefix="REPORTS_"))
    assert reports is not get_engine()


def test_settings_keep_their_prefix() -> None:
    """Through a change of some of them, and through pickling."""
    settings = Settings.from_env(prefixed(WHOLE), prefix="REPORTS_")
    assert dataclasses.replace(settings, host="other.example").variable("host") == "REPORTS_PLUNGEPOOL_HOST"
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_a_tls_context_knows_what_its_settings_are_called() -> None:
    """The wire knows no settings, and what it says of TLS names them all the same; two prefixes do not mix."""
    contexts = [
        tls.client_context(Settings(host="h", user="u", password="p", region="eu-west-1", prefix=prefix))
        for prefix in ("", "REPORTS_")
    ]
    assert [tls.setting(context, "tls") for context in contexts] == ["PLUNGEPOOL_TLS", "REPORTS_PLUNGEPOOL_TLS"]
    assert tls.setting(None, "tls") == "PLUNGEPOOL_TLS"
    assert "REPORTS_PLUNGEPOOL_TLS=disable" in tls.explain(OSError(), "h", contexts[1])


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """The texts of a module that are no docstrings, with their lines."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def test_no_text_names_a_variable_by_hand() -> None:
    """With a prefix it would name another one: `settings.variable(…)` knows it."""
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {text}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, text in texts(path)
        if "PLUNGEPOOL_" in text
    ]
    assert found == [found[0]]
    assert found[0].startswith("names.py:")
    assert found[0].endswith(": PLUNGEPOOL_")
