"""guard_invocation over whatever a handler may be, under whatever calls it, and with whatever context."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import json
import time
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from aws_lambda_powertools import Logger, Metrics, Tracer
from aws_lambda_powertools.event_handler import APIGatewayHttpResolver
from aws_lambda_powertools.middleware_factory import lambda_handler_decorator
from aws_lambda_powertools.utilities.data_classes import SQSEvent, event_source
from aws_lambda_powertools.utilities.parser import BaseModel, event_parser
from fastapi import FastAPI
from mangum import Mangum
from sqlalchemy import text
from starlette.responses import StreamingResponse

from plungepool import DeadlineExceeded, guard_invocation, invocation

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator

    from sqlalchemy import Engine

    from plungepool_toolkit.environment import Environment
    from plungepool_toolkit.fixtures import Database

HERE = Path(__file__)


class Context(SimpleNamespace):
    """What Lambda hands to a handler, with a minute left."""

    def __init__(self, request_id: str = "1") -> None:
        super().__init__(
            aws_request_id=request_id,
            function_name="f",
            function_version="1",
            memory_limit_in_mb=128,
            invoked_function_arn="arn:aws:lambda:eu-west-1:1:function:f",
        )
        self._ends_at = time.time() + 60

    def get_remaining_time_in_millis(self) -> int:
        """As Lambda's: whole milliseconds."""
        return int((self._ends_at - time.time()) * 1000)


def is_guarded() -> bool:
    """An invocation runs, and it has the deadline of `Context`."""
    end = invocation.deadline()
    return invocation.is_running() and end is not None and 50 < end - time.time() <= 60


@pytest.mark.parametrize(
    "left",
    [
        None,
        "30000",
        True,
        float("nan"),
        float("inf"),
        Decimal("NaN"),
        Decimal("sNaN"),
        10**400,
        Fraction(1),
        mock.Mock(),
        mock.MagicMock(),
        [30000],
    ],
    ids=repr,
)
def test_what_is_no_number_says_nothing(engine: Engine, left: Any) -> None:
    """No deadline, as without a context: the handler runs, and its statements have no limit on either side."""
    with guard_invocation(SimpleNamespace(get_remaining_time_in_millis=lambda: left)):
        assert invocation.is_running()
        assert invocation.deadline() is None
        with engine.begin() as connection:
            assert connection.execute(text("SELECT 1")).scalar_one() == 1


@pytest.mark.parametrize("left", [30_000, 30_000.0, Decimal(30_000)], ids=repr)
def test_every_number_counts(left: Any) -> None:
    """A whole one, as Lambda's, and others."""
    with guard_invocation(SimpleNamespace(get_remaining_time_in_millis=lambda: left)):
        assert (invocation.deadline() or 0) - time.time() == pytest.approx(30, abs=5)


@pytest.mark.parametrize("left", [0, -1, -1e300, Decimal(-5)], ids=repr)
def test_no_time_lets_nothing_begin(engine: Engine, left: Any) -> None:
    """Nor does less than none; the handler runs all the same, and can answer."""
    with (
        guard_invocation(SimpleNamespace(get_remaining_time_in_millis=lambda: left)),
        pytest.raises(DeadlineExceeded),
        engine.connect(),
    ):
        pass


@pytest.mark.parametrize("left", [1e300, 10**30, Decimal("1e30")], ids=repr)
def test_more_time_than_a_socket_counts_is_cut(engine: Engine, left: Any) -> None:
    """As a test's context may have it: nothing overflows, neither here nor on the server."""
    with guard_invocation(SimpleNamespace(get_remaining_time_in_millis=lambda: left)), engine.begin() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1


def test_what_the_context_raises_is_raised_before_anything_begins() -> None:
    """It is not guessed what the context would have said: the handler does not run, and the next invocation does."""
    called = []

    def ask() -> int:
        raise LookupError("no time")

    @guard_invocation
    def handler(event: Any, context: Any) -> None:
        called.append(event)

    with pytest.raises(LookupError, match="no time"):
        handler(1, SimpleNamespace(get_remaining_time_in_millis=ask))
    assert not invocation.is_running()
    handler(2, Context())
    assert called == [2]


