"""One queue before one engine: a policy decides, the engine runs, and every picture gets exactly one end.

The clock is the event loop's, so that tests can hold it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from service.engines.base import EngineError
from service.errors import DeadlinePassedError, NotReadyError
from service.scheduling.arrivals import ArrivalStatistics
from service.scheduling.policies.common import validate
from service.scheduling.problem import Arm, Decision, Expected, Policy, Reason, Waiting

P = TypeVar("P")
R = TypeVar("R")

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ran(Generic[R]):
    """What came of a picture. batch: pictures of that run; started: loop time; seconds: of the run."""

    result: R
    arm: Arm
    batch: int
    started: float
    seconds: float
    reason: Reason


@dataclass(slots=True)
class _Job(Generic[P, R]):
    waiting: Waiting
    payload: P
    expires: float
    refused: Callable[[], Exception]
    future: asyncio.Future[Ran[R]]
    timer: asyncio.TimerHandle


class Dispatcher(Generic[P, R]):
    """Give it pictures by `submit`; it runs batches of them, one at a time. All methods belong to the loop's thread.

    arms: the arms as they are predicted now, always the same ones in the same order; run: answers a batch on the arm of
    that number, in order; statistics: of all that is asked for, whether it is let in or not; typical: share of an arm's
    predicted time that it usually takes; ran: told of each run (arm, batch, measured seconds, reason); decided: told
    what a decision cost, in seconds.
    """

    def __init__(
        self,
        policy: Policy,
        arms: Callable[[], Sequence[Arm]],
        run: Callable[[int, Sequence[P]], Awaitable[Sequence[R]]],
        *,
        statistics: ArrivalStatistics | None = None,
        typical: Callable[[int], float] = lambda _arm: 1.0,
        ran: Callable[[int, int, float, Reason], None] = lambda *_: None,
        decided: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        self._policy, self._arms, self._run, self._ran, self._decided = policy, arms, run, ran, decided
        self._statistics, self._typical = statistics or ArrivalStatistics(), typical
        self._jobs: dict[int, _Job[P, R]] = {}
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._running: frozenset[int] = frozenset()
        self._busy_until = 0.0
        self._asked: tuple[float, Sequence[Waiting], Sequence[Arm], Expected] | None = None
        self._numbers = 0
        self._closed = False
        self._refusal: Callable[[], Exception] = _stopping
        self._task = asyncio.create_task(self._work(), name="dispatcher")

    def __len__(self) -> int:
        """Pictures that wait, without those that run."""
        return len(self._jobs) - len(self._running)

    def free_at(self) -> float:
        """Loop time at which the engine will typically be free of what runs now."""
        now = self._loop.time()
        return max(self._busy_until, now) if self._running else now

    async def submit(
        self, payload: P, *, deadline: float, expires: float, arms: int, refused: Callable[[], Exception],
        late_ok: bool = False, tier: str = "",
    ) -> Ran[R]:  # fmt: skip
        """Queue a picture and wait for its end. Times are the loop's; arms: bits of the arms that may answer it.

        Raises what `refused` makes where the policy drops it; `DeadlinePassedError` at `expires`, even while a batch
        runs, unless it is in that batch; what the engine raises; `NotReadyError` once closed. Cancelling the caller
        takes a waiting picture out.
        """
        now = self._loop.time()
        if self._closed:
            raise self._refusal()
        if expires <= now:
            raise _passed()
        self._numbers += 1
        number = self._numbers
        timer = self._loop.call_at(expires, self._expire, number)
        waiting = Waiting(number, deadline, arms, late_ok, tier)
        job = _Job(waiting, payload, expires, refused, self._loop.create_future(), timer)
        self._jobs[number] = job
        self._wake.set()
        try:
            return await job.future
        finally:
            timer.cancel()
            if number not in self._running:
                self._jobs.pop(number, None)

    def _expire(self, number: int) -> None:
        job = self._jobs.get(number)
        if job is not None and number not in self._running and not job.future.done():
            job.future.set_exception(_passed())

    async def _work(self) -> None:
        while True:
            decision = self._decide()
            if decision.run:
                await self._execute(decision)
                continue
            if self._closed and not self._waiting():
                return
            self._wake.clear()
            await self._wake.wait()

    def _waiting(self) -> list[Waiting]:
        jobs = [job.waiting for job in self._jobs.values() if not job.future.done()]
        return sorted(jobs, key=lambda one: (one.deadline, one.number))

    def _decide(self) -> Decision:
        """Ask the policy until it runs something or has nothing left; what it drops is told at once."""
        while queue := self._waiting():
            began = time.perf_counter()
            now = self._loop.time()
            arms = self._arms()
            self._asked = asked = (now, queue, arms, self._statistics.expected(now))
            try:
                decision = self._policy.decide(*asked)
                if fault := validate(decision, queue, arms):
                    raise ValueError(fault)
            except Exception:
                # A faulty policy must not stop the service: the most urgent picture goes first, on its first arm.
                _LOG.exception("policy %s failed", self._policy.name)
                head = queue[0]
                decision = Decision((head.number,), (head.arms & -head.arms).bit_length() - 1, reason="late")
            self._decided(time.perf_counter() - began)
            for number in decision.drop:
                job = self._jobs[number]
                if not job.future.done():
                    job.future.set_exception(job.refused())
            if decision.run or not decision.drop:
                return decision
        return Decision()

    def rehearse(self) -> None:
        """Where predictions have moved, ask the last question again and forget the answer.

        Policies are pure, but derive tables from the arms at their first sight, which takes longer than to decide. To
        be called when nobody waits for a decision.
        """
        if self._asked is None:
            return
        now, queue, known, expected = self._asked
        if (arms := self._arms()) is known:
            return
        kinds: dict[int, Waiting] = {}
        for waiting in queue:
            kinds.setdefault(waiting.arms, waiting)  # one of a kind, since tables go by that
        self._asked = (now, list(kinds.values()), arms, expected)
        with suppress(Exception):  # said in the log where it matters: when it is decided
            self._policy.decide(*self._asked)

    async def _execute(self, decision: Decision) -> None:
        arm = self._arms()[decision.arm]
        jobs = [self._jobs[number] for number in decision.run]
        self._running = frozenset(decision.run)
        started = self._loop.time()
        self._busy_until = started + arm.seconds(len(jobs)) * self._typical(decision.arm)
        try:
            await self._answer(decision, arm, jobs, started)
        finally:
            self._running = frozenset()
            for number in decision.run:
                self._jobs.pop(number, None)

    async def _answer(self, decision: Decision, arm: Arm, jobs: Sequence[_Job[P, R]], started: float) -> None:
        try:
            results = await self._run(decision.arm, [job.payload for job in jobs])
        except Exception as error:
            if len(jobs) > 1 and isinstance(error, EngineError):
                # One picture may be at fault, or the batch too large: each gets a chance of its own.
                for job in jobs:
                    if not job.future.done():
                        await self._answer(decision, arm, [job], self._loop.time())
                return
            for job in jobs:
                if not job.future.done():
                    job.future.set_exception(error)
            return
        seconds = self._loop.time() - started
        # Later, since the engine waits for the next decision now.
        self._loop.call_soon(self._ran, decision.arm, len(jobs), seconds, decision.reason)
        for job, result in zip(jobs, results, strict=True):
            if not job.future.done():
                job.future.set_result(Ran(result, arm, len(jobs), started, seconds, decision.reason))

    def abort(self, error: Callable[[], Exception]) -> None:
        """Answer whatever waits or comes with `error()` from now on. What runs is left to `run`."""
        if not self._closed:
            self._closed, self._refusal = True, error
        for number, job in list(self._jobs.items()):
            if number not in self._running and not job.future.done():
                job.future.set_exception(error())
        self._wake.set()

    async def close(self) -> None:
        """Stop. What waits is told `NotReadyError`; what runs cannot be interrupted, so it still gets its answer."""
        self.abort(_stopping)
        await asyncio.wait([self._task])


def _passed() -> DeadlinePassedError:
    return DeadlinePassedError("The budget ran out while the request waited for the engine. Ask for a longer one.")


def _stopping() -> NotReadyError:
    return NotReadyError("The service is stopping. Send the request again shortly.")
