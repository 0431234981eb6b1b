"""Non-maximum suppression: the greedy reference in NumPy, and the fixed-shape form for graphs (Cluster-NMS).

A box survives where no better box that itself survives overlaps it by more than the threshold. Equal scores are
settled by position: the earlier one is better.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_ITERATIONS = 24
"""Even, so that what is beyond it errs towards boxes too many (see `cluster_nms`), and twice what the most crowded
photos at hand need: `python -m export nms`, benchmarks/results/nms-cpu.json."""


def iou_matrix(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """boxes: [K, 4] x1 y1 x2 y2 -> IoU [K, K], float32."""
    top_left = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    bottom_right = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    inter = np.clip(bottom_right - top_left, 0, None).prod(axis=-1)
    area = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=-1)
    result: NDArray[np.float32] = inter / np.maximum(area[:, None] + area[None, :] - inter, np.float32(1e-9))
    return result


def greedy_nms(boxes: NDArray[np.float32], scores: NDArray[np.float32], iou: float) -> NDArray[np.int64]:
    """The reference. boxes: [K, 4], scores: [K] -> indices of the survivors, best first."""
    order = np.argsort(-scores, kind="stable")
    overlaps = iou_matrix(boxes[order]) > iou
    alive = np.ones(len(order), dtype=bool)
    for position in range(len(order)):
        if alive[position]:
            alive[position + 1 :] &= ~overlaps[position, position + 1 :]
    return order[alive].astype(np.int64)


def cluster_nms(boxes: Tensor, iou: float, iterations: int = DEFAULT_ITERATIONS) -> Tensor:
    """Which boxes survive, by plain fixed-shape operations. boxes: float32 [N, K, 4], best first -> float32 [N, K],
    1 where a box survives and 0 where not. A box without area overlaps nothing: it survives, and suppresses nothing.

    Each iteration makes one further link of every chain of suppressions exact, so the result equals greedy NMS as soon
    as `iterations` reaches the longest chain; `iterations_needed` measures that. Beyond it the boxes further down a
    chain are wrong, in one direction only: too many survive after an even number of iterations, too few after an odd
    one. An even number therefore never loses a face that greedy NMS would keep.
    """
    overlaps = suppressions(boxes, iou)
    keep = boxes.new_ones(boxes.shape[0], 1, boxes.shape[1])
    for _ in range(iterations):
        keep = step(keep, overlaps)
    return keep[:, 0]


def suppressions(boxes: Tensor, iou: float) -> Tensor:
    """boxes: float32 [N, K, 4], best first -> float32 [N, K, K]: 1 where the row's box, the better one, overlaps the
    column's by more than `iou`."""
    overlaps: Tensor = (_pairwise_iou(boxes) > iou).triu(diagonal=1).to(boxes.dtype)
    return overlaps


def step(keep: Tensor, overlaps: Tensor) -> Tensor:
    """One iteration. keep: float32 [N, 1, K], overlaps: `suppressions` -> float32 [N, 1, K].

    A product counts by how many surviving boxes each one is suppressed. It reads the matrix once, where a mask and a
    maximum would write another of its size; and it is exact in every format that holds whole numbers up to K.
    """
    import torch

    return torch.relu(1.0 - keep @ overlaps)


def iterations_needed(boxes: Tensor, iou: float) -> int:
    """Iterations after which `cluster_nms` stops changing. boxes: [N, K, 4], best first."""
    import torch

    overlaps = suppressions(boxes, iou)
    keep = boxes.new_ones(boxes.shape[0], 1, boxes.shape[1])
    for count in range(boxes.shape[1] + 1):
        after = step(keep, overlaps)
        if torch.equal(after, keep):
            return count
        keep = after
    return int(boxes.shape[1])


def _pairwise_iou(boxes: Tensor) -> Tensor:
    """[N, K, 4] -> [N, K, K]. Coordinate by coordinate: no step makes more than one number for each pair."""
    import torch

    x1, y1, x2, y2 = (boxes[..., at : at + 1] for at in range(4))  # columns; as rows below
    other_x1, other_y1, other_x2, other_y2 = (side.transpose(1, 2) for side in (x1, y1, x2, y2))
    width = torch.relu(torch.minimum(x2, other_x2) - torch.maximum(x1, other_x1))
    height = torch.relu(torch.minimum(y2, other_y2) - torch.maximum(y1, other_y1))
    inter = width * height
    area = torch.relu(x2 - x1) * torch.relu(y2 - y1)
    return inter / (area + area.transpose(1, 2) - inter).clamp(min=1e-9)
