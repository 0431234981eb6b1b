"""The few calls of CUDA's runtime that engines need, on `cuda.bindings.runtime` of the package cuda-bindings.

Every return code is checked. Memory that ran out is `OutOfMemoryError`, after which the process can go on; a fault that
spoils the process's context is `DeviceLostError`, after which it cannot; everything else is `EngineError`. The bindings
release the interpreter's lock around each call, so that a kernel that hangs does not hold up the event loop.

The device is the first that CUDA shows; `CUDA_VISIBLE_DEVICES` chooses another. Names are checked against the package.
**None of this has run on a GPU.**
"""

from __future__ import annotations

import ctypes
import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from service.engines.base import DeviceLostError, EngineError, OutOfMemoryError

LASTING = {
    "cudaErrorNoDevice": 100, "cudaErrorDeviceUninitialized": 201, "cudaErrorECCUncorrectable": 214,
    "cudaErrorNvlinkUncorrectable": 220, "cudaErrorContained": 226, "cudaErrorIllegalAddress": 700,
    "cudaErrorLaunchTimeout": 702, "cudaErrorAssert": 710, "cudaErrorHardwareStackError": 714,
    "cudaErrorIllegalInstruction": 715, "cudaErrorMisalignedAddress": 716, "cudaErrorInvalidAddressSpace": 717,
    "cudaErrorInvalidPc": 718, "cudaErrorLaunchFailure": 719, "cudaErrorTensorMemoryLeak": 721,
    "cudaErrorMpsConnectionFailed": 805, "cudaErrorMpsRpcFailure": 806, "cudaErrorMpsClientTerminated": 810,
    "cudaErrorExternalDevice": 911, "cudaErrorUnknown": 999,
}  # fmt: skip
"""Errors that stay, and their numbers: CUDA answers every later call of the process with the same one (see
`cudaError_t` in the CUDA runtime API)."""

USED = (
    "cudaEventCreateWithFlags", "cudaEventDestroy", "cudaEventElapsedTime", "cudaEventRecord", "cudaEventSynchronize",
    "cudaFree", "cudaFreeHost", "cudaGetDeviceCount", "cudaGetDeviceProperties", "cudaGetErrorName",
    "cudaGetErrorString", "cudaGetLastError", "cudaGraphDestroy", "cudaGraphExecDestroy", "cudaGraphInstantiate",
    "cudaGraphLaunch", "cudaHostAlloc", "cudaMalloc", "cudaMemGetInfo", "cudaMemcpyAsync", "cudaStreamBeginCapture",
    "cudaStreamCreateWithFlags", "cudaStreamDestroy", "cudaStreamEndCapture", "cudaStreamSynchronize",
)  # fmt: skip
"""Functions of the runtime that this module calls; a test checks that the installed package has each."""


@dataclass(frozen=True, slots=True)
class CudaDevice:
    """compute_capability: such as "9.0"; memory_bytes: all of it, free or not."""

    name: str
    compute_capability: str
    memory_bytes: int


def runtime() -> Any:
    """The module `cuda.bindings.runtime`. Raises `EngineError` that says what to install."""
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except (ImportError, OSError) as error:
        raise EngineError(
            f"the package cuda-bindings, which talks to the GPU, cannot be used here ({error}): pip install "
            "cuda-bindings, of the major version of CUDA that the driver supports"
        ) from None


def device() -> CudaDevice:
    """The GPU that engines use. Raises `EngineError` that says what is missing: package, driver or device."""
    api = runtime()
    code, count = api.cudaGetDeviceCount()
    if code != api.cudaError_t.cudaSuccess or not count:
        name = _text(api.cudaGetErrorName(code))
        reason = _text(api.cudaGetErrorString(code))
        if name == "cudaErrorInsufficientDriver":
            raise EngineError(
                "there is no NVIDIA driver here, or one too old for this cuda-bindings: install the driver, or run the "
                f"container with access to the GPU ({name}: {reason})"
            )
        if name == "cudaErrorNoDevice" or code == api.cudaError_t.cudaSuccess:
            raise EngineError(f"no NVIDIA GPU can be seen; is CUDA_VISIBLE_DEVICES set to hide it? ({name}: {reason})")
        raise EngineError(f"the GPU cannot be used ({name}: {reason})")
    found = _checked(api, api.cudaGetDeviceProperties(0), "reading the GPU's properties")
    return CudaDevice(_decoded(found.name), f"{found.major}.{found.minor}", int(found.totalGlobalMem))


