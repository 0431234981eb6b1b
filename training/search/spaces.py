"""The search spaces by name: the paper's, and those that its Tables 3 and 4 compare with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch

from training.models.genotype import AnyGenotype, Provenance
from training.search.base import SearchableNeck
from training.search.cells import CellMethod, CellSearch
from training.search.fully_connected import FullyConnectedSearch, FusionMethod
from training.search.space import AutoFAESearch, SpaceConfig, random_genotype

_OWN: Mapping[str, Literal["autofa", "autofe", "autofae"]] = {
    "autofa": "autofa", "autofe": "autofe", "autofae": "autofae",
}  # fmt: skip
_FUSION: Mapping[str, FusionMethod] = {"darts-fa": "darts", "pc-darts-fa": "pc-darts", "auto-fpn": "auto-fpn"}
_CELLS: Mapping[str, CellMethod] = {"darts-fe": "darts", "pc-darts-fe": "pc-darts"}

SPACES = (*_OWN, *_FUSION, *_CELLS)


def build_space(name: str, in_channels: Sequence[int], channels: int, config: SpaceConfig) -> SearchableNeck:
    """A space by name, with fresh weights and an undecided architecture.

    Of `config` the compared spaces take the levels alone: their cells have DARTS's four nodes. Raises ValueError where
    there is no such space, or the maps do not fit the levels.
    """
    if name in _OWN:
        return AutoFAESearch(in_channels, channels, replace(config, part=_OWN[name]))
    if name in _FUSION:
        return FullyConnectedSearch(in_channels, channels, _FUSION[name], config.levels)
    if name in _CELLS:
        return CellSearch(in_channels, channels, _CELLS[name], config.levels)
    raise ValueError(f"no space {name!r}; there are {', '.join(SPACES)}")


def random_genotype_of(name: str, config: SpaceConfig, seed: int) -> AnyGenotype:
    """An architecture of the space drawn at random and made discrete as a search's: the base line.

    As in `random_genotype`, logits are normal with deviation 1.5. Raises ValueError where there is no such space.
    """
    if name in _OWN:
        return random_genotype(replace(config, part=_OWN[name]), seed)
    neck = build_space(name, [1] * len(config.levels), 1, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in neck.arch.values():
            value.copy_(1.5 * torch.randn(value.shape, generator=generator))
    return neck.genotype(Provenance(method="random", seed=seed))
