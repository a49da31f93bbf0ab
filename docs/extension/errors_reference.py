"""docs/reference/errors.md: what is raised, by class and by SQLSTATE, from the package's errors and the driver's."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import psycopg.errors
from reference_text import WRITTEN, class_comments, docstring, plain

import plungepool
from plungepool.wire import errors as wire_errors

DOCS = Path(__file__).parents[1]
# Where an error of the server's is explained; the first that names it.
PAGES = ("troubleshoot.md", "runbook.md", "wire.md", "doctor.md", "exactly-once.md", "dsql.md")
# PostgreSQL, "PostgreSQL Error Codes": the titles of the classes, which no library has.
CLASSES = {
    "08": "Connection Exception",
    "0A": "Feature Not Supported",
    "10": "XQuery Error",
    "20": "Case Not Found",
    "21": "Cardinality Violation",
    "22": "Data Exception",
    "23": "Integrity Constraint Violation",
    "24": "Invalid Cursor State",
    "25": "Invalid Transaction State",
    "26": "Invalid SQL Statement Name",
    "27": "Triggered Data Change Violation",
    "28": "Invalid Authorization Specification",
    "2B": "Dependent Privilege Descriptors Still Exist",
    "2D": "Invalid Transaction Termination",
    "2F": "SQL Routine Exception",
    "34": "Invalid Cursor Name",
    "38": "External Routine Exception",
    "39": "External Routine Invocation Exception",
    "3B": "Savepoint Exception",
    "3D": "Invalid Catalog Name",
    "3F": "Invalid Schema Name",
    "40": "Transaction Rollback",
    "42": "Syntax Error or Access Rule Violation",
    "44": "WITH CHECK OPTION Violation",
    "53": "Insufficient Resources",
    "54": "Program Limit Exceeded",
    "55": "Object Not In Prerequisite State",
    "57": "Operator Intervention",
    "58": "System Error",
    "F0": "Configuration File Error",
    "HV": "Foreign Data Wrapper Error (SQL/MED)",
    "OC": "Aurora DSQL's optimistic concurrency",
    "P0": "PL/pgSQL Error",
    "XX": "Internal Error",
}
INTRODUCTION = f"""\
# Errors

{WRITTEN}

What the package raises by itself derives from `plungepool.PlungepoolError`. What the database says comes as SQLAlchemy
wraps it: `error.orig` is one of [the driver's](#the-drivers-errors), and `error.orig.sqlstate` holds PostgreSQL's five
characters ([by SQLSTATE](#by-sqlstate)). [Troubleshooting](../troubleshoot.md) goes from a symptom to its cure.

`except plungepool.Unavailable:` catches what means "try again later": {{unavailable}}.

## The package's errors
"""
BY_SQLSTATE = """\
## By SQLSTATE

The class of an error is that of its whole code, or else of the code's first two characters; 25006 of a writer that has
moved is an `OperationalError`, because it ends the connection. *Again* says that the whole transaction, or the connect,
may succeed later as it is (`error.orig.retryable`); `run_transaction` runs conflicts again by itself.

| SQLSTATE | PostgreSQL's name | raised as | again | explained in |
|---|---|---|---|---|"""


def page() -> str:
    """Return docs/reference/errors.md."""
    unavailable = ", ".join(f"`{_named(one)}`" for one in plungepool.Unavailable)
    lines = [INTRODUCTION.format(unavailable=unavailable)]
    for name in plungepool.__all__:
        thing = getattr(plungepool, name)
        if inspect.isclass(thing) and issubclass(thing, plungepool.PlungepoolError):
            lines += [f"### {name}", "", *docstring(inspect.getdoc(thing) or ""), _bases(thing), ""]
    lines += ["## The driver's errors", "", *docstring(inspect.getdoc(wire_errors.Error) or "")]
    lines += ["| attribute of each | meaning |", "|---|---|"]
    for names, about in class_comments(wire_errors.Error, wire_errors):
        lines.append(f"| {', '.join(f'`{name}`' for name in names)} | {plain(about)} |")
    for name, thing in vars(wire_errors.Error).items():
        if isinstance(thing, property):
            lines.append(f"| `{name}` | {plain(' '.join((thing.__doc__ or '').split()))} |")
    lines += ["", "| class | when | derives from |", "|---|---|---|"]
    for one in wire_errors.CLASSES:
        about = plain(" ".join(inspect.cleandoc(one.__doc__ or "").partition("\n\n")[0].split()))
        lines.append(f"| `{one.__name__}` | {about} | {', '.join(f'`{_named(base)}`' for base in one.__bases__)} |")
    return "\n".join([*lines, "", BY_SQLSTATE, *map(_row, codes())]) + "\n"


def codes() -> list[str]:
    """Return each class and each code that the driver knows by name, and each code that a page explains."""
    known = set(wire_errors._ERROR_CLASSES) | wire_errors._RETRYABLE
    return sorted(known | {code for page in PAGES for code in _mentioned(page)})


def _mentioned(page: str) -> set[str]:
    """Return the codes that a page names; not every five characters of that kind are one."""
    found = re.findall(r"\b(?:[0-9A-Z]{5})\b", (DOCS / page).read_text(encoding="utf-8"))
    return {code for code in found if _name(code) or code in wire_errors._RETRYABLE}


def _name(code: str) -> str:
    """Return PostgreSQL's name of a code, as psycopg has them from its sources."""
    try:
        name = psycopg.errors.lookup(code).__name__
    except KeyError:
        return ""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _row(code: str) -> str:
    raised = wire_errors._ERROR_CLASSES.get(code) or wire_errors._ERROR_CLASSES.get(code[:2], wire_errors.DatabaseError)
    whole = len(code) == 5
    again = "yes" if code in wire_errors._RETRYABLE else ""
    explained = [page for page in PAGES if whole and code in _mentioned(page)]
    links = ", ".join(f"[{page.removesuffix('.md')}](../{page})" for page in explained[:3])
    shown = f"`{code}`" if whole else f"class `{code}`"
    return f"| {shown} | {_name(code) if whole else CLASSES[code]} | `{raised.__name__}` | {again} | {links} |"


def _bases(thing: type) -> str:
    others = [base for base in thing.__bases__ if base not in (plungepool.PlungepoolError, Exception)]
    caught = f"In `Unavailable`: {'yes' if issubclass(thing, plungepool.Unavailable) else 'no'}."
    return f"{caught} Also a {', '.join(f'`{_named(one)}`' for one in others)}." if others else caught


def _named(thing: type) -> str:
    module = (
        "plungepool" if thing.__name__ in plungepool.__all__ and "wire" not in thing.__module__ else thing.__module__
    )
    return thing.__name__ if module == "builtins" else f"{module}.{thing.__name__}"
