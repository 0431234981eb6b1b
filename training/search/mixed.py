"""Mixed operations of DARTS and PC-DARTS, and how their edges are made discrete."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.models.necks.primitives import NONE, build_primitive

PARTIAL = 4  # PC-DARTS's K: one channel in four goes through the operations


def shuffle_order(channels: int, groups: int = PARTIAL) -> list[int]:
    """Which channel stands at each place after a channel shuffle (ShuffleNet): groups are read across.

    Widths that `groups` does not divide are shuffled as if the last group were filled up, and the filling left out.
    """
    size = -(-channels // groups)
    return [k for first in range(size) for k in range(first, groups * size, size) if k < channels]


class MixedEdge(nn.Module):
    """All operations on one map, weighted: [N, C, h, w] -> [N, C, h, w] (DARTS, Eq. 2).

    partial: only the first quarter of the channels (one at least) goes through them; the others are passed by, and
    channels are shuffled afterwards (PC-DARTS, Eq. 1 and section 3.2). Norms have no affine parameters.
    """

    def __init__(self, channels: int, operations: Sequence[str], partial: bool) -> None:
        super().__init__()
        self.width = max(1, channels // PARTIAL) if partial else channels
        self.operations = nn.ModuleList(build_primitive(name, self.width, affine=False) for name in operations)
        # `none` adds zero to the sum, and is not computed: it counts by its share of the softmax.
        self.computed = [k for k, name in enumerate(operations) if name != NONE]
        order = torch.tensor(shuffle_order(channels)) if partial else None
        self.register_buffer("order", order, persistent=False)
        self.order: Tensor | None

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """weights: [number of operations], after the softmax."""
        part = x if self.order is None else x[:, : self.width]
        total: Tensor | None = None
        for k in self.computed:
            term = weights[k] * self.operations[k](part)
            total = term if total is None else total + term
        assert total is not None
        if self.order is None:
            return total
        return torch.cat([total, x[:, self.width :]], dim=1).index_select(1, self.order)


class Ranked(NamedTuple):
    """An edge once decided: where it starts, its strongest operation that is not `none`, and the strength of that."""

    source: int
    operation: str
    strength: float


def strongest(
    source: int, weights: Sequence[float], operations: Sequence[str], share: float = 1.0
) -> Ranked:  # fmt: skip
    """weights: softmax of alpha; share: beta of the edge in PC-DARTS, whose product with alpha ranks edges."""
    best = max((k for k, name in enumerate(operations) if name != NONE), key=lambda k: weights[k])
    return Ranked(source, operations[best], share * weights[best])


def top_edges(edges: Sequence[Ranked], count: int = 2) -> list[Ranked]:
    """DARTS's rule (section 2.4): the strongest edges, in the order of their sources."""
    kept = sorted(edges, key=lambda edge: -edge.strength)[:count]
    return sorted(kept, key=lambda edge: edge.source)


@torch.no_grad()
def copy_weights(kept: nn.Module, searched: nn.Module) -> None:
    """From an operation of a search to its discrete form. Affine parameters, which a search lacks, stay 1 and 0.

    Raises ValueError where anything else is missing.
    """
    result = kept.load_state_dict(searched.state_dict(), strict=False)
    affine = {
        f"{name}.{kind}" if name else kind
        for name, module in kept.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for kind in ("weight", "bias")
    }
    if wrong := [*result.unexpected_keys, *(key for key in result.missing_keys if key not in affine)]:
        raise ValueError(f"the operations differ in {', '.join(wrong)}")
