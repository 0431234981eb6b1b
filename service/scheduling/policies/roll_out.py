"""Roll-out: each first run is weighed by the best way to go on after it, for who waits and who may come meanwhile."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from service.scheduling.policies.common import (
    ArmTable,
    Remembered,
    run_late,
    run_on_time,
    slack_ms,
    sort_out,
)
from service.scheduling.policies.planning import (
    Plan,
    PlanTable,
    Window,
    first_runs,
    groups_of,
    keep_deadlines,
)
from service.scheduling.problem import Arm, Decision, Expected, Waiting

_GOLDEN = 0.6180339887498949


class Arrival(NamedTuple):
    """Milliseconds from now on; mask: its arms."""

    at_ms: float
    deadline_ms: float
    mask: int


@dataclass(frozen=True)
class Coming:
    """Who is expected during a run: arrivals, first come first; tight: the one with least time to spare, if anybody.

    per_ms: arrivals a millisecond, of all kinds; spares_ms: how long each of the mix could wait, ascending.
    """

    arrivals: tuple[Arrival, ...] = ()
    tight: tuple[Arrival, ...] = ()
    per_ms: float = 0.0
    spares_ms: tuple[float, ...] = ()

    def during(self, run_ms: float, tight_chance: float) -> tuple[Arrival, ...]:
        """Those who come during a run, the tight one where at least `tight_chance` pictures are expected."""
        come = self.arrivals[: bisect_left(self.arrivals, (run_ms,))]
        return come + self.tight if self.per_ms * run_ms >= tight_chance else come

    def misses(self, run_ms: float) -> float:
        """How many of those who come during a run are expected to miss because it lasts: who can wait for `spare_ms`
        does unless coming in the run's first `run_ms - spare_ms`."""
        lost_ms = sum([run_ms - spare for spare in self.spares_ms if spare < run_ms])
        return self.per_ms * lost_ms / len(self.spares_ms) if lost_ms else 0.0


_NOBODY = Coming()


@dataclass(frozen=True)
class RollOut:
    """The first run with the most AP.50 a picture, late ones counting 0, minus `penalty` a miss.

    Pictures: the queue's first `depth`, and those expected during the run: at the present rate, their budgets drawn
    evenly from the mix seen, at most `arrivals` of them, and one of the tightest budget right after the start, since
    a run cannot be interrupted; without it light load would miss deadlines behind slow runs. That one is left out of
    runs during which fewer than `tight_chance` pictures are expected; 0 counts it always. Where times have become so
    long that it would be missed behind any run, it tells no run from another; so whoever is expected to come too early
    during a run costs `wait_penalty` besides, which is higher, since who has to wait keeps others waiting. After the
    run each of at most `plans` ways to go on is tried, earliest deadline first. Of equals, the run of least time a
    picture. candidates: how many first runs are weighed.
    """

    penalty: float = 4.0
    wait_penalty: float = 8.0
    candidates: int = 20
    plans: int = 5
    depth: int = 48
    arrivals: int = 16
    tight_chance: float = 0.01
    name: ClassVar[str] = "roll_out"
    _tables: Remembered[PlanTable] = field(default_factory=lambda: Remembered(PlanTable), init=False, repr=False)

    def __post_init__(self) -> None:
        if (
            min(self.penalty, self.wait_penalty, self.arrivals, self.tight_chance) < 0
            or min(self.candidates, self.plans, self.depth) < 1
        ):
            raise ValueError(
                "roll_out needs penalties, arrivals and a chance of at least 0, and at least one candidate, plan and "
                f"picture of depth, got {self}"
            )

    def decide(self, now: float, queue: Sequence[Waiting], arms: Sequence[Arm], expected: Expected) -> Decision:
        """See `Policy.decide`."""
        table = self._tables(arms)
        found = sort_out(now, queue, table.arms)
        if not found.hopeful:
            return run_late(found, table.arms)
        pictures = found.hopeful[: self.depth]
        longest = max(table.arms.arms[k].latency_ms[-1] for k in table.arms.indices(pictures[0].arms))
        coming = self._coming(expected, table.arms, min(longest, slack_ms(now, pictures[0])))
        waiting = {picture.arms for picture in pictures}
        masks = waiting.union([arrival.mask for arrival in (*coming.arrivals, *coming.tight)])
        window = Window(now, pictures, tuple(sorted(masks)))
        plans = table.plans(window.masks, self.plans)
        worths, most = table.arms.worth, max(table.arms.worth[k] for k in table.undominated(window.masks))
        tries = []
        for run in first_runs(now, found.hopeful, table, tuple(sorted(waiting)), self.candidates):
            come = coming.during(run.ms, self.tight_chance)
            count = window.left(run) + len(come)
            own = run.size * worths[run.arm] - self.wait_penalty * coming.misses(run.ms)
            # What it would be worth if everybody after it had the best arm in time.
            bound = round((own + count * most) / (run.size + count), 12)
            tries.append((bound, run, come, count, own))
        tries.sort(key=lambda one: -one[0])
        best, best_value = tries[0][1], (-math.inf, 0.0)
        for bound, run, come, count, own in tries:
            if bound < best_value[0]:
                break  # as are those after it
            rest = window.without(run)
            for arrival in come:
                insort(rest[window.position[arrival.mask]], arrival.deadline_ms)
            after = self._after(run.ms, rest, count, plans, table.arms)
            # Scores that differ by rounding only are equals.
            value = (round((own + after) / (run.size + count), 12), -run.ms / run.size)
            if value > best_value:
                best, best_value = run, value
        return run_on_time(found, best.arm, best.size)

    def _after(
        self, start_ms: float, rest: list[list[float]], count: int, plans: Sequence[Plan], table: ArmTable
    ) -> float:
        """Summed AP.50 minus the misses' penalty of the rest, `count` pictures, by the best of the plans for them."""
        merged: dict[tuple[int, ...], list[float]] = {}
        best = -self.penalty * count
        # The slow plans are the accurate ones: once one keeps every deadline, most of the others need no trial.
        for plan in reversed(plans):
            groups = groups_of(plan, table, rest, merged)
            if sum([worth * len(deadlines) for worth, _, deadlines in groups]) <= best:
                continue
            worth, on_time = keep_deadlines(start_ms, groups)
            best = max(best, worth - self.penalty * (count - on_time))
        return best

    def _coming(self, expected: Expected, table: ArmTable, longest_ms: float) -> Coming:
        """Who is expected within `longest_ms`."""
        mix = []
        if expected.rate > 0:
            for seconds, mask in expected.mix:
                spare = seconds * 1e3 - table.soonest_ms(mask)
                # Those that nothing could answer in time, even alone, tell nothing.
                if 0 <= spare < math.inf:
                    mix.append((spare, seconds * 1e3, mask))
        if not mix:
            return _NOBODY
        mix.sort()
        _, budget_ms, mask = mix[0]
        tight = (Arrival(0.0, budget_ms, mask),)
        gap_ms = 1e3 / expected.rate
        arrivals = []
        for i in range(self.arrivals):
            at_ms = (i + 0.5) * gap_ms
            if at_ms >= longest_ms:
                break
            # Multiples of the golden ratio cover the mix evenly, however many are drawn.
            _, budget_ms, mask = mix[int((i + 1) * _GOLDEN % 1.0 * len(mix))]
            arrivals.append(Arrival(at_ms, at_ms + budget_ms, mask))
        return Coming(tuple(arrivals), tight, expected.rate / 1e3, tuple(spare for spare, _, _ in mix))
