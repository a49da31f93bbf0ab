"""Every block of docs/tenants.md is run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from plungepool import Settings, SettingsMissing, dispose_engine
from plungepool.names import LOCAL_SETTINGS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plungepool_toolkit.fixtures import Database
    from plungepool_toolkit.postgres import Postgres

PAGE = (Path(__file__).parents[2] / "docs/tenants.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"<!-- example: (\w+) -->\n```(?:python|sql)\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture(autouse=True)
def _database(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A table of two tenants under the page's policy, a role that it holds for, and a function's variables."""
    postgres.execute(
        "CREATE ROLE tenants_app LOGIN; CREATE TABLE notes (tenant_id bigint, note text);"
        "INSERT INTO notes VALUES (1, 'ours'), (2, 'theirs'); GRANT ALL ON notes TO tenants_app"
    )
    postgres.execute(BLOCKS["policy"])
    monkeypatch.setenv("PLUNGEPOOL_URL", postgres.url(user="tenants_app"))
    monkeypatch.setenv("PLUNGEPOOL_PASSWORD", "not asked for")
    monkeypatch.setenv("PLUNGEPOOL_TLS", "disable")
    monkeypatch.setenv("PLUNGEPOOL_REQUIRE_SETTINGS", "app.tenant_id")
    dispose_engine()
    yield
    dispose_engine()
    postgres.execute("DROP TABLE notes; DROP OWNED BY tenants_app; DROP ROLE tenants_app")


def run(name: str) -> dict[str, Any]:
    """Run a block of the page; return the names that it defines."""
    names: dict[str, Any] = {"__name__": name}
    exec(compile(BLOCKS[name], f"docs/tenants.md: {name}", "exec"), names)
    return names


def test_every_block_is_run() -> None:
    """No block of code stands on the page without a name that a test here uses."""
    assert len(BLOCKS) == PAGE.count("```python") + PAGE.count("```sql")
    assert set(BLOCKS) == {"handler", "policy", "job", "test"}


def test_each_tenant_reads_its_own_rows() -> None:
    """As the first example does it; without a tenant nothing is sent."""
    names = run("handler")

    def event(tenant: str) -> dict[str, Any]:
        return {"requestContext": {"authorizer": {"claims": {"tenant": tenant}}}}

    assert [names["handler"](event(tenant), None) for tenant in ("1", "2", "3")] == [["ours"], ["theirs"], []]
    with names["engine"].begin() as connection, pytest.raises(SettingsMissing):
        connection.execute(text("SELECT note FROM notes"))


def test_a_job_over_all_tenants_needs_none() -> None:
    """It has an engine without the rule; what its role may see is up to the policies."""
    names = run("job")
    assert names["settings"].require_settings == ("app.tenant_id",)
    try:
        with names["every_tenant"].begin() as connection:
            assert connection.execute(text("SELECT count(*) FROM notes")).scalar_one() == 0
    finally:
        names["every_tenant"].dispose()


def test_the_test(database: Database, lambda_environment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's test passes with its function and its policy, and fails as the superuser, whom no policy binds."""
    (tmp_path / "functions" / "list_notes").mkdir(parents=True)
    (tmp_path / "functions" / "list_notes" / "app.py").write_text(BLOCKS["handler"])
    (tmp_path / "policies.sql").write_text(BLOCKS["policy"])
    monkeypatch.chdir(tmp_path)
    try:
        run("test")["test_each_tenant_sees_its_own_notes"](database, lambda_environment)
        environment = lambda_environment("functions/list_notes", variables=database.variables())
        event = {"requestContext": {"authorizer": {"claims": {"tenant": "1"}}}}
        assert environment.invoke(event).payload == ["ours", "theirs"]
    finally:
        database.execute("DROP OWNED BY notes_app; DROP ROLE notes_app")


def test_the_page_lists_what_may_be_set() -> None:
    """Each of the server's own settings that are allowed, and no other."""
    listed = PAGE.partition("of PostgreSQL's own: ")[2].partition("Values are text")[0]
    assert tuple(sorted(re.findall(r"`(\w+)`", listed))) == LOCAL_SETTINGS
    assert Settings(host="h", user="u", password="p", require_settings=LOCAL_SETTINGS)