def free_bytes() -> int:
    """Memory of the device that nobody uses now. Raises `EngineError`."""
    api = runtime()
    free, _ = _checked(api, api.cudaMemGetInfo(), "asking for the GPU's free memory")
    return int(free)


class PinnedArray:
    """A NumPy array in page-locked host memory, which the GPU copies from and to on its own.

    array: valid until `close`; whoever keeps it longer reads freed memory, so results are to be copied out of it.
    """

    def __init__(self, shape: Sequence[int], dtype: DTypeLike) -> None:
        """Raises `EngineError`, `OutOfMemoryError`."""
        self._api = runtime()
        kind = np.dtype(dtype)
        self.bytes = max(math.prod(shape) * kind.itemsize, 1)
        doing = f"reserving {_size(self.bytes)} of page-locked memory"
        found = self._api.cudaHostAlloc(self.bytes, self._api.cudaHostAllocDefault)
        self.address = int(_checked(self._api, found, doing))
        raw = np.ctypeslib.as_array((ctypes.c_uint8 * self.bytes).from_address(self.address))
        self.array: NDArray[Any] = raw[: math.prod(shape) * kind.itemsize].view(kind).reshape(shape)

    def close(self) -> None:
        """Free it; a second call does nothing."""
        if self.address:
            address, self.address, self.array = self.address, 0, np.empty(0)
            _checked(self._api, self._api.cudaFreeHost(address), "freeing page-locked memory")


class DeviceBuffer:
    """Memory of the GPU. address: as an integer, 0 once closed."""

    def __init__(self, size: int) -> None:
        """size: in bytes. Raises `EngineError`, `OutOfMemoryError`."""
        self._api, self.bytes = runtime(), max(size, 1)
        found = self._api.cudaMalloc(self.bytes)
        self.address = int(_checked(self._api, found, f"reserving {_size(self.bytes)} of GPU memory"))

    def close(self) -> None:
        """Free it; a second call does nothing."""
        if self.address:
            address, self.address = self.address, 0
            _checked(self._api, self._api.cudaFree(address), "freeing GPU memory")


class Stream:
    """Work in order, beside other streams. handle: for libraries that take `cudaStream_t` as an integer."""

    def __init__(self) -> None:
        """Raises `EngineError`."""
        self._api = api = runtime()
        # Non-blocking: it does not wait for the legacy default stream, which would also spoil a capture.
        self._stream = _checked(api, api.cudaStreamCreateWithFlags(api.cudaStreamNonBlocking), "making a stream")
        self.handle = int(self._stream)

    def copy_in(self, target: DeviceBuffer, source: PinnedArray, size: int) -> None:
        """Copy `size` bytes to the GPU, later; both must live until `synchronize`."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        found = self._api.cudaMemcpyAsync(target.address, source.address, size, kind, self._stream)
        _checked(self._api, found, "copying to the GPU")

    def copy_out(self, target: PinnedArray, source: DeviceBuffer, size: int) -> None:
        """Copy `size` bytes from the GPU, later; both must live until `synchronize`."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        found = self._api.cudaMemcpyAsync(target.address, source.address, size, kind, self._stream)
        _checked(self._api, found, "copying from the GPU")

    def capture(self, body: Callable[[], None]) -> Graph:
        """A graph of what `body` puts on this stream; none of it runs now. Raises `EngineError`, or as `body` does."""
        api = self._api
        mode = api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _checked(api, api.cudaStreamBeginCapture(self._stream, mode), "beginning the capture of a CUDA graph")
        try:
            body()
        except BaseException:
            # The capture must end before anything else can use the stream; what it holds is worth nothing.
            code, partial = api.cudaStreamEndCapture(self._stream)
            if code == api.cudaError_t.cudaSuccess and partial is not None:
                api.cudaGraphDestroy(partial)
            api.cudaGetLastError()
            raise
        graph = _checked(api, api.cudaStreamEndCapture(self._stream), "capturing a CUDA graph")
        try:
            executable = _checked(api, api.cudaGraphInstantiate(graph, 0), "instantiating a CUDA graph")
        finally:
            api.cudaGraphDestroy(graph)
        return Graph(api, executable)

    def launch(self, graph: Graph) -> None:
        """Run a graph, later."""
        found = self._api.cudaGraphLaunch(graph.executable, self._stream)
        _checked(self._api, found, "launching a CUDA graph")

    def record(self, event: Event) -> None:
        """Note the time at which all before it is done."""
        _checked(self._api, self._api.cudaEventRecord(event.handle, self._stream), "recording an event")

    def synchronize(self) -> None:
        """Wait until all is done. Raises what went wrong meanwhile: `DeviceLostError` above all."""
        _checked(self._api, self._api.cudaStreamSynchronize(self._stream), "waiting for the GPU")

    def close(self) -> None:
        """A second call does nothing."""
        if self._stream is not None:
            stream, self._stream, self.handle = self._stream, None, 0
            _checked(self._api, self._api.cudaStreamDestroy(stream), "destroying a stream")


