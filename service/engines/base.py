"""The one engine interface: load from a manifest, warm up, run a batch at an input size, report memory, close."""

from __future__ import annotations

from dataclasses import dataclass
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
        """Name of the back end, such as `onnxruntime-cpu`."""
        ...

    def warm_up(self, height: int, width: int, batch: int = 1) -> None:
        """Run once on blank input so that the first real request pays no first-run cost."""
        ...

    def run(self, images: NDArray[np.uint8]) -> list[Detections]:
        """images: uint8 [N, H, W, 3] RGB -> one `Detections` a picture. Raises `EngineError` with file and cause."""
        ...

    def memory_bytes(self) -> int:
        """Resident memory that this engine added when it was loaded, in bytes (an estimate)."""
        ...

    def close(self) -> None: ...


class EngineError(RuntimeError):
    """The engine could not load or run; the message names the file and says why."""
