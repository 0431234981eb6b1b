"""What a client asks, and what it is answered, without HTTP."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class Ask:
    """What a client wants. received: time.monotonic() at the request's first byte; min_face: pixels of the original.

    budget_ms counts for all pictures of the request together.
    """

    budget_ms: float
    tier: str | None
    received: float
    on_infeasible: Literal["degrade", "reject"] = "degrade"
    variant: str | None = None
    long_side: int | None = None
    min_score: float | None = None
    default_min_score: float = 0.0
    max_faces: int | None = None
    min_face: float = 0.0

    @property
    def deadline(self) -> float:
        return self.received + self.budget_ms / 1e3

    def left_ms(self) -> float:
        return (self.deadline - time.monotonic()) * 1e3


@dataclass(frozen=True)
class Answer:
    """boxes: float32 [K, 4] x1 y1 x2 y2 in pixels of the upright original; scores: float32 [K], best first.

    picture: as it was decoded, maybe smaller than the original. batch: pictures of the engine's run; infer_ms: of that
    run. degraded: no detector was predicted to be on time.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    width: int
    height: int
    variant: str
    member: str
    engine: str
    input_height: int
    input_width: int
    ap50: float | None
    budget_ms: float
    decode_ms: float
    queue_ms: float
    infer_ms: float
    total_ms: float
    predicted_ms: float
    deadline_met: bool
    picture: Image.Image | None
    degraded: bool
    batch: int = 1
