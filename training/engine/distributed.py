"""One process or several under `torchrun`: the same calls serve both."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from training.models.device import chosen_device

# Rank 0 evaluates alone, for as long as the split is large, while the others wait for its next step.
_PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class World:
    """rank and size of the process group, and this process's device."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        return self.rank == 0


@contextmanager
def world(device: str | None = None) -> Iterator[World]:
    """Join the process group that `torchrun` describes, if any (nccl on GPUs, gloo on CPUs); leave it at the end.

    device: as in `chosen_device`, whose ValueError it raises; of several GPUs each process takes its own.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = chosen_device(device)
    if chosen.type == "cuda" and device in (None, "cuda"):
        chosen = chosen_device(f"cuda:{local}")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size > 1:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield World(dist.get_rank() if size > 1 else 0, size, chosen)
    finally:
        if size > 1:
            dist.destroy_process_group()