def test_keyword_arguments_by_whatever_name() -> None:
    """A handler is called as its signature says, which is the user's own."""

    @guard_invocation
    def handler(evt: Any, ctx: Any, *, extra: int = 1) -> Any:
        return evt, extra, is_guarded()

    assert handler(evt=1, ctx=Context()) == (1, 1, True)
    assert handler(1, ctx=Context(), extra=2) == (1, 2, True)
    assert handler(1, Context()) == (1, 1, True)
    assert list(inspect.signature(handler).parameters) == ["evt", "ctx", "extra"]
    with pytest.raises(TypeError, match="'ctx'"):
        handler(Context())  # type: ignore[call-arg]  # the mistake is the handler's own TypeError, which names its own


class Shop:
    """A handler's state in an object."""

    def __call__(self, event: Any, context: Any) -> Any:
        """An object that is the handler."""
        return event, is_guarded()

    def handle(self, event: Any, context: Any) -> Any:
        """A method that is the handler."""
        return event, is_guarded()

    @guard_invocation
    def guarded(self, event: Any, context: Any) -> Any:
        """A method that is decorated: its context is the third argument."""
        return event, is_guarded()

    @staticmethod
    @guard_invocation
    def static(event: Any, context: Any) -> Any:
        """Without the object."""
        return event, is_guarded()


def plain(event: Any, context: Any, more: int = 0) -> Any:
    """A function."""
    return event, is_guarded()


@pytest.mark.parametrize(
    "handler",
    [
        guard_invocation(plain),
        guard_invocation(Shop()),
        guard_invocation(Shop().handle),
        Shop().guarded,
        Shop.static,
        guard_invocation(functools.partial(plain, more=1)),
        functools.partial(guard_invocation(plain), more=1),
        guard_invocation()(plain),
        guard_invocation(guard_invocation(plain)),
        guard_invocation(handler=plain),
        guard_invocation(lambda event, context: (event, is_guarded())),
    ],
    ids=[
        "function",
        "object",
        "bound method",
        "decorated method",
        "static method",
        "of a partial",
        "partial of it",
        "with parentheses",
        "twice",
        "by keyword",
        "lambda",
    ],
)
def test_whatever_can_be_called(handler: Any) -> None:
    """Functions, objects, methods, partials: the invocation is guarded, and over when it has returned."""
    assert handler({"a": 1}, Context()) == ({"a": 1}, True)
    assert not invocation.is_running()


class Asynchronous:
    """An object whose call is a coroutine."""

    async def __call__(self, event: Any, context: Any) -> Any:
        """As an adapter may have it."""
        await asyncio.sleep(0)
        return event, is_guarded()

    async def handle(self, event: Any, context: Any) -> Any:
        """A method that is a coroutine."""
        await asyncio.sleep(0)
        return event, is_guarded()


def hidden(handler: Any) -> Any:
    """A decorator that does not say that it returns a coroutine."""

    @functools.wraps(handler)
    def decorated(*arguments: Any) -> Any:
        return handler(*arguments)

    return decorated


@pytest.mark.parametrize(
    ("handler", "says_so"),
    [
        (Asynchronous(), True),
        (Asynchronous().handle, True),
        (functools.partial(Asynchronous().handle), True),
        (hidden(Asynchronous().handle), False),
    ],
    ids=["object", "method", "partial", "decorated"],
)
def test_whatever_is_a_coroutine(handler: Any, says_so: bool) -> None:
    """The invocation lasts until it has ended, whether the handler can be seen to be one or not."""
    guarded = guard_invocation(guard_invocation()(handler))
    assert inspect.iscoroutinefunction(guarded) is says_so
    for number in ("1", "2"):
        assert asyncio.run(guarded({"a": 1}, Context(number))) == ({"a": 1}, True)
        assert not invocation.is_running()


