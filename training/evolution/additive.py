"""Latency as the sum of separately measured parts: the fallback where whole paths take too long to measure.

Engines fuse across the parts' borders and keep maps in caches, which a sum cannot know; `error_report` says what that
costs on paths that were measured whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from tqdm import tqdm

from training.evolution.latency import Clock
from training.models.backbone import BackboneName, ResNetPyramid
from training.models.genotype import AutoFAEGenotype, genotype_of_kind
from training.models.head import Head
from training.models.necks.autofae import AutoFAEModule
from training.models.necks.base import LEVELS, Laterals
from training.supernet.path import PathSpace, SinglePath


def parts_of(path: SinglePath) -> list[str]:
    """Names of the parts of a path, such as `backbone resnet18`, as often as it has them."""
    modules = [_module(enhanced, path.channels) for enhanced in path.modules]
    return [
        f"backbone {path.backbone}", _laterals(path.backbone, path.channels), *modules,
        f"head x{path.head_convs} {path.channels}",
    ]  # fmt: skip


def _laterals(backbone: BackboneName, channels: int) -> str:
    # Only the widths of the backbone's maps matter, which two ResNets each share.
    return f"laterals {'basic' if backbone in ('resnet18', 'resnet34') else 'bottleneck'} {channels}"


def _module(enhanced: bool, channels: int) -> str:
    return f"{'FAE' if enhanced else 'FA'} {channels}"


@dataclass(frozen=True)
class AdditiveTable:
    """Milliseconds by part's name. See `parts_of`."""

    parts: Mapping[str, float]

    def predict(self, path: SinglePath) -> float:
        """Milliseconds of a path. Raises ValueError where a part was not measured."""
        names = parts_of(path)
        missing = [name for name in names if name not in self.parts]
        if missing:
            raise ValueError(f"{path} has a part that the table of latencies lacks: {missing[0]}")
        return sum(self.parts[name] for name in names)


def measure(space: PathSpace, clock: Clock, progress: bool = False) -> AdditiveTable:
    """The table of all parts that a space has, some dozens, each timed on its own."""
    wanted = {name: path for path in _covering(space) for name in parts_of(path)}
    setup = clock.setup
    parts = {
        name: clock.time(f"part {name}", partial(part_network, name, path, setup.genotype, setup.size))
        for name, path in tqdm(wanted.items(), desc="parts", unit="part", disable=not progress)
    }
    return AdditiveTable(parts)


def _covering(space: PathSpace) -> Iterator[SinglePath]:
    """Paths that have every part between them."""
    for backbone in space.backbones:
        for channels in space.channels:
            for enhanced in (False, True):
                yield SinglePath(backbone, (enhanced,), 1, channels)
            for convs in range(2, space.max_head_convs + 1):
                yield SinglePath(backbone, (False,), convs, channels)


class _OnMaps(nn.Module):
    """A part between maps, which an exported graph takes one by one."""

    def __init__(self, part: nn.Module, keyed: bool) -> None:
        super().__init__()
        self.part, self.keyed = part, keyed

    def forward(self, *maps: Tensor) -> tuple[Tensor, ...]:
        out = self.part(dict(zip(LEVELS, maps, strict=True)) if self.keyed else list(maps))
        values = out.values() if self.keyed else out
        return tuple(x for x in values if x is not None)


class _Pyramid(nn.Module):
    """A backbone whose maps are a tuple."""

    def __init__(self, backbone: ResNetPyramid) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.backbone(images))


def part_network(
    name: str, path: SinglePath, genotype: str, size: tuple[int, int]
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A part of a path with fresh weights, in eval mode, and random inputs for a picture of that size."""
    kind = name.split()[0]
    generator = torch.Generator().manual_seed(0)
    if kind == "backbone":
        return _Pyramid(ResNetPyramid(path.backbone)).eval(), (torch.randn(1, 3, *size, generator=generator),)
    widths = [path.channels] * len(LEVELS)
    part: nn.Module
    if kind == "laterals":
        backbone = ResNetPyramid(path.backbone)
        widths = list(backbone.out_channels)
        part = Laterals(widths, path.channels)
    elif kind == "head":
        part = Head(path.channels, path.head_convs, len(LEVELS))
    else:
        part = AutoFAEModule(
            path.channels, genotype_of_kind("autofae", genotype, AutoFAEGenotype), enhanced=kind == "FAE"
        )
    maps = tuple(
        torch.randn(1, width, *(-(-side // 2**level) for side in size), generator=generator)
        for width, level in zip(widths, LEVELS, strict=True)
    )
    return _OnMaps(part, keyed=kind in ("FA", "FAE")).eval(), maps


@dataclass(frozen=True)
class ErrorReport:
    """Of predictions, relative to measurements. mape: mean absolute error; bias: mean signed error, above 0 where
    predictions are too long; worst: largest absolute error, of the path `worst_path`. Shares, not per cent."""

    paths: int
    mape: float
    bias: float
    worst: float
    worst_path: str

    def __str__(self) -> str:
        return (
            f"off by {self.mape:.1%} in the mean of {self.paths} paths (bias {self.bias:+.1%}), at worst by "
            f"{self.worst:.1%} ({self.worst_path})"
        )


def error_report(table: AdditiveTable, measured: Mapping[SinglePath, float]) -> ErrorReport:
    """How far predictions are from whole paths' measured milliseconds. Raises ValueError where there is no path."""
    if not measured:
        raise ValueError("an error report needs at least one measured path")
    errors = {path: table.predict(path) / value - 1 for path, value in measured.items()}
    worst = max(errors, key=lambda path: abs(errors[path]))
    return ErrorReport(
        len(errors), sum(map(abs, errors.values())) / len(errors), sum(errors.values()) / len(errors),
        abs(errors[worst]), str(worst),
    )  # fmt: skip
