"""Where a network runs."""

from __future__ import annotations

import torch


def chosen_device(name: str | None) -> torch.device:
    """`cpu`, `cuda` or `cuda:1`; None: a GPU where there is one. Raises ValueError where this machine has none such."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        device = torch.device(name or ("cuda" if gpus else "cpu"))
    except RuntimeError:
        raise ValueError(f"no device {name!r}; there are cpu and cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"no device {name!r}; there are cpu and cuda")
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise ValueError(f"no device {name!r}: PyTorch sees {gpus} GPUs here")
    return device
