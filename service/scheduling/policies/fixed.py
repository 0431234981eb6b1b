"""What a deployment without selection does: one arm a tier, pictures one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar

from service.scheduling.policies.common import (
    ArmTable,
    Remembered,
    run_late,
    run_on_time,
    slack_ms,
    sort_out,
    worth,
)
from service.scheduling.problem import Arm, Decision, Expected, Waiting

Preference = tuple[str, int]
"""Variant and long side of the input in pixels."""

FACTOR = 0.5
"""Share of a tier's budget that one picture's run may take: the rest is for upload, decoding and waiting."""


def fixed_table(tiers_ms: Mapping[str, float], arms: Sequence[Arm], factor: float = FACTOR) -> Mapping[str, Preference]:
    """Tier -> the most accurate variant and long side whose run of one picture takes at most factor x budget.

    Of the inputs of one long side the slowest counts, so that the choice holds for every picture's shape. Where nothing
    fits, the fastest. tiers_ms: budgets in milliseconds. Raises ValueError where there is no arm.
    """
    if not arms:
        raise ValueError("a table of fixed choices needs at least one arm")
    slowest: dict[Preference, float] = {}
    accuracy: dict[Preference, float] = {}
    for arm in arms:
        pair = (arm.variant, arm.size.long_side)
        slowest[pair] = max(slowest.get(pair, 0.0), arm.latency_ms[0])
        accuracy[pair] = max(accuracy.get(pair, 0.0), worth(arm))
    table = {}
    for tier, budget in tiers_ms.items():
        fitting = [pair for pair, ms in slowest.items() if ms <= factor * budget]
        if fitting:
            table[tier] = min(fitting, key=lambda pair: (-accuracy[pair], slowest[pair], pair))
        else:
            table[tier] = min(slowest, key=lambda pair: (slowest[pair], -accuracy[pair], pair))
    return MappingProxyType(table)


class _Table:
    def __init__(self, arms: Sequence[Arm], given: Mapping[str, Preference]) -> None:
        self.arms = ArmTable(arms)
        by_pair: dict[Preference, int] = {}
        for k, arm in enumerate(arms):
            pair = (arm.variant, arm.size.long_side)
            by_pair[pair] = by_pair.get(pair, 0) | 1 << k
        self._of_tier = {tier: by_pair.get(pair, 0) for tier, pair in given.items()}

    def choice(self, picture: Waiting) -> int:
        """The tier's arm, in the smallest input that holds the picture; the fastest arm where the table has none."""
        return self.arms.fastest(picture.arms & self._of_tier.get(picture.tier, 0) or picture.arms)


@dataclass(frozen=True)
class Fixed:
    """One arm a tier, batch 1.

    table: tier -> (variant, long side); without it, tiers_ms and factor make one by `fixed_table`, from the arms at
    hand. A picture whose tier has no entry, or that does not allow the tier's arm, goes to its fastest arm.
    rescue: a picture too late for its tier's arm goes to its fastest, as every policy here owes it. Without, it counts
    as hopeless: dropped, or run late by the tier's arm. That is the plain fixed deployment, for comparisons.
    """

    table: Mapping[str, Preference] | None = None
    tiers_ms: Mapping[str, float] = field(default_factory=dict)
    factor: float = FACTOR
    rescue: bool = True
    name: ClassVar[str] = "fixed"
    _tables: Remembered[_Table] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.factor > 0:
            raise ValueError(f"the share of a budget that a run may take must be above 0, got {self.factor}")
        object.__setattr__(self, "_tables", Remembered(self._build))

    def _build(self, arms: Sequence[Arm]) -> _Table:
        if self.table is not None:
            return _Table(arms, self.table)
        return _Table(arms, fixed_table(self.tiers_ms, arms, self.factor) if arms else {})

    def decide(self, now: float, queue: Sequence[Waiting], arms: Sequence[Arm], expected: Expected) -> Decision:
        """See `Policy.decide`; expected arrivals are not looked at."""
        table = self._tables(arms)
        if not self.rescue:
            queue = [_narrowed(picture, table.choice(picture)) for picture in queue]
        found = sort_out(now, queue, table.arms)
        if not found.hopeful:
            return run_late(found, table.arms)
        head = found.hopeful[0]
        arm = table.choice(head)
        if table.arms.one_ms[arm] > slack_ms(now, head):
            arm = table.arms.fastest(head.arms)
        return run_on_time(found, arm, 1)


def _narrowed(picture: Waiting, arm: int) -> Waiting:
    mask = 1 << arm if arm >= 0 else 0
    return Waiting(picture.number, picture.deadline, mask, picture.late_ok, picture.tier)
