"""An engine that hangs or has lost its device: everything inside is answered at once, and the process is replaced."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from service.contract import Ask
from service.engine_thread import EngineThread
from service.engines.base import DeviceLostError, Engine, OutOfMemoryError
from service.errors import EngineFailureError, EngineLostError
from service.imaging.decode import Limits, inspect
from service.runtime import Runtime
from service.settings import Settings
from tests.service.fake_model import write_fake_repository
from tests.service.live import live_server
from tests.service.stub_detector import StubDetector, picture
from tests.service.test_api_server import JPEG, wait_for
from tests.service.test_runtime import photo

PATIENCE_S = 30.0


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    repository = write_fake_repository(tmp_path / "models", ("d0",))
    return Settings(repository=repository, cache_dir=tmp_path / "cache", max_batch=1)


class Spoilt:
    """An engine that does `before` ahead of each run."""

    max_batch: int | None = None

    def __init__(self, engine: Engine, before: Callable[[], None]) -> None:
        self._engine, self._before = engine, before
        self.variant, self.kind, self.closed = engine.variant, engine.kind, False

    def run(self, images):  # type: ignore[no-untyped-def]
        self._before()
        return self._engine.run(images)

    def warm_up(self, height: int, width: int, batch: int = 1) -> None: ...

    def memory_bytes(self) -> int:
        return 0

    def close(self) -> None:
        self.closed = True


async def started(settings: Settings, before: Callable[[], None]) -> tuple[Runtime, Spoilt]:
    runtime = Runtime(settings)
    await runtime.start()
    assert runtime._models is not None
    loaded = runtime._models.loaded["d0"]
    spoilt = Spoilt(loaded.engine, before)
    runtime._models.loaded["d0"] = dataclasses.replace(loaded, engine=spoilt)
    return runtime, spoilt


def detect(runtime: Runtime) -> asyncio.Task[object]:
    data = photo()
    ask = Ask(budget_ms=60_000.0, tier=None, received=time.monotonic())
    return asyncio.create_task(runtime.detect(data, inspect(data, Limits(10**8)), ask))


async def check_the_end(runtime: Runtime, spoilt: Spoilt, words: str) -> None:
    """Three requests, one of which runs: all are told at once, and so is whoever comes later."""
    began = time.monotonic()
    tasks = [detect(runtime) for _ in range(3)]
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), PATIENCE_S)
    assert [type(result) for result in results] == [EngineLostError] * 3
    for result in results:
        assert isinstance(result, EngineLostError)
        assert (result.status, result.headers["Retry-After"]) == (503, "10")
    assert time.monotonic() - began < 5
    assert runtime.failure is not None
    assert words in runtime.failure
    assert not runtime.ready
    assert runtime.status == runtime.failure
    with pytest.raises(EngineLostError):
        await detect(runtime)
    await asyncio.wait_for(runtime.drain(5), 1)  # nobody is inside any more
    await asyncio.wait_for(runtime.close(), 5)  # and nobody waits for the thread that hangs
    assert not spoilt.closed  # it may still be inside


def test_a_run_that_hangs(settings: Settings) -> None:
    held = threading.Event()

    async def scenario() -> None:
        short = settings.model_copy(update={"engine_timeout_seconds": 0.4})
        runtime, spoilt = await started(short, lambda: held.wait(PATIENCE_S) and None)
        try:
            await check_the_end(runtime, spoilt, "hangs: a run has taken 0.4 s")
        finally:
            held.set()

    asyncio.run(scenario())


def test_a_device_that_is_lost(settings: Settings) -> None:
    def fail() -> None:
        raise DeviceLostError("d0.plan failed on input (1, 64, 64, 3): cudaErrorIllegalAddress")

    async def scenario() -> None:
        runtime, spoilt = await started(settings, fail)
        await check_the_end(runtime, spoilt, "lost its device: d0.plan failed")

    asyncio.run(scenario())


def test_memory_that_runs_out_is_one_requests_failure(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    faults = [OutOfMemoryError("d0.onnx failed on input (1, 64, 64, 3): CUDA failure 2: out of memory")]

    def fail_once() -> None:
        if faults:
            raise faults.pop()

    async def scenario() -> None:
        runtime, _ = await started(settings, fail_once)
        try:
            with pytest.raises(EngineFailureError):
                await detect(runtime)
            assert runtime.ready
            assert await detect(runtime)
        finally:
            await runtime.close()

    asyncio.run(scenario())
    assert "CUDA failure 2" in caplog.text


def test_an_event_loop_that_is_held_up_is_not_a_hung_run(settings: Settings) -> None:
    running = threading.Event()

    async def scenario() -> None:
        short = settings.model_copy(update={"engine_timeout_seconds": 0.4})
        runtime, _ = await started(short, running.set)
        try:
            asked = detect(runtime)
            while not running.is_set():
                await asyncio.sleep(0.001)
            time.sleep(0.8)  # the run ends meanwhile, and so does its time
            assert await asked
            assert runtime.ready
        finally:
            await runtime.close()

    asyncio.run(scenario())


def test_a_slow_run_is_not_a_hung_one(settings: Settings) -> None:
    async def scenario() -> None:
        runtime, _ = await started(settings, lambda: time.sleep(0.6))
        try:
            assert runtime._limit_s(0, 1) == 30.0
            assert runtime._models is not None
            slow = dataclasses.replace(runtime._models.arms()[0], latency_ms=(4000.0,))
            runtime._models._arms = (slow, *runtime._models._arms[1:])
            assert runtime._limit_s(0, 1) == 120.0
            assert await detect(runtime)
        finally:
            await runtime.close()

    asyncio.run(scenario())


def test_the_server_says_that_it_is_not_alive_and_ends() -> None:
    stub = StubDetector(delay=1.0)
    with live_server(stub, drain_seconds=30) as live:
        assert httpx.get(f"{live.url}/health/live").status_code == 200
        answers: list[int] = []
        asking = threading.Thread(
            target=lambda: answers.append(
                httpx.post(f"{live.url}/detect", content=picture(), headers=JPEG, timeout=20).status_code
            )
        )
        asking.start()
        wait_for(lambda: stub.asks)
        stub.failure = "the engine hangs: a run has taken 30 s and is not done"
        answer = httpx.get(f"{live.url}/health/live")
        assert (answer.status_code, answer.json()["status"]) == (503, stub.failure)
        assert httpx.get(f"{live.url}/health/ready").json()["status"] == stub.failure
        asking.join(20)
        assert answers == [200]  # what still has an answer gets it
        live.thread.join(10)
        assert not live.thread.is_alive()


SERVE = """
import sys, time
from pathlib import Path
from service.api.server import serve
from service.engines.ort import OnnxEngine
from service.settings import load_settings

