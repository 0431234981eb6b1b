"""MaxBatch, a base line of SuperServe (NSDI 2025): throughput first, then accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from service.scheduling.policies.common import ArmTable, Remembered, largest_batches, run_late, run_on_time, sort_out
from service.scheduling.problem import Arm, Decision, Expected, Waiting


@dataclass(frozen=True)
class MaxBatch:
    """The largest batch that keeps every deadline in it, then the most accurate arm for it, then the fastest."""

    name: ClassVar[str] = "max_batch"
    _tables: Remembered[ArmTable] = field(default_factory=lambda: Remembered(ArmTable), init=False, repr=False)

    def decide(self, now: float, queue: Sequence[Waiting], arms: Sequence[Arm], expected: Expected) -> Decision:
        """See `Policy.decide`; expected arrivals are not looked at."""
        table = self._tables(arms)
        found = sort_out(now, queue, table)
        if not found.hopeful:
            return run_late(found, table)
        batches = largest_batches(now, found.hopeful, table)
        best = max(batches, key=lambda b: (b.size, table.worth[b.arm], -b.ms, -b.arm))
        return run_on_time(found, best.arm, best.size)
