"""
What would pin a transaction pooler, told before it happens.

RDS Proxy ties a client to one database connection, for the rest of the client's life, when a statement leaves state on the
session. It says so afterwards and only as a metric; by then the fleet holds a connection for each environment. The guard
reads each statement before it is sent, as PostgreSQL would read it: a literal, a comment or an identifier that holds the
word SET is no SET.

Source: Aurora User Guide, "Avoiding pinning an RDS Proxy", conditions for PostgreSQL. State that a function of the
database changes is seen neither by the proxy nor here.
"""

from __future__ import annotations

import functools
import logging
import re
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from plungepool.errors import PlungepoolError
from plungepool.pool import caller

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

_log = logging.getLogger("plungepool")

_STATEMENT_LIMIT = 16 * 1024
_MOST_SHAPES = 256


class Reason(NamedTuple):
    """Why a statement pins: `kind` in a word or two, `why` as a sentence, `instead` what to do."""

    kind: str
    why: str
    instead: str


class PinningRefused(PlungepoolError):
    """
    A statement would pin the proxy, and PLUNGEPOOL_PINNING is `refuse`; nothing was sent.

    `shape` is the statement without its literals and comments, `where` the line of the program that executed it.
    """

    def __init__(self, reason: Reason, shape: str, where: str) -> None:
        self.reason, self.shape, self.where = reason, shape, where
        super().__init__(reason, shape, where)

    def __str__(self) -> str:
        return (
            f"{self.reason.kind} would pin the proxy: {self.reason.why}. Instead: {self.reason.instead}. Nothing was sent, "
            f"because PLUNGEPOOL_PINNING=refuse. The statement, executed at {self.where}: {self.shape}"
        )


def pinning_reason(statement: str) -> Reason | None:
    """
    Return why a statement, or one of several in a text, would pin RDS Proxy; None if it would not.

    What was read is remembered for a bounded number of texts. Threads: safe.
    """
    # Characters first: counting bytes is for the few texts that are near the limit.
    if len(statement) * 4 > _STATEMENT_LIMIT and len(statement.encode(errors="replace")) > _STATEMENT_LIMIT:
        return _REASONS["over 16 KB"]
    # Most functions never write any of these words, and so never pay for the patterns.
    lower = statement.lower()
    if not any(hint in lower for hint in _HINTS):
        return None
    return _read(statement)


def guard_pinning(engine: Engine, mode: Literal["warn", "refuse"]) -> None:
    """
    Look at every statement of an engine before it is sent.

    Args: mode: `warn` logs a line for each shape of statement (logger `plungepool`, 256 shapes at most), with the line of the
    program that executed it first; `refuse` raises PinningRefused out of the call that executes the statement.
    Threads: safe.
    """
    from sqlalchemy import event

    warned: dict[str, object] = {}

    def look(
        _connection: object, _cursor: object, statement: str, _parameters: object, context: Any, _executemany: bool
    ) -> None:
        reason = pinning_reason(statement)
        if reason is None and getattr(context, "_is_server_side", False):
            # stream_results and yield_per: the dialect puts the DECLARE before the statement, after this event.
            reason = _REASONS["DECLARE"]
        if reason is None:
            return
        shape = statement_shape(statement)
        if mode == "refuse":
            raise PinningRefused(reason, shape, caller())
        if len(warned) > _MOST_SHAPES:
            return
        # setdefault is atomic: of several threads with one shape, one finds its own object and logs.
        mine = object()
        if warned.setdefault(shape, mine) is not mine:
            return
        if len(warned) > _MOST_SHAPES:
            _log.warning("More than %d shapes of statements pin the proxy; others are not reported.", _MOST_SHAPES)
        else:
            _log.warning(
                "%s pins the proxy: %s. Instead: %s. The statement, executed at %s: %s",
                reason.kind,
                reason.why,
                reason.instead,
                caller(),
                shape,
            )

    event.listen(engine, "before_cursor_execute", look)


def statement_shape(statement: str) -> str:
    """Return a statement without literals and comments, on one line, and cut if it is long: fit for a log."""
    shape = " ".join(_LITERAL_SHAPES.get(piece, piece) for piece in _tokens(statement[:2000]))
    return shape if len(shape) <= 200 else shape[:199] + "…"


# How a statement is read: it is cut into tokens, which are joined again with one blank between any two: a word in lower
# case, a quoted name in its quotes, a sign as itself, 0 for a number and a lone ' for a string. On that text a pattern
# sees only what the parser would see.

_LITERAL_SHAPES = {"'": "?", "0": "?"}

