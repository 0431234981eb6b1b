"""What a CPU needs to train at its best speed, set before any thread is started, since threads inherit it."""

from __future__ import annotations

import ctypes

import torch

# Parameters of glibc's mallopt(3), and a size that nothing reaches.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER = (1 << 31) - 1


def prepare_cpu(threads: int = 0) -> None:
    """threads: of the network; 0 leaves torch's default. May be called again."""
    # Adam's moments of channels without gradient decay into denormals, which made steps 15 times slower.
    torch.set_flush_denormal(True)
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)


def keep_freed_memory() -> bool:
    """Have malloc keep what is freed for what is asked next, instead of giving it back to the system, which hands it
    out again page by page, each cleared: tens of thousands of page faults a training step.

    -> whether that was possible: it is with glibc, and its memory then stays at its peak.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _NEVER)) and bool(mallopt(_MMAP_THRESHOLD, _NEVER))