class Graph:
    """An instantiated CUDA graph; `Stream.capture` makes it."""

    def __init__(self, api: Any, executable: Any) -> None:
        self._api, self.executable = api, executable

    def close(self) -> None:
        """A second call does nothing."""
        if self.executable is not None:
            executable, self.executable = self.executable, None
            _checked(self._api, self._api.cudaGraphExecDestroy(executable), "destroying a CUDA graph")


class Event:
    """A point in time on a stream, for measuring what the GPU itself takes."""

    def __init__(self) -> None:
        """Raises `EngineError`."""
        self._api = api = runtime()
        self.handle = _checked(api, api.cudaEventCreateWithFlags(api.cudaEventDefault), "making an event")

    def milliseconds_since(self, earlier: Event) -> float:
        """Time from an earlier event to this one; waits for this one."""
        api = self._api
        _checked(api, api.cudaEventSynchronize(self.handle), "waiting for an event")
        return float(_checked(api, api.cudaEventElapsedTime(earlier.handle, self.handle), "reading the GPU's clock"))

    def close(self) -> None:
        """A second call does nothing."""
        if self.handle is not None:
            handle, self.handle = self.handle, None
            _checked(self._api, self._api.cudaEventDestroy(handle), "destroying an event")


def failure(name: str, message: str) -> EngineError:
    """The error that fits CUDA's code `name`, such as `cudaErrorMemoryAllocation`."""
    if name == "cudaErrorMemoryAllocation":
        return OutOfMemoryError(message)
    return DeviceLostError(message) if name in LASTING else EngineError(message)


def _checked(api: Any, returned: tuple[Any, ...], doing: str) -> Any:
    """What a call returned beside its code: one value or a tuple. Raises `EngineError` where the code is one."""
    code, *values = returned
    if code != api.cudaError_t.cudaSuccess:
        name, reason = _text(api.cudaGetErrorName(code)), _text(api.cudaGetErrorString(code))
        api.cudaGetLastError()  # forget it, where it can be: other libraries would take it for their own
        raise failure(name, f"CUDA failed while {doing}: {name}, {reason}")
    return values[0] if len(values) == 1 else tuple(values)


def _text(answer: tuple[Any, ...]) -> str:
    """Of `cudaGetErrorName` and `cudaGetErrorString`: (code, text)."""
    return _decoded(answer[1])


def _decoded(text: Any) -> str:
    return text.decode(errors="replace").rstrip("\0") if isinstance(text, bytes) else str(text)


def _size(count: int) -> str:
    return f"{count / 1024**2:.1f} MiB"
