"""What every policy owes whoever waits, on random queues and arms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.scheduling.policies import POLICIES
from service.scheduling.policies.common import LATE_STRETCH, validate
from service.scheduling.policies.fixed import Fixed
from service.scheduling.policies.planning import Group, PlanTable, keep_deadlines
from service.scheduling.problem import Arm, Expected, Policy, Waiting
from tests.service.scheduling import SQUARE, TALL, WIDE, hopeful, soonest_ms

Case = tuple[tuple[Arm, ...], list[Waiting], Expected]

NOW = 98765.432  # a clock at which seconds and milliseconds round differently
TIERS = {"fast": 40.0, "slow": 200.0}
latencies = st.lists(st.sampled_from((0.0, 0.5, 3.0, 10.0, 25.0)) | st.floats(0, 60), min_size=1, max_size=5)


@st.composite
def arms_of(draw: st.DrawFn) -> tuple[Arm, ...]:
    made = []
    for k in range(draw(st.integers(1, 7))):
        steps = draw(latencies)
        first = draw(st.floats(1, 60))
        latency = tuple(first + sum(steps[1 : i + 1]) for i in range(len(steps)))
        made.append(Arm(f"v{k % 3}", draw(st.sampled_from((SQUARE, WIDE, TALL))), draw(st.floats(0, 1)), latency))
    return tuple(made)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    arms = draw(arms_of())
    masks = st.integers(1, (1 << len(arms)) - 1)
    slacks = sorted(draw(st.lists(st.floats(-50, 300) | st.sampled_from((10.0, 60.0)), max_size=14)))
    queue = [
        Waiting(n, NOW + slack / 1e3, draw(masks), draw(st.booleans()), draw(st.sampled_from(("", *TIERS))))
        for n, slack in enumerate(slacks)
    ]
    mix = draw(st.lists(st.tuples(st.floats(0.001, 1), masks), max_size=5))
    return arms, queue, Expected(draw(st.sampled_from((0.0, 0.1, 20.0, 1000.0))), tuple(mix))


def make(name: str) -> Policy:
    options: dict[str, Any] = {"tiers_ms": TIERS} if name == "fixed" else {}
    return POLICIES[name](**options)


def numbers(pictures: Sequence[Waiting]) -> tuple[int, ...]:
    return tuple(picture.number for picture in pictures)


def first(pictures: Sequence[Waiting], arm: int, count: int) -> tuple[int, ...]:
    return numbers([picture for picture in pictures if picture.arms >> arm & 1])[:count]


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=80, deadline=None, derandomize=True)
@given(case=cases())
def test_a_decision_keeps_its_promises(name: str, case: Case) -> None:
    arms, queue, expected = case
    decision = make(name).decide(NOW, queue, arms, expected)
    assert validate(decision, queue, arms) is None
    good = hopeful(queue, arms, NOW)
    lost = [picture for picture in queue if picture not in good]
    assert decision.drop == numbers([picture for picture in lost if not picture.late_ok])
    late = [picture for picture in lost if picture.late_ok]
    if good:
        assert decision.reason == "on_time"
        assert decision.run[0] == good[0].number
        assert decision.run == first(good, decision.arm, len(decision.run))
        ended = arms[decision.arm].latency_ms[len(decision.run) - 1]
        assert all((queue[number].deadline - NOW) * 1e3 >= ended for number in decision.run)
    elif late:
        assert decision.reason == "late"
        assert decision.run == first(late, decision.arm, len(decision.run))
        latency = arms[decision.arm].latency_ms
        assert latency[0] == soonest_ms(late[0], arms)
        assert latency[len(decision.run) - 1] <= LATE_STRETCH * latency[0]
    else:
        assert (decision.run, decision.reason) == ((), "idle")


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(case=cases(), other=cases())
def test_the_same_input_gives_the_same_decision_whatever_came_before(name: str, case: Case, other: Case) -> None:
    arms, queue, expected = case
    used = make(name)
    before = used.decide(NOW, queue, arms, expected)
    used.decide(NOW, other[1], other[0], other[2])
    assert used.decide(NOW, queue, arms, expected) == before
    copies = [replace(arm) for arm in arms]
    assert make(name).decide(NOW, tuple(queue), copies, expected) == before


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(case=cases())
def test_a_queue_without_arrivals_is_emptied_and_the_late_go_last(name: str, case: Case) -> None:
    arms, queue, expected = case
    policy, now, left, on_time = make(name), NOW, queue, 0
    for _ in range(len(queue)):
        if not left:
            break
        decision = policy.decide(now, left, arms, expected)
        assert validate(decision, left, arms) is None
        if decision.reason == "late":
            assert not hopeful(left, arms, now)
        gone = {*decision.run, *decision.drop}
        assert gone
        if decision.run:
            now += arms[decision.arm].seconds(len(decision.run))
            on_time += decision.reason == "on_time"
        left = [picture for picture in left if picture.number not in gone]
    assert not left
    assert on_time or not hopeful(queue, arms, NOW)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(case=cases())
def test_a_plainly_fixed_deployment_uses_its_tier_s_arm_only(case: Case) -> None:
    arms, queue, expected = case
    table = {"fast": (arms[0].variant, 640)}
    decision = Fixed(table, rescue=False).decide(NOW, queue, arms, expected)
    assert validate(decision, queue, arms) is None
    if not decision.run:
        return
    head = queue[decision.run[0]]
    own = [k for k, arm in enumerate(arms) if head.arms >> k & 1 and (arm.variant, 640) == table.get(head.tier)]
    allowed = own or [k for k in range(len(arms)) if head.arms >> k & 1]
    assert arms[decision.arm].latency_ms[0] == min(arms[k].latency_ms[0] for k in allowed)


def literally(start: float, groups: list[Group]) -> tuple[float, int]:
    """The same plan, picture by picture."""
    left = sorted((deadline, g, i) for g, group in enumerate(groups) for i, deadline in enumerate(group[2]))
    now, total, count = start, 0.0, 0
    while left:
        deadline, g, _ = left[0]
        value, latency, _ = groups[g]
        own = [item for item in left if item[1] == g]
        size = sum(1 for ms in latency[: len(own)] if ms <= deadline - now)
        run = own[: max(size, 1)]
        left = [item for item in left if item not in run]
        if size:
            now += latency[size - 1]
            total += value * size
            count += size
    return total, count


# Whole numbers, so that both ways of counting agree to the last digit.
whole = st.integers(1, 40)
groups_lists = st.lists(
    st.tuples(
        st.sampled_from((0.25, 0.5, 1.0)),
        st.lists(whole, min_size=1, max_size=4).map(lambda steps: tuple(map(float, accumulate(steps)))),
        st.lists(st.integers(-20, 300).map(float), min_size=1, max_size=12).map(sorted),
    ),
    max_size=4,
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(start=whole.map(float), groups=groups_lists)
def test_planning_agrees_with_a_literal_one(start: float, groups: list[Group]) -> None:
    assert keep_deadlines(start, groups) == literally(start, groups)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(case=cases())
def test_pruning_keeps_an_equal_of_every_arm(case: Case) -> None:
    arms, queue, _ = case
    masks = tuple(sorted({picture.arms for picture in queue}))
    table = PlanTable(arms)
    kept = table.undominated(masks)
    used = {k for mask in masks for k in range(len(arms)) if mask >> k & 1}
    assert kept <= used
    for k in used:
        assert any(
            table.arms.worth[j] >= table.arms.worth[k]
            and arms[j].max_batch >= arms[k].max_batch
            and all(one <= other for one, other in zip(arms[j].latency_ms, arms[k].latency_ms, strict=False))
            and all(mask >> j & 1 or not mask >> k & 1 for mask in masks)
            for j in kept
        )
