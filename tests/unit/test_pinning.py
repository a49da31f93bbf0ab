"""What the pinning guard says of a statement, held against the stand-in's own reading of the same language."""

from __future__ import annotations

import logging
import pickle
import re
import threading
from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from plungepool.errors import PinningRefused, PlungepoolError
from plungepool.pinning import CONDITIONS, Condition, Reader, Reason, guard_pinning, pinning_reason
from plungepool.statements import shape as statement_shape
from plungepool_toolkit.rds_proxy import why_pinned

PINNING = {
    "SET search_path = x": "SET",
    "set session characteristics as transaction read only": "SET",
    "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE": "SET",
    "BEGIN; SET x.y = 1; COMMIT": "SET",
    "SET LOCAL statement_timeout = '1s'": "SET LOCAL",
    "set/* */local x.y = 1": "SET LOCAL",
    "RESET ALL": "RESET",
    "PREPARE p AS SELECT 1": "PREPARE",
    "PREPARE TRANSACTION 'x'": "PREPARE",
    "EXECUTE p": "EXECUTE",
    "EXPLAIN ANALYZE EXECUTE p": "EXECUTE",
    "EXPLAIN (ANALYZE, BUFFERS) EXECUTE p(1)": "EXECUTE",
    "CREATE TABLE t AS EXECUTE p": "EXECUTE",
    "DEALLOCATE ALL": "DEALLOCATE",
    "DISCARD ALL": "DISCARD",
    "LISTEN jobs": "LISTEN",
    "UNLISTEN *": "LISTEN",
    "LOAD 'auto_explain'": "LOAD",
    "DECLARE c CURSOR FOR SELECT 1": "DECLARE",
    "CREATE TEMP TABLE t (a int)": "temporary object",
    "CREATE LOCAL TEMPORARY TABLE t (a int) ON COMMIT DROP": "temporary object",
    "create temp sequence s": "temporary object",
    "CREATE OR REPLACE TEMP VIEW v AS SELECT 1": "temporary object",
    "CREATE TABLE pg_temp.t (a int)": "temporary object",
    'CREATE TABLE "pg_temp".t (a int)': "temporary object",
    "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql RETURN 1": "temporary object",
    "SELECT 1 INTO TEMP t": "temporary object",
    "SELECT a INTO LOCAL TEMPORARY TABLE t FROM u": "temporary object",
    'SELECT a INTO TEMP "T" FROM u': "temporary object",
    "SELECT a INTO pg_temp.t FROM u": "temporary object",
    "SELECT pg_advisory_lock(1)": "advisory lock",
    "SELECT pg_catalog . pg_try_advisory_lock_shared (1, 2)": "advisory lock",
    "SELECT pg_advisory_unlock_all()": "advisory lock",
    "INSERT INTO t VALUES (nextval('s'))": "nextval",
    "SELECT \"nextval\"('s')": "nextval",
    "SELECT 1 + /* ( */ NEXTVAL -- now\n ('s')": "nextval",
    "EXPLAIN ANALYZE (SELECT nextval('s'))": "nextval",
    "SELECT * FROM t JOIN u ON nextval('s') = u.id": "nextval",
    "SELECT setval('s', 1)": "setval",
    "SELECT set_config('x.y', $1, true)": "set_config",
    "SELECT '\\'; SET x = 1": "SET",
    "SELECT $a$ $b$ $a$; RESET ALL": "RESET",
    "SELECT a$b$ ; SET x = 1 --$b$": "SET",
    "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; SELECT 2; END; LISTEN x": "LISTEN",
}

