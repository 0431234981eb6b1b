"""What looking ahead needs: which first runs are worth a look, and how many deadlines the rest would keep after one.

Pictures of one mask form a *class*: they differ in their deadlines only, so the rest of a queue is one sorted list of
deadlines a class. Deadlines are in milliseconds from the decision's `now`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import chain, islice
from operator import le
from typing import NamedTuple, TypeVar

from service.scheduling.policies.common import ArmTable, Batch, largest_batches, remember
from service.scheduling.problem import Arm, Waiting

T = TypeVar("T")

Masks = tuple[int, ...]
"""The masks of the classes, ascending."""

_MEMO_LIMIT = 256
_ABOUT_AS_FAST = 1.1  # orientations of one size are measured apart, and differ by noise


class Plan(NamedTuple):
    """groups: (arm, the classes that it runs), each class in one group."""

    groups: tuple[tuple[int, tuple[int, ...]], ...]


class PlanTable:
    """Arms, with the undominated ones and the plans for the classes seen so far."""

    def __init__(self, arms: Sequence[Arm]) -> None:
        self.arms = ArmTable(arms)
        self._undominated: dict[Masks, frozenset[int]] = {}
        self._plans: dict[tuple[Masks, int], tuple[Plan, ...]] = {}
        self._rivals: dict[int, tuple[int, int]] = {}
        self._ladders: dict[int, _Ladder] = {}
        worth, one_ms = self.arms.worth, self.arms.one_ms
        self._best_first = sorted(range(len(worth)), key=lambda k: (-worth[k], one_ms[k], k))

    def undominated(self, masks: Masks) -> frozenset[int]:
        """Arms that no other beats: at least as accurate, as fast at every batch, and allowed wherever they are."""
        found = self._undominated.get(masks)
        if found is None:
            found = frozenset(self._kept(masks))
            remember(self._undominated, masks, found, _MEMO_LIMIT)
        return found

    def _kept(self, masks: Masks) -> list[int]:
        together: dict[int, int] = {}  # arm -> bits of the arms that are allowed wherever it is
        for mask in masks:
            for k in self.arms.indices(mask):
                together[k] = together.get(k, mask) & mask
        kept = []
        for k, beside in together.items():
            better, equal = self._rivals.get(k) or self._rivals_of(k)
            if better & beside:
                continue
            equal &= beside
            # Of equals the one that is allowed more often stays, or the first.
            if equal and any(j < k or not together[j] >> k & 1 for j in self.arms.indices(equal)):
                continue
            kept.append(k)
        return kept

    def _rivals_of(self, k: int) -> tuple[int, int]:
        """Bits of the arms that beat this one wherever both are allowed, and of those that are just like it."""
        worth, one_ms, arms = self.arms.worth, self.arms.one_ms, self.arms.arms
        mine, better, equal = arms[k].latency_ms, 0, 0
        for j in self._best_first:
            if worth[j] < worth[k]:
                break
            if j != k and one_ms[j] <= one_ms[k] and _as_fast(arms[j].latency_ms, mine):
                if worth[j] == worth[k] and arms[j].latency_ms == mine:
                    equal |= 1 << j
                else:
                    better |= 1 << j
        self._rivals[k] = better, equal
        return better, equal

    def plans(self, masks: Masks, most: int) -> tuple[Plan, ...]:
        """At most `most` ways to run the rest, the fastest first: a plan has one arm a class, for all its pictures.

        A plan favours one arm. A class that does not allow it takes its most accurate arm that is about as fast, and
        where there is none its fastest: so a tight input of either orientation goes with the tight one of the other,
        and a plan that favours the square runs both together.
        """
        found = self._plans.get((masks, most))
        if found is None:
            found = tuple(map(_grouped, thinned(self._choices(masks), most)))
            remember(self._plans, (masks, most), found, _MEMO_LIMIT)
        return found

    def _choices(self, masks: Masks) -> list[tuple[int, ...]]:
        """An arm for each class, in as many ways as there are, the fastest first."""
        one_ms = self.arms.one_ms
        ladders = [self._ladders.get(mask) or self._ladder(mask) for mask in masks]
        found = {tuple([ladder.fastest for ladder in ladders]): None}
        for favoured in sorted(self.undominated(masks), key=lambda k: (one_ms[k], k)):
            limit = _ABOUT_AS_FAST * one_ms[favoured]
            found.setdefault(
                tuple([
                    favoured if mask >> favoured & 1 else ladder.best_within(limit)
                    for mask, ladder in zip(masks, ladders, strict=True)
                ])
            )  # fmt: skip
        return list(found)

    def _ladder(self, mask: int) -> _Ladder:
        worth, one_ms = self.arms.worth, self.arms.one_ms
        steps: list[int] = []
        times = []
        for k in sorted(self.arms.indices(mask), key=lambda k: (one_ms[k], -worth[k], k)):
            if not steps or worth[k] > worth[steps[-1]]:
                steps.append(k)
                times.append(one_ms[k])
        ladder = self._ladders[mask] = _Ladder(self.arms.fastest(mask), times, steps)
        return ladder

    def fastest_plan(self, masks: Masks) -> Plan:
        """Every class by its fastest arm."""
        return _grouped([self.arms.fastest(mask) for mask in masks])


class _Ladder(NamedTuple):
    """The arms of a mask that are more accurate than every faster one, by their milliseconds of one picture."""

    fastest: int
    times: list[float]
    steps: list[int]

    def best_within(self, limit: float) -> int:
        """The most accurate arm within a time, of equals the faster; the fastest where there is none."""
        count = bisect_right(self.times, limit)
        return self.steps[count - 1] if count else self.fastest


def _as_fast(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return len(one) >= len(other) and all(map(le, one, other))


def _grouped(choice: Sequence[int]) -> Plan:
    groups: dict[int, list[int]] = {}
    for c, arm in enumerate(choice):
        groups.setdefault(arm, []).append(c)
    return Plan(tuple((arm, tuple(classes)) for arm, classes in groups.items()))


def thinned(items: list[T], most: int) -> list[T]:
    """At most `most` of the items, evenly spaced, the ends among them."""
    if len(items) <= most:
        return items
    if most == 1:
        return items[:1]
    return [items[i * (len(items) - 1) // (most - 1)] for i in range(most)]


def first_runs(now: float, hopeful: Sequence[Waiting], table: PlanTable, masks: Masks, most: int) -> list[Batch]:
    """At most `most` runs that the head can be in and on time: every undominated arm with its largest batch, then 1,
    then halves of the largest, as far as `most` goes. Where there are too many arms, evenly spaced ones by speed.
    masks: of the hopeful pictures; an arm that suits more shapes than these have is not worth its time.
    """
    keep, one_ms = table.undominated(masks), table.arms.one_ms
    largest = [run for run in largest_batches(now, hopeful, table.arms) if run.arm in keep]
    largest.sort(key=lambda run: (one_ms[run.arm], run.arm))
    alone = all(run.size == 1 for run in largest)
    if alone:
        return thinned(largest, most)
    runs = thinned(largest, max(1, most * 2 // 3))
    ladders = [[(run.arm, size) for size in _smaller(run.size)] for run in runs]
    longest = max(map(len, ladders))
    by_turns = chain.from_iterable([ladder[i] for ladder in ladders if i < len(ladder)] for i in range(longest))
    more = [Batch(k, size, table.arms.arms[k].latency_ms[size - 1]) for k, size in islice(by_turns, most - len(runs))]
    return runs + more


def _smaller(size: int) -> list[int]:
    halves = []
    half = size // 2
    while half > 1:
        halves.append(half)
        half //= 2
    return [1, *halves] if size > 1 else []


class Window:
    """The first pictures of the hopeful ones, by class.

    masks: of all classes, among them every mask of the pictures; deadlines are sorted already.
    """

    def __init__(self, now: float, pictures: Sequence[Waiting], masks: Masks) -> None:
        self.masks = masks
        self.position = {mask: c for c, mask in enumerate(masks)}
        self._classes = [self.position[picture.arms] for picture in pictures]
        self._deadlines: list[list[float]] = [[] for _ in masks]
        for c, picture in zip(self._classes, pictures, strict=True):
            self._deadlines[c].append((picture.deadline - now) * 1e3)

    def left(self, run: Batch) -> int:
        """How many pictures `without` leaves."""
        if run.size == 1:
            return len(self._classes) - 1
        allowed = sum([len(self._deadlines[c]) for c, mask in enumerate(self.masks) if mask >> run.arm & 1])
        return len(self._classes) - min(run.size, allowed)

    def without(self, run: Batch) -> list[list[float]]:
        """Deadlines a class once the run's pictures, the first that allow its arm, are gone; new lists."""
        allowed = [mask >> run.arm & 1 for mask in self.masks]
        taken = list(islice((c for c in self._classes if allowed[c]), run.size))
        return [deadlines[taken.count(c) :] for c, deadlines in enumerate(self._deadlines)]


