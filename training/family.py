"""The family as Table 7 has it, and families that `python -m training evolve` found for a machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch.utils.flop_counter import FlopCounterMode

from training.models.detector import DetectorConfig, build_detector
from training.models.genotype import load_genotype
from training.models.necks import NECKS, NeckOptions
from training.supernet.path import SinglePath

MEMBERS: Mapping[str, SinglePath] = {
    "d0": SinglePath("resnet18", (False,), 1, 64),
    "d1": SinglePath("resnet18", (False,), 3, 128),
    "d2": SinglePath("resnet34", (False,), 3, 192),
    "d3": SinglePath("resnet50", (True,), 3, 192),
    "d4": SinglePath("resnet50", (True,), 4, 256),
    "d5": SinglePath("resnet101", (True,), 4, 256),
    "d6": SinglePath("resnet101", (True, False, False), 4, 256),
}


class FoundMember(BaseModel):
    """One member of a family found for a machine. latency_ms: measured there; ap50: of the supernet's slice, on the
    photos kept for that, to be read beside its siblings' only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    path: str
    budget_ms: float
    latency_ms: float
    ap50: float


class Family(BaseModel):
    """`family.json`: what `evolve` found. target: the engine; size: height and width that latency was measured at."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = 1
    target: str
    hardware: str
    size: tuple[int, int]
    supernet: str
    seed: int
    members: tuple[FoundMember, ...]


@dataclass(frozen=True)
class Counts:
    """parameters: trainable numbers; gmacs_vga: 1e9 multiply-accumulates of one 480x640 picture."""

    parameters: int
    gmacs_vga: float


def count(config: DetectorConfig) -> Counts:
    """Count a detector's parameters and its arithmetic at VGA."""
    detector = build_detector(config).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        detector(torch.zeros(1, 3, 480, 640))
    return Counts(sum(p.numel() for p in detector.parameters()), counter.get_total_flops() / 2e9)


def load_family(path: Path) -> Family:
    """Read `family.json`. Raises FileNotFoundError, and ValueError that names what is wrong with it."""
    try:
        return Family.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{path} is no family: {'.'.join(map(str, first['loc'])) or 'file'}: {first['msg']}") from None


def single_path(member: str, family: Path | None = None) -> SinglePath:
    """The path of a member: Table 7's, one of the file `family`, or one spelt out, such as R18-FA-Hx1-64.

    Raises ValueError where there is no such member.
    """
    if member.startswith("R"):
        return SinglePath.parse(member)
    known = {m.name: SinglePath.parse(m.path) for m in load_family(family).members} if family else MEMBERS
    if member not in known:
        raise ValueError(f"no member {member!r}; there are {', '.join(known)}, or a path such as R18-FA-Hx1-64")
    return known[member]


def member_config(
    member: str, neck: str = "fpn", genotype: Path | None = None, family: Path | None = None
) -> DetectorConfig:
    """The detector of a member. neck: `autofae`, which stacks the path's modules, or in its place another name of
    `NECKS`, its options at their defaults; genotype: of a searched neck, a file, instead of the project's own.

    Raises ValueError where there is no such member or neck, or the file is no genotype or not asked for.
    """
    if neck not in NECKS:
        raise ValueError(f"no neck {neck!r}; there are {', '.join(NECKS)}")
    if genotype and not NECKS[neck].searched:
        raise ValueError(f"{genotype}: the neck {neck} has no genotype; name a searched one, such as autofae")
    text = load_genotype(genotype).model_dump_json() if genotype else ""
    path = single_path(member, family)
    if neck == "autofae":
        return path.config("autofae", text)
    return replace(path.config("fpn"), neck=neck, neck_options=NeckOptions(genotype=text))
