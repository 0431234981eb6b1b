"""Single paths: the five degrees of freedom of section 4.3, and the space of all of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from random import Random
from typing import Literal, get_args

from training.models.backbone import BackboneName
from training.models.detector import DetectorConfig
from training.models.necks.base import NeckOptions

PathNeck = Literal["autofae", "fpn"]

_PRINTED = re.compile(r"^R(\d+)((?:-FAE|-FA)+)-H[x×](\d+)-(\d+)$")
_MOST_LAYERS, _MOST_CHANNELS = 32, 4096  # far beyond what trains, but a slip is told at once


def backbone_name(text: str) -> BackboneName:
    """A backbone by name. Raises ValueError where there is none of that name."""
    known: tuple[BackboneName, ...] = get_args(BackboneName)
    for name in known:
        if name == text:
            return name
    raise ValueError(f"no backbone {text!r}; there are {', '.join(known)}")


@dataclass(frozen=True)
class SinglePath:
    """One detector of the supernet (Fig. 5). modules: for each stacked AutoFAE module, whether its AutoFE is kept;
    head_convs: convolutions in each tower of the head; channels: of neck and head."""

    backbone: BackboneName
    modules: tuple[bool, ...]
    head_convs: int
    channels: int

    def __str__(self) -> str:
        """As Table 7 prints it: `R101-FAE-FA-FA-Hx4-256`."""
        modules = "-".join("FAE" if kept else "FA" for kept in self.modules)
        return f"R{self.backbone.removeprefix('resnet')}-{modules}-Hx{self.head_convs}-{self.channels}"

    @classmethod
    def parse(cls, text: str) -> SinglePath:
        """Read what `str` writes. Raises ValueError, also on numbers that no detector could have."""
        found = _PRINTED.match(text)
        if not found:
            raise ValueError(f"{text!r} is no single path; one looks like R101-FAE-FA-FA-Hx4-256")
        modules = tuple(part == "FAE" for part in found[2].split("-")[1:])
        if not (1 <= int(found[3]) <= _MOST_LAYERS and 1 <= int(found[4]) <= _MOST_CHANNELS):
            raise ValueError(
                f"{text!r} is no single path: one has 1 to {_MOST_LAYERS} head convolutions and 1 to {_MOST_CHANNELS} "
                "channels"
            )
        if len(modules) > _MOST_LAYERS:
            raise ValueError(f"{text!r} is no single path: one has at most {_MOST_LAYERS} modules")
        return cls(backbone_name(f"resnet{found[1]}"), modules, int(found[3]), int(found[4]))

    def config(self, neck: PathNeck = "autofae", genotype: str = "") -> DetectorConfig:
        """The stand-alone detector of this path. genotype: JSON of the neck's, empty for the project's own.

        `fpn` builds the same backbone, head and width around FPN, which has no modules to stack.
        """
        options = NeckOptions(genotype=genotype, modules=self.modules) if neck == "autofae" else NeckOptions()
        return DetectorConfig(
            backbone=self.backbone, neck=neck, channels=self.channels, head_convs=self.head_convs, neck_options=options
        )


@dataclass(frozen=True)
class PathSpace:
    """What the five degrees of freedom may be. max_modules: of stacked AutoFAE; channels: ascending."""

    backbones: tuple[BackboneName, ...] = ("resnet18", "resnet34", "resnet50", "resnet101")
    max_modules: int = 3
    max_head_convs: int = 4
    channels: tuple[int, ...] = (64, 128, 192, 256)

    def __post_init__(self) -> None:
        if not self.backbones or len(set(self.backbones)) != len(self.backbones):
            raise ValueError("a supernet has at least one backbone, and each once")
        if self.max_modules < 1 or self.max_head_convs < 1:
            raise ValueError("a supernet has at least one AutoFAE module and one head convolution")
        if not self.channels or list(self.channels) != sorted(set(self.channels)) or self.channels[0] < 1:
            raise ValueError(f"channels must ascend, not {self.channels}")

    def __contains__(self, path: SinglePath) -> bool:
        return (
            path.backbone in self.backbones
            and 1 <= len(path.modules) <= self.max_modules
            and 1 <= path.head_convs <= self.max_head_convs
            and path.channels in self.channels
        )

    def __len__(self) -> int:
        modules = (2 << self.max_modules) - 2  # 2 + 4 + ... + 2^max_modules
        return len(self.backbones) * modules * self.max_head_convs * len(self.channels)

    def __iter__(self) -> Iterator[SinglePath]:
        """Every path, each once."""
        for depth in range(1, self.max_modules + 1):
            for backbone, modules, convs, width in product(
                self.backbones, product((False, True), repeat=depth), range(1, self.max_head_convs + 1), self.channels
            ):
                yield SinglePath(backbone, modules, convs, width)

    def largest(self) -> SinglePath:
        """The path that holds every weight but those of the other backbones."""
        return SinglePath(
            self.backbones[-1], (True,) * self.max_modules, self.max_head_convs, self.channels[-1]
        )  # fmt: skip

    def draw(self, random: Random, channels: tuple[int, ...] = ()) -> SinglePath:
        """A path with each degree of freedom uniform over its values. channels: the widths allowed, none for all."""
        depth = random.randint(1, self.max_modules)
        return SinglePath(
            random.choice(self.backbones),
            tuple(random.random() < 0.5 for _ in range(depth)),
            random.randint(1, self.max_head_convs),
            random.choice(channels or self.channels),
        )

    def mutate(self, path: SinglePath, random: Random, probability: float) -> SinglePath:
        """Draw each gene anew with `probability`: backbone, depth with skips, each skip, head convolutions, width."""
        fresh = self.draw(random)
        changed = replace(
            path,
            backbone=fresh.backbone if random.random() < probability else path.backbone,
            head_convs=fresh.head_convs if random.random() < probability else path.head_convs,
            channels=fresh.channels if random.random() < probability else path.channels,
        )
        depth = len(fresh.modules) if random.random() < probability else len(path.modules)
        kept = (*path.modules, *(random.random() < 0.5 for _ in range(self.max_modules)))[:depth]
        flipped = tuple((random.random() < 0.5) if random.random() < probability else enhanced for enhanced in kept)
        return replace(changed, modules=flipped)

    def cross(self, first: SinglePath, second: SinglePath, random: Random) -> SinglePath:
        """Each gene from one parent or the other; depth and skips are one gene, since skips belong to a depth."""
        return SinglePath(
            random.choice((first, second)).backbone,
            random.choice((first, second)).modules,
            random.choice((first, second)).head_convs,
            random.choice((first, second)).channels,
        )