HARMLESS = [
    "",
    " ; -- nothing\n;",
    "SELECT 1",
    "UPDATE t SET a = 1, b = 2 WHERE c = 3",
    "INSERT INTO t (a) VALUES ($1) ON CONFLICT (a) DO UPDATE SET a = excluded.a RETURNING id",
    "MERGE INTO temp t USING u ON t.a = u.a WHEN MATCHED THEN UPDATE SET a = 1",
    "SELECT 'SET x = 1; RESET ALL'",
    "SELECT E'\\'; SET x = 1; --'",
    "SELECT E'a'\n  -- more\n  'b\\'; SET x = 1'",
    "SELECT $$ ; SET x = 1 $$",
    "SELECT $tag$ $$ ; LISTEN x; $$ $tag$",
    "SELECT 1 -- ; SET x = 1",
    "SELECT 1 /* ; /* nested */ ; SET x = 1; */",
    'SELECT "set", "nextval" FROM "declare"',
    "SELECT a AS listen, b.discard, load FROM t b",
    "SELECT nextval FROM t",
    "SELECT app.nextval('s'), my_nextval('s'), nextval_of('s')",
    "INSERT INTO nextval (a) VALUES (1)",
    "CREATE TABLE IF NOT EXISTS nextval (a int)",
    "WITH nextval (a) AS (SELECT 1) SELECT a FROM nextval",
    "INSERT INTO temp (a) VALUES (1)",
    "SELECT a INTO temp FROM t",
    "SELECT pg_advisory_xact_lock(1), pg_try_advisory_xact_lock_shared(2)",
    "NOTIFY jobs, 'LISTEN'",
    "SHOW search_path",
    "BEGIN ISOLATION LEVEL SERIALIZABLE, READ ONLY",
    "COMMIT; BEGIN",
    "SAVEPOINT listen; RELEASE listen; ROLLBACK TO SAVEPOINT load",
    "ALTER ROLE app SET statement_timeout = '5s'",
    "ALTER TABLE t ALTER COLUMN a SET NOT NULL",
    "CREATE TRIGGER r AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION f()",
    "CREATE FUNCTION f() RETURNS bigint BEGIN ATOMIC SELECT nextval('s'); END",
    "CREATE RULE r AS ON INSERT TO t DO ALSO (NOTIFY x; DELETE FROM u)",
    "CREATE TABLE temporary (a int)",
    "SELECT $1::int, $2 FROM t WHERE a @> $3 AND b -> 'set' = $4",
    "SELECT 1 FROM t WHERE \u212aeep = 1 AND \u017fet = 2",
]


@pytest.mark.parametrize("statement", PINNING)
def test_what_pins_is_told_with_its_kind(statement: str) -> None:
    """Each documented condition is recognised, however it is written."""
    reason = pinning_reason(statement)
    assert reason is not None
    assert reason.kind == PINNING[statement]
    assert reason.why
    assert reason.instead


@pytest.mark.parametrize("statement", HARMLESS)
def test_what_does_not_pin_is_let_through(statement: str) -> None:
    """A word that pins is harmless where it is no command and no call."""
    assert pinning_reason(statement) is None


@pytest.mark.parametrize("statement", [*PINNING, *HARMLESS])
def test_the_stand_in_reads_the_same(statement: str) -> None:
    """The stand-in's reader was written apart from the guard's; both give one answer."""
    assert why_pinned(statement) == PINNING.get(statement)


