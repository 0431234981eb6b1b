"""SlackFit (SuperServe, NSDI 2025): latency buckets, each with its largest batch; the head's slack picks the bucket."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from service.scheduling.policies.common import (
    ArmTable,
    Remembered,
    available,
    count_by_mask,
    remember,
    run_late,
    run_on_time,
    slack_ms,
    sort_out,
)
from service.scheduling.problem import Arm, Decision, Expected, Waiting


class Buckets:
    """Evenly spaced latency buckets over [L(fastest, 1), L(slowest, largest batch)] of some of the arms.

    Bucket i holds what takes more than edge i - 1 and at most edge i; bucket 0 holds what is as fast as the fastest.
    """

    def __init__(self, table: ArmTable, mask: int, count: int) -> None:
        self._table, self._indices = table, table.indices(mask)
        low = min(table.one_ms[k] for k in self._indices)
        high = max(table.arms[k].latency_ms[-1] for k in self._indices)
        inner = [low + (high - low) * i / count for i in range(1, count)]
        self.edges_ms = sorted({low, *inner, high})
        self._kept: dict[int, tuple[int, int] | None] = {}

    def fit(self, slack: float) -> tuple[int, int]:
        """(arm, batch) of the closest bucket whose edge is at most the slack in ms, which is not below the first."""
        bucket = bisect_right(self.edges_ms, slack) - 1
        while True:
            kept = self._largest(bucket)
            if kept is not None or bucket <= 0:
                assert kept is not None, "the first bucket holds the fastest arm"
                return kept
            bucket -= 1

    def _largest(self, bucket: int) -> tuple[int, int] | None:
        """(arm, batch) of the largest batch in the bucket, then the most accurate, then the fastest; None if empty."""
        if bucket in self._kept:
            return self._kept[bucket]
        above = self.edges_ms[bucket - 1] if bucket else float("-inf")
        best: tuple[int, float, float, int] | None = None
        for k in self._indices:
            latency = self._table.arms[k].latency_ms
            size = bisect_right(latency, self.edges_ms[bucket])
            if size and latency[size - 1] > above:
                mine = (size, self._table.worth[k], -latency[size - 1], -k)
                best = mine if best is None else max(best, mine)
        kept = None if best is None else (-best[3], best[0])
        self._kept[bucket] = kept
        return kept


class _Table:
    def __init__(self, arms: Sequence[Arm]) -> None:
        self.arms = ArmTable(arms)
        self.buckets: dict[int, Buckets] = {}


@dataclass(frozen=True)
class SlackFit:
    """The closest bucket at most the head's slack; its batch is filled as far as the queue goes.

    buckets: how many. They are made of the arms that the head allows, since here pictures differ in these.
    """

    buckets: int = 32
    name: ClassVar[str] = "slack_fit"
    _tables: Remembered[_Table] = field(default_factory=lambda: Remembered(_Table), init=False, repr=False)

    def __post_init__(self) -> None:
        if self.buckets < 1:
            raise ValueError(f"slack_fit needs at least one bucket, got {self.buckets}")

    def decide(self, now: float, queue: Sequence[Waiting], arms: Sequence[Arm], expected: Expected) -> Decision:
        """See `Policy.decide`; expected arrivals are not looked at."""
        table = self._tables(arms)
        found = sort_out(now, queue, table.arms)
        if not found.hopeful:
            return run_late(found, table.arms)
        head = found.hopeful[0]
        buckets = table.buckets.get(head.arms)
        if buckets is None:
            buckets = Buckets(table.arms, head.arms, self.buckets)
            remember(table.buckets, head.arms, buckets)
        arm, size = buckets.fit(slack_ms(now, head))
        return run_on_time(found, arm, min(size, available(count_by_mask(found.hopeful), arm)))
