"""Losses of the face score (focal, quality, varifocal), the box (smooth-L1, GIoU, DIoU) and the predicted IoU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import distance_box_iou_loss, generalized_box_iou_loss, sigmoid_focal_loss

from training.models.assignment import Prediction, assign
from training.models.boxes import decode, encode, paired_iou
from training.models.detector import Output
from training.models.matching import IGNORED, MatchConfig, match_batch

_VARIFOCAL_ALPHA = 0.75


@dataclass(frozen=True)
class LossConfig:
    """cls: `focal` is RetinaNet's with alpha and gamma; `quality_focal` (Li et al., NeurIPS 2020) and `varifocal`
    (Zhang et al., CVPR 2021) teach the score the IoU of the predicted box. box: `smooth_l1` is the paper's plain
    reading. iou_weight: of the IoU branch's loss, where the detector has one.
    """

    cls: Literal["focal", "quality_focal", "varifocal"] = "focal"
    alpha: float = 0.25
    gamma: float = 2.0
    box: Literal["smooth_l1", "giou", "diou"] = "smooth_l1"
    box_weight: float = 1.0
    iou_weight: float = 1.0
    match: MatchConfig = field(default_factory=MatchConfig)


class Targets(NamedTuple):
    """Boxes of one picture, x1 y1 x2 y2 in input pixels: faces [G, 4] to learn, ignored [I, 4] to leave alone."""

    faces: Tensor
    ignored: Tensor


class Losses(NamedTuple):
    """Scalars: the classification term, the box term (weighted, IoU branch included), the number of matched anchors."""

    cls: Tensor
    box: Tensor
    positives: Tensor


def detection_loss(output: Output, targets: Sequence[Targets], config: LossConfig) -> Losses:
    """Both terms are summed over the batch and divided by the number of matched anchors over all ranks."""
    logits, deltas, anchors = output.logits.float(), output.deltas.float(), output.anchors
    matched = _assign_all(output, targets, config.match)
    positive = matched >= 0
    counted = matched != IGNORED
    count = positive.sum().float()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    norm = count.clamp(min=1.0)
    rows, cols = positive.nonzero(as_tuple=True)
    starts = torch.tensor([0, *(len(t.faces) for t in targets)], device=logits.device).cumsum(0)
    faces = torch.cat([t.faces for t in targets])[starts[rows] + matched[rows, cols]]
    picked, base = deltas[rows, cols], anchors[cols]
    decoded = decode(picked, base)
    quality = torch.zeros_like(logits)
    quality[rows, cols] = paired_iou(decoded.detach(), faces)
    cls = (_face_loss(logits, positive, quality, config) * counted).sum() / norm
    # Without a match every part still takes part in the backward pass, which DDP expects.
    box = _box_loss(picked, decoded, base, faces, config.box) / norm * config.box_weight + deltas.sum() * 0
    if output.quality is not None:
        predicted = output.quality.float()
        iou = F.binary_cross_entropy_with_logits(predicted[rows, cols], quality[rows, cols], reduction="sum")
        box = box + config.iou_weight * iou / norm + predicted.sum() * 0
    return Losses(cls, box, count)


@torch.no_grad()
def _assign_all(output: Output, targets: Sequence[Targets], config: MatchConfig) -> Tensor:
    """Each picture's assignment: int64 [N, A]."""
    if config.kind == "iou":
        return match_batch(output.anchors, [t.faces for t in targets], [t.ignored for t in targets], config)
    rows = []
    for k, one in enumerate(targets):
        prediction = None
        if config.kind == "simota":
            prediction = Prediction(output.logits[k].float(), decode(output.deltas[k].float(), output.anchors))
        rows.append(assign(output.anchors, output.levels, one.faces, one.ignored, config, prediction))
    return torch.stack(rows)


def _face_loss(logits: Tensor, positive: Tensor, quality: Tensor, config: LossConfig) -> Tensor:
    """The score's loss of every anchor: [N, A]. quality: IoU of the predicted box with its face, 0 where unmatched."""
    if config.cls == "focal":
        wanted = positive.float()
        focal: Tensor = sigmoid_focal_loss(logits, wanted, config.alpha, config.gamma, reduction="none")
        return focal
    entropy = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    score = logits.sigmoid()
    if config.cls == "quality_focal":
        return (quality - score).abs().pow(config.gamma) * entropy
    return torch.where(quality > 0, quality, _VARIFOCAL_ALPHA * score.pow(config.gamma)) * entropy


def _box_loss(picked: Tensor, decoded: Tensor, base: Tensor, faces: Tensor, kind: str) -> Tensor:
    """Sum over matched anchors [P, 4]."""
    if kind == "smooth_l1":
        return F.smooth_l1_loss(picked, encode(faces, base), reduction="sum", beta=1.0)
    overlap = generalized_box_iou_loss if kind == "giou" else distance_box_iou_loss
    loss: Tensor = overlap(decoded, faces, reduction="sum")
    return loss
