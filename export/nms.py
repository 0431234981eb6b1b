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

DEFAULT_ITERATIONS = 12


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
    """Which boxes survive, by plain fixed-shape operations. boxes: float32 [N, K, 4], best first -> bool [N, K].

    Each iteration makes one further link of every chain of suppressions exact, so the result equals greedy NMS as soon
    as `iterations` reaches the longest chain; `iterations_needed` measures that.
    """
    import torch

    overlaps = (_pairwise_iou(boxes) > iou).triu(diagonal=1)  # [better, worse]
    keep = torch.ones_like(boxes[..., 0])
    for _ in range(iterations):
        keep = 1.0 - (overlaps * keep[:, :, None]).amax(dim=1)
    return keep > 0.5


def iterations_needed(boxes: Tensor, iou: float) -> int:
    """Iterations after which `cluster_nms` stops changing. boxes: [N, K, 4], best first."""
    import torch

    overlaps = (_pairwise_iou(boxes) > iou).triu(diagonal=1)
    keep = torch.ones_like(boxes[..., 0])
    for count in range(boxes.shape[1] + 1):
        after = 1.0 - (overlaps * keep[:, :, None]).amax(dim=1)
        if torch.equal(after, keep):
            return count
        keep = after
    return int(boxes.shape[1])


def _pairwise_iou(boxes: Tensor) -> Tensor:
    import torch

    first, second = boxes[:, :, None], boxes[:, None]
    top_left = torch.maximum(first[..., :2], second[..., :2])
    bottom_right = torch.minimum(first[..., 2:], second[..., 2:])
    sides = (bottom_right - top_left).clamp(min=0)
    inter = sides[..., 0] * sides[..., 1]
    extent = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    area = extent[..., 0] * extent[..., 1]
    return inter / (area[:, :, None] + area[:, None] - inter).clamp(min=1e-9)
