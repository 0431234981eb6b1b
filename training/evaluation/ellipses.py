"""Areas and overlaps of ellipses, boxes and ellipses made of boxes, as FDDB needs them.

An ellipse is five numbers, in FDDB's order: major and minor half-axis, angle in radians of the major axis against the x
axis (pixels, y down), centre x, centre y.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

# Corners of the polygon that stands for a detected ellipse. Of equal area, its border lies within 1.1e-4 of the
# half-axes at 180 corners, so an IoU with it is off by less than 2e-4.
CORNERS = 180


@dataclass(frozen=True)
class EllipseFit:
    """How a face box becomes an ellipse, in fractions of the box.

    Boxes of WIDER Face end at the hairline, ellipses of FDDB take the whole head in. With the defaults an ellipse is as
    wide as its box, touches the box's lower border (the chin) and passes its upper one by a fifth of the height. They
    are a plain reading of both annotation rules, chosen by hand: not fitted to FDDB, whose ellipses they are scored on.

    half_width, half_height: half-axes over the box's width and height; lift: how far the centre moves up, over the
    height.
    """

    half_width: float = 0.5
    half_height: float = 0.6
    lift: float = 0.1


def ellipses_of_boxes(boxes: ArrayLike, fit: EllipseFit | None = None) -> Floats:
    """boxes: [n, 4] x1 y1 x2 y2 -> upright ellipses, float64 [n, 5]. A wide box has its major axis along x."""
    fit = fit or EllipseFit()
    table = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    width, height = table[:, 2] - table[:, 0], table[:, 3] - table[:, 1]
    across, along = fit.half_width * width, fit.half_height * height
    tall = along >= across
    return np.stack(
        [
            np.where(tall, along, across),
            np.where(tall, across, along),
            np.where(tall, np.pi / 2, 0.0),
            (table[:, 0] + table[:, 2]) / 2,
            (table[:, 1] + table[:, 3]) / 2 - fit.lift * height,
        ],
        axis=1,
    )


def polygons_of_boxes(boxes: ArrayLike) -> Floats:
    """boxes: [n, 4] x1 y1 x2 y2 -> corners, float64 [n, 4, 2]."""
    x1, y1, x2, y2 = np.asarray(boxes, dtype=np.float64).reshape(-1, 4).T
    return np.stack(
        [np.stack([x1, y1], 1), np.stack([x2, y1], 1), np.stack([x2, y2], 1), np.stack([x1, y2], 1)], axis=1
    )


def polygons_of_ellipses(ellipses: ArrayLike, corners: int = CORNERS) -> Floats:
    """ellipses: [n, 5] -> polygons of the same area, float64 [n, corners, 2]."""
    table = np.asarray(ellipses, dtype=np.float64).reshape(-1, 5)
    turn = 2 * np.pi * np.arange(corners) / corners
    # An inscribed polygon has sin(t) / t of the area, t = 2 pi / corners.
    grow = np.sqrt((2 * np.pi / corners) / np.sin(2 * np.pi / corners))
    along, across = grow * table[:, :1] * np.cos(turn), grow * table[:, 1:2] * np.sin(turn)
    cos, sin = np.cos(table[:, 2:3]), np.sin(table[:, 2:3])
    return np.stack(
        [table[:, 3:4] + along * cos - across * sin, table[:, 4:5] + along * sin + across * cos],
        axis=2,
    )


def polygon_ellipse_iou(polygons: Floats, ellipses: ArrayLike) -> Floats:
    """IoU of every polygon with every ellipse, exact up to rounding. polygons: [n, k, 2]; ellipses: [m, 5] -> [n, m].

    Nothing is cut off at the borders of the picture.
    """
    table = np.asarray(ellipses, dtype=np.float64).reshape(-1, 5)
    areas = polygon_areas(polygons)
    result = np.zeros((len(polygons), len(table)))
    low, high = polygons.min(axis=1), polygons.max(axis=1)
    for column, ellipse in enumerate(table):
        major, minor, angle, x, y = ellipse
        reach = np.hypot([major * np.cos(angle), major * np.sin(angle)], [minor * np.sin(angle), minor * np.cos(angle)])
        near = ((low < ellipse[3:] + reach) & (high > ellipse[3:] - reach)).all(axis=1)
        if not near.any():
            continue
        # In the ellipse's own axes it is the unit circle; areas shrink by major * minor.
        moved = polygons[near] - np.array([x, y])
        cos, sin = np.cos(angle), np.sin(angle)
        own = np.stack(
            [
                (moved[..., 0] * cos + moved[..., 1] * sin) / major,
                (moved[..., 1] * cos - moved[..., 0] * sin) / minor,
            ],
            axis=2,
        )
        inner = circle_areas(own) * major * minor
        union = areas[near] + np.pi * major * minor - inner
        result[near, column] = np.clip(inner / union, 0.0, 1.0)
    return result


def polygon_areas(polygons: Floats) -> Floats:
    """[n, k, 2] -> areas, [n]."""
    following = np.roll(polygons, -1, axis=1)
    twice = polygons[..., 0] * following[..., 1] - polygons[..., 1] * following[..., 0]
    areas: Floats = np.abs(twice.sum(axis=1)) / 2
    return areas


def circle_areas(polygons: Floats) -> Floats:
    """Area of each polygon inside the unit circle around the origin. [n, k, 2] -> [n].

    Each edge spans a triangle with the origin. Where the edge lies inside the circle the triangle's area counts, where
    it lies outside, that of the circle's sector; signed, they add up.
    """
    start = polygons
    step = np.roll(polygons, -1, axis=1) - polygons
    a = (step**2).sum(axis=2)
    b = (start * step).sum(axis=2)
    c = (start**2).sum(axis=2) - 1
    inside = b**2 - a * c
    root = np.sqrt(np.clip(inside, 0, None))
    safe = np.where(a > 0, a, 1.0)
    crosses = (inside > 0) & (a > 0)
    first = np.where(crosses, np.clip((-b - root) / safe, 0, 1), 0.0)[..., None]
    last = np.where(crosses, np.clip((-b + root) / safe, 0, 1), 0.0)[..., None]
    enter, leave, end = start + first * step, start + last * step, start + step
    halves = _sector(start, enter) + _triangle(enter, leave) + _sector(leave, end)
    areas: Floats = np.abs(halves.sum(axis=1))
    return areas


def _triangle(p: Floats, q: Floats) -> Floats:
    area: Floats = (p[..., 0] * q[..., 1] - p[..., 1] * q[..., 0]) / 2
    return area


def _sector(p: Floats, q: Floats) -> Floats:
    area: Floats = np.arctan2(p[..., 0] * q[..., 1] - p[..., 1] * q[..., 0], (p * q).sum(axis=-1)) / 2
    return area
