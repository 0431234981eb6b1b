"""`python -m training ablate`: the same short training over and over, one change at a time."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from training.ablation.changes import BASE, Change, changes
from training.ablation.table import Budget, Result, Table, markdown
from training.config import CropSize, TrainConfig

# Kinds of photos in the data that this project was developed on; on other data, --without names the folders.
KINDS = {
    "groups": ("facecount", "facecount_test"),
    "masks": ("eden_mask", "maskon", "facemask853", "tfm_mask", "ilc2021"),
    "portraits": ("rf_daniyal", "rf_mik1i_gray", "rf_thesis1", "fddb_ub2026"),
    "crowds": ("shanghaitech_A", "shanghaitech_B"),
    "web": ("webfaces", "rbnr"),
    "negatives": ("negatives",),
}


def budgeted(config: TrainConfig, side: int, batch: int, images: int, photos: int) -> TrainConfig:
    """`config` cut down to `images` crops: one crop size, warm-up over a tenth of the steps.

    SGD's rate is per 32 pictures in the paper; it follows the batch by the square root, which few steps need more than
    the linear rule gives.
    """
    steps = max(1, images // batch)
    rate = config.optim.lr * (batch / 32) ** 0.5 if config.optim.name == "sgd" else config.optim.lr
    optim = replace(
        config.optim, lr=rate, warmup_steps=min(config.optim.warmup_steps, steps // 10), ema=min(config.optim.ema, 0.99)
    )
    return replace(config, sizes=(CropSize(side, batch),), epochs=images / photos, optim=optim)


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
    side: Annotated[int, typer.Option(min=32, help="Side of a crop, pixels.")] = 320,
    batch: Annotated[int, typer.Option(min=1, help="Crops a step.")] = 16,
    start: Annotated[Path | None, typer.Option(help="Weights to start from: a checkpoint or exported file.")] = None,
    keep_head: Annotated[bool, typer.Option(help="With --start: keep its head too.")] = False,
    long_side: Annotated[int, typer.Option(help="Long side of evaluation, pixels.")] = 640,
    limit: Annotated[int, typer.Option(help="Evaluate on that many evenly spaced photos; 0 takes all.")] = 0,
    dev_split: Annotated[str, typer.Option(help="Split to evaluate on.")] = "dev",
    without: Annotated[
        list[str] | None, typer.Option(help="A kind of photos to leave out, as name=folder,folder; may be repeated.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads of the network; 0 leaves torch's default.")] = 0,
    workers: Annotated[int, typer.Option(help="Loader processes.")] = 1,
    cache: Annotated[Path, typer.Option(help="Folder for decoded pictures.")] = Path(".cache/pictures"),
    list_rows: Annotated[bool, typer.Option("--list", help="List the rows and stop.")] = False,
) -> None:
    """Train one short run a row and seed, each with one change against the base, and write a table of gains.

    Stop it at any time: finished runs are kept, and the same command goes on with the others.
    """
    from training.data.dataset import CropDataset, load_training_set
    from training.evaluation.command import write_json
    from training.evaluation.detections import read_split
    from training.family import MEMBERS
    from training.recipes import RECIPES

    try:
        known = changes(_kinds(without))
        if list_rows:
            for row in known.values():
                typer.echo(f"{row.name:20} {row.kind:7} {row.about}")
            return
        chosen, numbers = _choose(rows, known), [int(value) for value in seeds.split(",")]
        for name, there in ((base, RECIPES), (member, MEMBERS)):
            if name not in there:
                raise ValueError(f"no {name!r}; there are {', '.join(there)}")
        photos = len(read_split(data, dev_split, limit or None)[0])
        budget = Budget(
            base=base, member=member, images=images, side=side, batch=batch, start=str(start) if start else None,
            keep_head=keep_head, split=dev_split, photos=photos, long_side=long_side,
        )  # fmt: skip
        table = _open(out, budget)
        done = {(result.row, result.seed) for result in table.results}
        plain = replace(RECIPES[base](), model=MEMBERS[member])
        loaded: CropDataset | None = None
        # Seed by seed, so that an interrupted table still has every row.
        for number, change in ((n, c) for n in numbers for c in chosen):
            if (change.name, number) in done:
                continue
            loaded = loaded or load_training_set(data, "train", cache, plain.data)
            config = budgeted(change.apply(plain), side, batch, images, len(loaded))
            config = replace(config, recipe=f"{base} + {change.name}", seed=number)
            typer.echo(f"{change.name}, seed {number}: {change.about}")
            result = _one(change, config, loaded, budget, data, out, start, device, threads, workers)
            table.results.append(result)
            write_json(out / "table.json", table.model_dump())
            (out / "table.md").write_text(markdown(table, BASE), encoding="utf-8")
            typer.echo(f"  AP.50 {result.ap50:.4f}, AP {result.ap:.4f} after {result.seconds:.0f} s")
        typer.echo(markdown(table, BASE))
    except (FileNotFoundError, ValueError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on with the runs that are not done", err=True)
        raise typer.Exit(130) from None


def _one(
    change: Change, config: TrainConfig, loaded: object, budget: Budget, data: Path, out: Path, start: Path | None,
    device: str | None, threads: int, workers: int,
) -> Result:  # fmt: skip
    """Train and evaluate one row with one seed; its folder is removed at the end."""
    import torch

    from training.data.dataset import CropDataset
    from training.engine.distributed import world as join
    from training.engine.loop import RunOptions
    from training.engine.loop import train as run
    from training.engine.validate import score_split

    assert isinstance(loaded, CropDataset)
    torch.set_flush_denormal(True)
    if threads:
        torch.set_num_threads(threads)
    folder = out / f"{change.name}-{config.seed}"
    scores: dict[str, float] = {}

    def validate(model: object) -> dict[str, float]:
        from training.models.detector import Detector

        assert isinstance(model, Detector)
        # Evaluated as it was trained: on CPUs that can, bfloat16 halves the time.
        with torch.autocast(world.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            scores.update(score_split(model, data, budget.split, budget.long_side, budget.photos))
        return scores

    photos = CropDataset(loaded.photos, loaded.cache, config.data, loaded.origins)
    options = RunOptions(folder, workers, init=start, keep_head=budget.keep_head)
    folder.mkdir(parents=True, exist_ok=True)
    with join(device) as world:
        progress = run(config, photos, options, world, validate)
    result = Result(
        row=change.name, about=change.about, kind=change.kind, seed=config.seed, images=progress.images,
        seconds=progress.seconds, **scores,
    )  # fmt: skip
    shutil.rmtree(folder)
    return result


def _kinds(without: list[str] | None) -> dict[str, tuple[str, ...]]:
    if not without:
        return KINDS
    pairs = [text.partition("=") for text in without]
    if any(not name or not folders for name, _, folders in pairs):
        raise ValueError("--without takes name=folder,folder")
    return {name: tuple(folders.split(",")) for name, _, folders in pairs}


def _choose(text: str, known: dict[str, Change]) -> list[Change]:
    """The base first, then the rows that were asked for."""
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    for name in wanted:
        if name not in known and name not in ("recipe", "data", "all"):
            raise ValueError(f"no row {name!r}; `--list` names them")
    return [
        row for row in known.values()
        if row.name == BASE or row.name in wanted or row.kind in wanted or "all" in wanted
    ]  # fmt: skip


def _open(out: Path, budget: Budget) -> Table:
    """The table in `out`, or a new one. Raises ValueError where one of another budget is there."""
    from service.profiling import hardware_name

    path = out / "table.json"
    if not path.is_file():
        return Table(budget=budget, hardware=hardware_name(0).rsplit(", ", 2)[0], results=[])
    try:
        table = Table.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise ValueError(f"{path} is not a table of this command: {error.error_count()} faults") from None
    if table.budget != budget:
        raise ValueError(f"{path} was made under another budget ({table.budget}); name another --out")
    return table
