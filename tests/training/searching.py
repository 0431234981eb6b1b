"""Maps, probabilities and genotypes that tests of search spaces and of searched necks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from training.models.genotype import (
    CellEdge,
    CellGenotype,
    FusionEdge,
    FusionGenotype,
    Provenance,
)
from training.models.necks.primitives import PRIMITIVES
from training.search.base import SearchableNeck
from training.search.fully_connected import AUTO_FPN
from training.search.space import SpaceConfig

FUSION, CELLS = ("darts-fa", "pc-darts-fa", "auto-fpn"), ("darts-fe", "pc-darts-fe")
OTHERS = (*FUSION, *CELLS)
WIDTHS = (5, 4, 6)
SMALL = SpaceConfig(levels=(2, 3, 4), nodes=2)
SOMEHOW = Provenance(method="hand")
NONE, MAX, AVG, SKIP, SEP3, SEP5, DIL3, DIL5 = range(8)


def pyramid(height: int, width: int, batch: int = 1, widths: Sequence[int] = WIDTHS) -> list[Tensor]:
    """Random maps as the backbone would make them of such a picture, finest first."""
    generator = torch.Generator().manual_seed(height * width)
    sizes = [(-(-height // s), -(-width // s)) for s in (4, 8, 16, 32, 64, 128)]
    return [torch.randn(batch, c, *size, generator=generator) for c, size in zip(widths, sizes, strict=False)]


def set_arch(neck: SearchableNeck, values: Mapping[str, Sequence[float]]) -> None:
    """Probabilities by name; parameters not named become undecided."""
    with torch.no_grad():
        for name, parameter in neck.arch.items():
            parameter.copy_(torch.tensor(values[name]).log() if name in values else torch.zeros_like(parameter))


def one_hot(index: int, count: int = 8) -> list[float]:
    return [1.0 if k == index else 0.0 for k in range(count)]


def chances(**of: float) -> list[float]:
    """Probabilities of DARTS's operations: those named, and the rest of 1 on `none`."""
    values = [of.get(name, 0.0) for name in PRIMITIVES]
    values[NONE] = 1.0 - sum(values)
    return values


def stir(neck: nn.Module) -> None:
    """Statistics and scales of batch norms as training might leave them, so that none is an identity."""
    for module in neck.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2.0)
            if module.affine:
                nn.init.normal_(module.weight, 1.0, 0.2)
                nn.init.normal_(module.bias, 0.0, 0.2)


def full_genotype(name: str) -> str:
    """Of six levels, with every operation of the space in it."""
    if name in CELLS:
        nodes = tuple(
            tuple(CellEdge(input=(n + k) % n, operation=PRIMITIVES[1 + (2 * n + k) % 7], strength=0.5) for k in (0, 1))
            for n in range(2, 6)
        )
        method = "darts" if name == "darts-fe" else "pc-darts"
        return CellGenotype(method=method, levels=range(2, 8), nodes=nodes, provenance=SOMEHOW).model_dump_json()
    operations = AUTO_FPN[1:] if name == "auto-fpn" else PRIMITIVES[1:]
    edges = tuple(
        tuple(
            FusionEdge(source=s, operation=operations[(t + s) % len(operations)], strength=0.5)
            for s in sorted({2 + t % 6, 2 + (t * 5) % 6})
        )
        for t in range(2, 8)
    )
    made = FusionGenotype(
        method=name.removesuffix("-fa"), levels=range(2, 8), edges=edges, provenance=SOMEHOW
    )  # fmt: skip
    return made.model_dump_json()
