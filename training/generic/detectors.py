"""RetinaNet, FCOS and Faster R-CNN of torchvision on the project's backbone, with any of its necks (Table 8)."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSHead, FCOSRegressionHead
from torchvision.ops import MultiScaleRoIAlign

from training.models.backbone import BackboneName, ResNetPyramid
from training.models.necks import NeckOptions, build_neck

ONE_STAGE_LEVELS = (3, 4, 5, 6, 7)
TWO_STAGE_LEVELS = (2, 3, 4, 5, 6)
RATIOS = (0.5, 1.0, 2.0)
SCORE, PER_PICTURE = 0.05, 100  # COCO counts a hundred detections a picture


@dataclass(frozen=True)
class GenericConfig:
    """What the three detectors share.

    categories: their number; width: channels of neck and head; min_size, max_size: pixels that pictures are resized to,
    by the shorter side unless the longer one gets too long; genotype: JSON for a searched neck, empty: the project's.
    """

    backbone: BackboneName
    neck: str
    categories: int
    width: int = 256
    min_size: int = 800
    max_size: int = 1333
    genotype: str = ""


class PyramidNeck(nn.Module):
    """Levels `levels` of the backbone through the neck, as a backbone of torchvision's detectors.

    forward: [N, 3, H, W] -> {"p3": [N, out_channels, ceil(H / 8), ceil(W / 8)], ...}, finest first.
    """

    def __init__(self, config: GenericConfig, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.levels = levels
        self.body = ResNetPyramid(config.backbone)
        if max(levels) < 7:
            self.body.layer6 = nn.Identity()  # type: ignore[assignment]  # a level that nobody asks for
        widths = [self.body.out_channels[level - 2] for level in levels]
        self.neck = build_neck(config.neck, widths, config.width, NeckOptions(levels=levels, genotype=config.genotype))
        self.out_channels = config.width
        self.frozen = False

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        maps = self.body(x)
        outputs = self.neck([maps[level - 2] for level in self.levels])
        return OrderedDict((f"p{level}", y) for level, y in zip(self.levels, outputs, strict=True))

    def load_imagenet(self, path: Path) -> None:
        """Raises ValueError where the file's tensors are not those of this ResNet."""
        self.body.load_imagenet(path)

    def freeze_trained(self) -> None:
        """Keep the stem, the first stage, and all norms of trained weights as they are, as torchvision's recipes do.

        The levels above the ResNet's own begin from random weights, and learn with their norms.
        """
        self.frozen = True
        for module in (self.body.conv1, self.body.layer1, *self._trained_norms()):
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> PyramidNeck:
        super().train(mode)
        if self.frozen:
            for norm in self._trained_norms():
                norm.eval()
        return self

    def _trained_norms(self) -> list[nn.Module]:
        body = self.body
        stages = (body.bn1, body.layer1, body.layer2, body.layer3, body.layer4)
        return [module for stage in stages for module in stage.modules() if isinstance(module, nn.BatchNorm2d)]


def build_retinanet(config: GenericConfig) -> RetinaNet:
    """RetinaNet (Lin et al., ICCV 2017) on P3..P7: nine anchors a cell, of 4, 5.04 and 6.35 strides."""
    sizes = tuple(tuple(4 * 2**level * 2 ** (i / 3) for i in range(3)) for level in ONE_STAGE_LEVELS)
    return RetinaNet(
        PyramidNeck(config, ONE_STAGE_LEVELS), config.categories + 1,
        anchor_generator=AnchorGenerator(sizes, (RATIOS,) * len(sizes)), score_thresh=SCORE,
        detections_per_img=PER_PICTURE, **_resizing(config, ONE_STAGE_LEVELS),
    )  # fmt: skip


def build_fcos(config: GenericConfig) -> FCOS:
    """FCOS (Tian et al., ICCV 2019) on P3..P7. Its threshold is that of the other two; torchvision's 0.2 costs AP."""
    sizes = tuple((2**level,) for level in ONE_STAGE_LEVELS)
    norm = partial(nn.GroupNorm, norm_groups(config.width))
    head = FCOSHead(config.width, 1, config.categories + 1, num_convs=0)
    head.classification_head = FCOSClassificationHead(config.width, 1, config.categories + 1, norm_layer=norm)
    head.regression_head = FCOSRegressionHead(config.width, 1, norm_layer=norm)
    return FCOS(
        PyramidNeck(config, ONE_STAGE_LEVELS), config.categories + 1, head=head,
        anchor_generator=AnchorGenerator(sizes, ((1.0,),) * len(sizes)), score_thresh=SCORE,
        detections_per_img=PER_PICTURE, **_resizing(config, ONE_STAGE_LEVELS),
    )  # fmt: skip


def norm_groups(width: int) -> int:
    """Groups of the norms in FCOS's head: 32 as in torchvision's, fewer where the head is narrower than 64 channels.

    A group has two channels at least, since one alone has no variance on a map of a single cell.
    """
    groups = math.gcd(32, width)
    return groups if groups < width else max(1, width // 2)


def build_faster_rcnn(config: GenericConfig) -> FasterRCNN:
    """Faster R-CNN (Ren et al., NeurIPS 2015) on P2..P6: proposals on all five, regions pooled from P2..P5."""
    sizes = tuple((8 * 2**level,) for level in TWO_STAGE_LEVELS)
    return FasterRCNN(
        PyramidNeck(config, TWO_STAGE_LEVELS), config.categories + 1,
        rpn_anchor_generator=AnchorGenerator(sizes, (RATIOS,) * len(sizes)),
        box_roi_pool=MultiScaleRoIAlign([f"p{level}" for level in TWO_STAGE_LEVELS[:4]], 7, 2),
        box_score_thresh=SCORE, box_detections_per_img=PER_PICTURE, **_resizing(config, TWO_STAGE_LEVELS),
    )  # fmt: skip


def _resizing(config: GenericConfig, levels: tuple[int, ...]) -> dict[str, Any]:
    # Padded to whole cells of the coarsest level: torchvision's anchors take the strides from the maps' sizes.
    return {"min_size": config.min_size, "max_size": config.max_size, "size_divisible": 2 ** max(levels)}


@dataclass(frozen=True)
class DetectorKind:
    """build: the detector; lr: rate of SGD for a batch of 16 (that of torchvision's and mmdetection's recipes)."""

    build: Callable[[GenericConfig], nn.Module]
    lr: float


DETECTORS = {
    "retinanet": DetectorKind(build_retinanet, 0.01),
    "fcos": DetectorKind(build_fcos, 0.01),
    "faster-rcnn": DetectorKind(build_faster_rcnn, 0.02),
}
