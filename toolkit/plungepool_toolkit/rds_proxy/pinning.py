"""
What pins a client of RDS Proxy, read character by character.

`plungepool.pinning` reads the same language by patterns; the tests hold the one against the other, so this must not be
made out of that.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

_LEADING = {
    "set": "SET", "reset": "RESET", "prepare": "PREPARE", "execute": "EXECUTE", "deallocate": "DEALLOCATE",
    "discard": "DISCARD", "listen": "LISTEN", "unlisten": "LISTEN", "load": "LOAD", "declare": "DECLARE",
}  # fmt: skip
_CALLS = {
    "nextval": "nextval", "setval": "setval", "set_config": "set_config",
    "pg_advisory_lock": "advisory lock", "pg_advisory_lock_shared": "advisory lock",
    "pg_try_advisory_lock": "advisory lock", "pg_try_advisory_lock_shared": "advisory lock",
    "pg_advisory_unlock": "advisory lock", "pg_advisory_unlock_shared": "advisory lock",
    "pg_advisory_unlock_all": "advisory lock",
}  # fmt: skip
# After one of these words a name followed by a parenthesis is being defined or filled, not called.
_NAMING = {
    "aggregate", "as", "copy", "exists", "function", "into", "only", "procedure", "recursive", "references", "routine",
    "table", "with",
}  # fmt: skip
_AFTER_INTO = {
    "except", "fetch", "for", "from", "group", "having", "intersect", "limit", "offset", "order", "union", "values",
    "where", "window",
}  # fmt: skip


class _Token(NamedTuple):
    kind: Literal["word", "name", "sign", "string"]
    text: str


def _tokens(sql: str) -> Iterator[_Token]:
    """Yield words in lower case, names with their opening quote, signs, and nothing of what a string holds."""
    at, end = 0, len(sql)
    while at < end:
        char = sql[at]
        following = sql[at + 1 : at + 2]
        if char in " \t\n\r\f\v":
            at += 1
        elif char == "-" and following == "-":
            while at < end and sql[at] not in "\r\n":
                at += 1
        elif char == "/" and following == "*":
            at = _after_comment(sql, at)
        elif char == "'":
            at = _after_quoted(sql, at, backslash=False)
            yield _Token("string", "")
        elif char == '"':
            past = _after_quoted(sql, at, backslash=False)
            yield _Token("name", '"' + sql[at + 1 : past - 1].replace('""', '"'))
            at = past
        elif char in "eE" and following == "'":
            at = _after_escaped(sql, at + 1)
            yield _Token("string", "")
        elif _starts_word(char):
            past = at + 1
            while past < end and (_starts_word(sql[past]) or sql[past].isdigit() or sql[past] == "$"):
                past += 1
            word = sql[at:past]
            # PostgreSQL folds ASCII here; str.lower would make an ASCII letter of U+212A.
            yield _Token("word", word.lower() if word.isascii() else word)
            at = past
        elif char == "$" and (closing := _after_dollars(sql, at)):
            yield _Token("string", "")
            at = closing
        elif char.isdigit() or char == "$":
            at += 1
            while at < end and sql[at].isascii() and (sql[at].isalnum() or sql[at] in "._"):
                at += 1
            yield _Token("sign", "0")
        else:
            yield _Token("sign", char)
            at += 1


def _starts_word(char: str) -> bool:
    return char == "_" or char > "\x7f" or char.isalpha()


def _after_comment(sql: str, at: int) -> int:
    depth = 0
    while at < len(sql):
        pair = sql[at : at + 2]
        if pair == "/*":
            depth += 1
            at += 2
        elif pair == "*/":
            depth -= 1
            at += 2
            if not depth:
                return at
        else:
            at += 1
    return at


def _after_quoted(sql: str, at: int, *, backslash: bool) -> int:
    quoting = sql[at]
    at += 1
    while at < len(sql):
        if backslash and sql[at] == "\\":
            at += 2
        elif sql[at] != quoting:
            at += 1
        elif sql[at + 1 : at + 2] == quoting:
            at += 2
        else:
            return at + 1
    return len(sql)


def _after_escaped(sql: str, at: int) -> int:
    """Return where an E'' string ends that opens at `at`: a string that follows on a new line is a part of it."""
    while True:
        at = past = _after_quoted(sql, at, backslash=True)
        line = False
        while past < len(sql):
            if sql[past] in " \t\f\v":
                past += 1
            elif sql[past] in "\r\n":
                line = True
                past += 1
            elif sql[past : past + 2] == "--":
                while past < len(sql) and sql[past] not in "\r\n":
                    past += 1
            else:
                break
        if not line or sql[past : past + 1] != "'":
            return at
        at = past


def _after_dollars(sql: str, at: int) -> int | None:
    past = at + 1
    while past < len(sql) and (_starts_word(sql[past]) or (past > at + 1 and sql[past].isdigit())):
        past += 1
    if sql[past : past + 1] != "$":
        return None
    tag = sql[at : past + 1]
    closing = sql.find(tag, past + 1)
    return len(sql) if closing < 0 else closing + len(tag)


@lru_cache(maxsize=2048)
def why_pinned(sql: str) -> str | None:
    """
    Return the first reason in a query's text, several statements perhaps, to pin its client; None if there is none.
    """
    return next((why for statement in _split(sql) if (why := _why(statement)) is not None), None)


def _split(sql: str) -> Iterator[list[_Token]]:
    """Yield the tokens of each statement: no semicolon in parentheses or in BEGIN ATOMIC ... END ends one."""
    statement: list[_Token] = []
    depth = atomic = 0
    for token in _tokens(sql):
        if token == ("sign", ";") and depth <= 0 and not atomic:
            yield statement
            statement, depth = [], 0
            continue
        statement.append(token)
        text = token.text
        depth += (text == "(") - (text == ")")
        if text == "atomic" and statement[0].text == "create" and statement[-2].text == "begin":
            atomic += 1
        elif atomic:
            atomic += (text == "case") - (text == "end")
    yield statement


def _why(statement: list[_Token]) -> str | None:
    texts = [token.text for token in statement] + [""] * 4
    at = 0
    if texts[0] == "explain":
        at = _after_explain(texts)
    if texts[at] in _LEADING:
        return "SET LOCAL" if texts[at : at + 2] == ["set", "local"] else _LEADING[texts[at]]
    creating = texts[at] == "create"
    defining = False
    if creating:
        kind = at + 1
        while texts[kind] in ("or", "replace", "local", "global"):
            kind += 1
        if texts[kind] in ("temp", "temporary"):
            return "temporary object"
        defining = texts[kind] in ("function", "procedure")
    for place in range(at, len(statement)):
        text, after = texts[place], texts[place + 1]
        before = texts[place - 1] if place else ""
        if creating and text in ("pg_temp", '"pg_temp') and after == ".":
            return "temporary object"
        if defining:
            continue  # its body does not run now
        if creating and (before, text) == ("as", "execute"):
            return "EXECUTE"
        if text == "into" and before not in ("insert", "merge") and _names_temporary(statement, texts, place + 1):
            return "temporary object"
        if after == "(" and (call := _CALLS.get(text.removeprefix('"'))) is not None:
            catalog = place > 1 and texts[place - 2] in ("pg_catalog", '"pg_catalog')
            if catalog if before == "." else before not in _NAMING:
                return call
    return None


def _after_explain(texts: list[str]) -> int:
    at = 1
    while texts[at] in ("analyze", "verbose"):
        at += 1
    # Options in parentheses; a query may stand in parentheses, too.
    if texts[at] == "(" and texts[at + 1] not in ("(", "select", "values", "with", "table") and ")" in texts[at:]:
        at = texts.index(")", at) + 1
    return at


def _names_temporary(statement: list[_Token], texts: list[str], at: int) -> bool:
    """Tell whether what follows INTO is a temporary table: TEMP may also be the name of an ordinary one."""
    if texts[at] in ("local", "global"):
        at += 1
    if texts[at] in ("pg_temp", '"pg_temp') and texts[at + 1] == ".":
        return True
    if texts[at] not in ("temp", "temporary") or at + 1 >= len(statement):
        return False
    following = statement[at + 1]
    return following.kind == "name" or (following.kind == "word" and following.text not in _AFTER_INTO)
