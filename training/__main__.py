"""`python -m training`: train, evaluate and describe detectors."""

from __future__ import annotations

import dataclasses
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from training.ablation.command import ablate_command
from training.commands import TorchThreads, Workers, end_with_parent, held, stop_on_sigterm, told, validation_split
from training.evaluation.command import evaluate_command, score_submission_command
from training.evaluation.errors_command import errors_command
from training.evaluation.fddb_command import evaluate_fddb_command
from training.evolution.command import evolve_command
from training.family_command import train_family_command
from training.figures.command import figure_app
from training.generic.command import generic_command
from training.necks_command import necks_command
from training.packing_command import pack_command, unpack_command
from training.search.command import search_command
from training.supernet.command import cut_command, supernet_command
from training.tables.command import table_command

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)

MemberName = Annotated[str, typer.Option(help="d0 .. d6 of Table 7, or a single path such as R18-FA-Hx1-64.")]
NECK_HELP = "A name that `python -m training necks` prints; by default autofae for `describe`, fpn for `train`."
NeckName = Annotated[str, typer.Option(help=NECK_HELP)]
GenotypeFile = Annotated[Path | None, typer.Option(help="Genotype of a searched neck; default: the project's own.")]
FamilyFile = Annotated[Path | None, typer.Option(help="family.json of `evolve`, whose members are meant.")]
CROPS = {"auto": None, "loader": False, "device": True}
Data = Annotated[Path, typer.Option(help="Folder in WIDER Face's layout, or its short form (see README).")]


app.command(name="evaluate")(evaluate_command)
app.command(name="evaluate-fddb")(evaluate_fddb_command)
app.command(name="score-submission")(score_submission_command)
app.command(name="ablate")(ablate_command)
app.command(name="errors")(errors_command)
app.add_typer(figure_app, name="figure")
app.command(name="necks")(necks_command)
app.command(name="generic")(generic_command)
app.command(name="search")(search_command)
app.command(name="table")(table_command)
app.command(name="supernet")(supernet_command)
app.command(name="cut")(cut_command)
app.command(name="evolve")(evolve_command)
app.command(name="train-family")(train_family_command)
app.command(name="pack")(pack_command)
app.command(name="unpack")(unpack_command)


def _fail(message: object) -> typer.Exit:
    typer.secho(f"error: {message}", fg="red", err=True)
    return typer.Exit(2)


