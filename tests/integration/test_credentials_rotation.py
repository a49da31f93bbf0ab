"""A password that rotates 200 times on a real server, under load: no invocation fails."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from moto import mock_aws
from moto.secretsmanager.models import SecretsManagerBackend
from rotation import Rotation
from sqlalchemy import text

from plungepool import Settings, build_engine
from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROTATIONS, THREADS = 200, 4


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server that checks passwords, with two roles for applications."""
    with Postgres({"max_connections": 20}, authentication="scram-sha-256") as running:
        running.execute("CREATE ROLE app LOGIN; CREATE ROLE app_clone LOGIN")
        yield running


@pytest.fixture(autouse=True)
def one_call_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets Manager's calls are atomic; moto's change a dictionary that another thread is reading."""
    lock = threading.Lock()
    for name in ("create_secret", "put_secret_value", "get_secret_value"):
        method = getattr(SecretsManagerBackend, name)

        def locked(*arguments: Any, method: Callable[..., Any] = method, **options: Any) -> Any:
            with lock:
                return method(*arguments, **options)

        monkeypatch.setattr(SecretsManagerBackend, name, locked)


@pytest.mark.parametrize("users", [["app"], ["app", "app_clone"]], ids=["single user", "alternating users"])
def test_no_invocation_fails_while_the_password_rotates(
    server: Postgres, users: list[str], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """
    Four threads connect for each transaction while the password rotates; one connection stays open through it all.

    Each of them gets in within each rotation's window, when the server has the new password and AWSCURRENT has not.
    Every transaction commits, the open connection lives to the end, and none of the passwords is in any output.
    """
    caplog.set_level("DEBUG", logger="plungepool")
    with mock_aws():
        rotation = Rotation(server, users)
        engine = build_engine(
            Settings(
                host=server.host,
                port=server.port,
                auth="secret",
                secret_arn=rotation.arn,
                tls="disable",
                pool="null",
                pool_size=THREADS + 1,
                connect_timeout_s=30,
            )
        )
        over = threading.Event()
        failures: list[BaseException] = []
        done = [0] * THREADS

        def invoke(number: int) -> None:
            while not over.is_set():
                try:
                    with engine.begin() as connection:
                        assert connection.execute(text("SELECT session_user")).scalar_one() in users
                    done[number] += 1
                except BaseException as failure:
                    failures.append(failure)
                    return

        def wait_for_a_transaction_of_each() -> None:
            before, patience = list(done), time.time() + 60
            while any(now == then for now, then in zip(done, before, strict=True)):
                assert [chain(failure) for failure in failures] == []
                assert time.time() < patience, "the threads make no progress"
                time.sleep(0.001)

        with engine.connect() as open_connection:
            pid = open_connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
            open_connection.commit()
            threads = [threading.Thread(target=invoke, args=(number,)) for number in range(THREADS)]
            for thread in threads:
                thread.start()
            try:
                for number in range(1, ROTATIONS + 1):
                    rotation.rotate(number, wait_for_a_transaction_of_each)
            finally:
                over.set()
                for thread in threads:
                    thread.join()
            assert open_connection.execute(text("SELECT pg_backend_pid()")).scalar_one() == pid
        engine.dispose()
    assert [chain(failure) for failure in failures] == []
    assert min(done) >= ROTATIONS
    out, err = capfd.readouterr()
    written = out + err + caplog.text + repr(engine) + repr(engine.pool) + str(engine.url)
    assert len(rotation.passwords) == ROTATIONS + 1
    assert [password for password in rotation.passwords if password in written] == []


def test_lost_password_is_an_error_without_it(server: Postgres) -> None:
    """When no version of the secret opens the server any more, the error's whole chain holds neither password."""
    with mock_aws():
        rotation = Rotation(server, ["app"])
        server.execute("ALTER ROLE app PASSWORD 'changed-by-hand'")
        engine = build_engine(
            Settings(
                host=server.host,
                port=server.port,
                auth="secret",
                secret_arn=rotation.arn,
                tls="disable",
                connect_timeout_s=0.5,
            )
        )
        with pytest.raises(Exception, match="refused every version of the secret") as caught:
            engine.connect()
    assert rotation.passwords[0] not in chain(caught.value)
    assert "28P01" in chain(caught.value)


def chain(error: BaseException | None) -> str:
    """Return the text and repr of an error and of all that led to it."""
    parts: list[Any] = []
    while error is not None:
        parts += [repr(error), str(error), repr(vars(error))]
        error = error.__cause__ or error.__context__
    return "\n".join(parts)
