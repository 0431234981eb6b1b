"""Each policy on cases small enough to be worked out by hand."""

from __future__ import annotations

import pytest

from service.repository.manifest import InputSize
from service.scheduling.policies import POLICIES
from service.scheduling.policies.common import ArmTable, Batch, Remembered, validate, worth
from service.scheduling.policies.fixed import Fixed, fixed_table
from service.scheduling.policies.look_ahead import LookAhead
from service.scheduling.policies.max_acc import MaxAcc
from service.scheduling.policies.max_batch import MaxBatch
from service.scheduling.policies.planning import Plan, PlanTable, Window, first_runs, groups_of, keep_deadlines
from service.scheduling.policies.roll_out import RollOut
from service.scheduling.policies.slack_fit import Buckets, SlackFit
from service.scheduling.problem import Arm, Decision, Expected, Policy, Waiting
from tests.service.scheduling import NOW, SQUARE, TALL, WIDE, arm, waiting

NOBODY = Expected()
FAST, ACCURATE = arm(0.6, 10, 15, 20, 25), arm(0.9, 40, 70, 110, 150)
SHAPES = (arm(0.8, 30, 58, 88, size=WIDE), arm(0.8, 30, 58, 88, size=TALL), arm(0.8, 40, 78, 118, size=SQUARE))


def decide(
    policy: Policy, queue: list[Waiting], arms: tuple[Arm, ...], expected: Expected = NOBODY
) -> tuple[tuple[int, ...], int]:
    decision = policy.decide(NOW, queue, arms, expected)
    assert validate(decision, queue, arms) is None
    assert (decision.drop, decision.reason) == ((), "on_time")
    return decision.run, decision.arm


def test_names_are_the_keys() -> None:
    assert {name: make().name for name, make in POLICIES.items()} == {name: name for name in POLICIES}
    assert set(POLICIES) == {"fixed", "max_acc", "max_batch", "slack_fit", "look_ahead", "roll_out"}


def test_max_acc_takes_accuracy_first_and_max_batch_throughput() -> None:
    queue = waiting(100, 200, 300)
    assert decide(MaxAcc(), queue, (FAST, ACCURATE)) == ((0, 1), 1)  # three would take 110 ms
    assert decide(MaxBatch(), queue, (FAST, ACCURATE)) == ((0, 1, 2), 0)
    assert decide(MaxBatch(), waiting(110, 200, 300), (FAST, ACCURATE)) == ((0, 1, 2), 1)
    assert decide(MaxAcc(), waiting(39, 200, 300), (FAST, ACCURATE)) == ((0, 1, 2), 0)


def test_mixed_orientation() -> None:
    # A wide picture, a tall one, a wide one; each allows its tight size and the square.
    queue = waiting(120, 200, 300, arms=(0b101, 0b110, 0b101))
    assert decide(MaxBatch(), queue, SHAPES) == ((0, 1, 2), 2)
    assert decide(MaxBatch(), queue[:2], SHAPES) == ((0, 1), 2)
    # 29 ms a picture instead of 39, at the same accuracy.
    assert decide(MaxAcc(), queue, SHAPES) == ((0, 2), 0)
    # Where a batch costs hardly more than a picture, the square gains.
    cheap = (*SHAPES[:2], arm(0.8, 40, 42, 44, size=SQUARE))
    assert decide(MaxAcc(), queue, cheap) == ((0, 1, 2), 2)


def test_the_fixed_table_goes_by_budget_and_slowest_shape() -> None:
    small, large = InputSize(height=320, width=320), InputSize(height=960, width=960)
    arms = (
        arm(0.6, 10, name="a", size=small),
        arm(0.8, 30, name="a", size=WIDE),
        arm(0.8, 50, name="a", size=SQUARE),
        arm(0.9, 80, name="b", size=large),
    )
    tiers = {"tiny": 10.0, "fast": 40.0, "middle": 90.0, "more": 100.0, "slow": 200.0}
    assert fixed_table(tiers, arms, factor=0.5) == {
        "tiny": ("a", 320), "fast": ("a", 320), "middle": ("a", 320), "more": ("a", 640), "slow": ("b", 960),
    }  # fmt: skip
    assert fixed_table({"middle": 90.0}, arms, factor=1.0) == {"middle": ("b", 960)}
    with pytest.raises(ValueError, match="at least one arm"):
        fixed_table(tiers, ())


