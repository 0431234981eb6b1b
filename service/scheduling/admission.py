"""Who is let in: shedding before collapse.

Work that is accepted and then late was done for nothing. So a picture is let in only where, with everything that is in
already, all can still be on time on their fastest arms (the earliest-deadline-first test of a single machine); how
accurately they are answered is the policy's business, later.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_LATE_SHARE = 0.25


@dataclass(frozen=True, slots=True)
class Demand:
    """What a picture needs at least. ready: when it will be decoded; seconds: of its fastest arm, typically; spare: by
    how much that may take longer once in a hundred times. All on one clock.

    Plans count typical times: a sum of times that are each exceeded once in a hundred times is hardly ever reached, and
    would keep out much that can be done.
    """

    deadline: float
    ready: float
    seconds: float
    spare: float = 0.0


@dataclass(frozen=True, slots=True)
class Admission:
    """finish: when the newcomer would be done if all ran on their fastest arms; on_time: it would meet its deadline;
    harmless: nobody else would miss one because of it."""

    finish: float
    on_time: bool
    harmless: bool


def most_late(places: int) -> int:
    """How many of the places inside pictures may take that nothing can answer in time, and that want to be late."""
    return max(1, round(places * _LATE_SHARE))


def admit(newcomer: Demand, present: Iterable[Demand], free_at: float) -> Admission:
    """Plan everything earliest deadline first from when the engine is free, with and without the newcomer.

    present: those inside, decoded or not; of equal deadlines, those inside go first. The engine is taken never to wait
    for a picture that is still being decoded while another one is ready: each waits only for its own decoding.
    """
    harmless = True
    finish = free = free_at
    placed = False
    free_without = free_at
    for demand in sorted(present, key=lambda one: one.deadline):
        if not placed and demand.deadline > newcomer.deadline:
            finish = free = max(free, newcomer.ready) + newcomer.seconds
            placed = True
        free_without = max(free_without, demand.ready) + demand.seconds
        free = max(free, demand.ready) + demand.seconds
        if free > demand.deadline >= free_without:
            harmless = False
    if not placed:
        finish = max(free, newcomer.ready) + newcomer.seconds
    return Admission(finish + newcomer.spare, finish + newcomer.spare <= newcomer.deadline, harmless)
