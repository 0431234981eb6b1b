"""In which precision convolutions are computed: what the recipe asks for, where the machine is fast at it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

Precision = Literal["fp32", "bf16"]


def autocast(device_type: str, wanted: Precision) -> AbstractContextManager[Any]:
    """A context in which convolutions run as `used` says. device_type: `cpu` or `cuda`."""
    if used(device_type, wanted) == "fp32":
        return nullcontext()
    return torch.autocast(device_type, torch.bfloat16)


def used(device_type: str, wanted: Precision) -> Precision:
    """`wanted`, but fp32 on CPUs without AVX-512: oneDNN emulates bfloat16 there, dozens of times slower."""
    if wanted == "bf16" and device_type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "fp32"
    return wanted
