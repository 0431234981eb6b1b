"""A GPU with TensorRT that computes nothing: `FakeTensorRT` puts on `FakeCuda`'s stream what each run "finds"."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from service.engines import cuda
from tests.engines.fake_cuda import FakeCuda
from tests.engines.tensorrt.fake import FakeTensorRT
from tests.engines.tensorrt.fake_runtime import Execution

MOST = 750


@dataclass
class FakeGpu:
    """A run finds as many faces in a picture as its first pixel says. seen: the pictures of each run."""

    trt: FakeTensorRT
    cuda: FakeCuda = field(default_factory=FakeCuda)
    seen: list[NDArray[np.uint8]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.trt.execute = lambda run: self.cuda.enqueue(lambda: self._find(run))

    def _find(self, run: Execution) -> None:
        images = _at(run.addresses["images"], run.shapes["images"], np.uint8)
        batch = len(images)
        self.seen.append(images.copy())
        counts = images[:, 0, 0, 0].astype(np.int32)
        boxes, scores = np.zeros((batch, MOST, 4), np.float32), np.zeros((batch, MOST), np.float32)
        for k, count in enumerate(counts):
            boxes[k, :count] = np.arange(count)[:, None] + np.array([0, 0, 10, 10]) + k
            scores[k, :count] = np.linspace(0.9, 0.1, count)
        for name, values in (("num_detections", counts), ("boxes", boxes), ("scores", scores)):
            assert run.addresses[name] % 4 == 0
            ctypes.memmove(run.addresses[name], values.ctypes.data, values.nbytes)


def _at(address: int, shape: tuple[int, ...], dtype: type[np.uint8]) -> NDArray[np.uint8]:
    raw = (ctypes.c_uint8 * int(np.prod(shape))).from_address(address)
    return np.frombuffer(raw, dtype).reshape(shape)


def install(monkeypatch: pytest.MonkeyPatch, name: str = "11.4") -> FakeGpu:
    """Let the service find the fakes; name: of TensorRT's surface."""
    gpu = FakeGpu(FakeTensorRT(name))
    monkeypatch.setattr(cuda, "runtime", lambda: gpu.cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", gpu.trt.module if "lean" not in name else None)
    monkeypatch.setitem(sys.modules, "tensorrt_lean", gpu.trt.module if "lean" in name else None)
    return gpu


def pictures(*counts: int, height: int = 64, width: int = 96) -> NDArray[np.uint8]:
    """One picture for each number of faces that is to be found."""
    made = np.random.default_rng(0).integers(0, 256, (len(counts), height, width, 3), dtype=np.uint8)
    made[:, 0, 0, 0] = counts
    return made