def test_every_engine_of_the_process_is_guarded(
    make_engine: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    """A writer and a reader: one deadline for both, and each has back what was kept of it."""
    engines = [
        make_engine(prefix="SHOP_", checkout_timeout_s=0.2),
        make_engine(access="read-only", checkout_timeout_s=0.2),
    ]
    kept = []

    @guard_invocation
    def handler(event: Any, context: Any) -> None:
        for engine in engines:
            connection = engine.connect()
            wired: Any = connection.connection.dbapi_connection
            assert 50 < wired.deadline - time.time() <= 60
            kept.append(connection)

    handler(None, Context())
    assert caplog.text.count("still checked out") == 2
    for engine in engines:
        with engine.connect() as connection:
            assert connection.execute(text("SELECT 1")).scalar_one() == 1


def stream(engine: Engine) -> Callable[..., Iterator[int]]:
    """A handler that answers piece by piece, as behind Lambda's Web Adapter."""

    @guard_invocation
    def handler(event: int, context: Any) -> Iterator[int]:
        with engine.connect() as connection:
            for row in connection.execute(text("SELECT generate_series(1, :n)"), {"n": event}):
                yield row[0] if is_guarded() else -1

    return handler


def test_a_generator_is_guarded_to_its_end(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """Not to where it is made: its statements have the deadline, and its connection is no leak."""
    handler = stream(engine)
    for number in ("1", "2"):
        assert list(handler(3, Context(number))) == [1, 2, 3]
        assert not invocation.is_running()
    assert caplog.records == []


@pytest.mark.parametrize("end", ["close", "forget"])
def test_a_generator_that_is_not_read_to_its_end(engine: Engine, end: str, caplog: pytest.LogCaptureFixture) -> None:
    """Closed or forgotten, its connection is back, and the next invocation's guard is not taken for its own."""
    handler = stream(engine)
    first = handler(3, Context("1"))
    assert next(first) == 1
    if end == "close":
        first.close()  # type: ignore[attr-defined]
        assert not invocation.is_running()
    with guard_invocation(Context("2")):
        del first
        gc.collect()
        assert is_guarded()
        with engine.connect() as connection:
            assert connection.execute(text("SELECT 1")).scalar_one() == 1
        assert is_guarded()
    assert not invocation.is_running()
    assert caplog.records == []


def test_a_generator_that_is_never_begun_binds_nobody(engine: Engine) -> None:
    """It did nothing, and when it is forgotten its invocation is over."""
    never = stream(engine)(3, Context("1"))
    assert invocation.is_running()
    del never
    gc.collect()
    assert not invocation.is_running()


def test_an_error_of_a_generator_ends_the_invocation(engine: Engine) -> None:
    """It comes out as it is, where the reader is."""

    @guard_invocation
    def handler(event: Any, context: Any) -> Iterator[int]:
        with engine.connect():
            yield 1
            raise LookupError

    pieces = handler(None, Context())
    assert next(pieces) == 1
    with pytest.raises(LookupError):
        next(pieces)
    assert not invocation.is_running()


def test_an_async_generator_hears_what_is_sent_and_thrown() -> None:
    """As without the guard: `asend` and `athrow` reach the handler, which may go on, and its end ends the guard."""
    heard: list[object] = []

    @guard_invocation
    async def handler(event: int, context: Any) -> AsyncGenerator[int, str]:
        heard.append((yield 1))
        try:
            yield 2
        except ValueError as error:
            heard.append(str(error))
        yield 3

    async def converse() -> list[int]:
        said = handler(0, Context())
        numbers = [await said.__anext__(), await said.asend("hello"), await said.athrow(ValueError("caught"))]
        with pytest.raises(StopAsyncIteration):
            await said.__anext__()
        return numbers

    assert asyncio.run(converse()) == [1, 2, 3]
    assert heard == ["hello", "caught"]
    assert not invocation.is_running()


def test_an_asynchronous_generator_is_guarded_to_its_end(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """Read to its end, and closed before: its own clean-up has run by then."""
    closed = []

    @guard_invocation
    async def handler(event: int, context: Any) -> AsyncIterator[bool]:
        try:
            for _ in range(event):
                await asyncio.sleep(0)
                with engine.connect() as connection:
                    connection.execute(text("SELECT 1"))
                yield is_guarded()
        finally:
            closed.append(event)

    async def read(count: int) -> list[bool]:
        pieces: Any = handler(3, Context())
        found = [await anext(pieces) for _ in range(count)]
        await pieces.aclose()
        return found

    assert asyncio.run(read(3)) == [True, True, True]
    assert asyncio.run(read(1)) == [True]
    assert closed == [3, 3]
    assert not invocation.is_running()
    assert caplog.records == []


def test_a_stream_within_a_guarded_block_ends_with_it(engine: Engine) -> None:
    """What is read after the block has no invocation any more, and takes none from whoever runs then."""
    handler = stream(engine)
    with guard_invocation(Context("1")):
        pieces = handler(2, Context("1"))
        assert next(pieces) == 1
    assert not invocation.is_running()
    with guard_invocation(Context("2")):
        pieces.close()  # type: ignore[attr-defined]
        assert is_guarded()
    assert not invocation.is_running()


@pytest.mark.parametrize(
    "made",
    [
        lambda: guard_invocation(Context()),
        lambda: guard_invocation("app.handler"),
        lambda: guard_invocation(mock.Mock()),
    ],
    ids=["context", "text", "mock"],
)
def test_a_guard_that_has_a_context_is_no_decorator(made: Callable[[], Any]) -> None:
    """A decorator gets the handler, and nothing else: what was meant is said."""
    with pytest.raises(TypeError, match="takes the handler as a decorator"):
        made()(plain)
    with pytest.raises(TypeError, match="takes the handler as a decorator"):
        made()({}, Context())


def test_a_guard_is_for_one_invocation() -> None:
    """Kept outside the handler it would have the first one's deadline for ever."""
    guard = guard_invocation(Context())
    with guard, pytest.raises(RuntimeError, match="for one invocation"), guard:
        pass
    with pytest.raises(RuntimeError, match="for one invocation"), guard:
        pass
    assert not invocation.is_running()


@lambda_handler_decorator
def of_ones_own(handler: Any, event: Any, context: Any, word: str) -> Any:
    """As Powertools' own decorators are made, its validator for one."""
    return word, handler(event, context)


def powertools(inner: Any, outer: Any) -> Any:
    """A handler under every decorator of Powertools', with a guard at either end, or both."""
    logger, metrics = Logger(service="s"), Metrics(service="s", namespace="S")
    tracer = Tracer(service="s", auto_patch=False, disabled=True)

    @outer
    @logger.inject_lambda_context(clear_state=True)
    @tracer.capture_lambda_handler
    @metrics.log_metrics
    @of_ones_own(word="a")
    @inner
    def handler(event: Any, context: Any) -> Any:
        """Answers."""
        metrics.add_metric(name="Answered", unit="Count", value=1)
        return event, is_guarded()

    return handler


def same(handler: Any) -> Any:
    """No decorator."""
    return handler


@pytest.mark.parametrize(
    ("inner", "outer"),
    [
        (guard_invocation, same),
        (same, guard_invocation),
        (guard_invocation, guard_invocation()),
        (hidden, guard_invocation),
    ],
    ids=["within", "around", "both", "another between"],
)
def test_powertools_decorators(inner: Any, outer: Any) -> None:
    """In any order."""
    handler = powertools(inner, outer)
    for number in ("1", "2"):
        assert handler({"a": 1}, Context(number)) == ("a", ({"a": 1}, True))
        assert not invocation.is_running()
    assert (handler.__name__, handler.__doc__) == ("handler", "Answers.")


class Order(BaseModel):
    """What an event holds."""

    id: int


@pytest.mark.parametrize("guard_first", [True, False])
def test_powertools_parser_and_data_classes(guard_first: bool) -> None:
    """Who reads the handler's annotations finds them through the guard, and who changes the event does."""

    def order(event: Order, context: Any) -> Any:
        return event.id, is_guarded()

    def queue(event: SQSEvent, context: Any) -> Any:
        return [record.body for record in event.records], is_guarded()

    parse, source = event_parser, event_source(data_class=SQSEvent)
    handlers: list[Any] = (
        [guard_invocation(parse(order)), guard_invocation(source(queue))]
        if guard_first
        else [parse(guard_invocation(order)), source(guard_invocation(queue))]
    )
    assert handlers[0]({"id": 7}, Context()) == (7, True)
    assert handlers[1]({"Records": [{"body": "b"}]}, Context()) == (["b"], True)


def http(path: str) -> dict[str, Any]:
    """An event of an HTTP API, payload 2.0."""
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"host": "x"},
        "isBase64Encoded": False,
        "requestContext": {
            "http": {"method": "GET", "path": path, "protocol": "HTTP/1.1", "sourceIp": "127.0.0.1", "userAgent": ""},
            "stage": "$default",
        },
    }


def test_powertools_event_handler() -> None:
    """A resolver within the handler, as Powertools' documentation has it."""
    app = APIGatewayHttpResolver()

    @app.get("/guarded")
    def route() -> dict[str, bool]:
        return {"guarded": is_guarded()}

    @guard_invocation
    def handler(event: Any, context: Any) -> Any:
        return app.resolve(event, context)

    assert json.loads(handler(http("/guarded"), Context())["body"]) == {"guarded": True}


@pytest.fixture
def loop() -> Iterator[None]:
    """An event loop, as Mangum looks for one when it is made."""
    made = asyncio.new_event_loop()
    asyncio.set_event_loop(made)
    yield
    asyncio.set_event_loop(None)
    made.close()


@pytest.mark.usefixtures("loop")
def test_mangum(engine: Engine) -> None:
    """The adapter itself is guarded, its routes in other threads included; a streamed answer, too."""
    app = FastAPI()

    @app.get("/sync")
    def in_a_thread() -> bool:
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
        return is_guarded()

    @app.get("/async")
    async def in_the_loop() -> bool:
        return is_guarded()

    @app.get("/stream")
    def streamed() -> StreamingResponse:
        return StreamingResponse((str(is_guarded()) for _ in range(2)), media_type="text/plain")

    handler: Any = guard_invocation(Mangum(app))
    bodies = [handler(http(path), Context())["body"] for path in ("/sync", "/async", "/stream")]
    assert bodies == ["true", "true", "TrueTrue"]
    assert not invocation.is_running()


@pytest.mark.usefixtures("loop")
def test_mangum_by_a_middleware() -> None:
    """Where the handler cannot be decorated: the context that Mangum hands on, in a middleware of ASGI."""
    app = FastAPI()

    @app.get("/guarded")
    def route() -> bool:
        return is_guarded()

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        with guard_invocation(scope.get("aws.context")):
            await app(scope, receive, send)

    assert Mangum(guarded, lifespan="off")(http("/guarded"), Context())["body"] == "true"  # type: ignore[arg-type]
    assert not invocation.is_running()


def test_who_looks_through_decorators_finds_the_handler() -> None:
    """functools.wraps' readers: the name, the signature, the function itself."""
    guarded = guard_invocation(plain)
    assert inspect.unwrap(guarded) is plain
    assert inspect.signature(guarded) == inspect.signature(plain)
    assert (guarded.__name__, guarded.__doc__, guarded.__module__) == ("plain", "A function.", plain.__module__)


APP = """
import time

from aws_lambda_powertools import Logger, Metrics, Tracer
from plungepool import get_engine, guard_invocation, invocation
from sqlalchemy import text

engine = get_engine()
logger, metrics = Logger(service="s"), Metrics(service="s", namespace="S")
tracer = Tracer(service="s", disabled=True, auto_patch=False)

@logger.inject_lambda_context
@tracer.capture_lambda_handler
@metrics.log_metrics
@guard_invocation()
def guarded(event, context):
    metrics.add_metric(name="Answered", unit="Count", value=1)
    with engine.begin() as connection:
        connection.execute(text("SELECT 1"))
        wire = connection.connection.dbapi_connection
        return [context.get_remaining_time_in_millis() / 1000, wire.deadline - time.time()]

class Shop:
    def __call__(self, event, context):
        return guarded(event, context)

handler = guard_invocation(Shop())
"""


def test_lambdas_own_context(
    tmp_path: Path, database: Database, lambda_environment: Callable[..., Environment]
) -> None:
    """In the real runtime client, under every decorator: the deadline is Lambda's, less the margin."""
    (tmp_path / "app.py").write_text(APP)
    environment = lambda_environment(tmp_path, variables=database.variables(), timeout_s=20)
    for _ in range(2):
        result = environment.invoke({})
        assert result.error is None, result.log
        left, until_deadline = result.payload
        assert 0 < left <= 20
        assert until_deadline == pytest.approx(left - 0.5, abs=0.2)