Group = tuple[float, tuple[float, ...], list[float]]
"""Worth and latencies in ms of an arm, sorted deadlines in ms of its pictures."""


def groups_of(
    plan: Plan, table: ArmTable, deadlines: list[list[float]], merged: dict[tuple[int, ...], list[float]]
) -> list[Group]:
    """What a plan makes of the rest, without empty groups. merged: memo for these deadlines, by classes."""
    groups: list[Group] = []
    for arm, classes in plan.groups:
        together = merged.get(classes)
        if together is None:
            if len(classes) == 1:
                together = deadlines[classes[0]]
            else:
                together = sorted(chain.from_iterable([deadlines[c] for c in classes]))
            merged[classes] = together
        if together:
            groups.append((table.worth[arm], table.arms[arm].latency_ms, together))
    return groups


def keep_deadlines(start_ms: float, groups: Sequence[Group]) -> tuple[float, int]:
    """(summed worth, number) of the pictures that are on time, run earliest deadline first from `start_ms` on.

    Each run is the largest batch that keeps its head's deadline; who cannot make it any more is passed over.
    """
    if len(groups) == 1:
        worth, latency, deadlines = groups[0]
        on_time = _keep_one(start_ms, latency, deadlines, 0)
        return worth * on_time, on_time
    total, count, now = 0.0, 0, start_ms
    # Of each open group: its next deadline, number, and position; the lowest deadline is next.
    left = [(group[2][0], g, 0) for g, group in enumerate(groups)]
    while len(left) > 1:
        head = min(left)
        left.remove(head)
        deadline, g, i = head
        worth, latency, deadlines = groups[g]
        size = bisect_right(latency, deadline - now)
        if size:
            size = min(size, len(deadlines) - i)
            now += latency[size - 1]
            total += worth * size
            count += size
            i += size
        else:
            i = bisect_left(deadlines, now + latency[0], i + 1)
        if i < len(deadlines):
            left.append((deadlines[i], g, i))
    for _, g, i in left:
        worth, latency, deadlines = groups[g]
        on_time = _keep_one(now, latency, deadlines, i)
        total += worth * on_time
        count += on_time
    return total, count


def _keep_one(now: float, latency: tuple[float, ...], deadlines: list[float], i: int) -> int:
    count, end, one = 0, len(deadlines), latency[0]
    while i < end:
        left = deadlines[i] - now
        if left < one:
            i = bisect_left(deadlines, now + one, i + 1)
            continue
        size = min(bisect_right(latency, left), end - i)
        now += latency[size - 1]
        count += size
        i += size
    return count