@app.command()
def train(
    data: Data = Path("../shared/data/faces"),
    out: Annotated[Path, typer.Option(help="Folder of the run; a run found there is resumed.")] = Path("runs/d0"),
    recipe: Annotated[
        str, typer.Option(help="A name of training/recipes.py, such as paper, asfd or scratch-cpu.")
    ] = "scratch-cpu",
    member: MemberName = "d0",
    neck: NeckName = "fpn",
    genotype: GenotypeFile = None,
    family: FamilyFile = None,
    epochs: Annotated[float | None, typer.Option(help="Overrides the recipe's length; may change on resume.")] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.01, help="End after that time in steps, schedule included, instead of after epochs."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, crops and augmentation.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one.")] = None,
    threads: TorchThreads = 0,
    workers: Workers = 1,
    cache: Annotated[Path, typer.Option(help="Folder for decoded pictures (about 7 GB for 9,600 photos).")] = Path(
        ".cache/pictures"
    ),
    init: Annotated[
        Path | None, typer.Option(help="Start from a checkpoint, or from a member's exported .onnx.")
    ] = None,
    grow: Annotated[
        Path | None, typer.Option(help="Start from a smaller member, made larger: a checkpoint, or an exported .onnx.")
    ] = None,
    imagenet: Annotated[Path | None, typer.Option(help="torchvision ImageNet weights of the backbone, a file.")] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="Learn from this detector too: a checkpoint, or a member's exported .onnx.")
    ] = None,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 200,
    validate_every: Annotated[int, typer.Option(help="Steps between evaluations; 0: only at the end.")] = 0,
    validate_on: Annotated[int, typer.Option(help="Number of evenly spaced photos to evaluate on; 0 takes all.")] = 0,
    split: Annotated[str, typer.Option(help="Split to train on.")] = "train",
    dev_split: Annotated[
        str | None, typer.Option(help="Split to evaluate on; default: dev, or val where there is no dev.")
    ] = None,
    long_side: Annotated[int, typer.Option(help="Long side of evaluation, pixels.")] = 640,
    compile: Annotated[bool, typer.Option(help="torch.compile the network.")] = False,
    crops: Annotated[
        str, typer.Option(help="Who cuts crops: loader, device, or auto: the device if it is a GPU with room for all.")
    ] = "auto",
) -> None:
    """Train a detector. Stop it with Ctrl-C at any time; the same command goes on where it stopped.

    Several GPUs:       torchrun --nproc-per-node 4 -m training train --out runs/d0

    Several CPU cores:  torchrun --nproc-per-node 2 -m training train --out runs/d0 --threads 1
    """
    end_with_parent()
    from training.data.dataset import load_training_set
    from training.engine.cpu import prepare_cpu
    from training.engine.distributed import world as join
    from training.engine.loop import RunOptions, steps_for
    from training.engine.loop import train as run
    from training.engine.teacher import taught_by
    from training.engine.validate import score_split
    from training.family import member_config
    from training.recipes import RECIPES

    if recipe not in RECIPES:
        raise _fail(f"no recipe {recipe!r}; there are {', '.join(RECIPES)}")
    if crops not in CROPS:
        raise _fail(f"no way to cut crops {crops!r}; there are {', '.join(CROPS)}")
    if minutes is not None and epochs is not None:
        raise _fail("--epochs and --minutes both say when to end; give one of them")
    if init and grow:
        raise _fail("--init and --grow both say what to start from; give one of them")
    with told(lambda: "stopped before the run began"):
        model = member_config(member, neck, genotype, family)
    config = dataclasses.replace(RECIPES[recipe](), model=model, seed=seed)
    if epochs is not None:
        config = dataclasses.replace(config, epochs=epochs)
    prepare_cpu(threads)
    stop_on_sigterm()
    options = RunOptions(
        out, workers, save_every, validate_every, compile=compile, minutes=minutes, init=init, grow=grow,
        imagenet=imagenet, device_crops=CROPS[crops], teacher=teacher,
    )  # fmt: skip
    with (
        told(lambda: f"stopped; run the same command again to go on from {out / 'last.pt'}"),
        join(device) as world,
        held(out) if world.main else nullcontext(),
    ):
        if teacher:
            config = taught_by(config, teacher)
        judged = dev_split or validation_split(data)
        photos = load_training_set(data, split, cache, config.data)
        if world.main:
            steps = steps_for(config, len(photos), world.size)
            length = f"{steps} steps" if minutes is None else f"{minutes:g} minutes"
            typer.echo(f"{config.recipe} {member}: {len(photos)} photos, {length}")
        done = run(
            config, photos, options, world,
            lambda model: score_split(model, data, judged, long_side, validate_on or None),
        )  # fmt: skip
        if world.main:
            typer.echo(f"done: {done.images} pictures in {done.seconds / 60:.1f} min, AP.50 {done.best:.4f}")


@app.command()
def describe(
    member: Annotated[str, typer.Argument(help="d0 .. d6, or a single path such as R18-FA-Hx1-64.")] = "d0",
    neck: NeckName = "autofae",
    genotype: GenotypeFile = None,
    family: FamilyFile = None,
) -> None:
    """Print a member's single path, structure, parameters, and multiply-accumulates (1e9) at 480x640."""
    from training.family import count, member_config, single_path

    with told(lambda: "stopped"):
        config = member_config(member, neck, genotype, family)
        plain = dataclasses.asdict(config)
        if plain["neck_options"]["genotype"]:
            plain["neck_options"]["genotype"] = str(genotype)
        path = {"member": member, "path": str(single_path(member, family))}
        typer.echo(json.dumps({**path, **plain, **dataclasses.asdict(count(config))}, indent=2))


if __name__ == "__main__":
    sys.exit(app())
