"""What every policy does alike: who can still be on time, who is dropped, how late pictures are run; pure functions.

Within a decision time is counted in milliseconds from its `now`, as latencies are. The queue comes earliest deadline
first and a batch is filled in that order from its head on, so a batch is on time where it keeps its head's deadline.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import is_
from typing import Generic, NamedTuple, TypeVar

from service.scheduling.problem import Arm, Decision, Waiting

K = TypeVar("K")
T = TypeVar("T")

LATE_STRETCH = 2.0
"""A batch of late pictures may take this many times as long as one of them: it blocks the engine for whoever comes."""

_UNMEASURED = 1e-9  # worth of an unmeasured arm for each pixel of its long side: below every measured one
_MEMO_LIMIT = 4096
_NO_ARM = float("inf")


class ArmTable:
    """Arms together with what is asked of them at every decision, kept by mask."""

    def __init__(self, arms: Sequence[Arm]) -> None:
        self.arms = tuple(arms)
        self.worth = tuple(worth(arm) for arm in self.arms)
        self.one_ms = tuple(arm.latency_ms[0] for arm in self.arms)
        self.fastest_ms: dict[int, float] = {}
        """mask -> milliseconds of one picture by the fastest arm of it; what was asked so far."""
        self._indices: dict[int, tuple[int, ...]] = {}

    def indices(self, mask: int) -> tuple[int, ...]:
        """Arms of a mask, ascending; bits without an arm are ignored."""
        found = self._indices.get(mask)
        if found is None:
            found = tuple(k for k in range(len(self.arms)) if mask >> k & 1)
            remember(self._indices, mask, found)
        return found

    def fastest(self, mask: int) -> int:
        """The arm that takes least for one picture; of equals, the more accurate; -1 where the mask names no arm."""
        return min(self.indices(mask), key=lambda k: (self.one_ms[k], -self.worth[k], k), default=-1)

    def soonest_ms(self, mask: int) -> float:
        """Milliseconds of one picture by `fastest`; infinity where there is no arm."""
        found = self.fastest_ms.get(mask)
        if found is None:
            arm = self.fastest(mask)
            found = self.one_ms[arm] if arm >= 0 else _NO_ARM
            remember(self.fastest_ms, mask, found)
        return found


class Remembered(Generic[T]):
    """What a policy derives from the arms: built anew only where these are not the same objects as last time."""

    def __init__(self, build: Callable[[tuple[Arm, ...]], T]) -> None:
        self._build = build
        self._last: tuple[tuple[Arm, ...], T] | None = None

    def __call__(self, arms: Sequence[Arm]) -> T:
        last = self._last
        if last is not None and len(last[0]) == len(arms) and all(map(is_, last[0], arms)):
            return last[1]
        known = tuple(arms)
        built = self._build(known)
        self._last = (known, built)
        return built


def remember(memo: dict[K, T], key: K, value: T, limit: int = _MEMO_LIMIT) -> None:
    """Keep a value; a memo that has grown too large starts again."""
    if len(memo) >= limit:
        memo.clear()
    memo[key] = value


def worth(arm: Arm) -> float:
    """AP.50; of unmeasured arms next to nothing, but the more the larger the input, so that these too are tried."""
    return arm.ap50 if arm.ap50 > 0 else _UNMEASURED * arm.size.long_side


@dataclass(frozen=True, slots=True)
class Sorted:
    """A queue, earliest deadline first. hopeful: can be on time if run now and alone; late: cannot, and may be late.

    drop: numbers of those that cannot be on time and do not want to be late, or that no given arm may answer.
    """

    hopeful: list[Waiting]
    late: list[Waiting]
    drop: tuple[int, ...]


def slack_ms(now: float, picture: Waiting) -> float:
    """Milliseconds until the deadline."""
    return (picture.deadline - now) * 1e3


def sort_out(now: float, queue: Sequence[Waiting], table: ArmTable) -> Sorted:
    """Who can still be on time: a picture is hopeless once its fastest arm, started now and alone, would miss."""
    hopeful: list[Waiting] = []
    late: list[Waiting] = []
    drop: list[int] = []
    known = table.fastest_ms
    for picture in queue:
        soonest = known.get(picture.arms)
        if soonest is None:
            soonest = table.soonest_ms(picture.arms)
        if soonest == _NO_ARM:
            drop.append(picture.number)
        elif (picture.deadline - now) * 1e3 >= soonest:
            hopeful.append(picture)
        elif picture.late_ok:
            late.append(picture)
        else:
            drop.append(picture.number)
    return Sorted(hopeful, late, tuple(drop))


class Batch(NamedTuple):
    """arm: index; size: pictures; ms: predicted time of the run."""

    arm: int
    size: int
    ms: float


def count_by_mask(pictures: Sequence[Waiting]) -> Mapping[int, int]:
    """mask -> number of pictures."""
    return Counter([picture.arms for picture in pictures])


def available(by_mask: Mapping[int, int], arm: int) -> int:
    """How many of the pictures counted may be answered by the arm."""
    return sum([count for mask, count in by_mask.items() if mask >> arm & 1])


def largest_batches(now: float, hopeful: Sequence[Waiting], table: ArmTable) -> list[Batch]:
    """For each arm of the head that keeps its deadline, the largest batch that does; hopeful: not empty.

    There is at least one: the head's fastest arm.
    """
    head = hopeful[0]
    slack, by_mask = slack_ms(now, head), count_by_mask(hopeful)
    found = []
    for k in table.indices(head.arms):
        latency = table.arms[k].latency_ms
        if latency[0] <= slack:
            size = min(bisect_right(latency, slack), available(by_mask, k))
            found.append(Batch(k, size, latency[size - 1]))
    return found


def run_on_time(found: Sorted, arm: int, size: int) -> Decision:
    """The first `size` hopeful pictures, earliest deadline first, that allow the arm."""
    return Decision(_take(found.hopeful, arm, size), arm, found.drop, "on_time")


def run_late(found: Sorted, table: ArmTable) -> Decision:
    """Where nobody can be on time: a short batch of late pictures by the fastest arm of the first, or nothing.

    The size is that of least time a picture, as long as the run takes at most `LATE_STRETCH` times one picture's time.
    """
    if not found.late:
        return Decision(drop=found.drop)
    arm = table.fastest(found.late[0].arms)
    latency = table.arms[arm].latency_ms
    most = min(bisect_right(latency, LATE_STRETCH * latency[0]), available(count_by_mask(found.late), arm))
    size = min(range(1, most + 1), key=lambda b: (latency[b - 1] / b, -b))
    return Decision(_take(found.late, arm, size), arm, found.drop, "late")


def _take(pictures: Sequence[Waiting], arm: int, size: int) -> tuple[int, ...]:
    return tuple(islice((picture.number for picture in pictures if picture.arms >> arm & 1), size))


def validate(decision: Decision, queue: Sequence[Waiting], arms: Sequence[Arm]) -> str | None:
    """What is wrong with a decision, as a sentence; None where it can be carried out."""
    waiting = {picture.number: picture for picture in queue}
    both = (*decision.run, *decision.drop)
    if strangers := [number for number in both if number not in waiting]:
        return f"Pictures {strangers} do not wait."
    if len(set(both)) < len(both):
        twice = sorted(number for number, count in Counter(both).items() if count > 1)
        return f"Pictures {twice} are named more than once in what is run and dropped."
    every = (1 << len(arms)) - 1
    if wanted := [number for number in decision.drop if waiting[number].late_ok and waiting[number].arms & every]:
        return f"Pictures {wanted} are dropped, but they want a late answer rather than none."
    if not decision.run:
        if decision.reason != "idle":
            return f"Nothing is run, but the reason is {decision.reason!r} instead of 'idle'."
        left = sorted(waiting.keys() - set(decision.drop))
        return f"Nothing is run, but pictures {left} wait." if left else None
    if decision.reason == "idle":
        return f"The reason is 'idle', but pictures {list(decision.run)} are run."
    if not 0 <= decision.arm < len(arms):
        return f"There is no arm {decision.arm}; there are {len(arms)}, counted from 0."
    arm = arms[decision.arm]
    if len(decision.run) > arm.max_batch:
        return f"{len(decision.run)} pictures are more than arm {decision.arm} takes at once, which is {arm.max_batch}."
    if refused := [number for number in decision.run if not waiting[number].arms >> decision.arm & 1]:
        return f"Pictures {refused} do not allow arm {decision.arm} ({arm.variant} at {arm.size})."
    return None
