"""The dispatcher with a fake engine and a fake clock: expiry, cancelling, draining, dropping, one end for each."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from service.engines.base import EngineError
from service.errors import DeadlinePassedError, InfeasibleError, NotReadyError
from service.repository.manifest import InputSize
from service.scheduling.dispatcher import Dispatcher, Ran
from service.scheduling.problem import Arm, Decision, Expected, Waiting
from tests.service.fake_clock import run_with_fake_clock

SIZE = InputSize(height=64, width=64)
ARMS = (Arm("fast", SIZE, 0.5, (100.0, 150.0, 200.0)), Arm("good", SIZE, 0.9, (1000.0,)))


@dataclass(frozen=True)
class HeadFirst:
    """The head on its lowest arm, with up to `most` others; drops what is past its deadline and not to be late."""

    most: int = 1
    name: str = "head-first"

    def decide(self, now: float, queue: Sequence[Waiting], arms: Sequence[Arm], expected: Expected) -> Decision:
        drop = tuple(w.number for w in queue if now >= w.deadline and not w.late_ok)
        left = [w for w in queue if w.number not in drop]
        if not left:
            return Decision(drop=drop)
        arm = (left[0].arms & -left[0].arms).bit_length() - 1
        batch = [w.number for w in left if w.arms >> arm & 1][: self.most]
        return Decision(tuple(batch), arm, drop, "on_time")


@dataclass
class Scene:
    """A dispatcher whose engine takes what its arm predicts. log: (time, arm, payloads) of each run's start."""

    policy: HeadFirst = field(default_factory=HeadFirst)
    fail_on: frozenset[str] = frozenset()
    log: list[tuple[float, int, list[str]]] = field(default_factory=list)
    seen: list[tuple[int, int, float, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dispatcher: Dispatcher[str, str] = Dispatcher(
            self.policy, lambda: ARMS, self.engine, ran=lambda *run: self.seen.append(run)
        )

    async def engine(self, arm: int, payloads: Sequence[str]) -> list[str]:
        self.log.append((asyncio.get_running_loop().time(), arm, list(payloads)))
        await asyncio.sleep(ARMS[arm].seconds(len(payloads)))
        if self.fail_on & set(payloads):
            raise EngineError(f"cannot run {sorted(self.fail_on & set(payloads))}")
        return [p.upper() for p in payloads]

    def send(
        self, name: str, deadline: float, *, expires: float | None = None, arms: int = 1, late_ok: bool = False
    ) -> asyncio.Task[Ran[str]]:
        def refused() -> Exception:
            return InfeasibleError(budget_ms=1, predicted_ms=2, smallest_feasible_ms=3)

        ends = deadline if expires is None else expires
        return asyncio.create_task(
            self.dispatcher.submit(
                name, deadline=deadline, expires=ends, arms=arms, refused=refused, late_ok=late_ok
            )
        )  # fmt: skip


def test_batches_run_one_after_another_earliest_deadline_first() -> None:
    async def scenario() -> None:
        scene = Scene()
        tasks = [scene.send(name, at) for name, at in (("late", 9.0), ("soon", 2.0), ("middle", 5.0))]
        done = await asyncio.gather(*tasks)
        assert [ran.result for ran in done] == ["LATE", "SOON", "MIDDLE"]
        assert scene.log == [(0.0, 0, ["soon"]), (0.1, 0, ["middle"]), (0.2, 0, ["late"])]
        assert [round(ran.seconds, 9) for ran in done] == [0.1] * 3
        assert len(scene.dispatcher) == 0

    run_with_fake_clock(scenario())


def test_a_batch_is_answered_in_order_and_told_of() -> None:
    async def scenario() -> None:
        scene = Scene(HeadFirst(most=3))
        tasks = [scene.send(name, 5.0 + k) for k, name in enumerate("abcd")]
        done = await asyncio.gather(*tasks)
        assert [(ran.result, ran.batch) for ran in done] == [("A", 3), ("B", 3), ("C", 3), ("D", 1)]
        told = [(arm, batch, round(seconds, 9), reason) for arm, batch, seconds, reason in scene.seen]
        assert told == [(0, 3, 0.2, "on_time"), (0, 1, 0.1, "on_time")]

    run_with_fake_clock(scenario())


def test_what_expires_is_told_on_time_while_a_batch_runs() -> None:
    async def scenario() -> None:
        scene = Scene()
        long = scene.send("long", 0.5, arms=2, late_ok=True, expires=9.0)
        await asyncio.sleep(0.01)
        short = scene.send("short", 0.3)
        with pytest.raises(DeadlinePassedError):
            await short
        assert asyncio.get_running_loop().time() == pytest.approx(0.3)
        assert (await long).result == "LONG"
        assert [names for _, _, names in scene.log] == [["long"]]

    run_with_fake_clock(scenario())


def test_what_runs_does_not_expire() -> None:
    async def scenario() -> None:
        scene = Scene()
        task = scene.send("slow", 0.2, arms=2)
        assert (await task).result == "SLOW"
        assert asyncio.get_running_loop().time() == pytest.approx(1.0)

    run_with_fake_clock(scenario())


def test_what_is_dropped_gets_the_error_of_its_own() -> None:
    async def scenario() -> None:
        scene = Scene()
        running = scene.send("running", 0.5, arms=2)
        await asyncio.sleep(0)
        lost = scene.send("lost", 0.7, expires=5.0)
        kept = scene.send("kept", 0.8, expires=5.0, late_ok=True)
        with pytest.raises(InfeasibleError):
            await lost
        assert asyncio.get_running_loop().time() == pytest.approx(1.0)  # the first decision after its deadline
        assert (await kept).result == "KEPT"
        await running

    run_with_fake_clock(scenario())


def test_who_leaves_is_taken_out_and_costs_nothing() -> None:
    async def scenario() -> None:
        scene = Scene()
        first, gone = scene.send("first", 1.0), scene.send("gone", 2.0)
        await asyncio.sleep(0.05)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert len(scene.dispatcher) == 0
        await first
        last = scene.send("last", 3.0)
        await last
        assert [names for _, _, names in scene.log] == [["first"], ["last"]]

    run_with_fake_clock(scenario())


def test_who_leaves_while_running_does_not_disturb_the_others_of_the_batch() -> None:
    async def scenario() -> None:
        scene = Scene(HeadFirst(most=2))
        one, two = scene.send("one", 1.0), scene.send("two", 2.0)
        await asyncio.sleep(0.05)
        one.cancel()
        assert (await two).result == "TWO"
        await asyncio.gather(one, return_exceptions=True)
        assert (await scene.send("three", 3.0)).result == "THREE"

    run_with_fake_clock(scenario())


def test_one_picture_that_breaks_the_engine_does_not_fail_its_neighbours() -> None:
    async def scenario() -> None:
        scene = Scene(HeadFirst(most=3), fail_on=frozenset({"bad"}))
        tasks = [scene.send(name, 5.0) for name in ("a", "bad", "c")]
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(done[1], EngineError)
        assert [ran.result for ran in (done[0], done[2]) if isinstance(ran, Ran)] == ["A", "C"]
        assert [names for _, _, names in scene.log] == [["a", "bad", "c"], ["a"], ["bad"], ["c"]]
        assert (await scene.send("next", 9.0)).result == "NEXT"

    run_with_fake_clock(scenario())


def test_closing_answers_what_runs_and_refuses_the_rest() -> None:
    async def scenario() -> None:
        scene = Scene()
        running, waiting = scene.send("running", 1.0), scene.send("waiting", 2.0)
        await asyncio.sleep(0.05)
        await scene.dispatcher.close()
        assert (await running).result == "RUNNING"
        with pytest.raises(NotReadyError):
            await waiting
        with pytest.raises(NotReadyError):
            await scene.send("too late", 9.0)

    run_with_fake_clock(scenario())


@dataclass(frozen=True)
class Faulty(HeadFirst):
    """Fails, names strangers, or names an arm that is not allowed."""

    fault: str = "raise"
    name: str = "faulty"

    def decide(self, now: float, queue: Sequence[Waiting], arms: Sequence[Arm], expected: Expected) -> Decision:
        if self.fault == "raise":
            raise ZeroDivisionError
        return Decision((999,), 0) if self.fault == "stranger" else Decision((queue[0].number,), 1, (), "on_time")


@pytest.mark.parametrize("fault", ["raise", "stranger", "arm"])
def test_a_faulty_policy_does_not_stop_the_service(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        scene = Scene(Faulty(fault=fault))
        assert (await scene.send("a", 5.0)).result == "A"
        assert scene.log == [(0.0, 0, ["a"])]

    run_with_fake_clock(scenario())
    assert "policy faulty" in caplog.text


@dataclass(frozen=True)
class Remembering(HeadFirst):
    """Keeps what it was asked."""

    asked: list[tuple[list[int], tuple[Arm, ...]]] = field(default_factory=list)

    def decide(self, now: float, queue: Sequence[Waiting], arms: Sequence[Arm], expected: Expected) -> Decision:
        self.asked.append(([one.number for one in queue], tuple(arms)))
        return super().decide(now, queue, arms, expected)


def test_moved_predictions_are_rehearsed_once_with_one_picture_of_a_kind() -> None:
    async def scenario() -> None:
        scene, moved = Scene(policy := Remembering()), (ARMS[0], Arm("good", SIZE, 0.9, (900.0,)))
        arms = ARMS
        scene.dispatcher = Dispatcher(policy, lambda: arms, scene.engine)
        scene.dispatcher.rehearse()
        assert policy.asked == []  # nothing was asked yet
        tasks = [scene.send("a", 3.0), scene.send("b", 4.0), scene.send("c", 5.0, arms=3), scene.send("d", 6.0, arms=2)]
        await asyncio.sleep(0.05)
        scene.dispatcher.rehearse()
        assert policy.asked == [([1, 2, 3, 4], ARMS)]  # nothing has moved
        arms = moved
        scene.dispatcher.rehearse()
        scene.dispatcher.rehearse()
        assert policy.asked[1:] == [([1, 3, 4], moved)]
        assert [(await task).result for task in tasks] == ["A", "B", "C", "D"]

    run_with_fake_clock(scenario())


def test_a_policy_that_fails_in_rehearsal_hurts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        scene, arms = Scene(Faulty()), ARMS
        scene.dispatcher = Dispatcher(scene.policy, lambda: arms, scene.engine)
        assert (await scene.send("a", 5.0)).result == "A"
        arms = ARMS[:1]
        caplog.clear()
        scene.dispatcher.rehearse()
        assert (await scene.send("b", 9.0)).result == "B"

    run_with_fake_clock(scenario())
    assert caplog.text.count("policy faulty failed") == 1
