"""The checker of histories finds each anomaly in a history made by hand, and nothing in a good one."""

from __future__ import annotations

import random
from typing import Literal

import pytest
from history.checker import (
    READ_COMMITTED,
    REPEATABLE_READ,
    SERIALIZABLE,
    Append,
    Finding,
    Read,
    Transaction,
    check,
)


def transaction(
    name: str,
    *operations: str,
    at: float | None = None,
    outcome: Literal["committed", "aborted", "unknown"] = "committed",
) -> Transaction:
    """
    Return a transaction from operations such as "x+1" (append) and "x=1,2" (read); `at`: the second it lasted from.
    """
    done: list[Append | Read] = []
    for operation in operations:
        if "+" in operation:
            key, value = operation.split("+")
            done.append(Append(key, int(value)))
        else:
            key, values = operation.split("=")
            done.append(Read(key, None if values == "?" else tuple(map(int, filter(None, values.split(","))))))
    began, ended = (0.0, float("inf")) if at is None else (at, at + 0.5)
    return Transaction(name=name, operations=tuple(done), outcome=outcome, began=began, ended=ended)


def kinds(*history: Transaction, level: str = SERIALIZABLE) -> list[str]:
    """Return the kinds of what is found."""
    return [finding.kind for finding in check(history, level)]


def test_a_serial_history_is_good() -> None:
    """One after the other, each sees all that came before; an aborted one has left nothing, an unknown one may have."""
    history = [
        transaction("T1", "x+1", "y+2", at=1),
        transaction("T2", "x=1", "x+3", "x=1,3", at=2),
        transaction("T3", "x+4", at=3, outcome="aborted"),
        transaction("T4", "x+5", at=4, outcome="unknown"),
        transaction("T5", "x+6", at=5, outcome="unknown"),
        transaction("T6", "x=1,3,5", "y=2", at=6),
    ]
    for level in (READ_COMMITTED, REPEATABLE_READ, SERIALIZABLE):
        assert check(history, level) == []


def test_random_serial_histories_are_good() -> None:
    """Hundreds of transactions over a few lists, executed one after the other, some aborted and some unknown."""
    for seed in range(20):
        chance = random.Random(seed)
        lists: dict[str, list[int]] = {"x": [], "y": [], "z": []}
        history, value = [], 0
        for number in range(200):
            now = {name: list(values) for name, values in lists.items()}
            operations: list[Append | Read] = []
            for _ in range(chance.randrange(1, 5)):
                name = chance.choice("xyz")
                if chance.random() < 0.5:
                    value += 1
                    now[name].append(value)
                    operations.append(Append(name, value))
                else:
                    operations.append(Read(name, tuple(now[name])))
            kept = chance.random() < 0.8
            outcome = (
                chance.choice(("committed", "committed", "unknown")) if kept else chance.choice(("aborted", "unknown"))
            )
            lists = now if kept else lists
            history.append(
                Transaction(
                    name=f"T{number}", operations=tuple(operations), outcome=outcome, began=number, ended=number + 0.5
                )
            )
        chance.shuffle(history)
        assert check(history) == []


def test_a_lost_update_is_found() -> None:
    """What was acknowledged before a read began is not in it, nor in any longer one."""
    assert kinds(transaction("T1", "x+1", at=1), transaction("T2", "x+2", at=1), transaction("T3", "x=2", at=2)) == [
        "lost update"
    ]


def test_two_that_overwrite_what_both_have_read_are_found() -> None:
    """Both read the list as it was and write it as a whole: one of the appends is gone."""
    lost = kinds(
        transaction("T1", "x=", "x+1", at=1), transaction("T2", "x=", "x+2", at=1), transaction("T3", "x=2", at=2)
    )
    assert lost == ["lost update"]
    kept = [transaction("T1", "x=", "x+1"), transaction("T2", "x=", "x+2"), transaction("T3", "x=1,2")]
    assert kinds(*kept) == ["G-single"]
    assert kinds(*kept, level=REPEATABLE_READ) == ["G-single"]
    assert kinds(*kept, level=READ_COMMITTED) == []


def test_a_stale_read_is_found() -> None:
    """A later read has the append, this one began after it was acknowledged and has it not."""
    assert kinds(
        transaction("T1", "x+1", at=1),
        transaction("T2", "x+2", at=2),
        transaction("T3", "x=1", at=3),
        transaction("T4", "x=1,2", at=4),
        level=READ_COMMITTED,
    ) == ["stale read"]


def test_what_still_ran_need_not_be_seen() -> None:
    """An append that was acknowledged after the read had begun is in it, or not."""
    assert kinds(transaction("T1", "x+1", at=1), transaction("T2", "x=", at=1.2), transaction("T3", "x=1", at=3)) == []


def test_a_duplicate_is_found() -> None:
    """A value that was appended once stands in the list twice."""
    assert kinds(transaction("T1", "x+1"), transaction("T2", "x=1,1")) == ["duplicate"]


def test_a_value_that_nobody_has_appended_is_found() -> None:
    """The rows of another statement, for example."""
    assert kinds(transaction("T1", "x+1"), transaction("T2", "x=1,7")) == ["made up"]
    assert kinds(transaction("T1", "y+1"), transaction("T2", "x=1")) == ["made up"]


