"""
SQL as the server reads it: what is a word, what is a literal, where a statement ends, and its shape without literals.

Pure. A text is cut into *tokens*: a word in lower case, a quoted name in its quotes, a sign as itself, 0 for a number
or a parameter, a lone ' for a string; comments and blanks are none. Joined with one blank between any two, they are a
text on which a pattern sees only what the parser would see.

Source: PostgreSQL manual, "Lexical Structure".
"""

from __future__ import annotations

import functools
import hashlib
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_LITERALS = {"'": "?", "0": "?"}
#: of so much of a text its shape is made
SHAPE_OF = 2000
_LONGEST_SHAPE = 200
_FINGERPRINT_OF = 20000
# Signs that the tokens of an operator come apart into.
_OPERATORS = ("<>", "<=", ">=", "!=", "::", "||", "->", "@>", "<@")

# Letters are all that is no other ASCII character: PostgreSQL takes every character above for a letter. Written the
# other way round, with a range up to U+10FFFF, compiling takes ten times as long.
LETTER = r"[^\x00-@\[-^`{-\x7f]"


def shape(text: str, *, escapes: bool = False) -> str:
    """
    Return a text of SQL without literals and comments, on one line, and cut if it is long: fit for a log.

    Args: escapes: as in `tokens`.
    """
    whole = " ".join(_LITERALS.get(token, token) for token in tokens(text[:SHAPE_OF], escapes=escapes))
    for operator in _OPERATORS:
        whole = whole.replace(f" {operator[0]} {operator[1]} ", f" {operator} ")
    return whole if len(whole) <= _LONGEST_SHAPE else whole[: _LONGEST_SHAPE - 1] + "…"


def fingerprint(text: str, *, escapes: bool = False) -> str:
    """
    Return twelve hexadecimal digits that are the same for the same statement with other values, and with more or fewer
    of them in a list or in rows to insert.

    Of a text longer than 20,000 characters the beginning counts.

    Args: escapes: as in `tokens`.
    """
    whole = " ".join(_LITERALS.get(token, token) for token in tokens(text[:_FINGERPRINT_OF], escapes=escapes))
    whole = re.sub(r"\? (?:, \? )+", "? ", f"{whole} ")
    whole = re.sub(r"(\([^()]* \)) (?:, \1 )+", r"\1 ", whole)
    return hashlib.blake2s(whole.encode(), digest_size=6).hexdigest()


def without_cursor(text: str) -> str:
    """Return the statement within a DECLARE CURSOR; another as it is."""
    return _patterns().cursor.sub("", text, count=1)


def split(text: str) -> Iterator[str]:
    """Yield each statement of a text: its tokens, with a blank before, between and after them."""
    statement: list[str] = []
    depth = body = 0
    before = ""
    for piece in tokens(text):
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


def tokens(text: str, *, escapes: bool = False) -> Iterator[str]:
    """
    Yield the tokens of a text; what is open at its end, a string or a comment, goes to the end.

    Args: escapes: a backslash escapes in each string, as where standard_conforming_strings is off.
    """
    patterns = _patterns(escapes)
    at = 0
    while match := patterns.token.match(text, at):
        at = match.end()
        what = match.lastgroup
        if what == "comment":
            depth = 1
            while depth and (edge := patterns.comment.search(text, at)):
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


class _Patterns:
    """Compiled when a text is read: an import must not pay for it."""

    def __init__(self, escapes: bool) -> None:
        word = LETTER + r"[^\x00-#%-/:-@\[-^`{-\x7f]*+"
        tag = rf"(?:{LETTER}[^\x00-/:-@\[-^`{{-\x7f]*+)?"
        # A string that goes on after a line's end is one string; it matters where a backslash escapes.
        next_line = r"(?:(?:[ \t\f\v]|--[^\r\n]*+)*+[\r\n](?:[ \t\f\v\r\n]|--[^\r\n]*+)*+')"
        self.token = re.compile(
            rf"""
            (?P<blank> [ \t\r\n\f\v]++ | --[^\r\n]*+ )
            | (?P<comment> /\* )
            | (?P<string>
                {"[eE]?" if escapes else "[eE]"}' (?: [^'\\]++ | \\. | '' | '{next_line} )*+ '?+
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
        self.cursor = re.compile(
            r"\s*DECLARE\s+\S+\s+(?:NO\s+SCROLL\s+)?CURSOR\s+(?:WITH(?:OUT)?\s+HOLD\s+)?FOR\s", re.IGNORECASE
        )


@functools.lru_cache(maxsize=2)
def _patterns(escapes: bool = False) -> _Patterns:
    return _Patterns(escapes)
