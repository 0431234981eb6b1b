"""AutoFAE as a genotype describes it (paper, sections 4.1 and 5.3): discrete, at any width, stacked at will."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.models.genotype import AutoFAEGenotype, EnhancementCell, FusionCell, genotype_of_kind
from training.models.necks.base import ConvNorm, Laterals, NeckOptions, resize_like
from training.models.operations import ConvOperation

PRE_KERNEL, POST_KERNEL = 1, 3  # of f_pre and f_post, which the paper leaves open


class Fusion(nn.Module):
    """One step of AutoFA, Eq. 2: C = f_post(beta_0 F + beta_1 f_pre(sum of the candidates, resized)).

    Beta is learned on from the search's values. The first step of a path, which has no candidate, is f_post(F).
    """

    def __init__(self, channels: int, cell: FusionCell) -> None:
        super().__init__()
        self.candidates = tuple(c.level for c in cell.candidates)
        if self.candidates:
            self.pre = ConvNorm(channels, channels, PRE_KERNEL)
            self.beta = nn.Parameter(torch.tensor(cell.beta))
        self.post = ConvNorm(channels, channels, POST_KERNEL)

    def forward(self, feature: Tensor, pool: dict[int, Tensor]) -> Tensor:
        """feature: [N, C, h, w]; pool: aggregated features of earlier steps, by level."""
        if self.candidates:
            total = resize_like(pool[self.candidates[0]], feature)
            for level in self.candidates[1:]:
                total = total + resize_like(pool[level], feature)
            feature = self.beta[0] * feature + self.beta[1] * self.pre(total)
        out: Tensor = self.post(feature)
        return out


class Path(nn.Module):
    """The steps of one path of AutoFA, in their order."""

    def __init__(self, channels: int, cells: Sequence[FusionCell]) -> None:
        super().__init__()
        self.levels = tuple(cell.level for cell in cells)
        self.cells = nn.ModuleDict({f"P{cell.level}": Fusion(channels, cell) for cell in cells})

    def forward(self, maps: dict[int, Tensor]) -> dict[int, Tensor]:
        pool: dict[int, Tensor] = {}
        for level in self.levels:
            pool[level] = self.cells[f"P{level}"](maps[level], pool)
        return pool


class Enhancement(nn.Module):
    """AutoFE of one level (Eq. 3 and 4, discrete): each node is one operation of an earlier one; leaves are summed."""

    def __init__(self, channels: int, cell: EnhancementCell) -> None:
        super().__init__()
        self.inputs = tuple(node.input for node in cell.nodes)
        self.leaves = cell.leaves
        self.nodes = nn.ModuleList(ConvOperation(channels, node.operation) for node in cell.nodes)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for source, operation in zip(self.inputs, self.nodes, strict=True):
            features.append(operation(features[source]))
        total = features[self.leaves[0]]
        for leaf in self.leaves[1:]:
            total = total + features[leaf]
        return total


class AutoFAEModule(nn.Module):
    """One AutoFAE on maps of equal width; AutoFE is left out where `enhanced` is False."""

    def __init__(self, channels: int, genotype: AutoFAEGenotype, enhanced: bool = True) -> None:
        super().__init__()
        self.position = genotype.position
        self.top_down = Path(channels, genotype.top_down) if genotype.top_down else None
        self.bottom_up = Path(channels, genotype.bottom_up) if genotype.bottom_up else None
        cells = genotype.enhancement if enhanced else ()
        self.enhancement = nn.ModuleDict({f"P{cell.level}": Enhancement(channels, cell) for cell in cells})

    def forward(self, maps: dict[int, Tensor]) -> dict[int, Tensor]:
        if self.position == "before":
            maps = self._enhance(maps)
        if self.top_down is not None:
            maps = self.top_down(maps)
        if self.position == "middle":
            maps = self._enhance(maps)
        if self.bottom_up is not None:
            maps = self.bottom_up(maps)
        if self.position == "after":
            maps = self._enhance(maps)
        return maps

    def _enhance(self, maps: dict[int, Tensor]) -> dict[int, Tensor]:
        if not len(self.enhancement):
            return maps
        return {level: self.enhancement[f"P{level}"](x) for level, x in maps.items()}


class AutoFAE(nn.Module):
    """Laterals, then AutoFAE modules one after another; `modules[k]` says whether module k keeps its AutoFE."""

    def __init__(
        self, in_channels: Sequence[int], out_channels: int, genotype: AutoFAEGenotype, modules: Sequence[bool] = ()
    ) -> None:
        super().__init__()
        if len(in_channels) != len(genotype.levels):
            raise ValueError(f"the genotype has the levels {genotype.levels}, but there are {len(in_channels)} maps")
        kept = tuple(modules) or genotype.modules
        if not any(kept) and not genotype.top_down:
            raise ValueError("AutoFE is all that this genotype has, and it is skipped in every module")
        self.levels = genotype.levels
        self.lateral = Laterals(in_channels, out_channels)
        self.stacked = nn.ModuleList(AutoFAEModule(out_channels, genotype, enhanced) for enhanced in kept)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        maps = dict(zip(self.levels, self.lateral(features), strict=True))
        for module in self.stacked:
            maps = module(maps)
        return [maps[level] for level in self.levels]


def build_autofae(name: str, in_channels: Sequence[int], out_channels: int, options: NeckOptions) -> AutoFAE:
    """The neck of `options.genotype`, or of the project's own genotype called `name`, on `options.levels` of it.

    Raises ValueError where the genotype is of another kind or does not fit the maps.
    """
    genotype = genotype_of_kind(name, options.genotype, AutoFAEGenotype)
    if options.levels:
        genotype = genotype.restrict(options.levels)
    return AutoFAE(in_channels, out_channels, genotype, options.modules)
