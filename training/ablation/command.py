"""`python -m training ablate`: the same short training over and over, one change at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from service.profiling import machine_name
from service.repository.store import sha256_of
from training.ablation.changes import BASE, Change, changes
from training.ablation.table import Budget, Table, markdown
from training.commands import TorchThreads, Workers, told, whole_numbers
from training.files import write_bytes, write_json

# Kinds of photos in the data that this project was developed on; on other data, --without names the folders.
KINDS = {
    "groups": ("facecount", "facecount_test"),
    "masks": ("eden_mask", "maskon", "facemask853", "tfm_mask", "ilc2021"),
    "portraits": ("rf_daniyal", "rf_mik1i_gray", "rf_thesis1", "fddb_ub2026"),
    "crowds": ("shanghaitech_A", "shanghaitech_B"),
    "web": ("webfaces", "rbnr"),
    "negatives": ("negatives",),
}


def ablate_command(
    data: Annotated[Path, typer.Option(help="Folder in WIDER Face's layout, or its short form.")] = Path(
        "../shared/data/faces"
    ),
    out: Annotated[Path, typer.Option(help="Folder of results; what is found there is not run again.")] = Path(
        "runs/ablation"
    ),
    rows: Annotated[str, typer.Option(help="Rows, with commas between; `recipe`, `data` or `all` of them.")] = "recipe",
    seeds: Annotated[str, typer.Option(help="Seeds, with commas between.")] = "0,1,2",
    base: Annotated[str, typer.Option(help="The recipe that rows change.")] = "paper",
    member: Annotated[str, typer.Option(help="d0, d1 or d2.")] = "d0",
    images: Annotated[int, typer.Option(min=1, help="Crops a run.")] = 20_000,
    side: Annotated[int, typer.Option(min=32, help="Side of a crop, pixels, a multiple of 8.")] = 320,
    batch: Annotated[int, typer.Option(min=1, help="Crops a step.")] = 16,
    start: Annotated[Path | None, typer.Option(help="Weights to start from: a checkpoint or exported file.")] = None,
    keep_head: Annotated[bool, typer.Option(help="With --start: keep its head too.")] = False,
    teacher: Annotated[
        Path | None, typer.Option(help="Teacher of rows that need one: a checkpoint or a member's exported .onnx.")
    ] = None,
    long_side: Annotated[int, typer.Option(min=1, help="Long side of evaluation, pixels.")] = 640,
    limit: Annotated[int, typer.Option(min=0, help="Evaluate on that many evenly spaced photos; 0 takes all.")] = 0,
    dev_split: Annotated[str, typer.Option(help="Split to evaluate on.")] = "dev",
    without: Annotated[
        list[str] | None, typer.Option(help="A kind of photos to leave out, as name=folder,folder; may be repeated.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one.")] = None,
    threads: TorchThreads = 0,
    workers: Workers = 1,
    cache: Annotated[Path, typer.Option(help="Folder for decoded pictures.")] = Path(".cache/pictures"),
    list_rows: Annotated[bool, typer.Option("--list", help="List the rows and stop.")] = False,
) -> None:
    """Train one short run a row and seed, each with one change against the base, and write a table of gains.

    Stop it at any time: finished runs are kept, and the same command goes on with the others.
    """
    import torch

    from training.ablation.run import Place, changes_nothing, discard, run
    from training.data.dataset import load_training_set
    from training.engine.teacher import teacher_name
    from training.evaluation.detections import read_split
    from training.family import MEMBERS
    from training.models.device import chosen_device
    from training.recipes import RECIPES

    failed = 0
    with told(lambda: "stopped; the same command goes on with the runs that are not done"):
        known = changes(_kinds(without))
        if list_rows:
            for row in known.values():
                typer.echo(f"{row.name:20} {row.kind:7} {row.about}{' (needs --teacher)' if row.taught else ''}")
            return
        if side % 8:
            raise ValueError(f"--side must be a multiple of 8, not {side}")
        chosen, wanted = _choose(rows, known, teacher is not None), whole_numbers("--seeds", seeds)
        for name, there in ((base, RECIPES), (member, MEMBERS)):
            if name not in there:
                raise ValueError(f"no {name!r}; there are {', '.join(there)}")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("runs are compared on one process; start it without torchrun")
        device = str(chosen_device(device))
        place = Place(data, out, start, device, threads, workers, teacher)
        budget = Budget(
            base=base, member=member, data=data.name, device=place.device, images=images, side=side, batch=batch,
            start=start.name if start else None, start_sha256=sha256_of(start) if start else None, keep_head=keep_head,
            split=dev_split, photos=len(read_split(data, dev_split, limit or None)[0]), long_side=long_side,
            teacher=teacher_name(teacher) if teacher else None,
        )  # fmt: skip
        processor = torch.cuda.get_device_name() if budget.device == "cuda" else machine_name()
        table = _open(out, budget, processor)
        _write(table, out)  # before any run, so that one that was cut off is gone on with under this budget alone
        photos = load_training_set(data, "train", cache, RECIPES[base]().data)
        # Seed by seed, so that an interrupted table still has every row.
        for seed, change in ((n, c) for n in wanted for c in chosen):
            if any((r.row, r.about, r.seed) == (change.name, change.about, seed) for r in table.results):
                continue
            typer.echo(f"{change.name}, seed {seed}: {change.about}")
            try:
                if changes_nothing(change, budget, photos):
                    typer.echo("  left out: the base is so already")
                    continue
                result = run(change, seed, photos, budget, place)
            except ValueError as error:
                failed += 1
                typer.secho(f"  error: {error}", fg="red", err=True)
                continue
            table.results.append(result)
            _write(table, out)
            discard(change, seed, place)
            typer.echo(f"  AP.50 {result.ap50:.4f}, AP {result.ap:.4f} after {result.seconds:.0f} s")
        typer.echo(markdown(table, BASE))
    if failed:
        raise typer.Exit(1)


def _write(table: Table, out: Path) -> None:
    write_json(out / "table.json", table.model_dump())
    write_bytes(out / "table.md", markdown(table, BASE).encode())


def _kinds(without: list[str] | None) -> dict[str, tuple[str, ...]]:
    if not without:
        return KINDS
    pairs = [text.partition("=") for text in without]
    if any(not name or not folders for name, _, folders in pairs):
        raise ValueError("--without takes name=folder,folder")
    return {name: tuple(folders.split(",")) for name, _, folders in pairs}


def _choose(text: str, known: dict[str, Change], teacher: bool) -> list[Change]:
    """The base first, then the rows that were asked for; without a teacher, no group of rows has one that needs it."""
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    for name in wanted:
        if name not in known and name not in ("recipe", "data", "all"):
            raise ValueError(f"no row {name!r}; `--list` names them")
        if name in known and known[name].taught and not teacher:
            raise ValueError(f"the row {name!r} needs a teacher: name a checkpoint or an exported .onnx with --teacher")
    return [
        row for row in known.values()
        if row.name == BASE or row.name in wanted
        or ((row.kind in wanted or "all" in wanted) and (teacher or not row.taught))
    ]  # fmt: skip


def _open(out: Path, budget: Budget, processor: str) -> Table:
    """The table in `out`, or a new one. Raises ValueError where one of another budget is there.

    A table without a teacher can get one later, and keeps the one that it has.
    """
    path = out / "table.json"
    if not path.is_file():
        return Table(budget=budget, hardware=processor, results=[])
    try:
        table = Table.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise ValueError(f"{path} is not a table of this command: {error.error_count()} faults") from None
    if table.budget.teacher is None or budget.teacher is None:
        one = table.budget.teacher or budget.teacher
        table.budget, budget = (b.model_copy(update={"teacher": one}) for b in (table.budget, budget))
    if table.budget != budget:
        raise ValueError(f"{path} was made under another budget ({table.budget}); name another --out")
    return table
