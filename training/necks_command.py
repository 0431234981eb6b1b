"""`python -m training necks`: the necks that a detector can be built with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from training.commands import told

_CHANNELS = 64
_HEIGHT, _WIDTH = 480, 640


def necks_command(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what each neck is, and what it costs at 64 channels on ResNet-18.")
    ] = False,
) -> None:
    """List the necks, one name a line."""
    from training.models.necks import NECKS

    with told(lambda: "stopped"):
        typer.echo(json.dumps(neck_table(), indent=2, ensure_ascii=False) if as_json else "\n".join(NECKS))


def neck_table() -> list[dict[str, Any]]:
    """One object a neck: name, kind, source, liberties, searched, and the cost of the neck alone in a D0 at 480x640.

    parameters: trainable numbers; gmacs: 1e9 multiply-accumulates. Both are None, and `needs` says why, for a neck
    that cannot be built without options.
    """
    import torch

    from training.models.backbone import ResNetPyramid
    from training.models.necks import NECKS

    with torch.device("meta"):
        in_channels = ResNetPyramid("resnet18").out_channels
    rows = []
    for info in NECKS.values():
        row: dict[str, Any] = {
            "name": info.name, "kind": info.kind, "source": info.source, "liberties": info.liberties,
            "searched": info.searched, "parameters": None, "gmacs": None,
        }  # fmt: skip
        try:
            row["parameters"], row["gmacs"] = neck_cost(info.name, in_channels)
        except (OSError, ValueError) as error:
            row["needs"] = str(error)
        rows.append(row)
    return rows


def neck_cost(name: str, in_channels: Sequence[int]) -> tuple[int, float]:
    """Parameters, and 1e9 multiply-accumulates of one 480x640 picture, of a neck with its default options.

    Counted on PyTorch's `meta` device, where shapes are worked out and nothing is computed.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from training.models.necks import build_neck

    with torch.device("meta"):
        neck = build_neck(name, in_channels, _CHANNELS).eval()
        strides = [4 * 2**i for i in range(len(in_channels))]
        maps = [torch.zeros(1, c, -(-_HEIGHT // s), -(-_WIDTH // s)) for c, s in zip(in_channels, strides, strict=True)]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            neck(maps)
    return sum(p.numel() for p in neck.parameters()), round(counter.get_total_flops() / 2e9, 4)
