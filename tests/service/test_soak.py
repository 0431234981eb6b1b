"""Soaks under random faults: no request is lost, each has exactly one end, and the metrics add up.

The dispatcher lives ten minutes on a fake clock. The whole service, over HTTP, soaks for `ASFD_SOAK_SECONDS` (8).
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from service.api.app import create_app
from service.engines.base import Detections, Engine, EngineError
from service.errors import AsfdError, InfeasibleError
from service.repository.manifest import InputSize
from service.runtime import Runtime
from service.scheduling.dispatcher import Dispatcher
from service.scheduling.policies import POLICIES
from service.scheduling.problem import Arm
from service.settings import Settings
from tests.service.fake_clock import run_with_fake_clock
from tests.service.fake_model import write_fake_repository
from tests.service.live import serving_app
from tests.service.stub_detector import picture

SECONDS = float(os.environ.get("ASFD_SOAK_SECONDS", "8"))
SIZES = [InputSize(height=s, width=s) for s in (64, 96, 128)]
ARMS = tuple(
    Arm(name, size, ap + k / 10, tuple(ms * 2**k * (1 + 0.7 * (b - 1)) for b in range(1, 5)))
    for name, ap, ms in (("quick", 0.4, 8.0), ("good", 0.5, 30.0))
    for k, size in enumerate(SIZES)
)
TEN_MINUTES = 600.0


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_ten_minutes_of_a_dispatcher_under_faults(policy: str) -> None:
    chance = random.Random(policy)
    ends: Counter[str] = Counter()
    running = [0]

    async def engine(arm: int, payloads: Sequence[int]) -> list[int]:
        assert running[0] == 0, "two batches at once"
        running[0] += 1
        try:
            slow = chance.choice((0.5, 0.9, 1.0, 1.0, 1.1, 8.0))
            await asyncio.sleep(ARMS[arm].seconds(len(payloads)) * slow)
            if chance.random() < 0.03:
                raise EngineError("a fault")
            return [-payload for payload in payloads]
        finally:
            running[0] -= 1

    def refused() -> Exception:
        return InfeasibleError(budget_ms=1, predicted_ms=1, smallest_feasible_ms=1)

    async def request(dispatcher: Dispatcher[int, int], number: int) -> None:
        now = asyncio.get_running_loop().time()
        budget, late_ok = chance.choice((0.05, 0.2, 1.0)), chance.random() < 0.5
        arms = chance.choice((0b111111, 0b001001, 0b110110, 0b000111))
        work = dispatcher.submit(
            number, deadline=now + budget, expires=now + budget + 2.0 * late_ok, arms=arms, refused=refused,
            late_ok=late_ok, tier=str(budget),
        )  # fmt: skip
        try:
            # Some clients hang up.
            ran = await asyncio.wait_for(work, 0.04 if chance.random() < 0.1 else 60.0)
        except TimeoutError:
            ends["gone"] += 1
        except (AsfdError, EngineError) as error:
            ends[type(error).__name__] += 1
        else:
            assert ran.result == -number
            ends["answered"] += 1

    async def scenario() -> int:
        dispatcher: Dispatcher[int, int] = Dispatcher(POLICIES[policy](), lambda: ARMS, engine)
        tasks, number, loop = [], 0, asyncio.get_running_loop()
        while loop.time() < TEN_MINUTES:
            number += 1
            tasks.append(asyncio.create_task(request(dispatcher, number)))
            busy = loop.time() % 60 < 20  # bursts at some times the engine's rate
            await asyncio.sleep(chance.expovariate(60.0 if busy else 4.0))
        await asyncio.gather(*tasks)
        assert len(dispatcher) == 0
        await dispatcher.close()
        return number

    sent = run_with_fake_clock(scenario())
    assert sum(ends.values()) == sent
    assert {"answered", "gone", "EngineError"} <= set(ends), ends
    assert ends["answered"] > sent / 4, ends


class FaultyEngine:
    """An engine that is slow at times and fails at times."""

    def __init__(self, engine: Engine, chance: random.Random) -> None:
        self._engine, self._chance = engine, chance
        self.variant, self.kind, self.max_batch = engine.variant, engine.kind, engine.max_batch

    def run(self, images: NDArray[np.uint8]) -> list[Detections]:
        time.sleep(self._chance.choice((0.002, 0.004, 0.008, 0.06)))
        if self._chance.random() < 0.04:
            raise EngineError("/models/x.onnx: a fault")
        return self._engine.run(images)

    def warm_up(self, height: int, width: int, batch: int = 1) -> None: ...

    def memory_bytes(self) -> int:
        return 0

    def close(self) -> None:
        self._engine.close()


async def client(url: str, until: float, chance: random.Random, seen: Counter[str], payloads: dict[str, bytes]) -> None:
    async with httpx.AsyncClient(timeout=30.0) as http:
        while time.monotonic() < until:
            kind = chance.choice(list(payloads))
            query = {
                "latency_ms": chance.choice((5, 40, 200, 2000)),
                "on_infeasible": chance.choice(("degrade", "reject")),
            }
            timeout = 0.03 if chance.random() < 0.1 else 30.0
            try:
                answer = await asyncio.wait_for(
                    http.post(f"{url}/detect", params=query, content=payloads[kind],
                              headers={"Content-Type": "image/jpeg"}), timeout,
                )  # fmt: skip
            except TimeoutError:
                seen["gone"] += 1
                continue
            assert answer.status_code in (200, 400, 500, 503, 504), answer.text
            assert answer.json(), "an answer is JSON, whatever it says"
            assert (kind == "good" and answer.status_code != 400) or answer.status_code in (400, 503, 504), answer.text
            seen[str(answer.status_code)] += 1
            await asyncio.sleep(chance.random() * 0.02)


@pytest.mark.timeout(SECONDS + 240)
def test_the_service_under_faults(tmp_path: Path) -> None:
    settings = Settings(
        repository=write_fake_repository(tmp_path / "models"), cache_dir=tmp_path / "cache", queue_limit=8
    )  # fmt: skip
    app = create_app(settings)
    runtime = app.state.services.detector
    assert isinstance(runtime, Runtime)
    good = picture(size=(200, 150))
    payloads = {"good": good, "cut": good[:-40], "text": b"no picture at all", "none": b""}
    seen: Counter[str] = Counter()
    with serving_app(app) as live:
        end = time.monotonic() + 60
        while not runtime.ready:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert runtime._models is not None
        for name, one in runtime._models.loaded.items():
            engine: Any = FaultyEngine(one.engine, random.Random(name))
            runtime._models.loaded[name] = dataclasses.replace(one, engine=engine)

        async def soak() -> None:
            until = time.monotonic() + SECONDS
            await asyncio.gather(*(client(live.url, until, random.Random(k), seen, payloads) for k in range(16)))

        asyncio.run(soak())
        end = time.monotonic() + 30
        while runtime.queue_length or live.in_flight() or runtime._gate.inside:  # type: ignore[union-attr]
            assert time.monotonic() < end, "something is left inside"
            time.sleep(0.05)
        assert not runtime._gate._demands  # type: ignore[union-attr]
        assert runtime._gate._late == 0  # type: ignore[union-attr]
        assert runtime._gate._decoding_ms == pytest.approx(0.0, abs=1e-6)  # type: ignore[union-attr]
        text = httpx.get(f"{live.url}/metrics").text
    counted = sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "asfd_requests_total"
    )
    assert counted <= sum(seen.values()) <= counted + seen["gone"]  # who left early may never have been seen
    assert seen["200"] > 10
    assert seen["400"] > 0
    assert seen["gone"] > 0
