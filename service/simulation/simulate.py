"""Discrete-event simulation of one engine behind one queue, with the policy's own code.

A request arrives, is let in or not as `service.gate` would, is decoded by one of a few threads, first come first
served, and waits. Whenever the engine is idle
and something waits, the policy decides; the time that it takes is measured and passes on the simulated clock before the
batch starts. Run times are drawn from the profile. Decoding does not slow the engine here, as it may on few cores.
"""

from __future__ import annotations

import heapq
import time
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np

from service.scheduling.admission import Demand, admit, most_late
from service.scheduling.arrivals import ArrivalStatistics
from service.scheduling.policies.common import validate
from service.scheduling.problem import Policy, Waiting
from service.simulation.profile import SimProfile
from service.simulation.spec import MOST_SEED, shown
from service.simulation.trace import Arrival

LATE_LIMIT_S = 10.0
"""How long after its deadline a picture that may be late is still worked for, as in `service.runtime`."""

_TOLERANCE_S = 1e-9  # of sums of floats: an answer at the deadline is on time

Outcome = Literal["on_time", "late", "dropped"]
Why = Literal["", "queue_full", "overload", "expired", "infeasible"]


_RANGES = (
    ("decode_ms", 0, 1_000_000), ("decode_threads", 1, 1_000_000), ("decode_cv", 0, 10), ("queue_limit", 1, 1_000_000),
    ("drift", 0.001, 1000), ("decision_ms", 0, 1_000_000), ("seed", 0, MOST_SEED),
)  # fmt: skip
_LEAST_CV = 1e-6  # the square of a much lesser one is 0 as a float


class InvalidDecisionError(ValueError):
    """A policy broke the contract of `service.scheduling.problem.Decision`."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What surrounds the policy.

    decode_ms: per picture, on average; decode_cv: its coefficient of variation, 0 for a constant, else Gamma;
    queue_limit: requests in flight (decoding, waiting or running) from which on new ones are shed; drift: true run
    times over the profile's; decision_ms: charged for each decision in place of its measured time, so that a run can
    be repeated exactly; seed: of run and decode times; admission: whether requests that could not be on time are turned
    away on arrival, or sent behind everybody where they may be late.
    """

    decode_ms: float = 5.0
    decode_threads: int = 2
    decode_cv: float = 0.0
    queue_limit: int = 64
    drift: float = 1.0
    decision_ms: float | None = None
    seed: int = 0
    admission: bool = True

    def __post_init__(self) -> None:
        for name, least, most in _RANGES:
            value = getattr(self, name)
            if value is not None and not least <= value <= most:  # false for NaN, too
                raise ValueError(f"{name} must be from {least} to {most}, not {shown(value)}")
        if 0 < self.decode_cv < _LEAST_CV:
            raise ValueError(f"decode_cv must be 0, or from {_LEAST_CV:g} to 10, not {self.decode_cv!r}")


@dataclass(frozen=True, slots=True)
class End:
    """How a request ended, at `at_s`: answered by `arm` after waiting `wait_s` for the engine, or dropped, and why."""

    outcome: Outcome
    at_s: float
    why: Why = ""
    arm: int = -1
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Batch:
    """One run of the engine."""

    arm: int
    pictures: int
    began_s: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a trace. ends: one a request, in the trace's order; decision_s: what each decision was charged."""

    policy: str
    ends: tuple[End, ...]
    batches: tuple[Batch, ...]
    decision_s: tuple[float, ...]


def simulate(
    policy: Policy,
    trace: Sequence[Arrival],
    profile: SimProfile,
    setting: Setting | None = None,
    progress: Callable[[int], None] | None = None,
) -> Run:
    """Play `trace` (in order of arrival). progress: told, now and then, how many more requests have ended.

    Raises `InvalidDecisionError`, and ValueError where no input size of the profile holds a picture.
    """
    return _Simulation(policy, trace, profile, setting or Setting(), progress or (lambda _: None)).run()


class _Kind(IntEnum):
    """Of events, in the order in which those of one moment are handled: a place is free before it is asked for, and
    what has expired is gone before a decision."""

    ENGINE_FREE = 0
    DECODED = 1
    ARRIVED = 2
    EXPIRED = 3


_STEP = 256  # ends between two reports of progress


