"""The one engine interface: load from a manifest, warm up, run a batch at an input size, report memory, close."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Detections:
    """Faces of one picture, best first.

    boxes: float32 [K, 4], x1 y1 x2 y2 in pixels of the engine's input; scores: float32 [K], descending.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]


class Engine(Protocol):
    """Runs one variant. Not thread-safe: one thread at a time calls `run`."""

    @property
    def variant(self) -> str: ...

    @property
    def kind(self) -> str:
        """Name of the back end: `onnxruntime-cpu`, `onnxruntime-cuda`, `tensorrt`, or `pytorch` (the reference)."""
        ...

    @property
    def max_batch(self) -> int | None:
        """Most pictures that `run` takes, or None where only memory says."""
        ...

    def warm_up(self, height: int, width: int, batch: int = 1) -> None:
        """Run once on blank input so that the first real request pays no first-run cost."""
        ...

    def run(self, images: NDArray[np.uint8]) -> list[Detections]:
        """images: uint8 [N, H, W, 3] RGB -> one `Detections` a picture.

        Raises `EngineError` with file and cause: `OutOfMemoryError` where a smaller batch may fit, `DeviceLostError`
        where nothing will run any more in this process.
        """
        ...

    def memory_bytes(self) -> int:
        """Memory that this engine added when it was loaded, of the host or of the device that it runs on, in bytes (an
        estimate)."""
        ...

    def close(self) -> None:
        """Give everything back. A second call does nothing; `run` raises `EngineError` from then on."""
        ...


def check_images(images: NDArray[np.uint8], path: Path) -> None:
    """Raise `EngineError` where `images` are not uint8 [N, H, W, 3] with N at least 1. path: of the engine's file."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not all(images.shape):
        raise EngineError(
            f"{path} failed on input {images.shape} of {images.dtype}: it takes uint8 pictures [N, height, width, 3]"
        )


class EngineError(RuntimeError):
    """The engine could not load or run; the message names the file and says why."""


class OutOfMemoryError(EngineError):
    """The device has no memory left for this run; the engine goes on, and a smaller batch may fit."""


class DeviceLostError(EngineError):
    """The device or its driver is gone, or a fault has spoilt this process's use of it: only a new process helps."""