_REASONS = {
    reason.kind: reason
    for reason in (
        Reason(
            "SET",
            "the setting stays on the session",
            "set it on the role (ALTER ROLE ... SET ...) or in the proxy's initialization query; a transaction's isolation "
            "level with BEGIN ISOLATION LEVEL",
        ),
        Reason(
            "SET LOCAL",
            "RDS Proxy's exemption for SET LOCAL is documented for MySQL only",
            "set it on the role (ALTER ROLE ... SET ...) or in the proxy's initialization query",
        ),
        Reason("RESET", "it changes the session's settings", "do not change settings by statements in the first place"),
        Reason(
            "set_config",
            "it is SET as a function, also with is_local",
            "set it on the role (ALTER ROLE ... SET ...), or pass the value as a parameter of the statement",
        ),
        Reason("PREPARE", "the prepared statement stays on the session", "send the statement with parameters"),
        Reason("EXECUTE", "it needs a statement prepared on the session", "send the statement with parameters"),
        Reason("DEALLOCATE", "it changes the session's prepared statements", "prepare none"),
        Reason("DISCARD", "it changes the session", "leave nothing on the session that needs it"),
        Reason(
            "temporary object",
            "it stays on the session, or in its name space",
            "a common table expression (WITH), unnest() of array parameters, or an UNLOGGED table with a key of its own",
        ),
        Reason("LISTEN", "the session would have to stay", "a queue table read with FOR UPDATE SKIP LOCKED, or SQS"),
        Reason("LOAD", "the library stays loaded in the session", "shared_preload_libraries in the parameter group"),
        Reason(
            "DECLARE",
            "a cursor is state of the session (stream_results and yield_per declare one)",
            "read in pages by key: WHERE id > :last ORDER BY id LIMIT :n",
        ),
        Reason(
            "advisory lock",
            "a session's advisory lock outlives the transaction",
            "pg_advisory_xact_lock or pg_try_advisory_xact_lock, which end with the transaction",
        ),
        Reason("nextval", "the session remembers the value", "an identity column, read with RETURNING"),
        Reason(
            "setval",
            "the session remembers the value",
            "ALTER SEQUENCE ... RESTART, in a migration over the direct endpoint",
        ),
        Reason(
            "over 16 KB",
            "RDS Proxy pins for every statement of more than 16 KB of text",
            "arrays as parameters (unnest), smaller batches (insertmanyvalues_page_size), COPY",
        ),
    )
}

_LEADING = {
    "set": "SET",
    "set local": "SET LOCAL",
    "unlisten": "LISTEN",
    **{
        kind.lower(): kind
        for kind in ("RESET", "PREPARE", "EXECUTE", "DEALLOCATE", "DISCARD", "LISTEN", "LOAD", "DECLARE")
    },
}

# One of these is a part of everything that pins.
_HINTS = (
    "set",
    "listen",
    "temp",
    "nextval",
    "advisory",
    "prepare",
    "execute",
    "deallocate",
    "discard",
    "load",
    "declare",
)


class _Patterns:
    """Compiled when a statement needs them: an import must not pay for it, nor a function with a direct endpoint."""

    def __init__(self) -> None:
        # Letters are all that is no other ASCII character: PostgreSQL takes every character above for a letter. Written
        # the other way round, with a range up to U+10FFFF, compiling takes ten times as long.
        letter = r"[^\x00-@\[-^`{-\x7f]"
        word = letter + r"[^\x00-#%-/:-@\[-^`{-\x7f]*+"
        tag = rf"(?:{letter}[^\x00-/:-@\[-^`{{-\x7f]*+)?"
        # A string that goes on after a line's end is one string; it matters where a backslash escapes.
        next_line = r"(?:(?:[ \t\f\v]|--[^\r\n]*+)*+[\r\n](?:[ \t\f\v\r\n]|--[^\r\n]*+)*+')"
        self.token = re.compile(
            rf"""
            (?P<blank> [ \t\r\n\f\v]++ | --[^\r\n]*+ )
            | (?P<comment> /\* )
            | (?P<string>
                [eE]' (?: [^'\\]++ | \\. | '' | '{next_line} )*+ '?+
                | ' (?: [^']++ | '' )*+ '?+
                | \$(?P<tag>{tag})\$ .*? (?: \$(?P=tag)\$ | \Z )
              )
            | " (?P<name> (?: [^"]++ | "" )*+ ) "?+
            | (?P<word> {word} )
            | (?P<number> (?: \$ | [0-9] ) [A-Za-z0-9_.]*+ )
            | (?P<sign> . )
            """,
            re.VERBOSE | re.DOTALL,
        )
        self.comment = re.compile(r"/\*|\*/")
        self.plain = re.compile(r"[a-z_][a-z0-9_]*+")
        self.explain = re.compile(
            r" explain(?: analyze| verbose)*+(?: \( (?!\(|select |values |with |table )[^)]*+\))?+(?= )"
        )
        self.leading = re.compile(rf" ({'|'.join(sorted(_LEADING, reverse=True))}) ")
        self.creating = re.compile(r" create ")
        self.temporary = re.compile(r" create(?: or| replace| local| global)*+ temp(?:orary)? ")
        self.defining = re.compile(r" create(?: or| replace| local| global)*+ (?:function|procedure) ")
        self.in_schema = re.compile(r' (?:pg_temp|"pg_temp") \. ')
        self.inside = re.compile(
            # SELECT INTO: TEMP is a word that a table of INSERT INTO may have for a name, and SELECT INTO's as well.
            r"(?<! insert)(?<! merge) into(?: local| global)?+ (?:"
            r'(?P<into_schema>(?:pg_temp|"pg_temp") \. )|'
            r"(?P<into>temp(?:orary)? (?!(?:except|fetch|for|from|group|having|intersect|limit|offset|order|union|values|where"
            rf'|window) )(?:"|{letter})))'
            # A call of the server's own function. After these words, or in another schema, the name is somebody else's.
            r"|(?<! aggregate)(?<! as)(?<! copy)(?<! exists)(?<! function)(?<! into)(?<! only)(?<! procedure)(?<! recursive)"
            r"(?<! references)(?<! routine)(?<! table)(?<! with)(?:(?<! \.)|(?<= pg_catalog \.)|(?<= \"pg_catalog\" \.))"
            r' (?:(?P<call>nextval|setval|set_config)|(?P<quoted>"(?:nextval|setval|set_config)")'
            r'|(?P<lock>(?P<quote>"?)pg_(?:try_advisory_lock|advisory_(?:un)?lock)(?:_shared)?(?P=quote)'
            r'|pg_advisory_unlock_all|"pg_advisory_unlock_all")) (?=\( )'
        )
        self.execute = re.compile(r" as (?=execute )")