def test_fixed_runs_its_tier_s_arm_one_by_one() -> None:
    arms = (arm(0.6, 10, 12, name="a"), arm(0.8, 30, 35, name="b", size=WIDE), arm(0.8, 40, 45, name="b"))
    policy = Fixed({"slow": ("b", 640)})
    assert decide(policy, waiting(500, 500, tier="slow"), arms) == ((0,), 1)
    assert decide(policy, waiting(500, 500, tier="slow", arms=0b101), arms) == ((0,), 2)
    assert decide(policy, waiting(500, tier="slow", arms=0b001), arms) == ((0,), 0)
    assert decide(policy, waiting(500, tier="other"), arms) == ((0,), 0)
    assert decide(Fixed(tiers_ms={"slow": 80}), waiting(500, tier="slow"), arms) == ((0,), 1)
    assert decide(Fixed(tiers_ms={"slow": 79}), waiting(500, tier="slow"), arms) == ((0,), 0)
    # Too late for its tier's arm: the fastest, or dropped where the deployment is to be plainly fixed.
    assert decide(policy, waiting(20, tier="slow"), arms) == ((0,), 0)
    plain = Fixed({"slow": ("b", 640)}, rescue=False)
    assert plain.decide(NOW, waiting(20, 60, tier="slow"), arms, NOBODY) == Decision((1,), 1, (0,), "on_time")
    late = waiting(20, tier="slow", late_ok=True)
    assert plain.decide(NOW, late, arms, NOBODY) == Decision((0,), 1, (), "late")


def test_slack_fit_keeps_the_largest_batch_of_each_bucket() -> None:
    arms = (arm(0.6, 10, 14, 20), arm(0.9, 30, 42, 50))
    buckets = Buckets(ArmTable(arms), 0b11, 4)
    assert buckets.edges_ms == [10, 20, 30, 40, 50]
    kept = {slack: buckets.fit(slack) for slack in (10, 19, 20, 29, 30, 40, 49, 50, 1e9)}
    # The bucket of 40 ms is empty, so that of 30 stands in for it.
    assert kept == {
        10: (0, 1), 19: (0, 1), 20: (0, 3), 29: (0, 3), 30: (1, 1), 40: (1, 1), 49: (1, 1), 50: (1, 3), 1e9: (1, 3),
    }  # fmt: skip
    policy = SlackFit(buckets=4)
    assert decide(policy, waiting(25, 90, 90, 90), arms) == ((0, 1, 2), 0)
    assert decide(policy, waiting(45, 90, 90, 90), arms) == ((0,), 1)
    assert decide(policy, waiting(25), arms) == ((0,), 0)
    # Accuracy settles equal batches; a head that allows one arm has buckets of its own.
    equal = (arm(0.6, 10, 19), arm(0.7, 12, 20))
    assert decide(SlackFit(buckets=1), waiting(20, 20), equal) == ((0, 1), 1)
    assert decide(SlackFit(buckets=1), waiting(20, 20, arms=(0b01, 0b11)), equal) == ((0, 1), 0)


def test_look_ahead_minds_the_rest_and_max_acc_does_not() -> None:
    arms = (arm(0.6, 10), arm(0.9, 60))
    for slack, chosen in ((70, 1), (69, 0)):  # the second ends after 60 + 10 ms at the earliest
        queue = waiting(65, slack)
        assert decide(LookAhead(), queue, arms) == ((0,), chosen)
        assert decide(MaxAcc(), queue, arms) == ((0,), 1)
    # 0.9 - penalty against 0.6: a cheap miss is accepted.
    assert decide(LookAhead(penalty=0.2), waiting(65, 69), arms) == ((0,), 1)
    assert decide(LookAhead(penalty=0.4), waiting(65, 69), arms) == ((0,), 0)


def test_roll_out_shares_time_where_look_ahead_spends_it_on_the_head() -> None:
    arms = (arm(0.3, 10), arm(0.8, 40), arm(0.9, 75))
    queue = waiting(80, 85)  # 75 + 10 ms are worth 0.9 + 0.3, 40 + 40 ms are worth 0.8 + 0.8
    assert decide(LookAhead(), queue, arms) == ((0,), 2)
    assert decide(RollOut(), queue, arms) == ((0,), 1)


def test_roll_out_pays_for_misses() -> None:
    arms, queue = (arm(0.1, 10), arm(0.9, 60)), waiting(65, 69)
    assert decide(RollOut(), queue, arms) == ((0,), 0)  # both on time, 0.2 in all
    assert decide(RollOut(penalty=0.0), queue, arms) == ((0,), 1)  # one of them, 0.9


def test_of_equally_fast_arms_the_more_accurate_is_the_fastest() -> None:
    assert decide(Fixed(), waiting(100), (arm(0.5, 10), arm(0.7, 10), arm(0.9, 11))) == ((0,), 1)


