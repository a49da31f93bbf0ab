"""
What the stand-in for RDS Proxy takes to pin, by itself; tests/unit/test_pinning.py holds it against the package's own
reader.
"""

from __future__ import annotations

import pytest

from plungepool_toolkit.rds_proxy.pinning import why_pinned


@pytest.mark.parametrize(
    ("sql", "why"),
    [
        ("SELECT 1 -- a\rSET x = 1", None),
        ("SELECT 1; -- a\rSET x = 1", "SET"),
        ("SELECT 1; -- a\nSET x = 1", "SET"),
        ("SELECT 1;\vSET x = 1", "SET"),
        ("\u212a = 1; SET x = 1", "SET"),
        ("LI\u017fTEN jobs", None),
        ("SELECT pg_advisory_loc\u212a(1)", None),
        ("CREATE RULE r AS ON UPDATE TO t DO ALSO (SELECT 1; LISTEN jobs)", None),
        ("CREATE INDEX i ON ONLY nextval (a)", None),
        ("SELECT 1 AS execute", None),
        ("CREATE TABLE t AS EXECUTE p", "EXECUTE"),
        ("CREATE GLOBAL TEMP TABLE t (a int)", "temporary object"),
        ("MERGE INTO temp t USING u ON true WHEN MATCHED THEN DELETE", None),
        ("/* a /* b */ ; SET x = 1 */ SELECT 1", None),
        ("/* a /* b */ c */ SET x = 1", "SET"),
        ("/* a /* b */ c */ SELECT 1 /* */; SET x = 1", "SET"),
        ("SELECT E'a' -- it goes on\n 'b; SET x = 1'", None),
        ("SELECT E'a' -- it goes on\n'b'; SET x = 1", "SET"),
        ("SELECT $a b$; SET x = 1; SELECT $a b$", "SET"),
        ("SELECT $a1$; SET x = 1; SELECT $a1$", None),
        ("SELECT $1a$; SET x = 1; SELECT $1a$", "SET"),
        ("CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SET x = 1; END", None),
        ("CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END; SET x = 1", "SET"),
        ("SELECT begin atomic; SET x = 1", "SET"),
        ("/**/SET x = 1", "SET"),
        ("SELECT 1 /* ; SET x = 1", None),
        ("SELECT E'a'\n'\\'; SET x = 1'", None),
        ("SELECT E'a' \r\t'\\'; SET x = 1'", None),
        ("SELECT E'a' -- b\n'\\'; SET x = 1'", None),
        ("SELECT E'a' -- bc\n'\\'; SET x = 1'", None),
        ("SELECT E'a' '\\'; SET x = 1", "SET"),
        ("SELECT E'a'\n; SET x = 1", "SET"),
        ("SELECT $$$$; SET x = 1", "SET"),
        ("SELECT $$; SET x = 1$$", None),
        ("SELECT $$; SET x = 1", None),
        ("SELECT $a$x$a$; SET x = 1", "SET"),
        ("SELECT $1$; SET x = 1; SELECT $1$", "SET"),
        ("SELECT (1; SET x = 1)", None),
        ("SELECT 1); SET x = 1", "SET"),
        ("CREATE TABLE atomic (a int); SET x = 1", "SET"),
        ("CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN a THEN 1 END; SET x = 1; END", None),
        ("(SELECT 1 INTO temp) UNION SELECT 2", None),
        ("SELECT 1 INTO temp", None),
        ("SELECT 1 INTO temp.t", None),
        ("SELECT 1 INTO temp t", "temporary object"),
        ('SELECT 1 INTO temp "from"', "temporary object"),
        ("SELECT 1 INTO temp FROM t", None),
    ],
)
def test_statements_end_where_postgresql_ends_them(sql: str, why: str | None) -> None:
    """A comment ends at either sign of a line's end; letters are ASCII's."""
    assert why_pinned(sql) == why
