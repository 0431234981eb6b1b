"""`TensorRtEngine` on a fake GPU: what it asks of TensorRT and CUDA, and what it says when they fail."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import pytest

from service.engines.base import DeviceLostError, EngineError, OutOfMemoryError
from service.engines.tensorrt.engine import TensorRtEngine
from tests.engines.fake_cuda import Error
from tests.engines.gpu_fakes import FakeGpu, install, pictures

SIZES = [(64, 96), (96, 64)]


@pytest.fixture(params=["11.4", "10.16"])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return install(monkeypatch, request.param)


def plan(gpu: FakeGpu, folder: Path, **changes: object) -> Path:
    path = folder / "d0.plan"
    path.write_bytes(gpu.trt.plan(SIZES, 4, **changes))
    return path


def test_it_answers_alone_and_in_batches_at_every_size(gpu: FakeGpu, tmp_path: Path) -> None:
    engine = TensorRtEngine("d0", plan(gpu, tmp_path))
    assert (engine.kind, engine.variant) == ("tensorrt", "d0")
    for height, width in SIZES:
        for counts in ((3,), (0, 5), (2, 0, 1, 7), (3,)):
            images = pictures(*counts, height=height, width=width)
            found = engine.run(images)
            assert [len(one.scores) for one in found] == list(counts)
            np.testing.assert_array_equal(gpu.seen[-1], images)
            for k, one in enumerate(found):
                np.testing.assert_array_equal(one.boxes[:, 0], np.arange(counts[k]) + k)
                assert (np.diff(one.scores) < 0).all()
    assert len(engine.run(pictures(255))[0].scores) == 255
    engine.close()


def test_answers_outlive_the_next_run(gpu: FakeGpu, tmp_path: Path) -> None:
    engine = TensorRtEngine("d0", plan(gpu, tmp_path))
    first = engine.run(pictures(4))[0]
    kept = first.boxes.copy()
    engine.run(pictures(0))
    engine.close()
    np.testing.assert_array_equal(first.boxes, kept)


def test_one_copy_there_and_one_back_and_one_graph_a_size_and_batch(gpu: FakeGpu, tmp_path: Path) -> None:
    engine = TensorRtEngine("d0", plan(gpu, tmp_path))
    for _ in range(3):
        engine.run(pictures(1, 2))
    launches = gpu.cuda.calls.count("cudaGraphLaunch")
    # Once by itself, then captured, which runs nothing, then twice from the graph.
    assert (len(gpu.seen), launches, gpu.cuda.calls.count("cudaGraphInstantiate")) == (3, 2, 1)
    assert [kind for kind, _ in gpu.cuda.copied] == ["HostToDevice", "DeviceToHost"] * 3
    assert {size for kind, size in gpu.cuda.copied if kind == "HostToDevice"} == {2 * 64 * 96 * 3}
    assert all(run.stream == engine._stream.handle != 0 for run in gpu.trt.executions)
    engine.run(pictures(1))
    engine.run(pictures(1, height=96, width=64))
    assert gpu.cuda.calls.count("cudaGraphInstantiate") == 3
    # One context each, since a graph belongs to its context's state; all on the same scratch memory.
    assert len(gpu.trt.named("ICudaEngine.create_execution_context")) == 3
    given = {call.arguments["memory"] for call in gpu.trt.named("IExecutionContext.set_device_memory")}
    assert given == {engine._scratch.address}
    assert {run.profile for run in gpu.trt.executions} == {0, 1}
    for run in gpu.trt.executions:
        assert len({address % 256 for address in run.addresses.values()} - {run.addresses["images"] % 256}) <= 1
    engine.close()


def test_the_gpus_own_time_is_that_of_one_more_run(gpu: FakeGpu, tmp_path: Path) -> None:
    engine = TensorRtEngine("d0", plan(gpu, tmp_path))
    images = pictures(3, 1)
    assert engine.device_ms(images) == 1.5
    assert len(gpu.seen) == 2
    np.testing.assert_array_equal(gpu.seen[1], images)
    assert gpu.cuda.calls[-8:] == [
        "cudaEventCreateWithFlags", "cudaEventRecord", "cudaGraphLaunch", "cudaEventRecord", "cudaEventSynchronize",
        "cudaEventElapsedTime", "cudaEventDestroy", "cudaEventDestroy",
    ]  # fmt: skip
    gpu.cuda.fail["cudaEventSynchronize"] = Error.cudaErrorLaunchFailure
    with pytest.raises(DeviceLostError, match=r"d0\.plan failed on input \(2, 64, 96, 3\)"):
        engine.device_ms(images)
    engine.close()
    assert not gpu.cuda.handles


def test_everything_is_given_back(gpu: FakeGpu, tmp_path: Path) -> None:
    before = gpu.cuda.free
    engine = TensorRtEngine("d0", plan(gpu, tmp_path))
    assert engine.memory_bytes() == before - gpu.cuda.free > 1 << 20  # its scratch memory, and buffers
    engine.warm_up(64, 96, 2)
    engine.close()
    engine.close()
    assert gpu.cuda.free == before
    assert not gpu.cuda.handles
    with pytest.raises(EngineError, match=r"d0\.plan is closed"):
        engine.run(pictures(1))


def test_a_run_that_cannot_be_captured_goes_on_without(
    gpu: FakeGpu, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = TensorRtEngine("d0", plan(gpu, tmp_path))
    gpu.cuda.fail["cudaGraphInstantiate"] = Error.cudaErrorNotSupported
    with caplog.at_level(logging.WARNING):
        for count in (3, 5):
            assert len(engine.run(pictures(count))[0].scores) == count
    assert len(caplog.records) == 1
    assert "no CUDA graph" in caplog.text
    assert "cudaGraphLaunch" not in gpu.cuda.calls
    engine.close()


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (pictures(1, 1, 1, 1, 1), r"at most 4 pictures of 64x96 in a run, not 5: set ASFD_MAX_BATCH"),
        (pictures(1, height=128, width=96), r"not built for input 128x96; it has 64x96, 96x64"),
        (pictures(1).astype(np.float32), r"float32: it takes uint8"),
        (pictures(1)[0], r"it takes uint8"),
    ],
)
def test_inputs_that_it_does_not_take(gpu: FakeGpu, tmp_path: Path, images: np.ndarray, sentence: str) -> None:
    engine = TensorRtEngine("d0", plan(gpu, tmp_path))
    with pytest.raises(EngineError, match=r"d0\.plan.*" + sentence):
        engine.run(images)
    assert len(engine.run(pictures(2))[0].scores) == 2  # and goes on
    engine.close()


def test_plans_that_cannot_be_loaded(gpu: FakeGpu, tmp_path: Path) -> None:
    path = tmp_path / "d0.plan"
    with pytest.raises(EngineError, match=r"d0\.plan cannot be read"):
        TensorRtEngine("d0", path)
    path.write_bytes(b"no plan")
    with pytest.raises(EngineError, match=r"d0\.plan cannot be loaded by TensorRT .*magic tag.*export tensorrt"):
        TensorRtEngine("d0", path)
    plan(gpu, tmp_path, version="10.0.0.1")
    with pytest.raises(EngineError, match=r"cannot be loaded .*expecting"):
        TensorRtEngine("d0", path)
    tensors = dict(gpu.trt.tensors)
    for changed, sentence in (
        ({"boxes": ("OUTPUT", "HALF", (-1, 750, 4))}, "boxes is of type"),
        ({"boxes": ("OUTPUT", "FLOAT", (-1, -1, 4))}, "after a run only"),
        ({"scores": ("OUTPUT", "FLOAT", (-1, 100))}, "scores is"),
        ({"more": ("OUTPUT", "FLOAT", (-1,))}, "its tensors are"),
    ):
        plan(gpu, tmp_path, tensors={**tensors, **changed})
        with pytest.raises(EngineError, match=rf"d0\.plan is not a serving graph.*{sentence}"):
            TensorRtEngine("d0", path)


def test_memory_that_runs_out(gpu: FakeGpu, tmp_path: Path) -> None:
    path = plan(gpu, tmp_path)
    before = gpu.cuda.free
    gpu.cuda.fail["cudaMalloc"] = Error.cudaErrorMemoryAllocation
    with pytest.raises(OutOfMemoryError, match="reserving"):
        TensorRtEngine("d0", path)
    assert gpu.cuda.free == before  # what was reserved until then is given back
    engine = TensorRtEngine("d0", path)
    gpu.trt.context_fails = True
    with pytest.raises(OutOfMemoryError, match=r"d0\.plan.*execution context"):
        engine.run(pictures(1))
    gpu.trt.context_fails = False
    assert len(engine.run(pictures(2))[0].scores) == 2
    engine.close()
    said = "Requested amount of GPU memory (9 bytes) could not be allocated."
    gpu.trt.recorder.behaviour["Runtime.deserialize_cuda_engine"] = lambda runtime, serialized_engine: gpu.trt.log(
        runtime.fake_logger, said
    )
    with pytest.raises(OutOfMemoryError, match=r"d0\.plan does not fit into the GPU's memory: Requested amount"):
        TensorRtEngine("d0", path)


def test_a_run_that_fails_says_why_and_a_lost_device_is_one(gpu: FakeGpu, tmp_path: Path) -> None:
    engine = TensorRtEngine("d0", plan(gpu, tmp_path))
    gpu.trt.execute_fails = True
    with pytest.raises(EngineError, match=r"d0\.plan failed") as raised:
        engine.run(pictures(1))
    assert not isinstance(raised.value, DeviceLostError)
    # The library only says that it failed; what CUDA answers from then on tells that nothing will run any more.
    gpu.cuda.fail["cudaStreamSynchronize"] = Error.cudaErrorIllegalAddress
    with pytest.raises(DeviceLostError, match=r"d0\.plan failed on input \(1, 64, 96, 3\): .*IllegalAddress"):
        engine.run(pictures(1))
    gpu.trt.execute_fails = False
    engine.run(pictures(1))
    gpu.cuda.fail["cudaStreamSynchronize"] = Error.cudaErrorLaunchFailure
    with pytest.raises(DeviceLostError, match=r"d0\.plan.*LaunchFailure"):
        engine.run(pictures(1))
    gpu.cuda.fail |= {"cudaFree": Error.cudaErrorLaunchFailure, "cudaStreamDestroy": Error.cudaErrorLaunchFailure}
    engine.close()  # whatever CUDA says


@pytest.mark.parametrize("name", ["lean-10.16", "lean-11.4"])
def test_the_lean_runtime_takes_version_compatible_plans(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = install(monkeypatch, name)
    path = plan(gpu, tmp_path)
    with pytest.raises(EngineError, match="not version compatible"):
        TensorRtEngine("d0", path)
    plan(gpu, tmp_path, version_compatible=True)
    engine = TensorRtEngine("d0", path, version_compatible=True)
    assert len(engine.run(pictures(6))[0].scores) == 6
    assert gpu.trt.values("Runtime.engine_host_code_allowed") == [True]
    engine.close()


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = install(monkeypatch)
    path = plan(gpu, tmp_path)
    gpu.cuda.fail["cudaGetDeviceCount"] = Error.cudaErrorInsufficientDriver
    with pytest.raises(EngineError, match="no NVIDIA driver"):
        TensorRtEngine("d0", path)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match="TensorRT is not installed"):
        TensorRtEngine("d0", path)
