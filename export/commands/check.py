"""`list` and `verify`: what is there, and whether it is whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from export.commands.options import Repo, fail, reported
from service.repository.manifest import MANIFEST_NAME


def list_members(
    repository: Repo = Path("models"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List members, variants and their accuracy, and which of Table 7's members are not there."""
    from export.index import index_of, lines

    with reported():
        index = index_of(repository)
        typer.echo(json.dumps(index.model_dump(), indent=2) if as_json else "\n".join(lines(index)))


def verify(
    repository: Repo = Path("models"),
    checkpoint: Annotated[Path | None, typer.Option(help="Also compare with this checkpoint (one member).")] = None,
    member: Annotated[str | None, typer.Option(help="Only this member.")] = None,
    pictures: Annotated[list[Path] | None, typer.Option(help="Pictures to compare on; give it several times.")] = None,
) -> None:
    """Check hashes, run every file at every input size, and compare with the checkpoint where one is given."""
    with reported():
        from export.verify import compare_with_checkpoint, verify_member

        if (checkpoint is None) != (not pictures):
            raise ValueError("comparing takes both --checkpoint and --pictures")
        found = sorted(p.parent for p in repository.glob(f"*/{MANIFEST_NAME}") if not p.parent.name.startswith("."))
        folders = [repository / member] if member else found
        if not folders:
            raise ValueError(f"{repository} holds no member")
        if checkpoint and len(folders) > 1:
            raise ValueError(f"{repository} holds several members; name the checkpoint's by --member")
        faults = []
        for folder in folders:
            faults += verify_member(folder)
            if checkpoint and pictures:
                from training.data.cache import load_picture

                loaded = [load_picture(path) for path in pictures]
                for variant, result in compare_with_checkpoint(folder, checkpoint, loaded).items():
                    typer.echo(f"{variant}: {result}")
                    if result.unmatched:
                        faults.append(f"{variant}: {result.unmatched} of {result.compared} detections differ")
        if faults:
            raise fail("; ".join(faults))
        typer.echo(f"{len(folders)} member(s): every file is whole and keeps the contract")
