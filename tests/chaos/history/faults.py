"""What befalls the shop: by a seed, which fault comes after which, when, and where it strikes."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import random
    import threading
    from collections.abc import Sequence

    from cluster import Cluster
    from history.rotation import Rotation

    from plungepool_toolkit.network import ChaosProxy

# How often each comes, among so many in all.
_WEIGHTS = {
    "cut": 30,
    "lag": 15,
    "reset": 10,
    "hang up": 6,
    "silence": 7,
    "kill": 12,
    "stall": 8,
    "terminate": 8,
    "crash": 4,
    "restart": 4,
    "fail over": 5,
    "rotate": 5,
    "full": 3,
}


class Victim(Protocol):
    """An environment that can be killed and stopped."""

    interfered_at: float

    @property
    def pid(self) -> int | None: ...

    @property
    def busy(self) -> bool: ...


class Faults:
    """
    Does one fault after the other, until `over` is set; everything is whole again when `run` returns.

    Attributes: `done`: how often each was done.
    """

    def __init__(
        self,
        chance: random.Random,
        over: threading.Event,
        cluster: Cluster,
        proxies: Sequence[ChaosProxy],
        rotation: Rotation,
        victims: Sequence[Victim],
    ) -> None:
        self.done: Counter[str] = Counter()
        self._chance, self._over, self._cluster = chance, over, cluster
        self._proxies, self._rotation, self._victims = proxies, rotation, victims

    def run(self) -> None:
        """Do faults, each after a short rest. Blocks until `over` is set and everything is whole again."""
        kinds, weights = zip(*_WEIGHTS.items(), strict=True)
        # Each kind once, as far as the time goes, and then by its weight.
        first = sorted(kinds, key=lambda _: self._chance.random())
        while not self._over.wait(self._chance.uniform(0.05, 0.7)):
            kind = first.pop() if first else self._chance.choices(kinds, weights)[0]
            getattr(self, f"_{kind.replace(' ', '_')}")()
            self.done[kind] += 1
        for proxy in self._proxies:
            proxy.cut_after()
            proxy.heal()

    def _rest(self, low_s: float, high_s: float) -> None:
        self._over.wait(self._chance.uniform(low_s, high_s))

    # The network

    def _cut(self) -> None:
        """Break a connection in the middle of what it sends, or of the answer, of which it gets a part or nothing."""
        towards = self._chance.choice(("from_client", "from_server"))
        count = int(self._chance.expovariate(1 / 300))
        proxy, gracefully = self._chance.choice(self._proxies), self._chance.random() < 0.3
        proxy.cut_after(**{towards: count}, gracefully=gracefully)

    def _reset(self) -> None:
        self._chance.choice(self._proxies).reset()

    def _hang_up(self) -> None:
        self._chance.choice(self._proxies).hang_up()

    def _silence(self) -> None:
        """Swallow everything for a while; afterwards it arrives late, or the connections are gone."""
        proxy = self._chance.choice(self._proxies)
        proxy.partition()
        self._rest(*self._chance.choice(((0.1, 1.0), (0.1, 1.0), (1.0, 3.0), (6.0, 9.0))))
        if self._chance.random() < 0.5:
            proxy.reset()
        proxy.heal()

    # The environments

    def _victim(self) -> Victim:
        victim = self._chance.choice(self._victims)
        moment = self._chance.uniform(0.0, 0.03)
        patience = time.monotonic() + 0.5
        while not victim.busy and time.monotonic() < patience:
            time.sleep(0.001)
        time.sleep(moment)
        return victim

    def _signal(self, victim: Victim, number: int) -> None:
        victim.interfered_at = time.monotonic()
        if (pid := victim.pid) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        victim.interfered_at = time.monotonic()

    def _kill(self) -> None:
        self._signal(self._victim(), signal.SIGKILL)

    def _stall(self) -> None:
        """Stop an environment in the middle of an invocation, as if it got no processor, also beyond its deadline."""
        victim = self._victim()
        self._signal(victim, signal.SIGSTOP)
        self._rest(*self._chance.choice(((0.1, 1.0), (0.1, 1.0), (2.0, 6.0))))
        self._signal(victim, signal.SIGCONT)

    # The servers

    def _lag(self) -> None:
        """
        Let the standby fall behind, so that every COMMIT waits; then what waits loses its answer, or gets it late.

        What becomes of these is what nobody can know who hears nothing: they are kept.
        """
        standby = self._cluster.standby
        assert standby is not None
        standby.execute("SELECT pg_wal_replay_pause()")
        self._rest(*self._chance.choice(((0.05, 0.4), (0.05, 0.4), (0.4, 1.0), (4.5, 6.0))))
        after = self._chance.choice(("reset", "reset", "hang up", "terminate", "kill", "crash", "fail over", "nothing"))
        if after in ("reset", "hang up"):
            for proxy in self._proxies:
                proxy.reset() if after == "reset" else proxy.hang_up()
        elif after != "nothing":
            getattr(self, f"_{after.replace(' ', '_')}")()
        if self._cluster.standby is standby:
            standby.execute("SELECT pg_wal_replay_resume()")

    def _terminate(self) -> None:
        """End some of the sessions, as an administrator does."""
        share = self._chance.choice((0.3, 1.0))
        self._cluster.primary.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename <> 'postgres' AND random() < $1",
            share,
        )

    def _crash(self) -> None:
        self._cluster.crash()

    def _restart(self) -> None:
        self._cluster.restart()

    def _fail_over(self) -> None:
        silent, read_only_first = self._chance.random() < 0.5, self._chance.random() < 0.5
        self._cluster.fail_over(silent=silent, read_only_first=read_only_first)
        self._rest(0.0, 0.5)
        self._cluster.add_standby()

    def _rotate(self) -> None:
        self._rotation.rotate(lambda: self._rest(0.0, 1.0))

    def _full(self) -> None:
        """Let a role have no more connections for a while."""
        role = self._chance.choice(("fixed", "rotating", "pooled"))
        self._cluster.primary.execute(f"ALTER ROLE {role} CONNECTION LIMIT 1")
        self._rest(0.2, 1.5)
        self._cluster.primary.execute(f"ALTER ROLE {role} CONNECTION LIMIT -1")