@functools.lru_cache(maxsize=1)
def _patterns() -> _Patterns:
    return _Patterns()


def _tokens(statement: str) -> Iterator[str]:
    patterns = _patterns()
    at = 0
    while match := patterns.token.match(statement, at):
        at = match.end()
        what = match.lastgroup
        if what == "comment":
            depth = 1
            while depth and (edge := patterns.comment.search(statement, at)):
                depth += 1 if edge.group() == "/*" else -1
                at = edge.end()
            if depth:
                return
        elif what == "word":
            # Only ASCII is folded: str.lower makes a k of the Kelvin sign.
            word = match.group()
            yield word.lower() if word.isascii() else word
        elif what == "name":
            name = match["name"]
            yield f'"{name}"' if patterns.plain.fullmatch(name) else '"?"'
        elif what == "number":
            yield "0"
        elif what == "sign":
            yield match.group()
        elif what != "blank":
            yield "'"


def _statements(text: str) -> Iterator[str]:
    """Yield each statement with a blank before, between and after its tokens."""
    statement: list[str] = []
    depth = body = 0
    before = ""
    for piece in _tokens(text):
        if piece == ";" and depth <= 0 and not body:
            if statement:
                yield f" {' '.join(statement)} "
            statement, depth = [], 0
        else:
            statement.append(piece)
            depth += (piece == "(") - (piece == ")")
            # BEGIN ATOMIC ... END: the body of a function in SQL holds statements of its own.
            if piece == "atomic" and before == "begin" and statement[0] == "create":
                body += 1
            elif body:
                body += (piece == "case") - (piece == "end")
        before = piece
    if statement:
        yield f" {' '.join(statement)} "


@functools.lru_cache(maxsize=512)
def _read(text: str) -> Reason | None:
    for statement in _statements(text):
        kind = _kind(statement)
        if kind is not None:
            return _REASONS[kind]
    return None


def _kind(statement: str) -> str | None:
    patterns = _patterns()
    explained = patterns.explain.match(statement)
    if explained is not None:
        statement = statement[explained.end() :]
    leading = patterns.leading.match(statement)
    if leading is not None:
        return _LEADING[leading[1]]
    found = [patterns.inside.search(statement)]
    if patterns.creating.match(statement):
        if patterns.temporary.match(statement):
            return "temporary object"
        in_schema = patterns.in_schema.search(statement)
        if patterns.defining.match(statement):
            return "temporary object" if in_schema else None
        found += [in_schema, patterns.execute.search(statement)]
    first = min((match for match in found if match is not None), key=lambda match: match.start(), default=None)
    if first is None:
        return None
    if first.re is patterns.execute:
        return "EXECUTE"
    if first.re is patterns.in_schema or first["into"] or first["into_schema"]:
        return "temporary object"
    if first["lock"]:
        return "advisory lock"
    return (first["call"] or first["quoted"]).strip('"')
