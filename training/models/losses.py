"""Focal loss for the face score; smooth-L1 or GIoU for the box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from training.models.boxes import decode, encode
from training.models.detector import Output
from training.models.matching import IGNORED, MatchConfig, match


@dataclass(frozen=True)
class LossConfig:
    """focal: RetinaNet's alpha and gamma. box: `smooth_l1` is the paper's plain reading, `giou` the newer one."""

    alpha: float = 0.25
    gamma: float = 2.0
    box: Literal["smooth_l1", "giou"] = "smooth_l1"
    box_weight: float = 1.0
    match: MatchConfig = field(default_factory=MatchConfig)


class Targets(NamedTuple):
    """Boxes of one picture, x1 y1 x2 y2 in input pixels: faces [G, 4] to learn, ignored [I, 4] to leave alone."""

    faces: Tensor
    ignored: Tensor


class Losses(NamedTuple):
    """Scalars: the classification term, the box term (weighted), and the number of matched anchors."""

    cls: Tensor
    box: Tensor
    positives: Tensor


def detection_loss(output: Output, targets: Sequence[Targets], config: LossConfig) -> Losses:
    """Both terms are summed over the batch and divided by the number of matched anchors over all ranks."""
    logits, deltas = output.logits.float(), output.deltas.float()
    anchors = output.anchors
    with torch.no_grad():
        matched = torch.stack([match(anchors, t.faces, t.ignored, config.match) for t in targets])
    positive = matched >= 0
    counted = matched != IGNORED
    count = positive.sum().float()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    norm = count.clamp(min=1.0)
    focal = sigmoid_focal_loss(logits, positive.float(), alpha=config.alpha, gamma=config.gamma, reduction="none")
    cls = (focal * counted).sum() / norm
    rows, cols = positive.nonzero(as_tuple=True)
    if not len(rows):
        return Losses(cls, deltas.sum() * 0, count)
    starts = torch.tensor([0, *(len(t.faces) for t in targets)], device=logits.device).cumsum(0)
    faces = torch.cat([t.faces for t in targets])[starts[rows] + matched[rows, cols]]
    picked, base = deltas[rows, cols], anchors[cols]
    if config.box == "giou":
        box = generalized_box_iou_loss(decode(picked, base), faces, reduction="sum")
    else:
        box = F.smooth_l1_loss(picked, encode(faces, base), reduction="sum", beta=1.0)
    return Losses(cls, config.box_weight * box / norm, count)
