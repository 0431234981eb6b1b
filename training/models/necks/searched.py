"""Discrete necks of the search spaces that the paper compares with (Tables 3 and 4): `darts-fa`, `pc-darts-fa`,
`auto-fpn` from a fusion genotype, `darts-fe`, `pc-darts-fe` from a cell genotype.

The paper gives no structure beyond "a fully-connected search space" and "their original settings". What is ours is
said at each class.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from training.models.genotype import CellEdge, CellGenotype, FusionEdge, FusionGenotype, genotype_of_kind
from training.models.necks.base import ConvNorm, Laterals, NeckOptions, resize_like
from training.models.necks.primitives import SKIP, ReLUConvNorm, build_kept

POST_KERNEL = 3


def _freeze_unused(modules: nn.ModuleList, used: Collection[int]) -> None:
    """What no edge starts from stays, as searches fill it, but takes no part in training: several processes, which
    wait for the gradient of every parameter, would stop at one that never gets any."""
    for number, module in enumerate(modules):
        module.requires_grad_(number in used)


class FullyConnectedFusion(nn.Module):
    """Laterals; then each level is 3x3 conv-BN-ReLU(sum of its edges), an edge being an operation of the source level's
    lateral map, resized to this level.

    Ours: every edge starts at the laterals, so that the fusion has one layer; resizing comes before the operation and
    is AutoFA's (`resize_like`); a 3x3 convolution follows the sum, as in FPN.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int, genotype: FusionGenotype) -> None:
        super().__init__()
        _check_maps(in_channels, genotype.levels)
        self.sources = [[genotype.levels.index(edge.source) for edge in edges] for edges in genotype.edges]
        self.lateral = Laterals(in_channels, out_channels)
        self.edges = nn.ModuleList(
            nn.ModuleList(build_kept(edge.operation, out_channels) for edge in edges) for edges in genotype.edges
        )
        self.post = nn.ModuleList(ConvNorm(out_channels, out_channels, POST_KERNEL) for _ in genotype.levels)
        _freeze_unused(self.lateral, {source for sources in self.sources for source in sources})

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        maps = self.lateral(features)
        out = []
        for target, sources, edges, post in zip(maps, self.sources, self.edges, self.post, strict=True):
            assert isinstance(edges, nn.ModuleList)
            terms = [edge(resize_like(maps[source], target)) for source, edge in zip(sources, edges, strict=True)]
            total = terms[0]
            for term in terms[1:]:
                total = total + term
            out.append(post(total))
        return out


class DartsCell(nn.Module):
    """A DARTS cell on one map: [N, C, h, w] -> [N, C, h, w].

    Both of its inputs are the level's map, each behind a preprocessing (ReLU, 1x1, BN) of its own. Nodes are C wide and
    concatenated. Ours: DARTS leaves it to the next cell's preprocessing to bring the concatenation back to C; no cell
    follows here, so that a 1x1 conv-BN-ReLU does it. No path is dropped in training.
    """

    def __init__(self, channels: int, nodes: Sequence[Sequence[CellEdge]]) -> None:
        super().__init__()
        self.inputs = [[edge.input for edge in edges] for edges in nodes]
        self.preprocess = nn.ModuleList(ReLUConvNorm(channels, channels) for _ in range(2))
        self.nodes = nn.ModuleList(
            nn.ModuleList(build_kept(edge.operation, channels) for edge in edges) for edges in nodes
        )
        self.out = ConvNorm(len(nodes) * channels, channels, 1)
        _freeze_unused(self.preprocess, {source for sources in self.inputs for source in sources})

    def forward(self, x: Tensor) -> Tensor:
        states = [preprocess(x) for preprocess in self.preprocess]
        for inputs, node in zip(self.inputs, self.nodes, strict=True):
            assert isinstance(node, nn.ModuleList)
            terms = [operation(states[source]) for source, operation in zip(inputs, node, strict=True)]
            total = terms[0]
            for term in terms[1:]:
                total = total + term
            states.append(total)
        out: Tensor = self.out(torch.cat(states[2:], dim=1))
        return out


class CellEnhancement(nn.Module):
    """Laterals, then one DARTS cell a level: one structure, weights of its own for every level."""

    def __init__(self, in_channels: Sequence[int], out_channels: int, genotype: CellGenotype) -> None:
        super().__init__()
        _check_maps(in_channels, genotype.levels)
        self.lateral = Laterals(in_channels, out_channels)
        self.cells = nn.ModuleList(DartsCell(out_channels, genotype.nodes) for _ in genotype.levels)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        return [cell(x) for cell, x in zip(self.cells, self.lateral(features), strict=True)]


def _check_maps(in_channels: Sequence[int], levels: Sequence[int]) -> None:
    if len(in_channels) != len(levels):
        raise ValueError(f"the genotype has the levels {tuple(levels)}, but there are {len(in_channels)} maps")


def restrict_fusion(genotype: FusionGenotype, levels: Sequence[int]) -> FusionGenotype:
    """The same on some of the levels. A level that loses all of its edges keeps its own map, unchanged.

    Raises ValueError where a level is not among the genotype's.
    """
    _check_levels(genotype.levels, levels)
    edges = []
    for level in levels:
        kept = tuple(edge for edge in genotype.edges[genotype.levels.index(level)] if edge.source in levels)
        edges.append(kept or (FusionEdge(source=level, operation=SKIP, strength=0.0),))
    return genotype.model_copy(update={"levels": tuple(levels), "edges": tuple(edges)})


def restrict_cell(genotype: CellGenotype, levels: Sequence[int]) -> CellGenotype:
    """The same on some of the levels. Raises ValueError where a level is not among the genotype's."""
    _check_levels(genotype.levels, levels)
    return genotype.model_copy(update={"levels": tuple(levels)})


def _check_levels(have: Sequence[int], wanted: Sequence[int]) -> None:
    if unknown := [level for level in wanted if level not in have]:
        raise ValueError(f"the genotype has the levels {tuple(have)}, not {unknown[0]}")


def build_fusion(
    name: str, in_channels: Sequence[int], out_channels: int, options: NeckOptions
) -> FullyConnectedFusion:
    """`darts-fa`, `pc-darts-fa` or `auto-fpn` of `options.genotype`, or of the project's own genotype called `name`, on
    `options.levels` of it.

    Raises ValueError where the genotype is of another kind or method, or does not fit the maps.
    """
    genotype = genotype_of_kind(name, options.genotype, FusionGenotype)
    _check_method(name, genotype.method)
    if options.levels:
        genotype = restrict_fusion(genotype, options.levels)
    return FullyConnectedFusion(in_channels, out_channels, genotype)


def build_cells(name: str, in_channels: Sequence[int], out_channels: int, options: NeckOptions) -> CellEnhancement:
    """`darts-fe` or `pc-darts-fe`, in the same way.

    Raises ValueError where the genotype is of another kind or method, or does not fit the maps.
    """
    genotype = genotype_of_kind(name, options.genotype, CellGenotype)
    _check_method(name, genotype.method)
    if options.levels:
        genotype = restrict_cell(genotype, options.levels)
    return CellEnhancement(in_channels, out_channels, genotype)


def _check_method(name: str, method: str) -> None:
    """A row of a table must not be filled with another method's architecture."""
    if name.removesuffix("-fa").removesuffix("-fe") != method:
        raise ValueError(f"{name} takes a genotype that its own search found, not one of {method}")
