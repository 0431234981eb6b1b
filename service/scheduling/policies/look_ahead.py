"""Look-ahead: each first run is weighed against the deadlines that the rest of the queue would miss after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from service.scheduling.policies.common import Remembered, run_late, run_on_time, sort_out
from service.scheduling.policies.planning import PlanTable, Window, first_runs, groups_of, keep_deadlines
from service.scheduling.problem import Arm, Decision, Expected, Waiting


@dataclass(frozen=True)
class LookAhead:
    """Among the runs that keep the head's deadline, the most of: size x AP.50 - penalty x misses of the rest.

    The rest is the queue's first `depth` pictures without the run's, each by its fastest arm, earliest deadline first.
    Of equals, the run of least time a picture. candidates: how many runs are weighed; penalty: AP.50 a miss costs.
    """

    penalty: float = 4.0
    candidates: int = 24
    depth: int = 96
    name: ClassVar[str] = "look_ahead"
    _tables: Remembered[PlanTable] = field(default_factory=lambda: Remembered(PlanTable), init=False, repr=False)

    def __post_init__(self) -> None:
        if self.penalty < 0 or self.candidates < 1 or self.depth < 1:
            raise ValueError(f"look_ahead needs a penalty of at least 0, a candidate and a depth of 1, got {self}")

    def decide(self, now: float, queue: Sequence[Waiting], arms: Sequence[Arm], expected: Expected) -> Decision:
        """See `Policy.decide`; expected arrivals are not looked at."""
        table = self._tables(arms)
        found = sort_out(now, queue, table.arms)
        if not found.hopeful:
            return run_late(found, table.arms)
        pictures = found.hopeful[: self.depth]
        masks = tuple(sorted({picture.arms for picture in pictures}))
        window, fastest = Window(now, pictures, masks), table.fastest_plan(masks)
        best, best_value = None, (0.0, 0.0)
        for run in first_runs(now, found.hopeful, table, masks, self.candidates):
            groups = groups_of(fastest, table.arms, window.without(run), {})
            misses = sum(len(group[2]) for group in groups) - keep_deadlines(run.ms, groups)[1]
            value = (run.size * table.arms.worth[run.arm] - self.penalty * misses, -run.ms / run.size)
            if best is None or value > best_value:
                best, best_value = run, value
        assert best is not None, "the head's fastest arm is among the runs"
        return run_on_time(found, best.arm, best.size)
