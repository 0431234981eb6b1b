"""The simulator: queueing examples computed by hand, and what must hold for every policy and trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from service.repository.manifest import InputSize
from service.scheduling.arrivals import ArrivalStatistics
from service.scheduling.policies.max_acc import MaxAcc
from service.scheduling.problem import Arm, Decision, Expected, Waiting
from service.simulation.profile import SimProfile, read_profile
from service.simulation.results import summarise
from service.simulation.simulate import InvalidDecisionError, Run, Setting, simulate
from service.simulation.trace import Arrival, load_trace
from tests.service.made_profile import seven_rows, write_profile

SIZE = InputSize(height=480, width=640)
STILL = Setting(decode_ms=0.0, decision_ms=0.0, admission=False)  # no time passes but in the engine


@dataclass
class Greedy:
    """Runs the first pictures of the queue, at most `most`, on one arm; drops what it is told to. Keeps what it saw."""

    arm: int = 0
    most: int = 1
    drop_if: Callable[[float, Waiting], bool] = lambda _now, _waiting: False
    name: str = "greedy"

    def __post_init__(self) -> None:
        self.seen: list[tuple[float, tuple[int, ...], Expected]] = []

    def decide(self, now: float, queue: Sequence[Waiting], arms: Sequence[Arm], expected: Expected) -> Decision:
        self.seen.append((now, tuple(waiting.number for waiting in queue), expected))
        drop = tuple(waiting.number for waiting in queue if self.drop_if(now, waiting))
        run = tuple(waiting.number for waiting in queue if waiting.number not in drop)[: self.most]
        return Decision(run, self.arm if run else -1, drop, "on_time" if run else "idle")


def constant(*milliseconds: float, ap50: float = 0.5) -> SimProfile:
    """One arm whose batch of b always takes milliseconds[b - 1]."""
    return SimProfile((Arm("a", SIZE, ap50, milliseconds),), (milliseconds,))


def arrivals(*at_s: float, budget_ms: float = 1000.0, late_ok: bool = False) -> tuple[Arrival, ...]:
    return tuple(Arrival(at, budget_ms, late_ok=late_ok) for at in at_s)


def ended(run: Run) -> list[tuple[str, float]]:
    return [(end.why or end.outcome, round(end.at_s, 9)) for end in run.ends]


def test_the_second_waits_for_the_first() -> None:
    run = simulate(Greedy(), arrivals(0.0, 0.01, budget_ms=150.0), constant(100.0), STILL)
    assert ended(run) == [("on_time", 0.1), ("late", 0.2)]
    assert [end.wait_s for end in run.ends] == pytest.approx([0.0, 0.09])
    result = summarise(run, arrivals(0.0, 0.01, budget_ms=150.0), constant(100.0))
    assert (result.on_time, result.late, result.dropped) == (1, 1, {})
    assert (result.attainment, result.effective_ap, result.answered_ap) == (0.5, 0.25, 0.5)
    assert result.goodput_per_s == pytest.approx(1 / 0.2)
    assert result.utilisation == pytest.approx(1.0)
    assert result.wait_ms_mean == pytest.approx(45.0)


def test_an_answer_at_the_deadline_is_on_time() -> None:
    trace = arrivals(0.3, budget_ms=100.0)  # 0.3 + 0.1 is not 0.4 in floating point
    assert ended(simulate(Greedy(), trace, constant(100.0), STILL)) == [("on_time", 0.4)]
    assert ended(simulate(Greedy(), trace, constant(100.1), STILL)) == [("late", 0.4001)]


def test_what_waits_is_run_together_earliest_deadline_first() -> None:
    trace = (Arrival(0.0, 900.0), Arrival(0.01, 900.0), Arrival(0.02, 300.0), Arrival(0.03, 890.0))
    policy = Greedy(most=2)
    run = simulate(policy, trace, constant(100.0, 120.0), STILL)
    # 2 is due first; 1 and 3 are due at 0.91 and 0.92.
    assert [numbers for _, numbers, _ in policy.seen] == [(0,), (2, 1, 3), (3,)]
    assert ended(run) == [("on_time", 0.1), ("on_time", 0.22), ("on_time", 0.22), ("on_time", 0.32)]
    assert [batch.pictures for batch in run.batches] == [1, 2, 1]
    assert summarise(run, trace, constant(100.0, 120.0)).mean_batch == pytest.approx(4 / 3)


def test_expiry_is_at_the_deadline_even_while_a_batch_runs() -> None:
    run = simulate(Greedy(), arrivals(0.0, 0.01, budget_ms=50.0), constant(100.0), STILL)
    # The first is running at its deadline, so it gets its answer, late; the second is given up at 0.06.
    assert ended(run) == [("late", 0.1), ("expired", 0.06)]
    assert len(run.batches) == 1


def test_who_wants_a_late_answer_waits_ten_seconds_more() -> None:
    trace = arrivals(0.0, 0.01, 0.02, budget_ms=50.0, late_ok=True)
    run = simulate(Greedy(), trace, constant(6000.0), STILL)
    # Runs start at 0 and 6; the third would start at 12, after 0.02 + 0.05 + 10.
    assert ended(run) == [("late", 6.0), ("late", 12.0), ("expired", 10.07)]


def test_the_policys_drops_are_told_when_it_has_decided() -> None:
    policy = Greedy(drop_if=lambda now, waiting: now + 0.1 > waiting.deadline)
    trace = (Arrival(0.0, 150.0), Arrival(0.01, 150.0), Arrival(0.02, 500.0))
    run = simulate(policy, trace, constant(100.0), replace(STILL, decision_ms=2.0))
    # Each decision takes 2 ms: the first run is 0.002..0.102, the next decision drops 1 and runs 2.
    assert ended(run) == [("on_time", 0.102), ("infeasible", 0.104), ("on_time", 0.204)]
    assert run.decision_s == (0.002, 0.002)


def test_decoders_take_so_many_at_once_in_order() -> None:
    setting = Setting(decode_ms=100.0, decode_threads=2, decision_ms=0.0, admission=False)
    run = simulate(Greedy(), arrivals(0.0, 0.01, 0.02, 0.03), constant(1.0), setting)
    # 0 and 1 are decoded at once; 2 and 3 begin at 0.1 and 0.11.
    assert ended(run) == [("on_time", 0.101), ("on_time", 0.111), ("on_time", 0.201), ("on_time", 0.211)]


def test_decoding_can_outlast_the_budget() -> None:
    setting = Setting(decode_ms=100.0, decode_threads=1, decision_ms=0.0, admission=False)
    trace = (*arrivals(0.0, 0.01, budget_ms=60.0), *arrivals(0.02))
    run = simulate(Greedy(), trace, constant(1.0), setting)
    # 0 keeps its decoder until 0.1, though it was given up; 1 expires before it has one, and so takes no time.
    assert ended(run) == [("expired", 0.06), ("expired", 0.07), ("on_time", 0.201)]


def test_places_are_bounded_and_free_again_with_the_answer() -> None:
    trace = arrivals(0.0, 0.01, 0.02, 0.1, 0.11)
    run = simulate(Greedy(), trace, constant(100.0), replace(STILL, queue_limit=2))
    # Two are in flight at 0.02; one of them is answered at 0.1, before the request of that moment is looked at.
    assert [end.why for end in run.ends] == ["", "", "queue_full", "", "queue_full"]
    assert ended(run)[2] == ("queue_full", 0.02)


def test_drift_slows_runs_and_not_predictions() -> None:
    profile = constant(100.0)
    assert ended(simulate(Greedy(), arrivals(0.0), profile, replace(STILL, drift=1.3))) == [("on_time", 0.13)]
    assert profile.arms[0].latency_ms == (100.0,)


def test_mean_wait_is_that_of_an_m_d_1_queue(tmp_path: Path) -> None:
    # Pollaczek-Khinchine for constant service: W = rho * D / (2 * (1 - rho)).
    rho, seconds = 0.6, 0.01
    trace = load_trace(f"poisson:rate={rho / seconds},seconds=600,tiers=any:500000,seed=3", constant(10.0))
    run = simulate(Greedy(), trace, constant(10.0), replace(STILL, queue_limit=10**6))
    result = summarise(run, trace, constant(10.0))
    assert result.attainment == 1.0
    assert result.wait_ms_mean == pytest.approx(rho * 10.0 / (2 * (1 - rho)), rel=0.05)
    assert result.utilisation == pytest.approx(rho, rel=0.02)


@pytest.fixture
def seven(tmp_path: Path) -> SimProfile:
    return read_profile(write_profile(tmp_path / "seven.json", seven_rows()))


SQUARES = {"f0": 2, "f6": 38}  # arms: six sizes a variant, the third of them the square of 320


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("arm", SQUARES.values())
def test_every_request_has_one_end_and_the_engine_runs_one_batch_at_a_time(
    seven: SimProfile, arm: int, drop: bool
) -> None:
    trace = load_trace("gamma:load=1.2,cv2=4,seconds=4,late_ok=0.3,sizes=640x480+480x640+500x500", seven, seed=5)
    policy = Greedy(arm, 4, lambda now, waiting: drop and not waiting.late_ok and waiting.deadline < now + 0.05)
    setting = Setting(decode_ms=3.0, decode_cv=1.0, decision_ms=0.1, seed=2, admission=False)
    told: list[int] = []
    run = simulate(policy, trace, seven, setting, told.append)
    assert len(run.ends) == sum(told) == len(trace)
    result = summarise(run, trace, seven)
    assert result.on_time + result.late + sum(result.dropped.values()) == result.requests == len(trace)
    assert sum(tier.requests for tier in result.tiers.values()) == len(trace)
    assert sum(tier.on_time for tier in result.tiers.values()) == result.on_time
    assert sum(batch.pictures for batch in run.batches) == result.on_time + result.late == sum(result.arms.values())
    for one, after in zip(run.batches, run.batches[1:], strict=False):
        assert one.began_s + one.seconds <= after.began_s
    for arrival, end in zip(trace, run.ends, strict=True):
        allowed = arrival.deadline + (10.0 if arrival.late_ok else 0.0)
        assert end.at_s >= arrival.at_s
        assert (end.outcome == "on_time") == (end.outcome != "dropped" and end.at_s <= arrival.deadline + 1e-9)
        assert end.why != "expired" or end.at_s == pytest.approx(allowed)
    assert result.effective_ap == pytest.approx(result.attainment * seven.arms[arm].ap50)
    assert simulate(policy, trace, seven, setting) == run  # the cost of decisions is constant: the same run
    assert simulate(policy, trace, seven, replace(setting, seed=3)) != run


def test_the_measured_cost_of_a_decision_passes_on_the_simulated_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([5.0, 5.004, 9.0, 9.001])
    monkeypatch.setattr("service.simulation.simulate.time.perf_counter", lambda: next(ticks))
    run = simulate(Greedy(), arrivals(0.0, 0.01), constant(100.0), Setting(decode_ms=0.0))
    assert run.decision_s == pytest.approx((0.004, 0.001))
    assert ended(run) == [("on_time", 0.104), ("on_time", 0.205)]


@pytest.mark.parametrize(
    ("decision", "sentence"),
    [
        (Decision((0, 0), 0, (), "on_time"), "more than once"),
        (Decision((7,), 0, (), "on_time"), "do not wait"),
        (Decision((0,), 1, (), "on_time"), "do not allow arm 1"),
        (Decision((0,), 5, (), "on_time"), "no arm 5"),
        (Decision((0, 1), 0, (), "on_time"), "more than arm 0 takes"),
        (Decision((0,), 0, (1,), "on_time"), "want a late answer"),
        (Decision(), "pictures .* wait"),
    ],
)
def test_an_invalid_decision_is_named(decision: Decision, sentence: str) -> None:
    class Fixed(Greedy):
        def decide(self, now: float, queue: Sequence[Waiting], arms: Sequence[Arm], expected: Expected) -> Decision:
            return decision

    tall = Arm("a", InputSize(height=640, width=480), 0.5, (1.0,))
    profile = SimProfile((Arm("a", SIZE, 0.5, (1.0,)), tall), ((1.0,), (1.0,)))
    trace = (Arrival(0.0, 100.0), Arrival(0.0, 100.0, late_ok=True))
    with pytest.raises(InvalidDecisionError, match=f"greedy decided what is not valid: .*{sentence}"):
        simulate(Fixed(), trace, profile, STILL)


def test_a_picture_that_no_size_holds_and_impossible_settings_are_explained() -> None:
    with pytest.raises(ValueError, match="no input size of the profile holds a picture of 480x640"):
        simulate(Greedy(), (Arrival(0.0, 100.0, width=480, height=640),), constant(1.0), STILL)
    for name, value in (
        ("decode_ms", -1.0), ("decode_ms", math.nan), ("decode_threads", 0), ("queue_limit", 0), ("drift", 0.0),
        ("decode_cv", 1e-200), ("decode_cv", 11.0), ("decision_ms", math.inf), ("decision_ms", -1.0), ("seed", -1),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"^{name} must be"):
            Setting(**{name: value})


def test_decode_times_have_their_mean_and_variation() -> None:
    setting = Setting(decode_ms=20.0, decode_cv=0.5, decode_threads=10**6, decision_ms=0.0, queue_limit=10**6)
    trace = tuple(Arrival(float(k), 500_000.0) for k in range(4000))
    run = simulate(Greedy(), trace, constant(0.001), setting)
    times = np.array([end.at_s - arrival.at_s for arrival, end in zip(trace, run.ends, strict=True)]) * 1e3
    assert times.mean() == pytest.approx(20, rel=0.04)
    assert times.std() / times.mean() == pytest.approx(0.5, rel=0.06)


def test_the_policy_is_told_what_to_expect() -> None:
    policy = Greedy()
    simulate(policy, arrivals(0.0, 1.0, 2.0), constant(1.0), Setting(decode_ms=100.0, decision_ms=0.0, admission=False))
    mixes = [expected.mix for _, _, expected in policy.seen]
    assert [len(mix) for mix in mixes] == [1, 2, 3]
    assert [arms for _, arms in mixes[2]] == [1, 1, 1]
    assert [slack for slack, _ in mixes[2]] == pytest.approx([0.9, 0.9, 0.9])


def test_arrival_statistics_follow_the_rate_and_forget() -> None:
    statistics = ArrivalStatistics(memory_s=2.0, sample=3)
    assert statistics.expected(5.0) == Expected()
    statistics.observe(10.0, 0.1, 1)
    assert statistics.expected(10.0).rate == 0.0
    statistics.observe(11.0, 0.2, 2)
    # One arrival since the first, of weight exp(-age / 2), over the weight's integral since then.
    assert statistics.expected(11.0).rate == pytest.approx(1 / (2 * (1 - np.exp(-0.5))))
    assert statistics.expected(12.0).rate == pytest.approx(np.exp(-0.5) / (2 * (1 - np.exp(-1.0))))
    for k in range(1, 4001):
        statistics.observe(11.0 + k / 40, 0.3, 3)
    assert statistics.expected(111.0).rate == pytest.approx(40, rel=0.02)
    assert statistics.expected(111.0).mix == ((0.3, 3),) * 3
    assert statistics.expected(131.0).rate < 0.01
    with pytest.raises(ValueError, match="above 0"):
        ArrivalStatistics(memory_s=0)


def test_what_could_not_be_on_time_is_turned_away_on_arrival() -> None:
    """As the gate of the service: three fit before the common deadline, the fourth is told at once."""
    trace = arrivals(0.0, 0.0, 0.0, 0.0, budget_ms=310.0)
    run = simulate(Greedy(), trace, constant(100.0), Setting(decode_ms=0.0, decision_ms=0.0))
    assert [(end.outcome, end.why) for end in run.ends] == [("on_time", "")] * 3 + [("dropped", "infeasible")]
    assert run.ends[3].at_s == 0.0


def test_a_newcomer_that_would_make_another_late_is_turned_away() -> None:
    first, second = arrivals(0.0, budget_ms=110.0) + arrivals(0.0, budget_ms=250.0)
    third = arrivals(0.0, budget_ms=220.0)[0]
    run = simulate(Greedy(), [first, second, third], constant(100.0), Setting(decode_ms=0.0, decision_ms=0.0))
    assert [end.outcome for end in run.ends] == ["on_time", "on_time", "dropped"]


def test_who_may_be_late_goes_behind_everybody_and_only_so_many() -> None:
    trace = arrivals(*[0.0] * 6, budget_ms=110.0, late_ok=True)
    run = simulate(MaxAcc(), trace, constant(100.0), Setting(decode_ms=0.0, decision_ms=0.0, queue_limit=16))
    assert [end.outcome for end in run.ends] == ["on_time"] + ["late"] * 4 + ["dropped"]
    assert run.ends[5].why == "overload"
    later = [*trace, *arrivals(0.05, budget_ms=200.0)]
    run = simulate(MaxAcc(), later, constant(100.0), Setting(decode_ms=0.0, decision_ms=0.0, queue_limit=16))
    assert run.ends[6].outcome == "on_time"