class _Simulation:
    def __init__(
        self,
        policy: Policy,
        trace: Sequence[Arrival],
        profile: SimProfile,
        setting: Setting,
        progress: Callable[[int], None],
    ) -> None:
        self._policy, self._trace, self._profile, self._setting = policy, trace, profile, setting
        self._progress, self._reported, self._ended = progress, 0, 0
        self._masks = _masks(trace, profile)
        self._ends: list[End | None] = [None] * len(trace)
        # The k-th request takes the same time to decode under every policy.
        self._decode_s = _decode_times(setting, len(trace))
        self._run_rng = np.random.default_rng((setting.seed, 3))
        self._events: list[tuple[float, _Kind, int]] = []
        self._undecoded: deque[int] = deque()
        self._free_decoders = setting.decode_threads
        self._in_flight = 0
        self._queue: list[tuple[float, int, Waiting]] = []
        self._joined: dict[int, float] = {}
        self._running: dict[int, float] = {}  # picture -> when it joined the queue
        self._running_arm, self._running_since, self._predicted_end = -1, 0.0, 0.0
        self._demands: dict[int, Demand] = {}
        self._demoted: set[int] = set()
        self._fastest_s = _fastest(profile, set(self._masks))
        self._idle = True
        self._statistics = ArrivalStatistics()
        self._batches: list[Batch] = []
        self._decision_s: list[float] = []

    def run(self) -> Run:
        # One arrival at a time is on the heap: each puts the next one there.
        if self._trace:
            self._push(self._trace[0].at_s, _Kind.ARRIVED, 0)
        handlers = {
            _Kind.ENGINE_FREE: self._engine_free,
            _Kind.DECODED: self._decoded,
            _Kind.ARRIVED: self._arrived,
            _Kind.EXPIRED: self._expired,
        }
        while self._events:
            now = self._events[0][0]
            while self._events and self._events[0][0] <= now:
                _, kind, number = heapq.heappop(self._events)
                handlers[kind](now, number)
            if self._idle and self._queue:
                self._decide(now)
        self._progress(self._ended - self._reported)
        ends = tuple(end for end in self._ends if end is not None)
        assert len(ends) == len(self._trace)
        assert not self._in_flight
        return Run(self._policy.name, ends, tuple(self._batches), tuple(self._decision_s))

    def _push(self, at: float, kind: _Kind, number: int) -> None:
        heapq.heappush(self._events, (at, kind, number))

    def _end(self, number: int, end: End) -> None:
        assert self._ends[number] is None
        self._ends[number] = end
        self._ended += 1
        if self._ended - self._reported >= _STEP:
            self._progress(self._ended - self._reported)
            self._reported = self._ended

    def _arrived(self, now: float, number: int) -> None:
        if number + 1 < len(self._trace):
            self._push(self._trace[number + 1].at_s, _Kind.ARRIVED, number + 1)
        if self._in_flight >= self._setting.queue_limit:
            self._end(number, End("dropped", now, "queue_full"))
            return
        arrival = self._trace[number]
        # Whether it is let in or not, as the gate of the service does.
        slack = arrival.deadline - now - self._setting.decode_ms / 1e3
        self._statistics.observe(now, slack, self._masks[number])
        if self._setting.admission and (why := self._turned_away(now, number)):
            self._end(number, End("dropped", now, why))
            return
        self._in_flight += 1
        self._push(arrival.deadline + (LATE_LIMIT_S if arrival.late_ok else 0.0), _Kind.EXPIRED, number)
        self._undecoded.append(number)
        self._feed_decoders(now)

    def _turned_away(self, now: float, number: int) -> Why:
        """As `service.gate` decides: why the request is not let in, or "" where it is."""
        arrival = self._trace[number]
        ahead = (len(self._undecoded) + 1) / self._setting.decode_threads
        ready = now + max(1.0, ahead) * self._setting.decode_ms / 1e3
        demand = Demand(arrival.deadline, ready, *self._fastest_s[self._masks[number]])
        found = admit(demand, self._demands.values(), now if self._idle else max(self._predicted_end, now))
        if found.on_time and found.harmless:
            self._demands[number] = demand
            return ""
        if not arrival.late_ok:
            return "infeasible"
        if len(self._demoted) + 1 > most_late(self._setting.queue_limit):
            return "overload"
        self._demoted.add(number)
        return ""

    def _feed_decoders(self, now: float) -> None:
        while self._free_decoders and self._undecoded:
            number = self._undecoded.popleft()
            if self._ends[number] is not None:  # expired before a decoder was free
                continue
            self._free_decoders -= 1
            self._push(now + self._decode_s[number], _Kind.DECODED, number)

    def _decoded(self, now: float, number: int) -> None:
        self._free_decoders += 1
        self._feed_decoders(now)
        if self._ends[number] is not None:  # expired meanwhile; a decoder cannot be interrupted
            return
        arrival, arms = self._trace[number], self._masks[number]
        deadline = now if number in self._demoted else arrival.deadline
        waiting = Waiting(number, deadline, arms, arrival.late_ok, arrival.tier)
        insort(self._queue, (deadline, number, waiting))
        self._joined[number] = now

    def _expired(self, now: float, number: int) -> None:
        if self._ends[number] is not None or number in self._running:
            return
        if number in self._joined:
            self._leave(number)
        self._drop(number, now, "expired")

    def _gone(self, number: int) -> None:
        self._in_flight -= 1
        self._demands.pop(number, None)
        self._demoted.discard(number)

    def _drop(self, number: int, at: float, why: Why) -> None:
        self._gone(number)
        self._end(number, End("dropped", at, why))

    def _leave(self, number: int) -> float:
        """Take a picture out of the queue; when it joined, seconds."""
        deadline = self._joined[number] if number in self._demoted else self._trace[number].deadline
        del self._queue[bisect_left(self._queue, (deadline, number), key=lambda entry: entry[:2])]
        return self._joined.pop(number)

    def _decide(self, now: float) -> None:
        queue, expected = [waiting for _, _, waiting in self._queue], self._statistics.expected(now)
        began = time.perf_counter()
        decision = self._policy.decide(now, queue, self._profile.arms, expected)
        cost = time.perf_counter() - began
        if self._setting.decision_ms is not None:
            cost = self._setting.decision_ms / 1e3
        fault = validate(decision, queue, self._profile.arms)
        if fault:
            raise InvalidDecisionError(f"the policy {self._policy.name} decided what is not valid: {fault}")
        self._decision_s.append(cost)
        self._idle = False
        start = now + cost
        for number in decision.drop:
            self._leave(number)
            self._drop(number, start, "infeasible")
        if not decision.run:
            self._push(start, _Kind.ENGINE_FREE, 0)
            return
        batch, arm = len(decision.run), decision.arm
        seconds = self._profile.seconds(arm, batch, float(self._run_rng.standard_normal())) * self._setting.drift
        self._batches.append(Batch(arm, batch, start, seconds))
        self._running = {number: self._leave(number) for number in decision.run}
        for number in decision.run:
            self._demands.pop(number, None)
        self._running_arm, self._running_since = arm, start
        self._predicted_end = start + self._profile.p50_ms[arm][batch - 1] / 1e3
        self._push(start + seconds, _Kind.ENGINE_FREE, 0)

    def _engine_free(self, now: float, _: int) -> None:
        for number, joined in self._running.items():
            on_time = now <= self._trace[number].deadline + _TOLERANCE_S
            self._gone(number)
            outcome: Outcome = "on_time" if on_time else "late"
            self._end(number, End(outcome, now, "", self._running_arm, self._running_since - joined))
        self._running = {}
        self._idle = True