real, flag = OnnxEngine.run, Path(sys.argv[1])

def run(self, images):
    if flag.exists():
        time.sleep(600)
    return real(self, images)

OnnxEngine.run = run
sys.exit(serve(load_settings()))
"""


def test_a_process_whose_engine_hangs_ends_with_a_code_of_its_own(settings: Settings, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        **os.environ, "ASFD_REPOSITORY": str(settings.repository), "ASFD_CACHE_DIR": str(settings.cache_dir),
        "ASFD_PORT": str(port), "ASFD_ENGINE_TIMEOUT_SECONDS": "0.5", "ASFD_ENGINE": "cpu",
    }  # fmt: skip
    url, flag = f"http://127.0.0.1:{port}", tmp_path / "hang"
    command = [sys.executable, "-c", SERVE, str(flag)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            end = time.monotonic() + 60
            while True:
                assert time.monotonic() < end
                assert process.poll() is None
                try:
                    if httpx.get(f"{url}/health/ready").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.05)
            flag.touch()
            answer = httpx.post(f"{url}/detect", content=picture(), headers=JPEG, timeout=20)
            assert answer.status_code == 503
            assert answer.json()["type"] == "urn:asfd:problem:engine-lost"
            assert process.wait(20) == 4
            assert process.stderr is not None
            assert "asfd: the engine hangs" in process.stderr.read()
        finally:
            process.kill()


def test_the_engines_thread() -> None:
    executor = EngineThread("engine")
    executor.shutdown()  # without ever having run
    executor = EngineThread("engine")
    names = [executor.submit(lambda: threading.current_thread()).result(10) for _ in range(3)]
    assert len(set(names)) == 1
    assert names[0].daemon
    with pytest.raises(ZeroDivisionError):
        executor.submit(lambda: 1 / 0).result(10)
    first = executor.submit(time.sleep, 0.2)
    second = executor.submit(int, "7")
    executor.shutdown()
    assert first.done()
    assert second.result(0) == 7
    with pytest.raises(RuntimeError):
        executor.submit(int)
