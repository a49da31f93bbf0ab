"""What of a slow statement may be explained, and which index is advised; no server."""

from __future__ import annotations

import pytest

from plungepool import indexes, plans, statements


@pytest.mark.parametrize(
    "declared",
    ["DECLARE c NO SCROLL CURSOR FOR ", "declare c cursor for\n", 'DECLARE "c" CURSOR WITH HOLD FOR ', ""],
)
def test_a_cursor_is_taken_off(declared: str) -> None:
    """What remains can be prepared."""
    assert statements.without_cursor(f"{declared}SELECT 1") == "SELECT 1"


@pytest.mark.parametrize(
    ("text", "reads"),
    [
        ("SELECT * FROM orders WHERE id = $1", True),
        ("WITH o AS (SELECT * FROM orders) SELECT count(*) FROM o", True),
        ('SELECT "update" FROM orders', True),
        ("SELECT pg_sleep(2)", False),
        ("SELECT * FROM orders FOR UPDATE", False),
        ("SELECT * FROM orders FOR NO KEY UPDATE", False),
        ("SELECT * FROM orders FOR SHARE", False),
        ("SELECT * FROM orders FOR /* all */ KEY SHARE", False),
        ("SELECT * INTO other FROM orders", False),
        ("WITH gone AS (DELETE FROM orders RETURNING id) SELECT * FROM gone", False),
        ("INSERT INTO t SELECT * FROM orders", False),
        ("UPDATE orders SET id = 1 FROM t", False),
        ("MERGE INTO t USING orders ON true WHEN MATCHED THEN DELETE", False),
        ("EXPLAIN ANALYZE SELECT * FROM orders", False),
        ("COPY (SELECT * FROM orders) TO STDOUT", False),
        ("SELECT 1 FROM orders; DELETE FROM orders", False),
        ("", False),
    ],
)
def test_only_what_reads_is_explained(text: str, reads: bool) -> None:
    """Neither what writes nor what locks, wherever it stands."""
    assert plans.only_reads(text) is reads


@pytest.mark.parametrize(
    ("condition", "keys", "columns"),
    [
        ("(orders.sku = $1)", (), ["sku"]),
        ("((orders.placed_at >= $1) AND (orders.placed_at < $2) AND (orders.sku = $3))", (), ["sku", "placed_at"]),
        ("((orders.sku)::text = ($1)::text)", (), ["sku"]),
        ("($1 = orders.sku)", (), ["sku"]),
        ("(orders.sku = ANY ($1))", (), ["sku"]),
        ("(orders.shipped_at IS NULL)", (), ["shipped_at"]),
        ("(orders.sku = ' AND (orders.x = 1)'::text)", (), ["sku"]),
        ('(orders."Odd ""Name" = $1)', (), ['"Odd ""Name"']),
        ("(orders.sku = $1)", ("orders.placed_at DESC",), ["sku", "placed_at"]),
        ("(orders.sku = $1)", ("orders.placed_at DESC", "orders.id"), ["sku", "placed_at DESC", "id"]),
        # After a range an index gives no order.
        ("((orders.sku = $1) AND (orders.id > $2))", ("orders.placed_at",), ["sku", "id"]),
        ("(orders.sku = $1)", ("lines.id",), ["sku"]),
        # Whether that is the column's own value, the catalogue knows.
        ("((orders.id)::numeric = $1)", (), ["id"]),
        ("(orders.sku = shop.code($1))", (), ["sku"]),
        ("(orders.sku = 'ALL (orders.x)'::text)", (), ["sku"]),
        ("(orders.sku = myorders.sku)", (), ["sku"]),
        # No plain index serves these.
        ("(orders.sku = ALL ($1))", (), []),
        ("(orders.sku = (SubPlan 1))", (), []),
        ("((orders.sku)::character varying(5) = $1)", (), []),
        ("(orders.tags[1] = $1)", (), []),
        ("((orders.size).width = $1)", (), []),
        ("((orders.doc ->> 'a'::text) = $1)", (), []),
        ("((orders.sku = $1) OR (orders.id = $2))", (), []),
        ("(lower(orders.sku) = $1)", (), []),
        ("(orders.sku ~~ '%x'::text)", (), []),
        ("(orders.sku <> $1)", (), []),
        ("(orders.sku = orders.other)", (), []),
        ("(lines.sku = $1)", (), []),
        ("(orders.sku = 'open", (), []),
        ("", (), []),
    ],
)
def test_the_index_that_serves_a_filter(condition: str, keys: tuple[str, ...], columns: list[str]) -> None:
    """What is compared for equality first, then one range, else what is sorted by."""
    assert indexes.columns(indexes.wanted(condition, "orders", keys)) == columns


def test_the_functions_that_make_a_value_are_known() -> None:
    """Whether one of them is volatile is asked of the catalogue; what is within a literal is none."""
    (found,) = indexes.wanted("""(o.a = shop."To Be"(now(), 'f('::text))""", "o")
    assert found == indexes.Wanted("a", "=", "", ("To Be", "now"))


class Refused(Exception):
    """An error of a server's."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


@pytest.mark.parametrize(("at_the_end", "told"), [("26000", "57014"), ("57P01", "57P01")])
def test_what_kept_a_plan_from_being_told_is_told(at_the_end: str, told: str) -> None:
    """Behind a pooler what was prepared may be in another session by then; that says nothing of the plan."""

    def run(sql: str) -> list[list[int]]:
        for begin, sqlstate in (("EXPLAIN", "57014"), ("DEALLOCATE", at_the_end)):
            if sql.startswith(begin):
                raise Refused(sqlstate)
        return [[0]]

    with pytest.raises(Refused, match=told):
        plans.explain("SELECT 1", (), run, within=False)


def test_names_are_quoted_where_sql_wants_it() -> None:
    """What is a key word, or has a letter in upper case; no other name."""
    names = ("orders", "order", "Shop", 'a"b', "ü")
    assert [indexes.quoted(name) for name in names] == ["orders", '"order"', '"Shop"', '"a""b"', '"ü"']
    scan = {
        "Node Type": "Seq Scan",
        "Schema": "Shop",
        "Relation Name": "order",
        "Alias": "o",
        "Filter": '(o."Sku" = 1)',
    }
    (found,) = plans.full_scans({"Node Type": "Limit", "Plans": [scan]})
    assert found.name == '"Shop"."order"'
    assert found.wanted == (indexes.Wanted('"Sku"', "="),)
    assert found.filter == '( o . "?" = ? )'
