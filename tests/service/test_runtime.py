"""The runtime: every request gets exactly one answer, in time or with a reason."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from service.contract import Answer, Ask
from service.engines.base import EngineError
from service.errors import (
    BadParameterError,
    EngineFailureError,
    InfeasibleError,
    NotReadyError,
    QueueFullError,
    UndecodableImageError,
)
from service.imaging.decode import Limits, inspect
from service.runtime import Runtime
from service.settings import Settings
from tests.service.fake_model import write_fake_repository


def photo(width: int = 200, height: int = 100) -> bytes:
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 128, np.uint8)).save(out, "JPEG")
    return out.getvalue()


class FakeEngine:
    """Stands in for a loaded engine."""

    kind = "fake"
    variant = "d0"

    def __init__(self, run: Callable[[], object]) -> None:
        self._run = run

    def run(self, images: object) -> list[object]:
        self._run()
        raise EngineError("/models/d0.onnx failed: out of memory")

    def close(self) -> None: ...


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    repository = write_fake_repository(tmp_path / "models")
    return Settings(repository=repository, cache_dir=tmp_path / "cache", queue_limit=2, max_batch=1)


def with_runtime(settings: Settings, scenario: Callable[[Runtime], object]) -> None:
    async def main() -> None:
        runtime = Runtime(settings)
        await runtime.start()
        try:
            await scenario(runtime)  # type: ignore[misc]
        finally:
            await runtime.close()

    asyncio.run(main())


async def detect(runtime: Runtime, data: bytes, **changes: object) -> Answer:
    ask = Ask(budget_ms=30_000.0, tier=None, received=time.monotonic())
    return await runtime.detect(data, inspect(data, Limits(10**8)), dataclasses.replace(ask, **changes))  # type: ignore[arg-type]


def test_an_ample_budget_gets_the_most_accurate(settings: Settings) -> None:
    async def scenario(runtime: Runtime) -> None:
        answer = await detect(runtime, photo())
        assert (answer.variant, answer.input_height, answer.input_width) == ("d1", 64, 128)
        assert answer.ap50 == 0.7
        assert answer.deadline_met
        assert not answer.degraded
        scale = 200 / 128
        assert answer.boxes[0].tolist() == pytest.approx([8 * scale, 16 * scale, 40 * scale, 64 * scale])
        assert answer.scores.tolist() == pytest.approx([0.9, 0.4])
        parts = answer.decode_ms + answer.queue_ms + answer.infer_ms
        assert 0 < parts <= answer.total_ms

    with_runtime(settings, scenario)


def test_the_prediction_told_is_that_of_the_detector_that_ran(settings: Settings) -> None:
    async def scenario(runtime: Runtime) -> None:
        assert runtime._models is not None
        arms = {(arm.variant, arm.size.long_side): arm for arm in runtime._models.arms()}
        answer = await detect(runtime, photo())
        started_ms = answer.predicted_ms - arms[answer.variant, answer.input_width].latency_ms[0]
        assert answer.decode_ms + answer.queue_ms <= started_ms <= answer.total_ms - answer.infer_ms

    with_runtime(settings, scenario)


def test_filters(settings: Settings) -> None:
    async def scenario(runtime: Runtime) -> None:
        assert len((await detect(runtime, photo(), min_score=0.5)).scores) == 1
        assert len((await detect(runtime, photo(), max_faces=1)).scores) == 1
        assert len((await detect(runtime, photo(), default_min_score=0.5)).scores) == 1
        assert len((await detect(runtime, photo(), default_min_score=0.5, min_score=0.1)).scores) == 2
        assert len((await detect(runtime, photo(), min_face=20.0)).scores) == 1
        assert len((await detect(runtime, photo(), min_face=1000.0)).scores) == 0
        pinned = await detect(runtime, photo(), variant="d0", long_side=64)
        assert (pinned.variant, pinned.input_width) == ("d0", 64)

    with_runtime(settings, scenario)


def test_bad_asks_are_refused_with_names(settings: Settings) -> None:
    async def scenario(runtime: Runtime) -> None:
        for changes, sentence in (
            ({"variant": "d9"}, "there are d0, d1"),
            ({"long_side": 7}, r"there are \[64, 128\]"),
            ({"min_score": 0.01}, "0.05"),
        ):
            with pytest.raises(BadParameterError, match=sentence):
                await detect(runtime, photo(), **changes)
        with pytest.raises(UndecodableImageError):
            await detect(runtime, photo()[:-200])

    with_runtime(settings, scenario)


def test_infeasible_budgets(settings: Settings) -> None:
    async def scenario(runtime: Runtime) -> None:
        with pytest.raises(InfeasibleError) as refused:
            await detect(runtime, photo(), budget_ms=0.01, on_infeasible="reject")
        extra = refused.value.extra
        assert extra["smallest_feasible_ms"] >= 1
        assert extra["predicted_ms"] > 0.01
        late = await detect(runtime, photo(), budget_ms=0.01)
        assert late.degraded
        assert not late.deadline_met
        assert len(late.scores) == 2

    with_runtime(settings, scenario)


def test_an_engine_failure_is_one_requests_failure(settings: Settings) -> None:
    async def scenario(runtime: Runtime) -> None:
        loaded = runtime._models.loaded  # type: ignore[union-attr]
        whole = loaded["d0"]
        loaded["d0"] = dataclasses.replace(whole, engine=FakeEngine(lambda: None))  # type: ignore[arg-type]
        with pytest.raises(EngineFailureError) as failure:
            await detect(runtime, photo(), variant="d0")
        assert "models" not in failure.value.detail
        loaded["d0"] = whole
        assert (await detect(runtime, photo(), variant="d0")).variant == "d0"

    with_runtime(settings, scenario)


def test_a_full_queue_refuses_and_recovers(settings: Settings) -> None:
    async def scenario(runtime: Runtime) -> None:
        gate = threading.Event()
        loaded = runtime._models.loaded  # type: ignore[union-attr]
        whole = loaded["d0"]
        slow = FakeEngine(lambda: gate.wait(10))
        loaded["d0"] = dataclasses.replace(whole, engine=slow)  # type: ignore[arg-type]
        held = [asyncio.create_task(detect(runtime, photo(), variant="d0")) for _ in range(2)]
        await asyncio.sleep(0.2)
        with pytest.raises(QueueFullError):
            await detect(runtime, photo())
        gate.set()
        results = await asyncio.gather(*held, return_exceptions=True)
        assert all(isinstance(r, EngineFailureError) for r in results)
        loaded["d0"] = whole
        assert (await detect(runtime, photo())).deadline_met

    with_runtime(settings, scenario)


def test_draining_refuses_and_the_profile_is_reused(settings: Settings) -> None:
    async def scenario(runtime: Runtime) -> None:
        states = [runtime.ready]
        await runtime.drain(1)
        assert [*states, runtime.ready] == [True, False]
        with pytest.raises(NotReadyError):
            await detect(runtime, photo())

    with_runtime(settings, scenario)
    (stored,) = settings.cache_dir.glob("profile-*.json")
    before = stored.stat().st_mtime_ns
    with_runtime(settings, scenario)
    assert stored.stat().st_mtime_ns == before


def test_variants_describe_themselves(settings: Settings) -> None:
    async def scenario(runtime: Runtime) -> None:
        await detect(runtime, photo())
        await asyncio.sleep(0.1)  # it learns of the run once the answer is on its way
        described = {v["variant"]: v for v in runtime.variants}
        assert set(described) == {"d0", "d1"}
        assert sum(size["runs_seen"] for size in described["d1"]["inputs"]) == 1
        assert all(size["p99_ms"] >= size["p50_ms"] > 0 for size in described["d0"]["inputs"])

    with_runtime(settings, scenario)