def test_roll_out_leaves_room_for_tight_arrivals() -> None:
    arms, queue = (arm(0.6, 10), arm(0.9, 60)), waiting(100)
    tight = Expected(10.0, ((0.03, 0b11), (5.0, 0b11)))
    assert decide(RollOut(), queue, arms, tight) == ((0,), 0)
    assert decide(MaxAcc(), queue, arms, tight) == ((0,), 1)
    assert decide(RollOut(), queue, arms) == ((0,), 1)
    assert decide(RollOut(), queue, arms, Expected(10.0)) == ((0,), 1)
    # Once in 100 s: 0.01/s x 0.06 s is a chance of 0.0006 that anybody comes meanwhile.
    rare = Expected(0.01, tight.mix)
    assert decide(RollOut(), queue, arms, rare) == ((0,), 1)
    assert decide(RollOut(tight_chance=0.0005), queue, arms, rare) == ((0,), 0)
    assert decide(RollOut(tight_chance=0.0), queue, arms, rare) == ((0,), 0)
    # Those that nothing could answer in time, even alone, ask for nothing.
    assert decide(RollOut(), queue, arms, Expected(10.0, ((0.009, 0b11), (5.0, 0)))) == ((0,), 1)


def test_roll_out_keeps_runs_short_where_the_tightest_would_be_missed_behind_any() -> None:
    arms = [arm(0.5, 50.0), arm(0.9, 200.0)]
    # Each can wait for 10 ms, less than either run takes: only how many will come in vain tells one from the other.
    tight = Expected(10.0, ((0.060, 0b11),) * 4)
    assert decide(RollOut(arrivals=0), waiting(1000), arms, tight) == ((0,), 0)
    assert decide(RollOut(arrivals=0, wait_penalty=0.0), waiting(1000), arms, tight) == ((0,), 1)
    coming = RollOut()._coming(tight, ArmTable(arms), 200.0)
    assert coming.misses(9.0) == 0.0
    assert coming.misses(200.0) == pytest.approx(10.0 * 0.190)


def test_roll_out_counts_ordinary_arrivals_too() -> None:
    arms, expected = (arm(0.6, 10), arm(0.9, 60)), Expected(50.0, ((0.025, 0b11),))
    # They come after 10, 30 and 50 ms: two would have been lost by 60 ms, and none comes within 10.
    assert decide(RollOut(tight_chance=1e9), waiting(100), arms, expected) == ((0,), 0)
    assert decide(RollOut(tight_chance=1e9, arrivals=0, wait_penalty=0.0), waiting(100), arms, expected) == ((0,), 1)
    coming = RollOut()._coming(Expected(50.0, ((0.065, 0b1),)), ArmTable(arms), 45.0)
    assert [(a.at_ms, a.deadline_ms) for a in coming.arrivals] == [(10.0, 75.0), (30.0, 95.0)]
    assert [(a.at_ms, a.deadline_ms) for a in coming.tight] == [(0.0, 65.0)]
    coming = RollOut(arrivals=1)._coming(Expected(50.0, ((0.065, 0b1),)), ArmTable(arms), 45.0)
    assert len(coming.arrivals) == 1


def test_late_batches_are_not_larger_than_pays() -> None:
    arms = (arm(0.6, 10, 20.1, 30),)
    late = [Waiting(n, NOW - 1, 1, late_ok=True) for n in range(3)]
    assert MaxAcc().decide(NOW, late, arms, NOBODY) == Decision((0,), 0, (), "late")


def test_unmeasured_arms_count_by_their_input_below_every_measured_one() -> None:
    large, small = arm(0.0, 20), arm(0.0, 10, size=InputSize(height=320, width=320))
    assert decide(MaxAcc(), waiting(100), (small, large)) == ((0,), 1)
    assert decide(MaxAcc(), waiting(100), (small, large, arm(0.01, 10))) == ((0,), 2)
    assert 0 < worth(small) < worth(large) < 0.0001


def test_dominated_arms_are_pruned() -> None:
    arms = (*SHAPES, arm(0.7, 31, 60, 90, size=WIDE), arm(0.7, 25, 60, 90, size=WIDE), arm(0.8, 30, 58, size=WIDE))
    table = PlanTable(arms)
    wide, tall = 0b111101, 0b000110
    # Arm 3 is slower and less accurate than arm 0, arm 4 is faster for one picture, arm 5 takes smaller batches.
    # The square is slower than either tight size, and worth it only where both shapes wait.
    assert table.undominated((wide,)) == {0, 4}
    assert table.undominated((tall,)) == {1}
    assert table.undominated((tall, wide)) == {0, 1, 2, 4}


def test_plans_pair_the_tight_sizes() -> None:
    table = PlanTable((*SHAPES, arm(0.5, 5, size=WIDE), arm(0.5, 5.2, size=TALL)))
    assert table.plans((0b01101, 0b10110), 9) == (
        Plan(((3, (0,)), (4, (1,)))),
        Plan(((0, (0,)), (1, (1,)))),
        Plan(((2, (0, 1)),)),
    )
    assert len(table.plans((0b01101, 0b10110), 2)) == 2


