"""The search spaces by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from training.search.base import SearchableNeck
from training.search.space import AutoFAESearch, SpaceConfig

SPACES = ("autofa", "autofe", "autofae")


def build_space(name: str, in_channels: Sequence[int], channels: int, config: SpaceConfig) -> SearchableNeck:
    return AutoFAESearch(in_channels, channels, replace(config, part=name))  # type: ignore[arg-type]
