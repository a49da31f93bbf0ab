"""Powertools' Idempotency with its records in the database, through Powertools' own decorator."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from aws_lambda_powertools.utilities.idempotency import IdempotencyConfig, idempotent
from aws_lambda_powertools.utilities.idempotency.exceptions import (
    IdempotencyAlreadyInProgressError,
    IdempotencyValidationError,
)

import plungepool
from plungepool.idempotency import PostgreSQLPersistenceLayer

from .conftest import Context, Shop

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def engine(shop: Shop) -> Any:
    """The application's engine: its role has the rights that roles.sql gives."""
    engine = plungepool.build_engine(shop.settings(pool_size=2))
    yield engine
    engine.dispose()


def build(engine: Any, function: Callable[[dict], Any], **config: Any) -> Callable[[dict], Any]:
    """
    Return a handler that is idempotent by the event's id, with a persistence layer of its own as another environment
    has.
    """

    @idempotent(
        persistence_store=PostgreSQLPersistenceLayer(engine),
        config=IdempotencyConfig(event_key_jmespath="id", **config),
        key_prefix="tests",
    )
    def handler(event: dict, context: Any) -> Any:
        return function(event)

    return lambda event: handler(event, Context())


def test_an_answer_is_given_again(engine: Any, shop: Any) -> None:
    """The second delivery gets the first one's answer, in another environment too, and the function does not run."""
    calls = []
    handlers = [build(engine, lambda event: calls.append(event) or {"order": event["id"]}) for _ in range(2)]
    assert [handler({"id": "a"}) for handler in handlers] == [{"order": "a"}] * 2
    assert len(calls) == 1
    assert shop.execute("SELECT status FROM plungepool.idempotency") == [["COMPLETED"]]


def test_it_needs_no_tenant_where_the_function_does(shop: Shop) -> None:
    """Its table is no tenant's: with PLUNGEPOOL_REQUIRE_SETTINGS it works, with a tenant's engine and without."""
    engine = plungepool.build_engine(shop.settings(require_settings=("app.tenant_id",)))
    of_tenant = engine.execution_options(plungepool_settings={"app.tenant_id": "42"})

    def function(event: dict) -> dict:
        with of_tenant.begin() as connection:
            return {"tenant": connection.exec_driver_sql("SHOW app.tenant_id").scalar_one()}

    for number, kept_by in enumerate((engine, of_tenant)):
        handler = build(kept_by, function)
        assert [handler({"id": f"tenant {number}"}) for _ in range(2)] == [{"tenant": "42"}] * 2
    with pytest.raises(plungepool.SettingsMissing), engine.begin() as connection:
        connection.exec_driver_sql("SELECT 1")
    engine.dispose()


def test_a_failure_is_forgotten(engine: Any, shop: Any) -> None:
    """A function that raises may be invoked again."""
    calls = []

    def fail_first(event: dict) -> str:
        calls.append(event)
        if len(calls) == 1:
            raise LookupError("not yet")
        return "done"

    handler = build(engine, fail_first)
    with pytest.raises(LookupError):
        handler({"id": "a"})
    assert shop.execute("SELECT * FROM plungepool.idempotency") == []
    assert handler({"id": "a"}) == "done"


def test_what_is_in_progress_is_refused(engine: Any) -> None:
    """While the first runs, a second with the same key is told so."""
    started, may_end = threading.Event(), threading.Event()

    def slow(event: dict) -> str:
        started.set()
        may_end.wait(10)
        return "done"

    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(build(engine, slow)({"id": "a"})))
    thread.start()
    assert started.wait(10)
    try:
        with pytest.raises(IdempotencyAlreadyInProgressError):
            build(engine, slow)({"id": "a"})
    finally:
        may_end.set()
        thread.join()
    assert results == ["done"]


@pytest.mark.parametrize("moment", ["expires_at = 0", "in_progress_until = 0"])
def test_an_invocation_that_was_killed_is_taken_over(engine: Any, shop: Any, moment: str) -> None:
    """A record that has expired, or whose invocation is over without having said so, is as good as none."""

    class Killed(BaseException):
        """As if the process had been: nothing is tidied up."""

    def kill(event: dict) -> None:
        raise Killed

    with pytest.raises(Killed):
        build(engine, kill)({"id": "a"})
    shop.execute(f"UPDATE plungepool.idempotency SET status = 'INPROGRESS', {moment}")
    assert build(engine, lambda event: "done")({"id": "a"}) == "done"


def test_one_of_many_at_once_runs(engine: Any) -> None:
    """Those that come at the same moment agree on one."""
    calls, refused, barrier = [], [], threading.Barrier(4)

    def work() -> None:
        handler = build(engine, lambda event: calls.append(event) or time.sleep(0.2))
        barrier.wait()
        try:
            handler({"id": "a"})
        except IdempotencyAlreadyInProgressError as error:
            refused.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(calls), len(refused)) == (1, 3)


def test_another_payload_under_the_same_key_is_refused(engine: Any) -> None:
    """Payload validation works as with DynamoDB."""
    handler = build(engine, lambda event: "done", payload_validation_jmespath="amount")
    handler({"id": "a", "amount": 1})
    with pytest.raises(IdempotencyValidationError):
        handler({"id": "a", "amount": 2})
    assert handler({"id": "a", "amount": 1}) == "done"


def test_expired_records_go(engine: Any, shop: Any) -> None:
    """The table does not grow for ever: with each that comes, two that have expired go."""
    handler = build(engine, lambda event: "done", expires_after_seconds=-10)
    for number in range(6):
        handler({"id": str(number)})
    assert shop.execute("SELECT count(*) FROM plungepool.idempotency")[0][0] <= 2


def test_it_costs_a_round_trip_before_and_one_after(engine: Any) -> None:
    """A warm invocation waits for the server twice."""
    with engine.connect() as connection:
        wire: Any = connection.connection.dbapi_connection
    handler = build(engine, lambda event: "done")
    before = wire.flights
    handler({"id": "a"})
    assert wire.flights == before + 2
