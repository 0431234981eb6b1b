"""The layer on CUDA's runtime: its names against the package, its errors, and its logic on a runtime in host memory."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from service.engines import cuda
from service.engines.base import DeviceLostError, EngineError, OutOfMemoryError
from tests.engines.fake_cuda import Error, FakeCuda, Properties

bindings = pytest.importorskip("cuda.bindings.runtime")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    made = FakeCuda()
    monkeypatch.setattr(cuda, "runtime", lambda: made)
    return made


def test_every_name_that_is_used_exists_in_the_package() -> None:
    source = Path(inspect.getfile(cuda)).read_text()
    named = set(re.findall(r"api\.(cuda\w+(?:\.\w+)?)", source))
    for name in sorted(named):
        first, _, second = name.partition(".")
        assert hasattr(bindings, first), f"cuda.bindings.runtime has no {first}"
        assert not second or hasattr(getattr(bindings, first), second), f"cuda.bindings.runtime has no {name}"
    functions = {name for name in named if "." not in name and callable(getattr(bindings, name))}
    assert functions - {"cudaError_t"} == set(cuda.USED)
    assert {name: int(getattr(bindings.cudaError_t, name)) for name in cuda.LASTING} == cuda.LASTING
    assert {code.name for code in Error} <= set(bindings.cudaError_t.__members__)


@pytest.mark.parametrize("name", cuda.USED)
def test_functions_take_the_arguments_that_they_are_given(name: str, fake: FakeCuda) -> None:
    """The package says `name(type a, type b)` in its docstrings; the fake, which all tests go through, has as many."""
    documented = re.match(rf"{name}\(([^)]*)\)", (getattr(bindings, name).__doc__ or "").strip())
    assert documented, f"{name} has another docstring than expected"
    count = len([part for part in documented[1].split(",") if part.strip()])
    assert len(inspect.signature(getattr(fake, "_" + name.removeprefix("cuda"))).parameters) == count


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(EngineError, match=r"cuda-bindings.*pip install"):
        cuda.device()


def test_without_a_driver_it_says_so() -> None:
    """On the real package: a machine without a GPU is told so, and one with a GPU answers."""
    code, _ = bindings.cudaGetDeviceCount()
    if code == bindings.cudaError_t.cudaSuccess:
        assert re.fullmatch(r"\d+\.\d+", cuda.device().compute_capability)
        return
    with pytest.raises(EngineError, match=r"no NVIDIA (driver|GPU)"):
        cuda.device()
    with pytest.raises(EngineError, match=r"reserving 1\.0 MiB of GPU memory"):
        cuda.DeviceBuffer(1 << 20)


def test_the_device_has_name_capability_and_memory(fake: FakeCuda) -> None:
    assert cuda.device() == cuda.CudaDevice("Drawn GPU", "9.0", Properties().totalGlobalMem)
    fake.fail["cudaGetDeviceCount"] = Error.cudaErrorNoDevice
    with pytest.raises(EngineError, match="CUDA_VISIBLE_DEVICES"):
        cuda.device()


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (Error.cudaErrorMemoryAllocation, OutOfMemoryError),
        (Error.cudaErrorIllegalAddress, DeviceLostError),
        (Error.cudaErrorLaunchFailure, DeviceLostError),
        (Error.cudaErrorNotSupported, EngineError),
    ],
)
def test_codes_become_errors(code: Error, error: type[Exception], fake: FakeCuda) -> None:
    stream = cuda.Stream()
    fake.fail["cudaStreamSynchronize"] = code
    with pytest.raises(error, match=f"waiting for the GPU: {code.name}, text of") as raised:
        stream.synchronize()
    assert type(raised.value) is error
    assert fake.calls[-1] == "cudaGetLastError"  # forgotten, so that no other library meets it
    stream.synchronize()


def test_copies_go_there_and_back(fake: FakeCuda) -> None:
    source, target = cuda.PinnedArray((2, 3), np.float32), cuda.PinnedArray((2, 3), np.float32)
    buffer, stream = cuda.DeviceBuffer(source.bytes), cuda.Stream()
    source.array[:] = np.arange(6).reshape(2, 3)
    stream.copy_in(buffer, source, 24)
    stream.copy_out(target, buffer, 24)
    stream.synchronize()
    np.testing.assert_array_equal(target.array, source.array)
    for one in (source, target, buffer, stream):
        one.close()
        one.close()
    assert not fake.blocks
    assert not fake.handles


def test_a_graph_repeats_what_was_captured(fake: FakeCuda) -> None:
    source, target = cuda.PinnedArray((4,), np.uint8), cuda.PinnedArray((4,), np.uint8)
    buffer, stream = cuda.DeviceBuffer(4), cuda.Stream()
    source.array[:] = 1
    target.array[:] = 0

    def body() -> None:
        stream.copy_in(buffer, source, 4)
        stream.copy_out(target, buffer, 4)

    graph = stream.capture(body)
    assert not target.array.any()  # nothing has run yet
    for value in (7, 9):
        source.array[:] = value
        stream.launch(graph)
        stream.synchronize()
        assert (target.array == value).all()
    graph.close()
    graph.close()
    stream.close()
    assert not fake.handles


def test_a_capture_that_fails_leaves_the_stream_usable(fake: FakeCuda) -> None:
    stream = cuda.Stream()
    with pytest.raises(ValueError, match="in between"):
        stream.capture(lambda: (_ for _ in ()).throw(ValueError("in between")))
    assert fake.capturing is None
    stream.synchronize()
    stream.close()
    assert not fake.handles


def test_events_measure(fake: FakeCuda) -> None:
    stream, first, second = cuda.Stream(), cuda.Event(), cuda.Event()
    stream.record(first)
    stream.record(second)
    assert second.milliseconds_since(first) == 1.5
    assert cuda.free_bytes() == fake.free


@pytest.mark.gpu
def test_copies_graphs_and_events_on_a_gpu() -> None:
    source, target = cuda.PinnedArray((1024,), np.float32), cuda.PinnedArray((1024,), np.float32)
    buffer, stream = cuda.DeviceBuffer(source.bytes), cuda.Stream()
    first, second = cuda.Event(), cuda.Event()

    def body() -> None:
        stream.copy_in(buffer, source, source.bytes)
        stream.copy_out(target, buffer, source.bytes)

    graph = stream.capture(body)
    for value in (3.0, 4.0):
        source.array[:] = value
        stream.record(first)
        stream.launch(graph)
        stream.record(second)
        stream.synchronize()
        assert (target.array == value).all()
    assert 0 < second.milliseconds_since(first) < 1000
    for one in (graph, first, second, stream, buffer, source, target):
        one.close()
