"""
What a drain strikes: clients that run transactions all the time, drained again and again, and ended by hand.

    .venv/bin/python bench/drain.py                             measures and prints; some minutes
    .venv/bin/python bench/drain.py --write docs/drain.md       writes the page's figures, too

Each client has an engine of its own with a kept connection, and pauses between its transactions as chance has it. What
fails is counted by the clients. A busy machine makes the window wider: that is the time from a client's look at its
socket to when the server has its request.
"""

from __future__ import annotations

import argparse
import random
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from measure import conditions, write_figures

from plungepool import Settings, build_engine, drain, run_transaction
from plungepool_toolkit.postgres import Postgres

if TYPE_CHECKING:
    from typing import Self

    from sqlalchemy import Connection

CLIENTS, PAUSE_S, BUSY_S = 12, 1.0, 0.02
# What ends the connections, how the clients run their transactions, and the least time that a backend was idle.
CASES: list[tuple[str, str, float | None]] = [
    ("`plungepool drain`", "engine.begin()", 0.3),
    ("`plungepool drain`", "run_transaction", 0.3),
    ("`plungepool drain --min-idle 0`", "engine.begin()", 0.0),
    ("`plungepool drain --min-idle 0`", "run_transaction", 0.0),
    ("all at once, by hand", "engine.begin()", None),
]
TERMINATE = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'app'"


class Clients:
    """Run transactions until it is left."""

    def __init__(self, settings: Settings, how: str) -> None:
        self.succeeded: list[int] = []
        self.failed: list[str] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(settings, how, number)) for number in range(CLIENTS)]

    def _run(self, settings: Settings, how: str, number: int) -> None:
        engine, chance = build_engine(settings), random.Random(number)

        def work(connection: Connection) -> None:
            connection.exec_driver_sql("SELECT 1")
            time.sleep(BUSY_S)
            connection.exec_driver_sql("SELECT 2")

        while not self._over.is_set():
            try:
                if how == "run_transaction":
                    run_transaction(engine, work)
                else:
                    with engine.begin() as connection:
                        work(connection)
                self.succeeded.append(1)
            except Exception as error:
                self.failed.append(str(getattr(error, "orig", error)))
            self._over.wait(chance.expovariate(1 / PAUSE_S))
        engine.dispose()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def measure(server: Postgres, how: str, min_idle_s: float | None, seconds: float) -> tuple[int, int, int, int]:
    """Return how many connections were ended, how many were left, and how many transactions succeeded and failed."""
    ended = left = 0
    operator = build_engine(Settings(url=server.url(), tls="disable"))
    with Clients(Settings(url=server.url("app", password="not asked for"), tls="disable"), how) as clients:
        end = time.time() + seconds
        while time.time() < end:
            if min_idle_s is None:
                ended += server.execute(TERMINATE)[0][0]
                time.sleep(1)
                continue
            options = drain.Options(role="app", min_idle_s=min_idle_s, rate=100, limit_s=20)
            *_, last = drain.drain(operator, options)
            ended, left = ended + last.ended, left + last.left
    operator.dispose()
    return ended, left, len(clients.succeeded), len(clients.failed)


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="the page whose figures are written")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each case is run")
    arguments = parser.parse_args()
    rows = ["| ended by | clients use | ended | left | transactions | failed |", "|---|---|---|---|---|---|"]
    with Postgres() as server:
        server.execute("CREATE ROLE app LOGIN")
        version = server.execute("SHOW server_version")[0][0]
        for by, how, min_idle_s in CASES:
            ended, left, succeeded, failed = measure(server, how, min_idle_s, arguments.seconds)
            rows.append(f"| {by} | `{how}` | {ended} | {left} | {succeeded + failed} | {failed} |")
            print(rows[-1], flush=True)
    about = (
        f"{CLIENTS} clients, each with one connection, a transaction of {BUSY_S * 1000:.0f} ms and a pause of "
        f"{PAUSE_S:g} s on average, for {arguments.seconds:.0f} s a row. {conditions('sqlalchemy', server=version)}; "
        f"measured again by `.venv/bin/python bench/drain.py --write docs/drain.md`."
    )
    text = "\n".join([about, "", *rows])
    print(text)
    if arguments.write:
        write_figures(arguments.write, "drain", text)


if __name__ == "__main__":
    main()
