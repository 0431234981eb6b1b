"""`python -m training pack` and `unpack`: carry a checkpoint from a machine that is lent for a short time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.commands import told


def pack_command(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of `train`, such as runs/d1/best.pt.")],
    out: Annotated[Path, typer.Option(help="Folder of the parts; a pack found there is replaced.")],
    part_mib: Annotated[float, typer.Option(help="Largest part, MiB.")] = 15.0,
) -> None:
    """Write a checkpoint's averaged weights, halved, in numbered parts with a JSON of their hashes.

    What is left is enough for `export onnx`, `--init` and `--teacher`, not to resume the run.
    """
    from training.engine.packing import pack

    with told(lambda: "stopped; the same command begins again"):
        made = pack(checkpoint, out, round(part_mib * 2**20))
        typer.echo(f"{out}: {made.size / 2**20:.1f} MiB in {len(made.parts)} parts")


def unpack_command(
    folder: Annotated[Path, typer.Argument(help="Folder of `pack`.")],
    out: Annotated[Path, typer.Option(help="The checkpoint to write.")],
) -> None:
    """Check the parts of a pack and join them to a checkpoint."""
    from training.engine.packing import unpack

    with told(lambda: "stopped; the same command begins again"):
        made = unpack(folder, out)
        typer.echo(f"{out}: {made.size / 2**20:.1f} MiB, every hash as it was packed")
