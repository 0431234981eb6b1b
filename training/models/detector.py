"""The single-stage detector: ResNet pyramid, neck, head (paper, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.models.anchors import AnchorConfig, pyramid_anchors
from training.models.backbone import BackboneName, ResNetPyramid
from training.models.head import Head, HeadNorm
from training.models.necks import NeckOptions, build_neck

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DetectorConfig:
    """One detector. Defaults are D0 of Table 7: ResNet-18, one head convolution, 64 channels.

    neck: a name of `training.models.necks.NECKS`, with its options.
    iou_branch: the head also predicts each box's IoU, and the score becomes sqrt(face probability x IoU).
    """

    backbone: BackboneName = "resnet18"
    neck: str = "fpn"
    channels: int = 64
    head_convs: int = 1
    head_norm: HeadNorm = "batch"
    iou_branch: bool = False
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    neck_options: NeckOptions = field(default_factory=NeckOptions)


class Output(NamedTuple):
    """logits: [N, A]; deltas: [N, A, 4] (see `boxes.encode`); anchors: [A, 4] x1 y1 x2 y2 in input pixels.

    levels: anchors of each pyramid level, finest first; quality: logits of the predicted IoU [N, A], if predicted.
    """

    logits: Tensor
    deltas: Tensor
    anchors: Tensor
    levels: tuple[int, ...] = ()
    quality: Tensor | None = None


def scores(logits: Tensor, quality: Tensor | None) -> Tensor:
    """What a detection is ranked by: the face probability, or its geometric mean with the predicted IoU. [N, A]"""
    if quality is None:
        return logits.sigmoid()
    return (logits.sigmoid() * quality.sigmoid()).sqrt()


def normalize(images: Tensor) -> Tensor:
    """uint8 [N, 3, H, W] RGB -> float32, ImageNet mean and deviation."""
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(1, 3, 1, 1) * 255
    std = torch.tensor(IMAGENET_STD, device=images.device).view(1, 3, 1, 1) * 255
    return (images.float() - mean) / std


class Detector(nn.Module):
    """forward: float [N, 3, H, W], normalised -> `Output`. H and W may be any size of at least 32 pixels."""

    def __init__(self, backbone: ResNetPyramid, neck: nn.Module, head: Head, anchors: AnchorConfig) -> None:
        super().__init__()
        self.backbone, self.neck, self.head = backbone, neck, head
        self.anchor_config = anchors

    def forward(self, images: Tensor) -> Output:
        features = self.neck(self.backbone(images))
        logits, deltas, quality = self.head(features)
        sizes = [(int(x.shape[-2]), int(x.shape[-1])) for x in features]
        anchors = pyramid_anchors(sizes, self.anchor_config, images.device)
        return Output(logits, deltas, anchors, tuple(h * w for h, w in sizes), quality)


def initialize(model: nn.Module, skip: Sequence[nn.Module] = ()) -> None:
    """Kaiming initialisation, in place, of every convolution outside the modules `skip` (paper, section 5.1.2)."""
    skipped = {inner for module in skip for inner in module.modules()}
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module not in skipped:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def build_detector(config: DetectorConfig, neck: nn.Module | None = None) -> Detector:
    """Build a detector with fresh weights. `neck`, where given, takes the place of the configured one as it is, with
    the weights that it has.

    Raises ValueError where there is no neck of that name or its options are wrong.
    """
    backbone = ResNetPyramid(config.backbone)
    given = () if neck is None else (neck,)
    if neck is None:
        neck = build_neck(config.neck, backbone.out_channels, config.channels, config.neck_options)
    levels = len(config.anchors.strides)
    head = Head(config.channels, config.head_convs, levels, config.head_norm, config.iou_branch)
    detector = Detector(backbone, neck, head, config.anchors)
    initialize(detector, skip=(*head.predictors(), *given))
    return detector
