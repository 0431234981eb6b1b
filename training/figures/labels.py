"""Labels of points that keep clear of each other, of the points and of the lines between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Where a label may stand: direction from its point, and how the text is anchored there. The first that is free wins.
_PLACES = (
    (-1, 0.4, "right", "bottom"), (1, -0.4, "left", "top"), (-1, -0.4, "right", "top"), (1, 0.4, "left", "bottom"),
    (0, -1, "center", "top"), (0, 1, "center", "bottom"), (1, 0, "left", "center"), (-1, 0, "right", "center"),
)  # fmt: skip
_GAPS = (7.0, 13.0, 20.0)  # points between a label and its point
_SAMPLES = 60  # of every line, to see what a label would cover


@dataclass(frozen=True)
class Label:
    """A text at a point in the axes' data units; rank 0 is placed before rank 1."""

    text: str
    x: float
    y: float
    colour: str
    size: float
    weight: str
    rank: int


def place_labels(axes: Axes, labels: Sequence[Label]) -> None:
    """Write every label at the place of the least overlap, the axes' limits and lines being final."""
    from matplotlib.patheffects import withStroke

    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    renderer: Any = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    covered = _line_pixels(axes)
    limits = axes.get_window_extent(renderer)
    taken: list[NDArray[Any]] = []
    if axes.legend_ is not None:
        taken.append(np.asarray(axes.legend_.get_window_extent(renderer).extents))
    for label in sorted(labels, key=lambda one: one.rank):
        best: tuple[float, Any] | None = None
        for gap in _GAPS:
            for right, up, horizontal, vertical in _PLACES:
                text = axes.annotate(
                    label.text, (label.x, label.y), (right * gap, up * gap), textcoords="offset points",
                    fontsize=label.size, color=label.colour, fontweight=label.weight, ha=horizontal, va=vertical,
                    annotation_clip=False, path_effects=[withStroke(linewidth=2.5, foreground="white")],
                )  # fmt: skip
                box = np.asarray(text.get_window_extent(renderer).extents)
                outside = box[0] < limits.x0 or box[1] < limits.y0 or box[2] > limits.x1 or box[3] > limits.y1
                inside = (covered >= box[:2] - 2) & (covered <= box[2:] + 2)
                cost = gap / 10 + float(inside.all(axis=1).sum()) + 1e3 * sum(_meet(box, other) for other in taken)
                cost += 1e6 * outside
                if best is None or cost < best[0]:
                    if best is not None:
                        best[1].remove()
                    best = (cost, text)
                else:
                    text.remove()
        if best is not None:
            taken.append(np.asarray(best[1].get_window_extent(renderer).extents))


def _meet(first: NDArray[Any], second: NDArray[Any]) -> bool:
    return bool(first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3])


def _line_pixels(axes: Axes) -> NDArray[np.float64]:
    """Points along every line of the axes, in pixels of the canvas, float64 [n, 2]; corners (the markers) count
    more."""
    parts = [np.zeros((0, 2))]
    for line in axes.lines:
        corners = axes.transData.transform(np.column_stack([line.get_xdata(), line.get_ydata()]))
        parts.append(np.repeat(corners, 20, axis=0))
        for start, end in pairwise(corners):
            parts.append(start + (end - start) * np.linspace(0, 1, _SAMPLES)[:, None])
    return np.concatenate(parts)
