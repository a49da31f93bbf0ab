"""
A fleet and its database in virtual time: arrivals, environments, connections, a server's CPU. What decides when to ask
again and what to keep is `plungepool.fleet`'s own code.

What is in the model: each connect costs the server CPU, until it is refused or to its end; whether there is a slot
shows when the refusal's part is done; a transaction costs CPU; a connection holds its slot from then until it is
closed, also while its environment is frozen; the server ends what idles longer than its lease; an environment that is
idle for long is reaped. What is not: memory, locks, disks, the network.

Units: every *_s is in seconds of virtual time.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from .clock import Clock, Processor, Queue, Shared, Steps, Work
from .endpoints import Direct, Environment, Proxy
from .run import Run, Tally

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .model import Database, Function
    from .strategies import Strategy

_THROTTLED = "TooManyRequestsException"


class Fleet:
    """One run: environments that share one database by one strategy."""

    def __init__(
        self, strategy: Strategy, database: Database, function: Function, *, environments: int, seed: int
    ) -> None:
        """Args: environments: at most; what arrives while all of them are busy is throttled."""
        self._strategy, self._function, self._most = strategy, function, environments
        self._chance = random.Random(seed)
        shared = database.sharing == "shared"
        processor: Processor = Shared(database.cores, database.overhead) if shared else Queue(database.cores)
        self._clock, self._tally = Clock(processor), Tally()
        endpoint = Proxy if database.endpoint == "proxy" else Direct
        self._endpoint = endpoint(strategy, database, function, self._clock, self._tally, self._chance)
        self._idle: list[Environment] = []
        self._environments = self._awaited = 0
        self._wall_s = 0.0
        self._client_s = database.costs.client_s

    def spikes(self, rounds: int, *, fresh: bool = False, within_s: float = 0.05, gap_s: float = 0.5) -> Run:
        """
        Invoke all environments at once, so many times: again when all of the last time are over.

        Args: fresh: each time others, while those of the times before are frozen.
        """
        everyone = [Environment() for _ in range(self._most)]
        self._environments = len(everyone)
        self._awaited = rounds * len(everyone)
        left = 0

        def one(environment: Environment, more: int) -> Steps[None]:
            nonlocal left
            yield from self._invocation(environment, cold=fresh or more == rounds)
            left -= 1
            if not left and more > 1:
                begin(self._clock.now + gap_s, more - 1)

        def begin(at: float, more: int) -> None:
            nonlocal left
            left = len(everyone)
            if fresh and more < rounds:
                everyone[:] = [Environment() for _ in everyone]
                self._environments += len(everyone)
            for environment in everyone:
                self._clock.start(one(environment, more), at + self._chance.uniform(0, within_s))

        begin(0.0, rounds)
        return self._run()

    def arrivals(self, moments: Iterable[float]) -> Run:
        """Begin an invocation at each of these moments, which are in order, in an idle environment or in a new one."""
        ahead = iter(moments)
        self._awaited = 1  # the one that is ahead

        def one(_: None) -> None:
            environment, cold = self._idle_or_new()
            if environment is None:
                self._tally.ended(0.0, _THROTTLED)
            else:
                self._awaited += 1
                self._clock.start(self._invocation_of(environment, cold=cold), self._clock.now)
            follow()

        def follow() -> None:
            moment = next(ahead, None)
            if moment is not None:
                self._clock.at(moment, one, None)
            else:
                self._over()

        follow()
        return self._run()

    def _run(self) -> Run:
        self._clock.run()
        run = self._tally.run(self._wall_s, environments=self._environments)
        return run._replace(database_cpu_s=self._clock.processor.used_s - self._client_s * run.invocations)

    def _over(self) -> None:
        self._awaited -= 1
        self._wall_s = self._clock.now
        if not self._awaited:
            self._clock.going = False  # leases and idle environments matter to nobody any more

    def _idle_or_new(self) -> tuple[Environment | None, bool]:
        """Return the environment that was busy last, as Lambda does, or a new one, and whether it is new."""
        while self._idle:
            environment = self._idle.pop()
            if not environment.gone:
                environment.idle_since = None
                return environment, False
        if self._environments >= self._most:
            return None, False
        self._environments += 1
        return Environment(), True

    def _invocation_of(self, environment: Environment, *, cold: bool) -> Steps[None]:
        yield from self._invocation(environment, cold=cold)
        if environment.gone:
            self._environments -= 1
            return
        environment.idle_since = self._clock.now
        self._idle.append(environment)
        if not environment.watched:
            environment.watched = True
            self._clock.at(self._clock.now + self._function.reap_s, self._reap, environment)

    def _reap(self, environment: Environment) -> None:
        if environment.gone:
            return
        now, reap_s = self._clock.now, self._function.reap_s
        ends = (now if environment.idle_since is None else environment.idle_since) + reap_s
        if ends > now:
            self._clock.at(ends, self._reap, environment)
            return
        environment.gone = True
        self._environments -= 1
        self._endpoint.leave(environment)

    def _invocation(self, environment: Environment, *, cold: bool) -> Steps[None]:
        clock, function = self._clock, self._function
        began = clock.now
        environment.gone = False
        if cold and function.init_s:
            yield function.init_s
        ends = clock.now + function.deadline_s
        if self._client_s:
            yield Work(clock.processor, self._client_s)
        until = ends - function.margin_s if self._strategy.ends_by_deadline else ends
        failure = yield from self._endpoint.invoke(environment, until, ends)
        self._tally.ended(clock.now - began, failure)
        if environment.gone:
            self._endpoint.leave(environment)
        self._over()