@pytest.mark.parametrize(("length", "kind"), [(16 * 1024, None), (16 * 1024 + 1, "over 16 KB")])
@pytest.mark.parametrize("char", ["x", "é"])
def test_sixteen_kilobytes_are_the_limit(length: int, kind: str | None, char: str) -> None:
    """The text counts in bytes, and exactly 16 KB do not pin."""
    inside = length - len("SELECT ''")
    statement = "SELECT '" + char * (inside // len(char.encode())) + "x" * (inside % len(char.encode())) + "'"
    assert len(statement.encode()) == length
    reason = pinning_reason(statement)
    assert (reason and reason.kind) == kind


TO_NOTIFY = Reason("NOTIFY", "somebody may listen", "SQS")


@pytest.mark.parametrize(
    ("condition", "pins", "does_not"),
    [
        (Condition(TO_NOTIFY, begins=("notify", "call notify")), "EXPLAIN CALL notify(1)", "CALL f('notify')"),
        (Condition(TO_NOTIFY, calls=("pg_notify",)), "SELECT pg_catalog.pg_notify('a', 'b')", "SELECT app.pg_notify()"),
        (
            Condition(TO_NOTIFY, holds=(r"^.*? do notify ",), hints=("notify",)),
            "CREATE RULE r AS ON UPDATE TO t DO NOTIFY x",
            "SELECT ' do notify '",
        ),
        (Condition(TO_NOTIFY, longer_than_bytes=20), "SELECT 'é' || 'é' || 1", "SELECT 'e' || 'e'"),
    ],
    ids=["begins", "calls", "holds", "longer"],
)
def test_a_new_reason_is_one_entry(condition: Condition, pins: str, does_not: str) -> None:
    """Whichever way a new condition is recognised, an entry is all that it takes; the others go on as before."""
    assert pinning_reason(pins) is pinning_reason(does_not) is None
    reader = Reader([*CONDITIONS, condition])
    assert reader.reason(pins) == TO_NOTIFY
    assert reader.reason(does_not) is None
    limit = condition.longer_than_bytes or 1000
    told = {statement: reader.reason(statement) for statement in PINNING if len(statement.encode()) <= limit}
    assert {statement: reason and reason.kind for statement, reason in told.items()} == {
        statement: PINNING[statement] for statement in told
    }


def test_every_entry_is_recognised_by_something() -> None:
    """No two entries are of one kind, each is tested here, and what is searched for has its hints."""
    kinds = [condition.reason.kind for condition in CONDITIONS if condition.option is None]
    assert [condition.option for condition in CONDITIONS if condition.option] == ["plungepool_settings"]
    assert sorted({*PINNING.values(), "over 16 KB"}) == sorted(kinds)
    assert [condition.reason.kind for condition in CONDITIONS if condition.holds and not condition.hints] == []


WORDS = st.sampled_from(
    [
        "set",
        "local",
        "reset",
        "prepare",
        "execute",
        "deallocate",
        "discard",
        "listen",
        "unlisten",
        "load",
        "declare",
        "create",
        "temp",
        "temporary",
        "table",
        "into",
        "nextval",
        "setval",
        "set_config",
        "pg_advisory_lock",
        "pg_try_advisory_lock",
        "pg_temp",
        "explain",
        "analyze",
        "select",
        "insert",
        "update",
        "begin",
        "atomic",
        "end",
        "case",
        "function",
        "as",
        "or",
        "replace",
        "from",
        "view",
        "sequence",
    ]
)
COMMAND = st.lists(WORDS, min_size=1, max_size=4).map(" ".join) | st.sampled_from(list(PINNING))
SPACE = st.sampled_from([" ", "\n", "\t", "\f", "\v", "\r\n", " -- a\n", "/**/", "/* set /* reset */ ; */", " --'\n"])


def quoted(opening: str, closing: str, inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Put a text between quotes that it cannot leave."""
    return inner.map(lambda body: opening + body + closing)


def doubled(quote: str) -> st.SearchStrategy[str]:
    return COMMAND.map(lambda body: body.replace(quote, quote * 2).replace("\\", ""))


HIDDEN = st.one_of(
    quoted("'; ", "'", doubled("'")),
    quoted("' ", "\\'", doubled("'")),  # a backslash at the end of a standard string escapes nothing
    quoted("E'\\'; ", "\\\\'", doubled("'")),
    quoted("e'a\\\\'\n '\\';", "'", doubled("'")),
    quoted("$$; ", ";$$", COMMAND.map(lambda body: body.replace("$", ""))),
    quoted("$q1$; $$ ", "$Q1$ ;$q1$", COMMAND.map(lambda body: body.replace("$q1$", ""))),
    quoted('"', '"', doubled('"')),
    quoted(".a_", "", WORDS),
    quoted(" AS x", "", WORDS),
    quoted("-- ; ", "\n", COMMAND.map(lambda body: body.replace("\n", " "))),
    quoted("/* ; ", " /* ' */ */", COMMAND.map(lambda body: body.replace("*/", "").replace("/*", ""))),
)


@given(st.lists(HIDDEN, min_size=1, max_size=4), SPACE)
@settings(deadline=None)
def test_a_hidden_word_is_never_taken_for_a_command(hidden: list[str], space: str) -> None:
    """Literals, comments and identifiers may hold whatever they like."""
    statement = f"SELECT{space}a.b{space}" + f"{space},{space}a.b{space}".join(hidden)
    assert pinning_reason(statement) is None
    assert why_pinned(statement) is None


@given(
    st.lists(HIDDEN, max_size=2),
    st.sampled_from(list(PINNING)),
    st.randoms(use_true_random=False),
    SPACE,
)
@settings(deadline=None)
def test_a_real_one_is_always_found(before: list[str], command: str, random: object, space: str) -> None:
    """Whatever stands before it, and however its blanks and letters are written."""
    if "'" not in command and "$" not in command and '"' not in command and "--" not in command:
        command = "".join(random.choice((str.upper, str.lower))(char) for char in command)  # type: ignore[attr-defined]
        command = command.replace(" ", space)
    statement = "SELECT a.b " + ", a.b ".join(before) + space + ";" + space + command
    reason = pinning_reason(statement)
    assert reason is not None
    assert reason.kind == why_pinned(statement)


FRAGMENTS = st.one_of(
    WORDS,
    WORDS.map(str.upper),
    SPACE,
    HIDDEN,
    st.sampled_from(
        [";", "(", ")", ".", ",", "'", '"', "$", "$$", "$1", "E'", "\\", "1e5", "pg_catalog.", "é", "*/", "/*", "-"]
    ),
)


@given(st.lists(FRAGMENTS, max_size=14), st.sampled_from(["", " "]))
@settings(deadline=None, max_examples=300)
@example(["explain", "(", "set", ")", "execute"], " ")
@example(["create", "function", "begin", "atomic", ";", "case", "end", ";", "end", ";", "set"], " ")
@example(["select", "into", "pg_temp", "."], " ")
def test_both_readers_agree_on_any_text(fragments: list[str], separator: str) -> None:
    """Two readers that share no code give one answer for whatever is no SQL at all, too."""
    statement = separator.join(fragments)
    reason = pinning_reason(statement)
    assert (reason and reason.kind) == why_pinned(statement)


def test_a_shape_holds_no_literal() -> None:
    """What goes to a log or an error is the statement's form: no value, no comment."""
    shape = statement_shape("SET app.token = 'hush' /* hush */ , x = 4711 , y = E'hu\\'sh', z = $$hush$$ -- hush")
    assert shape == "set app . token = ? , x = ? , y = ? , z = ?"


def test_a_long_shape_is_cut() -> None:
    """A log line stays a line, and nothing of a literal that was cut in two comes through."""
    shape = statement_shape("CREATE TEMP TABLE t AS SELECT " + ", ".join(f"a{i}" for i in range(500)) + ", 'hush'")
    assert len(shape) == 200
    assert shape.endswith("…")
    assert "hush" not in statement_shape("SELECT " + "1," * 990 + "'" + "hush" * 1000)


def test_refusing_raises_before_anything_is_sent() -> None:
    """The statement does not reach the database, and the error says what to do instead, without a value."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    guard_pinning(engine, "refuse")
    with engine.connect() as connection:
        with pytest.raises(PinningRefused) as refused:
            connection.execute(text("CREATE TEMP TABLE t AS SELECT 'hush' AS a, :b AS b"), {"b": "hush"})
        assert connection.execute(text("SELECT count(*) FROM sqlite_temp_master")).scalar_one() == 0
    assert isinstance(refused.value, PlungepoolError)
    assert refused.value.reason.kind == "temporary object"
    assert "PLUNGEPOOL_PINNING=refuse" in str(refused.value)
    assert refused.value.reason.instead in str(refused.value)
    assert "hush" not in str(refused.value) + repr(refused.value)
    copy = pickle.loads(pickle.dumps(refused.value))
    assert (copy.reason, copy.shape, str(copy)) == (refused.value.reason, refused.value.shape, str(refused.value))
    engine.dispose()


def test_warning_is_one_line_for_each_shape(caplog: pytest.LogCaptureFixture) -> None:
    """Values change, the shape does not: one line; another shape has a line of its own, and the statement runs."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    guard_pinning(engine, "warn")
    with caplog.at_level(logging.WARNING, logger="plungepool"), engine.begin() as connection:
        for number in range(5):
            connection.execute(text(f"CREATE TEMP TABLE IF NOT EXISTS t AS SELECT {number}, 'hush{number}' AS hush"))
        connection.execute(text("CREATE TEMP TABLE u (a int)"))
        connection.execute(text("SELECT 1"))
        assert connection.execute(text("SELECT count(*) FROM sqlite_temp_master")).scalar_one() == 2
    assert [record.name for record in caplog.records] == ["plungepool", "plungepool"]
    assert "temporary object" in caplog.text
    assert "hush0" not in caplog.text
    engine.dispose()


def test_what_an_option_sends_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """Beside what the statements do themselves; or it is refused, each time; an empty one is none."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    guard_pinning(engine, "warn")
    options = {"plungepool_settings": {"app.tenant_id": "hush"}}
    with caplog.at_level(logging.WARNING, logger="plungepool"), engine.connect() as connection:
        connection.execution_options(**options)
        for statement in ("SELECT 1", "SELECT 2, 3", "CREATE TEMP TABLE t (a int)"):
            connection.execute(text(statement))
    assert [record.getMessage().partition(" pins ")[0] for record in caplog.records] == [
        "plungepool_settings",
        "temporary object",
    ]
    assert "hush" not in caplog.text
    engine.dispose()
    engine = create_engine("sqlite://", poolclass=StaticPool)
    guard_pinning(engine, "refuse")
    with engine.connect() as connection:
        connection.execution_options(plungepool_settings={}).execute(text("SELECT 1"))
        connection.execution_options(**options)
        for _ in range(2):
            with pytest.raises(PinningRefused, match="plungepool_settings"):
                connection.execute(text("SELECT 1"))
    engine.dispose()


def test_warning_names_the_line_of_the_program(caplog: pytest.LogCaptureFixture) -> None:
    """Whichever way a statement went through SQLAlchemy, the line that is named is the program's own."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    guard_pinning(engine, "warn")
    with caplog.at_level(logging.WARNING, logger="plungepool"):
        with engine.begin() as connection, suppress(OperationalError):
            connection.execute(text("SET a = 1"))
        with Session(engine) as session, suppress(OperationalError):
            session.execute(text("SET b = 1"))
    lines = [record.getMessage() for record in caplog.records]
    first = test_warning_names_the_line_of_the_program.__code__.co_firstlineno
    found = [
        re.search(rf"executed at {re.escape(__file__)}:(\d+) in test_warning_names_the_line", line) for line in lines
    ]
    assert [int(match[1]) - first for match in found if match is not None] == [6, 8]
    engine.dispose()


def test_warning_takes_bounded_memory(caplog: pytest.LogCaptureFixture) -> None:
    """A function that makes its statements' shapes up is told so once, and no more is kept."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    guard_pinning(engine, "warn")
    with caplog.at_level(logging.WARNING, logger="plungepool"), engine.begin() as connection:
        for number in range(300):
            connection.execute(text(f"CREATE TEMP TABLE t{number} (a int)"))
    assert len(caplog.records) == 257
    assert "further ones are not reported" in caplog.records[-1].getMessage()
    engine.dispose()


def test_threads_warn_once(caplog: pytest.LogCaptureFixture) -> None:
    """Threads that meet the same statement at one moment leave one line."""
    start = threading.Barrier(8)
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    listeners: list[object] = []
    guard_pinning(engine, "warn")
    listeners.extend(engine.dispatch.before_cursor_execute)

    def meet() -> None:
        start.wait()
        listeners[0](None, None, "CREATE TEMP TABLE t (a int)", (), None, False)  # type: ignore[operator]

    threads = [threading.Thread(target=meet) for _ in range(8)]
    with caplog.at_level(logging.WARNING, logger="plungepool"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(caplog.records) == 1
    engine.dispose()
