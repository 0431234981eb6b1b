"""How requests end when time runs out or the service stops: each is answered, none hangs."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from pathlib import Path

import pytest

from service import gate as gate_module
from service import runtime as runtime_module
from service.contract import Ask
from service.errors import DeadlinePassedError, InfeasibleError, NotReadyError
from service.imaging.decode import ImageHeader, Limits, inspect
from service.letterbox import Fitted
from service.repository.manifest import InputSize
from service.runtime import Runtime
from service.scheduling.admission import Admission
from service.settings import Settings
from tests.service.fake_model import write_fake_repository
from tests.service.test_runtime import photo

PATIENCE_S = 30.0


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    repository = write_fake_repository(tmp_path / "models")
    return Settings(repository=repository, cache_dir=tmp_path / "cache", decode_threads=1)


def ask(**changes: object) -> Ask:
    plain = Ask(budget_ms=60_000.0, tier=None, received=time.monotonic())
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def header_of(data: bytes) -> ImageHeader:
    return inspect(data, Limits(10**8))


def _held_decoder(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Make decoding wait for the second event; the first says that it has begun."""
    begun, gate = threading.Event(), threading.Event()
    real = runtime_module._prepare

    def held(data: bytes, header: ImageHeader, *sizes: InputSize) -> tuple[object, Fitted]:
        begun.set()
        gate.wait(PATIENCE_S)
        return real(data, header, *sizes)

    monkeypatch.setattr(runtime_module, "_prepare", held)
    return begun, gate


def test_a_deadline_passes_during_decoding_too(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, gate = _held_decoder(monkeypatch)
    data = photo()

    async def scenario() -> None:
        runtime = Runtime(settings)
        await runtime.start()
        try:
            # Feasible by prediction; only the decoder that hangs makes it late.
            monkeypatch.setattr(gate_module, "admit", lambda *_: Admission(0.0, on_time=True, harmless=True))
            late = ask(budget_ms=300.0, on_infeasible="reject")
            with pytest.raises(DeadlinePassedError, match="before the picture was decoded"):
                await asyncio.wait_for(runtime.detect(data, header_of(data), late), PATIENCE_S)
            assert begun.is_set()
            assert not gate.is_set()
        finally:
            gate.set()
            await runtime.close()

    asyncio.run(scenario())


def test_closing_tells_requests_that_wait_for_a_decoder(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, gate = _held_decoder(monkeypatch)
    data = photo()

    async def scenario() -> list[object]:
        runtime = Runtime(settings)
        await runtime.start()
        first = asyncio.create_task(runtime.detect(data, header_of(data), ask()))
        assert await asyncio.to_thread(begun.wait, PATIENCE_S)
        second = asyncio.create_task(runtime.detect(data, header_of(data), ask()))
        await asyncio.sleep(0)
        closing = asyncio.create_task(runtime.close())
        threading.Timer(0.2, gate.set).start()
        results = await asyncio.wait_for(asyncio.gather(first, second, return_exceptions=True), PATIENCE_S)
        await closing
        return list(results)

    assert all(isinstance(result, NotReadyError) for result in asyncio.run(scenario()))


def test_a_client_that_leaves_while_decoding_stays_cancelled(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, gate = _held_decoder(monkeypatch)
    data = photo()

    async def scenario() -> None:
        runtime = Runtime(settings)
        await runtime.start()
        try:
            gone = asyncio.create_task(runtime.detect(data, header_of(data), ask()))
            assert await asyncio.to_thread(begun.wait, PATIENCE_S)
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
            gate.set()
            assert (await runtime.detect(data, header_of(data), ask())).variant == "d1"
        finally:
            gate.set()
            await runtime.close()

    asyncio.run(scenario())


def test_a_refusal_never_advises_a_budget_that_is_too_small(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = photo()

    async def scenario() -> None:
        runtime = Runtime(settings)
        await runtime.start()
        try:
            assert runtime._dispatcher is not None
            monkeypatch.setattr(runtime._dispatcher, "free_at", lambda: time.monotonic() + 5.0)
            with pytest.raises(InfeasibleError) as refused:
                await runtime.detect(data, header_of(data), ask(budget_ms=200.0, on_infeasible="reject"))
            assert refused.value.extra["smallest_feasible_ms"] >= 5000
            assert refused.value.headers["Retry-After"] == "5"  # whole seconds, of a bit less than five
        finally:
            await runtime.close()

    asyncio.run(scenario())
