"""Feature aggregation in a fully-connected space (Table 3): DARTS, PC-DARTS, and Auto-FPN's space searched anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from training.models.detector import initialize
from training.models.genotype import FusionEdge, FusionGenotype, Provenance
from training.models.necks.base import LEVELS, ConvNorm, Laterals, resize_like
from training.models.necks.primitives import NONE, PRIMITIVES, SKIP
from training.models.necks.searched import POST_KERNEL, FullyConnectedFusion
from training.search.base import SearchableNeck, initial
from training.search.mixed import MixedEdge, Ranked, copy_weights, strongest, top_edges

FusionMethod = Literal["darts", "pc-darts", "auto-fpn"]

# Auto-FPN (Xu et al., ICCV 2019), whose abstract alone was at hand: skip, none, separable and dilated convolutions; no
# pooling, kernels 3 and 5 and dilation 2 are our reading.
AUTO_FPN = (NONE, SKIP, "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5")


class FullyConnectedSearch(SearchableNeck):
    """Every level receives a mixed operation of every level's lateral map, its own among them.

    The structure is that of `FullyConnectedFusion` with mixed edges; each pair of levels is resized once for all of its
    operations. `alpha_P3_P5` [operations] are logits of the edge from P3 to P5; `beta_P5` [levels], in PC-DARTS alone,
    those of P5's in-edges against one another.

    Discrete are, of each level: in DARTS and PC-DARTS, the two edges whose strongest operation, `none` apart, has most
    probability (in PC-DARTS times the edge's share, beta); in Auto-FPN, every edge whose strongest operation is more
    probable than `none`, or else the single strongest. Raises ValueError where maps and levels differ in number.
    """

    def __init__(
        self, in_channels: Sequence[int], channels: int, method: FusionMethod, levels: Sequence[int] = LEVELS
    ) -> None:
        super().__init__()
        if len(in_channels) != len(levels):
            raise ValueError(f"{len(in_channels)} maps for the levels {tuple(levels)}")
        self.method, self.levels, self.channels = method, tuple(levels), channels
        self.in_channels = tuple(in_channels)
        self.operations = AUTO_FPN if method == "auto-fpn" else PRIMITIVES
        self.partial = method == "pc-darts"
        self.lateral = Laterals(in_channels, channels)
        self.edges = nn.ModuleDict()
        for target in self.levels:
            for source in self.levels:
                self.edges[f"P{source}_P{target}"] = MixedEdge(channels, self.operations, self.partial)
                self.arch[f"alpha_P{source}_P{target}"] = initial(len(self.operations))
            if self.partial:
                self.arch[f"beta_P{target}"] = initial(len(self.levels))
        self.post = nn.ModuleDict({f"P{level}": ConvNorm(channels, channels, POST_KERNEL) for level in self.levels})

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        maps = dict(zip(self.levels, self.lateral(features), strict=True))
        out = []
        for target in self.levels:
            shares = self.arch[f"beta_P{target}"].softmax(dim=0) if self.partial else None
            total: Tensor | None = None
            for k, source in enumerate(self.levels):
                edge = f"P{source}_P{target}"
                weights = self.arch[f"alpha_{edge}"].softmax(dim=0)
                term = self.edges[edge](resize_like(maps[source], maps[target]), weights)
                term = term if shares is None else shares[k] * term
                total = term if total is None else total + term
            out.append(self.post[f"P{target}"](total))
        return out

    def probabilities(self) -> Mapping[str, Tensor]:
        """Softmax of alpha over an edge's operations, and of beta over a level's in-edges."""
        return {name: value.softmax(dim=0).detach().cpu() for name, value in self.arch.items()}

    def _in_edges(self, target: int, values: Mapping[str, list[float]]) -> list[Ranked]:
        shares = values[f"beta_P{target}"] if self.partial else [1.0] * len(self.levels)
        ranked, beats_none = [], []
        for source, share in zip(self.levels, shares, strict=True):
            weights = values[f"alpha_P{source}_P{target}"]
            edge = strongest(source, weights, self.operations, share)
            ranked.append(edge)
            if max(weights) > weights[self.operations.index(NONE)]:
                beats_none.append(edge)
        if self.method == "auto-fpn":
            return beats_none or top_edges(ranked, 1)
        return top_edges(ranked)

    def genotype(self, provenance: Provenance) -> FusionGenotype:
        """The edges that each level keeps, by the rule above."""
        values = {name: p.tolist() for name, p in self.probabilities().items()}
        edges = tuple(
            tuple(FusionEdge(**edge._asdict()) for edge in self._in_edges(target, values)) for target in self.levels
        )
        return FusionGenotype(method=self.method, levels=self.levels, edges=edges, provenance=provenance)

    @torch.no_grad()
    def derive(self) -> FullyConnectedFusion:
        """The discrete neck with the weights that it has here.

        In PC-DARTS kept operations act on all channels and not on a quarter: they start with fresh weights.
        """
        genotype = self.genotype(Provenance(method="search"))
        neck = FullyConnectedFusion(self.in_channels, self.channels, genotype)
        initialize(neck)  # what is not copied below
        neck = neck.to(next(self.parameters()).device)
        neck.lateral.load_state_dict(self.lateral.state_dict())
        for target, edges, kept, post in zip(self.levels, genotype.edges, neck.edges, neck.post, strict=True):
            post.load_state_dict(self.post[f"P{target}"].state_dict())
            if self.partial:
                self._undo_shuffle(post, target)
                continue
            assert isinstance(kept, nn.ModuleList)
            for edge, operation in zip(edges, kept, strict=True):
                mixed = self.edges[f"P{edge.source}_P{target}"]
                assert isinstance(mixed, MixedEdge)
                copy_weights(operation, mixed.operations[self.operations.index(edge.operation)])
        return neck

    def _undo_shuffle(self, post: nn.Module, target: int) -> None:
        """Here `post` met shuffled channels; in the discrete neck they stand in their own order."""
        mixed = self.edges[f"P{target}_P{target}"]
        assert isinstance(mixed, MixedEdge) and isinstance(post, ConvNorm)  # noqa: PT018
        convolution = post[0]
        assert isinstance(convolution, nn.Conv2d) and mixed.order is not None  # noqa: PT018
        weight = convolution.weight.clone()
        convolution.weight[:, mixed.order] = weight
