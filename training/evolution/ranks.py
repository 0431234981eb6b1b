"""What several processes of a search share, so that each runs the same search and knows the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch.distributed as dist

from training.engine.distributed import World
from training.evolution.records import Latency
from training.supernet.path import SinglePath

T = TypeVar("T")


def from_main(world: World, make: Callable[[], T]) -> T:
    """What `make` gives in the main process, in every process; the others wait meanwhile."""
    if world.size == 1:
        return make()
    content: list[T | None] = [make() if world.main else None]
    dist.broadcast_object_list(content, src=0)
    return content[0]  # type: ignore[return-value]  # the main process's


def shared_latency(world: World, latency: Latency) -> Latency:
    """A latency that the main process measures, while the others wait and so disturb nothing."""
    return lambda path: from_main(world, lambda: latency(path))


def divided(world: World, paths: Sequence[SinglePath], score: Callable[[SinglePath], float]) -> list[float]:
    """Scores of all paths, in their order: each process takes every size-th path and gets the others' scores."""
    mine = {k: score(paths[k]) for k in range(world.rank, len(paths), world.size)}
    if world.size > 1:
        parts: list[dict[int, float]] = [{} for _ in range(world.size)]
        dist.all_gather_object(parts, mine)
        mine = {k: value for part in parts for k, value in part.items()}
    return [mine[k] for k in range(len(paths))]
