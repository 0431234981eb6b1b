"""CUDA's runtime for tests, in host memory: "device" addresses are bytes of the process, copies happen at once, and
what is put on a stream while it is captured is only kept, and done at each launch, as CUDA has it.

It keeps the names, arguments and return tuples of `cuda.bindings.runtime`, which `test_cuda.py` checks against the
package. `calls` has every call; `fail` makes the next call of a name answer with an error.
"""

# ruff: noqa: N802, N815  (CUDA's spelling)

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Error(Enum):
    """Some codes of `cudaError_t`."""

    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorIllegalAddress = 700
    cudaErrorLaunchFailure = 719
    cudaErrorNotSupported = 801


OK = Error.cudaSuccess


@dataclass(frozen=True)
class Properties:
    name: bytes = b"Drawn GPU"
    major: int = 9
    minor: int = 0
    totalGlobalMem: int = 80 * 1024**3


class _Kinds(Enum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class _Modes(Enum):
    cudaStreamCaptureModeThreadLocal = 1


class FakeCuda:
    """One device. Instances stand in for the module."""

    cudaError_t, cudaMemcpyKind, cudaStreamCaptureMode = Error, _Kinds, _Modes
    cudaHostAllocDefault, cudaStreamNonBlocking, cudaEventDefault = 0, 1, 0

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fail: dict[str, Error] = {}
        self.copied: list[tuple[str, int]] = []
        self.free = 70 * 1024**3
        self.blocks: dict[int, Any] = {}
        self.capturing: list[Callable[[], None]] | None = None
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.handles: set[int] = set()
        self._next = 1000

    def __getattr__(self, name: str) -> Any:
        """Every `cuda...` function is `_...` below, behind the list of calls and the errors that are to happen."""
        if not name.startswith("cuda"):
            raise AttributeError(name)
        body = getattr(self, "_" + name.removeprefix("cuda"))

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            if name in self.fail:
                return self.fail.pop(name), None
            found: tuple[Any, ...] = body(*arguments)
            return found

        return call

    def enqueue(self, work: Callable[[], None]) -> None:
        """What a kernel would do: now, or at each launch of the graph that is being captured."""
        if self.capturing is None:
            work()
        else:
            self.capturing.append(work)

    def _GetErrorName(self, code: Error) -> tuple[Error, bytes]:
        return OK, code.name.encode()

    def _GetErrorString(self, code: Error) -> tuple[Error, bytes]:
        return OK, f"text of {code.name}".encode()

    def _GetLastError(self) -> tuple[Error]:
        return (OK,)

    def _GetDeviceCount(self) -> tuple[Error, int]:
        return OK, 1

    def _GetDeviceProperties(self, _device: int) -> tuple[Error, Properties]:
        return OK, Properties()

    def _MemGetInfo(self) -> tuple[Error, int, int]:
        return OK, self.free, Properties().totalGlobalMem

    def _allocate(self, size: int) -> tuple[Error, int]:
        block = (ctypes.c_uint8 * size)()
        self.blocks[ctypes.addressof(block)] = block
        self.free -= size
        return OK, ctypes.addressof(block)

    def _release(self, address: int) -> tuple[Error]:
        self.free += len(self.blocks.pop(address))
        return (OK,)

    def _HostAlloc(self, size: int, _flags: int) -> tuple[Error, int]:
        return self._allocate(size)

    def _Malloc(self, size: int) -> tuple[Error, int]:
        return self._allocate(size)

    def _Free(self, address: int) -> tuple[Error]:
        return self._release(address)

    def _FreeHost(self, address: int) -> tuple[Error]:
        return self._release(address)

    def _MemcpyAsync(self, target: int, source: int, size: int, kind: _Kinds, _stream: int) -> tuple[Error]:
        def copy() -> None:
            ctypes.memmove(target, source, size)
            self.copied.append((kind.name.removeprefix("cudaMemcpy"), size))

        self.enqueue(copy)
        return (OK,)

    def _handle(self) -> int:
        self._next += 1
        self.handles.add(self._next)
        return self._next

    def _StreamCreateWithFlags(self, _flags: int) -> tuple[Error, int]:
        return OK, self._handle()

    def _EventCreateWithFlags(self, _flags: int) -> tuple[Error, int]:
        return OK, self._handle()

    def _destroy(self, handle: int) -> tuple[Error]:
        self.handles.remove(handle)
        return (OK,)

    _StreamDestroy = _EventDestroy = _GraphDestroy = _destroy

    def _StreamSynchronize(self, _stream: int) -> tuple[Error]:
        assert self.capturing is None, "CUDA would spoil the capture"
        return (OK,)

    def _EventRecord(self, _event: int, _stream: int) -> tuple[Error]:
        return (OK,)

    def _EventSynchronize(self, _event: int) -> tuple[Error]:
        return (OK,)

    def _EventElapsedTime(self, _start: int, _end: int) -> tuple[Error, float]:
        return OK, 1.5

    def _StreamBeginCapture(self, _stream: int, _mode: _Modes) -> tuple[Error]:
        self.capturing = []
        return (OK,)

    def _StreamEndCapture(self, _stream: int) -> tuple[Error, int]:
        assert self.capturing is not None
        graph = self._handle()
        self.graphs[graph], self.capturing = self.capturing, None
        return OK, graph

    def _GraphInstantiate(self, graph: int, _flags: int) -> tuple[Error, int]:
        executable = self._handle()
        self.graphs[executable] = self.graphs[graph]
        return OK, executable

    def _GraphLaunch(self, executable: int, _stream: int) -> tuple[Error]:
        for work in self.graphs[executable]:
            work()
        return (OK,)

    def _GraphExecDestroy(self, executable: int) -> tuple[Error]:
        del self.graphs[executable]
        return self._destroy(executable)
