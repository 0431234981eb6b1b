"""Feature enhancement by DARTS and PC-DARTS cells, "following their original settings" (Table 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from training.models.detector import initialize
from training.models.genotype import CellEdge, CellGenotype, Provenance
from training.models.necks.base import LEVELS, ConvNorm, Laterals
from training.models.necks.primitives import PRIMITIVES, ReLUConvNorm
from training.models.necks.searched import CellEnhancement, DartsCell
from training.search.base import SearchableNeck, initial
from training.search.mixed import MixedEdge, copy_weights, strongest, top_edges

CellMethod = Literal["darts", "pc-darts"]
INPUTS = 2


class CellSearchOfLevel(nn.Module):
    """A DARTS cell with mixed edges, on one map: [N, C, h, w] -> [N, C, h, w]. Its discrete form is `DartsCell`."""

    def __init__(self, channels: int, nodes: int, partial: bool) -> None:
        super().__init__()
        self.preprocess = nn.ModuleList(ReLUConvNorm(channels, channels, affine=False) for _ in range(INPUTS))
        self.edges = nn.ModuleDict(
            {
                f"{j}_{i}": MixedEdge(channels, PRIMITIVES, partial)
                for i in range(INPUTS, INPUTS + nodes)
                for j in range(i)
            }
        )
        self.out = ConvNorm(nodes * channels, channels, 1)
        self.count = nodes

    def forward(self, x: Tensor, alpha: Mapping[str, Tensor]) -> Tensor:
        """alpha: weights of each edge's operations by `j_i`, after the softmax, and in PC-DARTS `beta_i` likewise."""
        states: list[Tensor] = [preprocess(x) for preprocess in self.preprocess]
        for i in range(INPUTS, INPUTS + self.count):
            shares = alpha.get(f"beta_{i}")
            total: Tensor | None = None
            for j in range(i):
                term = self.edges[f"{j}_{i}"](states[j], alpha[f"alpha_{j}_{i}"])
                term = term if shares is None else shares[j] * term
                total = term if total is None else total + term
            assert total is not None
            states.append(total)
        out: Tensor = self.out(torch.cat(states[INPUTS:], dim=1))
        return out


class CellSearch(SearchableNeck):
    """Laterals, then a mixed cell a level, all of one architecture with weights of their own.

    `alpha_0_2` [8] are logits of the edge from state 0 to state 2: states 0 and 1 are the cell's inputs, 2 the first
    node. `beta_2` [2], in PC-DARTS alone, are those of node 2's in-edges against one another. Of each node the two
    edges stay whose strongest operation, `none` apart, has most probability (in PC-DARTS times the edge's share).
    Raises ValueError where maps and levels differ in number, or there is no node.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        method: CellMethod,
        levels: Sequence[int] = LEVELS,
        nodes: int = 4,
    ) -> None:
        super().__init__()
        if len(in_channels) != len(levels):
            raise ValueError(f"{len(in_channels)} maps for the levels {tuple(levels)}")
        if nodes < 1:
            raise ValueError(f"a cell has at least one node, not {nodes}")
        self.method, self.levels, self.channels = method, tuple(levels), channels
        self.in_channels = tuple(in_channels)
        self.partial = method == "pc-darts"
        self.lateral = Laterals(in_channels, channels)
        self.cells = nn.ModuleList(CellSearchOfLevel(channels, nodes, self.partial) for _ in levels)
        self.node_numbers = range(INPUTS, INPUTS + nodes)
        for i in self.node_numbers:
            for j in range(i):
                self.arch[f"alpha_{j}_{i}"] = initial(len(PRIMITIVES))
            if self.partial:
                self.arch[f"beta_{i}"] = initial(i)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        alpha = {name: value.softmax(dim=0) for name, value in self.arch.items()}
        return [cell(x, alpha) for cell, x in zip(self.cells, self.lateral(features), strict=True)]

    def probabilities(self) -> Mapping[str, Tensor]:
        """Softmax of alpha over an edge's operations, and of beta over a node's in-edges."""
        return {name: value.softmax(dim=0).detach().cpu() for name, value in self.arch.items()}

    def genotype(self, provenance: Provenance) -> CellGenotype:
        """Two edges a node, by the rule above."""
        values = {name: p.tolist() for name, p in self.probabilities().items()}
        nodes = []
        for i in self.node_numbers:
            shares = values[f"beta_{i}"] if self.partial else [1.0] * i
            edges = [strongest(j, values[f"alpha_{j}_{i}"], PRIMITIVES, shares[j]) for j in range(i)]
            nodes.append(
                tuple(CellEdge(input=e.source, operation=e.operation, strength=e.strength) for e in top_edges(edges))
            )
        return CellGenotype(method=self.method, levels=self.levels, nodes=tuple(nodes), provenance=provenance)

    @torch.no_grad()
    def derive(self) -> CellEnhancement:
        """The discrete neck with the weights that it has here.

        In PC-DARTS kept operations act on all channels and not on a quarter, and nodes are no longer shuffled: both the
        operations and the 1x1 that ends a cell start with fresh weights.
        """
        genotype = self.genotype(Provenance(method="search"))
        neck = CellEnhancement(self.in_channels, self.channels, genotype)
        initialize(neck)  # what is not copied below
        neck = neck.to(next(self.parameters()).device)
        neck.lateral.load_state_dict(self.lateral.state_dict())
        for searched, cell in zip(self.cells, neck.cells, strict=True):
            assert isinstance(searched, CellSearchOfLevel)
            assert isinstance(cell, DartsCell)
            copy_weights(cell.preprocess, searched.preprocess)
            if self.partial:
                continue
            cell.out.load_state_dict(searched.out.state_dict())
            for i, (edges, node) in enumerate(zip(genotype.nodes, cell.nodes, strict=True), start=INPUTS):
                assert isinstance(node, nn.ModuleList)
                for edge, operation in zip(edges, node, strict=True):
                    mixed = searched.edges[f"{edge.input}_{i}"]
                    assert isinstance(mixed, MixedEdge)
                    copy_weights(operation, mixed.operations[PRIMITIVES.index(edge.operation)])
        return neck