def test_an_aborted_read_is_found() -> None:
    """G1a: a transaction that said it was not kept has been read."""
    assert kinds(transaction("T1", "x+1", outcome="aborted"), transaction("T2", "x=1")) == ["aborted read"]


def test_an_intermediate_read_is_found() -> None:
    """G1b: only the first of two appends was seen; or only the second; or the two with another between them."""
    first = transaction("T1", "x+1", "x+2")
    assert kinds(first, transaction("T2", "x=1"), transaction("T3", "x=1,2")) == [
        "intermediate read",
        "G-single",
    ]
    assert kinds(first, transaction("T2", "x=2")) == ["intermediate read"]
    assert kinds(first, transaction("T2", "x+3"), transaction("T3", "x=1,3"))[0] == "intermediate read"


def test_incompatible_orders_are_found() -> None:
    """Two reads of one list of which neither is the other's beginning."""
    assert "incompatible orders" in kinds(
        transaction("T1", "x+1"), transaction("T2", "x+2"), transaction("T3", "x=1,2"), transaction("T4", "x=2,1")
    )


def test_internal_inconsistency_is_found() -> None:
    """A transaction does not see its own append, or sees a list change that it has read."""
    assert kinds(transaction("T1", "x+1", "x=")) == ["internal"]
    changed = [transaction("T1", "x+1"), transaction("T2", "x=", "x=1")]
    assert "internal" in kinds(*changed, level=REPEATABLE_READ)
    assert kinds(*changed, level=READ_COMMITTED) == []
    between = [transaction("T1", "x+1"), transaction("T2", "x=", "x+2", "x=1,2")]
    assert kinds(*between, level=READ_COMMITTED) == []
    locked = [transaction("T1", "x+1"), transaction("T2", "x+2", "x=2", "x=2,1")]
    assert "internal" in kinds(*locked, level=READ_COMMITTED)


def test_a_circle_of_writes_is_found() -> None:
    """G0: each of two transactions has overwritten the other."""
    history = [
        transaction("T1", "x+1", "y+1"),
        transaction("T2", "x+2", "y+2"),
        transaction("T3", "x=1,2"),
        transaction("T4", "y=2,1"),
    ]
    assert check(history, READ_COMMITTED) == [Finding("G0", "T1 -ww-> T2 -ww-> T1")]


def test_a_circle_of_reads_and_writes_is_found() -> None:
    """G1c: each of two transactions has read the other's append."""
    history = [transaction("T1", "x+1", "y=2"), transaction("T2", "y+2", "x=1")]
    assert check(history, READ_COMMITTED) == [Finding("G1c", "T2 -wr-> T1 -wr-> T2")]


def test_read_skew_is_found() -> None:
    """G-single: one has seen a part of another's appends, the old version of the rest."""
    history = [transaction("T1", "x+1", "y+2"), transaction("T2", "x=1", "y="), transaction("T3", "y=2")]
    assert kinds(*history, level=REPEATABLE_READ) == ["G-single"]
    assert kinds(*history, level=READ_COMMITTED) == []


def test_write_skew_is_found() -> None:
    """G2: each of two has read what the other then wrote; snapshots allow it, SERIALIZABLE does not."""
    history = [
        transaction("T1", "x=", "y+1"),
        transaction("T2", "y=", "x+2"),
        transaction("T3", "x=2", "y=1"),
    ]
    assert kinds(*history) == ["G2"]
    assert kinds(*history, level=REPEATABLE_READ) == []


def test_a_long_fork_is_found() -> None:
    """Two readers see two writes in opposite orders, as a reader endpoint may show them."""
    history = [
        transaction("T1", "x+1"),
        transaction("T2", "y+2"),
        transaction("T3", "x=1", "y="),
        transaction("T4", "x=", "y=2"),
        transaction("T5", "x=1", "y=2"),
    ]
    assert kinds(*history) == ["G2"]


def test_an_unknown_one_that_was_read_has_to_be_there_as_a_whole() -> None:
    """From the end of a read that has seen it, whatever it appended is kept."""
    torn = transaction("T1", "x+1", "y+2", at=1, outcome="unknown")
    assert kinds(torn, transaction("T2", "x=1", at=2), transaction("T3", "y=", at=3)) == ["lost update"]
    assert kinds(torn, transaction("T2", "x=", at=2), transaction("T3", "y=", at=3)) == []


def test_reads_whose_answer_was_lost_are_left_out() -> None:
    """Of a transaction that was found to be kept later only its appends are known."""
    assert kinds(transaction("T1", "x=?", "x+1"), transaction("T2", "x=1")) == []


def test_one_circle_is_told_once() -> None:
    """A circle of several transactions is one finding, however many edges it has."""
    circle = [transaction(f"T{number}", f"x{number}+1", f"x{(number + 1) % 5}=1", at=None) for number in range(5)]
    assert kinds(*circle) == ["G1c"]


def test_a_value_that_is_appended_twice_is_refused() -> None:
    """Nothing could be told from reading it."""
    with pytest.raises(ValueError, match="1 is appended to x twice"):
        check([transaction("T1", "x+1"), transaction("T2", "x+1")])
