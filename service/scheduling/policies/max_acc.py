"""MaxAcc, a base line of SuperServe (NSDI 2025): accuracy first, then throughput."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from service.scheduling.policies.common import ArmTable, Remembered, largest_batches, run_late, run_on_time, sort_out
from service.scheduling.problem import Arm, Decision, Expected, Waiting


@dataclass(frozen=True)
class MaxAcc:
    """The most accurate arm that keeps the head's deadline, then the largest batch that does.

    Of equally accurate arms, such as a tight and a square input of one long side, the one of least time a picture.
    """

    name: ClassVar[str] = "max_acc"
    _tables: Remembered[ArmTable] = field(default_factory=lambda: Remembered(ArmTable), init=False, repr=False)

    def decide(self, now: float, queue: Sequence[Waiting], arms: Sequence[Arm], expected: Expected) -> Decision:
        """See `Policy.decide`; expected arrivals are not looked at."""
        table = self._tables(arms)
        found = sort_out(now, queue, table)
        if not found.hopeful:
            return run_late(found, table)
        batches = largest_batches(now, found.hopeful, table)
        best = max(batches, key=lambda b: (table.worth[b.arm], -b.ms / b.size, b.size, -b.arm))
        return run_on_time(found, best.arm, best.size)
