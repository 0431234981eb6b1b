"""Distillation: a trained detector teaches another one that has the same anchors.

The idea is Hinton et al.'s (Distilling the Knowledge in a Neural Network, 2015): what a teacher says of every input,
and how sure it is, tells more than labels do. In a dense detector most anchors are background, of which the teacher
says nearly nothing, so the score's loss has the focal factor that quality focal loss has for soft targets (Li et al.,
Generalized Focal Loss, NeurIPS 2020), and boxes are copied only where the teacher sees a face, as much as it is sure
of it (compare Zheng et al., Localization Distillation, CVPR 2022, which copies distributions over edges; these
detectors predict none, so the boxes themselves are compared).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import distance_box_iou_loss, generalized_box_iou_loss

from training.models.boxes import decode
from training.models.detector import Output, scores


@dataclass(frozen=True)
class DistillConfig:
    """score_weight, box_weight: of the two terms, beside the loss of the labels, which stays as it is.

    min_score: what the teacher says with less is background, whose box is not copied. gamma: of the focal factor
    |t - p|^gamma. teacher: name and hash of the teacher's file, so that a run cannot go on with another one.
    Scores are sigmoids, for which a temperature above 1 would only raise the background: there is none.
    """

    score_weight: float = 1.0
    box_weight: float = 1.0
    min_score: float = 0.1
    gamma: float = 2.0
    box: Literal["giou", "diou"] = "diou"
    teacher: str = ""


class Taught(NamedTuple):
    """Scalars, with their weights: how far the student's scores and boxes are from the teacher's."""

    score: Tensor
    box: Tensor


def distillation_loss(student: Output, teacher: Output, config: DistillConfig) -> Taught:
    """What the student has to learn from the teacher's outputs on the same pictures, logits [N, A] of both.

    Score: cross entropy with the teacher's scores as soft targets times |t - p|^gamma, summed over all anchors; it is
    zero, and has no gradient, where both agree. Box: 1 - DIoU (or GIoU) of the decoded boxes, summed over the anchors
    whose teacher's score is at least `min_score`, with that score as their weight. Both are divided by the sum of
    these weights over all ranks, the score by one at least. Scores of the background are left out of that sum: a
    detector trained with focal loss gives thousands of anchors 0.003 each, which is more than its faces have together.
    No anchor is left out of the score's sum: of what labels ignore, the teacher's opinion is all there is.

    Where the teacher predicts IoU and the student does not, its score is the one that it ranks by (`scores`), since
    the student's has to be that too. Raises ValueError where the anchors are not the same.
    """
    _check_anchors(student, teacher)
    with torch.no_grad():
        quality = None if teacher.quality is None or student.quality is not None else teacher.quality.float()
        wanted = scores(teacher.logits.float(), quality)
        rows, cols = (wanted >= config.min_score).nonzero(as_tuple=True)
        weights, base = wanted[rows, cols], student.anchors[cols]
        boxes = decode(teacher.deltas[rows, cols].float(), base)
        norm = _mean_over_ranks(weights.sum())
    logits = student.logits.float()
    entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    apart = (wanted - logits.sigmoid()).abs().pow(config.gamma)
    score = (apart * entropy).sum() / norm.clamp(min=1.0)
    overlap = generalized_box_iou_loss if config.box == "giou" else distance_box_iou_loss
    missed: Tensor = overlap(decode(student.deltas[rows, cols].float(), base), boxes, reduction="none")
    box = (weights * missed).sum() / norm.clamp(min=1e-6)
    return Taught(config.score_weight * score, config.box_weight * box)


def _check_anchors(student: Output, teacher: Output) -> None:
    ours, theirs = student.anchors, teacher.anchors
    if ours.shape != theirs.shape:
        raise ValueError(f"teacher and student need the same anchors: {len(theirs)} and {len(ours)}")
    if not torch.equal(ours, theirs):
        first = int((ours != theirs).any(dim=1).nonzero()[0, 0])
        pair = [[round(v, 2) for v in anchors[first].tolist()] for anchors in (theirs, ours)]
        raise ValueError(f"teacher and student need the same anchors: number {first} is {pair[0]} and {pair[1]}")
    if student.logits.shape != teacher.logits.shape:
        shapes = tuple(teacher.logits.shape), tuple(student.logits.shape)
        raise ValueError(f"teacher and student must see the same pictures: logits {shapes[0]} and {shapes[1]}")


def _mean_over_ranks(total: Tensor) -> Tensor:
    """As `detection_loss` counts: gradients are averaged over ranks, so the norm is the mean of theirs."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
        total = total / dist.get_world_size()
    return total