def test_first_runs_are_few_however_many_arms_there_are() -> None:
    arms = tuple(arm(0.3 + k / 200, *(5.0 + k + b for b in range(16))) for k in range(84))
    queue = waiting(*[1000.0] * 40, arms=(1 << 84) - 1)
    runs = first_runs(NOW, queue, PlanTable(arms), ((1 << 84) - 1,), 20)
    assert len(runs) == 20 == len(set(runs))
    assert {(0, 16), (83, 16), (0, 1)} <= {(run.arm, run.size) for run in runs}
    assert all(run.ms == arms[run.arm].latency_ms[run.size - 1] for run in runs)


def test_a_run_takes_the_first_of_every_class_that_allows_it() -> None:
    window = Window(NOW, waiting(10, 20, 30, 40, arms=(0b01, 0b10, 0b11, 0b01)), (0b01, 0b10, 0b11))
    rest = [[round(ms) for ms in deadlines] for deadlines in window.without(Batch(0, 2, 5.0))]
    assert rest == [[40], [20], []]


def test_the_rest_is_planned_earliest_deadline_first() -> None:
    table = ArmTable((arm(0.5, 10, 12), arm(0.9, 30)))
    plan = Plan(((0, (0, 2)), (1, (1,))))
    groups = groups_of(plan, table, [[50.0, 70.0], [45.0, 85.0], [20.0]], {})
    assert groups == [(0.5, (10, 12), [20, 50, 70]), (0.9, (30,), [45, 85])]
    # From 5: two of the first until 17 (20 and 50), 45 cannot be had by 47, 70 until 27, 85 until 57.
    total, on_time = keep_deadlines(5.0, groups)
    assert (total, on_time) == (0.5 * 3 + 0.9, 4)
    assert keep_deadlines(5.0, []) == (0.0, 0)


def test_what_is_derived_from_arms_follows_them() -> None:
    built: list[tuple[Arm, ...]] = []

    def build(arms: tuple[Arm, ...]) -> int:
        built.append(arms)
        return len(built)

    remembered = Remembered(build)
    assert [remembered((FAST, ACCURATE)), remembered([FAST, ACCURATE]), remembered((FAST,))] == [1, 1, 2]


@pytest.mark.parametrize(
    ("decision", "wrong"),
    [
        (Decision((0, 1), 0, (), "on_time"), None),
        (Decision((0,), 1, (2,), "late"), None),
        (Decision((7,), 0, (), "on_time"), r"Pictures \[7\] do not wait"),
        (Decision((0, 0), 0, (), "on_time"), r"\[0\] are named more than once"),
        (Decision((2,), 0, (2,), "on_time"), r"\[2\] are named more than once"),
        (Decision((0,), 0, (1,), "on_time"), r"\[1\] are dropped, but they want a late answer"),
        (Decision((), -1, (2,), "idle"), r"Nothing is run, but pictures \[0, 1\] wait"),
        (Decision((), -1, (2,), "late"), "the reason is 'late' instead of 'idle'"),
        (Decision((0,), 0, (), "idle"), r"'idle', but pictures \[0\] are run"),
        (Decision((0,), 2, (), "on_time"), "no arm 2; there are 2"),
        (Decision((0,), -1, (), "on_time"), "no arm -1"),
        (Decision((0, 1, 2), 0, (), "on_time"), "more than arm 0 takes at once, which is 2"),
        (Decision((0, 1), 1, (), "on_time"), r"\[1\] do not allow arm 1 \(v at 640x640\)"),
    ],
)
def test_decisions_are_checked(decision: Decision, wrong: str | None) -> None:
    arms = (arm(0.5, 10, 20), arm(0.6, 20, 40))
    queue = [Waiting(0, NOW, 0b11, True), Waiting(1, NOW, 0b01, True), Waiting(2, NOW, 0b11)]
    found = validate(decision, queue, arms)
    if wrong is None:
        assert found is None
    else:
        with pytest.raises(AssertionError, match=wrong):
            raise AssertionError(found)


def test_parameters_are_checked() -> None:
    with pytest.raises(ValueError, match="at least one bucket"):
        SlackFit(buckets=0)
    with pytest.raises(ValueError, match="above 0"):
        Fixed(factor=0.0)
    with pytest.raises(ValueError, match="look_ahead needs"):
        LookAhead(candidates=0)
    with pytest.raises(ValueError, match="roll_out needs"):
        RollOut(penalty=-1.0)


def test_of_equal_arms_the_one_that_more_pictures_allow_stays() -> None:
    table = PlanTable((arm(0.7, 20), arm(0.7, 20), arm(0.7, 20, 30)))
    assert table.undominated((0b011,)) == {0}
    assert table.undominated((0b001, 0b011)) == {0}
    assert table.undominated((0b010, 0b011)) == {1}
    assert table.undominated((0b001, 0b010)) == {0, 1}
    assert table.undominated((0b111,)) == {2}  # it takes two at once
