"""Fit a picture onto one of the network's fixed input sizes, and bring boxes back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.repository.manifest import InputSize


@dataclass(frozen=True, slots=True)
class Fitted:
    """canvas: uint8 [H, W, 3], read-only, the picture at the top left, black elsewhere; scale_x, scale_y: canvas over
    original."""

    canvas: NDArray[np.uint8]
    scale_x: float
    scale_y: float


def scaled_size(width: int, height: int, long_side: int) -> tuple[int, int]:
    """(width, height) of the picture when its long side is `long_side`; no side falls below one pixel."""
    scale = long_side / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def fitting_size(width: int, height: int, sizes: Iterable[InputSize]) -> InputSize | None:
    """The smallest of `sizes` (all of one long side) that holds the picture scaled to that long side, if any does."""
    candidates = []
    for size in sizes:
        new_w, new_h = scaled_size(width, height, size.long_side)
        if new_w <= size.width and new_h <= size.height:
            candidates.append(size)
    return min(candidates, key=lambda size: size.height * size.width, default=None)


def sizes_by_long_side(sizes: Sequence[InputSize]) -> dict[int, tuple[InputSize, ...]]:
    """Group input sizes by long side, smallest first."""
    sides = sorted({size.long_side for size in sizes})
    return {side: tuple(size for size in sizes if size.long_side == side) for side in sides}


def letterbox(
    picture: Image.Image | NDArray[np.uint8], size: InputSize, original_width: int, original_height: int
) -> Fitted:
    """picture: RGB, or uint8 [h, w, 3], at any scale of the original. Bilinear, antialiased when it shrinks."""
    new_w, new_h = scaled_size(original_width, original_height, size.long_side)
    new_w, new_h = min(new_w, size.width), min(new_h, size.height)
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    if image.size != (new_w, new_h):
        image = image.resize((new_w, new_h), Image.Resampling.BILINEAR, reducing_gap=2.0)
    if image.size != (size.width, size.height):
        # By Pillow: an array of zeros that is then filled costs as much as the resizing.
        page = Image.new("RGB", (size.width, size.height))
        page.paste(image)
        image = page
    return Fitted(np.asarray(image), new_w / original_width, new_h / original_height)


def to_original(boxes: NDArray[np.float32], fitted: Fitted, width: int, height: int) -> NDArray[np.float32]:
    """Boxes [K, 4] in canvas pixels -> pixels of the original, clipped to it."""
    scale = np.array([fitted.scale_x, fitted.scale_y, fitted.scale_x, fitted.scale_y], dtype=np.float64)
    limit = np.array([width, height, width, height], dtype=np.float64)
    return np.minimum(np.maximum(boxes / scale, 0.0), limit).astype(np.float32)