def _masks(trace: Sequence[Arrival], profile: SimProfile) -> list[int]:
    by_size: dict[tuple[int, int], int] = {}
    for arrival in trace:
        size = (arrival.width, arrival.height)
        if size not in by_size:
            by_size[size] = profile.arms_for(*size)
            if not by_size[size]:
                raise ValueError(f"no input size of the profile holds a picture of {size[0]}x{size[1]}")
    return [by_size[arrival.width, arrival.height] for arrival in trace]


def _fastest(profile: SimProfile, masks: set[int]) -> dict[int, tuple[float, float]]:
    """mask -> seconds of one picture on the fastest arm of it, typically, and how much more once in a hundred times."""
    found = {}
    for mask in masks:
        arm = min((k for k in range(len(profile.arms)) if mask >> k & 1), key=lambda k: profile.arms[k].seconds(1))
        typical, slow = profile.p50_ms[arm][0] / 1e3, profile.arms[arm].seconds(1)
        found[mask] = (min(typical, slow), max(slow - typical, 0.0))
    return found


def _decode_times(setting: Setting, count: int) -> list[float]:
    """Seconds of each request's decoding."""
    if not setting.decode_cv or not setting.decode_ms:
        return [setting.decode_ms / 1e3] * count
    cv2 = setting.decode_cv**2
    times = np.random.default_rng((setting.seed, 2)).gamma(1 / cv2, setting.decode_ms / 1e3 * cv2, count)
    return [float(seconds) for seconds in times]
