"""Square crops for training: where to cut and at what scale. Geometry only; pixels are cut in `dataset`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Boxes = NDArray[np.float64]

_SQUARE_SIDES = np.array([0.3, 0.45, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0])
_SQUARE_TRIES = 20
_ANCHOR_SIDES = np.array([16, 32, 64, 128, 256, 512], dtype=np.float64)


@dataclass(frozen=True)
class Window:
    """A square of the source picture, in its pixels; it may reach beyond the edges. scale: output pixels a pixel."""

    x: float
    y: float
    side: float
    scale: float


@dataclass(frozen=True)
class CropConfig:
    """Shares of the ways to crop; what is left of 1 is whole-photo crops.

    face: a random face scaled to a log-uniform `face_range` (pixels of the output, relative to a 256 crop);
    anchor: data-anchor sampling; ssd: random square of 0.3..1 of the short side; square: sample redistribution (SCRFD),
    a square of 0.3, 0.45, 0.6, 0.8, 1, 1.2, .. 2 times the short side that holds a face's centre.
    whole_range: scale of a whole-photo crop, relative to fitting the long side;
    min_fill: a face crop never shrinks the photo's long side below this share of the output.
    """

    face: float = 0.6
    anchor: float = 0.0
    ssd: float = 0.0
    square: float = 0.0
    face_range: tuple[float, float] = (12.0, 200.0)
    whole_range: tuple[float, float] = (0.5, 1.6)
    min_fill: float = 0.4


def choose_window(width: int, height: int, faces: Boxes, size: int, config: CropConfig, rng: Generator) -> Window:
    """Pick a window for a `size` x `size` output. faces: [G, 4] x1 y1 x2 y2 in pixels of the picture."""
    draw = rng.random()
    if len(faces):
        face = faces[rng.integers(len(faces))]
        if draw < config.face:
            low, high = config.face_range
            target = float(np.exp(rng.uniform(np.log(low), np.log(high * size / 256))))
            floor = config.min_fill * size / max(width, height)
            return _around_face(face, max(target / _side(face), floor), size, rng)
        if draw < config.face + config.anchor:
            return _around_face(face, _anchor_scale(_side(face), rng), size, rng)
        if draw < config.face + config.anchor + config.ssd:
            side = float(min(width, height) * rng.uniform(0.3, 1.0))
            x, y = rng.uniform(0, width - side), rng.uniform(0, height - side)
            return Window(x, y, side, size / side)
        if draw < config.face + config.anchor + config.ssd + config.square:
            return _square_with_face(width, height, faces, size, rng)
    scale = size / max(width, height) * float(np.exp(rng.uniform(*np.log(config.whole_range))))
    side = size / scale
    x = _place(width, side, rng)
    y = _place(height, side, rng)
    return Window(x, y, side, scale)


def _side(face: NDArray[np.float64]) -> float:
    return float(np.sqrt(max((face[2] - face[0]) * (face[3] - face[1]), 1.0)))


def _around_face(face: NDArray[np.float64], scale: float, size: int, rng: Generator) -> Window:
    """A window at `scale` that holds the face's centre, and the whole face where it fits."""
    side = size / scale
    x = _cover(float(face[0]), float(face[2]), side, rng)
    y = _cover(float(face[1]), float(face[3]), side, rng)
    return Window(x, y, side, scale)


def _cover(low: float, high: float, side: float, rng: Generator) -> float:
    if high - low < side:
        return float(rng.uniform(high - side, low))
    return (low + high - side) / 2


def _square_with_face(width: int, height: int, faces: Boxes, size: int, rng: Generator) -> Window:
    """Drawn again until a face's centre lies in it; after some tries, around one."""
    centers = (faces[:, :2] + faces[:, 2:]) / 2
    for _ in range(_SQUARE_TRIES):
        side = float(min(width, height) * _SQUARE_SIDES[rng.integers(len(_SQUARE_SIDES))])
        x, y = _place(width, side, rng), _place(height, side, rng)
        if ((centers >= (x, y)) & (centers < (x + side, y + side))).all(axis=1).any():
            return Window(x, y, side, size / side)
    return _around_face(faces[rng.integers(len(faces))], size / side, size, rng)


def _place(extent: int, side: float, rng: Generator) -> float:
    low, high = sorted((0.0, extent - side))
    return float(rng.uniform(low, high))


def _anchor_scale(side: float, rng: Generator) -> float:
    """Data-anchor sampling: bring a face near a random anchor side, at most one step above its own."""
    nearest = int(np.abs(_ANCHOR_SIDES - side).argmin())
    target = _ANCHOR_SIDES[rng.integers(0, min(nearest + 1, len(_ANCHOR_SIDES) - 1) + 1)]
    return float(target / side * 2 ** rng.uniform(-1, 1))


def boxes_in_window(boxes: Boxes, window: Window, size: int) -> tuple[Boxes, NDArray[np.bool_]]:
    """Boxes in output pixels, clipped, and which of them still have their centre inside: ([n, 4], [n])."""
    moved = (boxes - np.array([window.x, window.y, window.x, window.y])) * window.scale
    centers = (moved[:, :2] + moved[:, 2:]) / 2
    inside = ((centers >= 0) & (centers < size)).all(axis=1)
    return moved.clip(0, size), inside
