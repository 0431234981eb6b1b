"""Tiny supernets and genotypes that tests of the supernet share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.training.searching import stir
from training.models import detector
from training.models.backbone import BackboneName, ResNetPyramid
from training.models.genotype import AutoFAEGenotype, Candidate, EnhancementCell, FusionCell, Node, Position, Provenance
from training.supernet import network
from training.supernet.network import Supernet
from training.supernet.path import PathSpace

TINY = PathSpace(backbones=("resnet18", "resnet50"), max_modules=2, max_head_convs=2, channels=(8, 12, 16))
LEVELS = (2, 3, 4, 5, 6, 7)


class ThinPyramid(ResNetPyramid):
    """Six strided convolutions with norms in place of a ResNet; each kind has other widths. Quick to build and run."""

    def __init__(self, name: BackboneName) -> None:
        nn.Module.__init__(self)
        width = 5 if name in ("resnet18", "resnet34") else 7
        self.out_channels = (width, width + 1, width, width + 2, width, width)
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in zip((width, *self.out_channels), self.out_channels, strict=False)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        x, maps = self.stem(x), []
        for conv in self.convs:
            x = conv(x)
            maps.append(x)
        return maps


def use_thin_backbones(patch: pytest.MonkeyPatch) -> None:
    """Supernets and detectors get a `ThinPyramid` for every ResNet."""
    for module in (detector, network):
        patch.setattr(module, "ResNetPyramid", ThinPyramid)


def small_genotype(position: Position = "middle", enhanced: bool = True, dilated: bool = False) -> AutoFAEGenotype:
    """Steps with one candidate and with several; nodes that feed others, and leaves that are summed."""

    def cell(level: int, *candidates: int) -> FusionCell:
        return FusionCell(level=level, candidates=tuple(Candidate(level=c, alpha=0.5) for c in candidates))

    nodes = (
        Node(node=1, input=0, operation="conv1x1"),
        Node(node=2, input=1, operation="conv3x3d2" if dilated else "conv1x3"),
        Node(node=3, input=0, operation="conv1x1"),
    )
    return AutoFAEGenotype(
        levels=LEVELS,
        top_down=(cell(7), cell(6, 7), cell(5, 6, 7), cell(4, 5), cell(3, 4), cell(2, 3, 4)),
        bottom_up=(cell(2), cell(3, 2), cell(4, 3), cell(5, 4, 2), cell(6, 5), cell(7, 6)),
        enhancement=tuple(EnhancementCell(level=level, nodes=nodes) for level in LEVELS) if enhanced else (),
        position=position,
        provenance=Provenance(method="hand"),
    )


def tiny_supernet(genotype: AutoFAEGenotype | None = None, space: PathSpace = TINY) -> Supernet:
    """Random weights and batch norms, none an identity; in training mode."""
    torch.manual_seed(7)
    supernet = Supernet(space, genotype or small_genotype(dilated=True))
    stir(supernet)
    return supernet


def random_pictures(batch: int = 2, side: int = 64, seed: int = 0) -> Tensor:
    """As normalised pictures are: float [batch, 3, side, side]."""
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(seed))
