"""What was asked of the shop, what it answered, and whether its books agree with that. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from history.checker import READ_COMMITTED, REPEATABLE_READ, SERIALIZABLE, Append, Finding, Read, Transaction, check

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

#: lists are named for the level of all the transactions that touch them
LEVELS = {"c": READ_COMMITTED, "r": REPEATABLE_READ, "s": SERIALIZABLE}


@dataclass(slots=True, kw_only=True)
class Delivery:
    """One invocation with a request: when, what came of it (`again`: it had been done), and what was read."""

    began: float
    ended: float
    outcome: Literal["committed", "again", "failed", "unknown"]
    reads: list[Any] | None = None
    reason: str = ""


@dataclass(slots=True, kw_only=True)
class Request:
    """
    What somebody wants of the shop, and each time that it was delivered.

    `event["key"]` makes it happen once; where it is None, the request is delivered once only.
    """

    name: str
    event: dict[str, Any]
    deliveries: list[Delivery] = field(default_factory=list)

    @property
    def outcome(self) -> Literal["committed", "aborted", "unknown"]:
        """What all of its deliveries tell together."""
        outcomes = {delivery.outcome for delivery in self.deliveries}
        if outcomes & {"committed", "again"}:
            return "committed"
        return "unknown" if "unknown" in outcomes else "aborted"

    def transaction(self) -> Transaction:
        """Return what the checker has to know of it: what it read, by the delivery that did it."""
        did = next((one for one in self.deliveries if one.outcome == "committed"), None)
        answered = [one.ended for one in self.deliveries if one.outcome in ("committed", "again")]
        reads = did.reads if did is not None and did.reads else [None] * len(self.event["operations"])
        return Transaction(
            name=self.name,
            operations=tuple(
                Append(name, value) if what == "append" else Read(name, None if seen is None else tuple(seen))
                for (what, name, value), seen in zip(self.event["operations"], reads, strict=True)
            ),
            outcome=self.outcome,
            began=did.began if did is not None else min(one.began for one in self.deliveries),
            ended=min(answered, default=float("inf")),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """
    What the database holds at the end.

    `orders` are (key, quantity), `stock` is what is left of `stock_at_first`; `read_at` is when this was read.
    """

    orders: list[tuple[str, int]]
    shipments: list[str]
    lists: Mapping[str, tuple[int, ...]]
    stock: int
    stock_at_first: int
    read_at: float


def judge(requests: Iterable[Request], books: Books) -> Iterator[Finding]:
    """Yield whatever contradicts in what was asked, what was answered and what is there."""
    requests = [one for one in requests if one.deliveries]
    for request in requests:
        did = sum(delivery.outcome == "committed" for delivery in request.deliveries)
        if did > 1:
            yield Finding("done twice", f"{request.name} was answered as done anew {did} times")
    yield from _of_effects("order", requests, Counter(key for key, _ in books.orders))
    yield from _of_effects("fulfil", requests, Counter(books.shipments))
    sold = sum(quantity for _, quantity in books.orders)
    if books.stock != books.stock_at_first - sold:
        yield Finding(
            "stock", f"{books.stock} are left of {books.stock_at_first}, and {sold} were sold by the orders there are"
        )
    for prefix, level in LEVELS.items():
        history = [
            one.transaction()
            for one in requests
            if "operations" in one.event and one.event["operations"][0][1].startswith(prefix)
        ]
        end = tuple(Read(name, values) for name, values in books.lists.items() if name.startswith(prefix))
        yield from check([*history, Transaction(name="the end", operations=end, began=books.read_at)], level)


def _of_effects(kind: str, requests: Iterable[Request], there: Counter[str]) -> Iterator[Finding]:
    """Say which of the requests of a kind is not there as often as its answers say."""
    for request in requests:
        if request.event["do"] != kind:
            continue
        times = there[request.event["key"] if kind == "order" else request.event["order"]]
        answers = ", ".join(f"{delivery.outcome} {delivery.reason}".strip() for delivery in request.deliveries)
        if times > 1:
            yield Finding(f"{kind} twice", f"{request.name} is there {times} times; answered: {answers}")
        if times == 0 and request.outcome == "committed":
            yield Finding(f"{kind} lost", f"{request.name} is not there; answered: {answers}")
        if times and request.outcome == "aborted":
            yield Finding(f"{kind} refused, and there", f"{request.name} is there; answered: {answers}")
