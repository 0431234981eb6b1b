"""`python -m training train-family`: several members in one go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.commands import stop_on_sigterm, told
from training.family_runs import Job, run_jobs

_OWN = ("--data", "--out", "--recipe", "--member", "--neck", "--genotype", "--family", "--teacher", "--epochs",
        "--split", "--cache")  # fmt: skip


def train_family_command(
    members: Annotated[str, typer.Option(help="Members, with commas between, in the order of their starts.")],
    options: Annotated[
        list[str] | None,
        typer.Argument(help="After `--`: options of `train` for every member, such as `--validate-every 500`."),
    ] = None,
    data: Annotated[Path, typer.Option(help="Folder in WIDER Face's layout, or its short form.")] = Path(
        "../shared/data/faces"
    ),
    recipe: Annotated[str, typer.Option(help="A name of training/recipes.py.")] = "asfd",
    out: Annotated[Path, typer.Option(help="Folder of the runs' folders; runs found there are resumed.")] = Path(
        "runs"
    ),
    parallel: Annotated[int, typer.Option(min=1, help="Members that train at once, as memory allows.")] = 2,
    neck: Annotated[str, typer.Option(help="A name that `python -m training necks` prints.")] = "fpn",
    genotype: Annotated[Path | None, typer.Option(help="Genotype of the searched neck.")] = None,
    family: Annotated[Path | None, typer.Option(help="family.json of `evolve`, whose members are meant.")] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="All learn from this detector too: a checkpoint, or an exported .onnx.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Overrides the recipe's length; may change on resume.")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop all after that time, each with its state saved.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split to train on.")] = "train",
    cache: Annotated[Path, typer.Option(help="Folder for decoded pictures.")] = Path(".cache/pictures"),
    pack: Annotated[
        Path | None, typer.Option(help="Keep each member's best weights in a folder here, as `pack` writes them.")
    ] = None,
    part_mib: Annotated[float, typer.Option(help="With --pack: largest part, MiB.")] = 15.0,
    status_every: Annotated[float, typer.Option(min=0.1, help="Seconds between lines of status.")] = 30.0,
) -> None:
    """Train several members, a process each, with the log of each in OUT/MEMBER/train.log.

    Ctrl-C, SIGTERM or the end of --minutes makes each save and stop; the same command goes on. A member that fails
    leaves the others alone and is named at the end, with exit status 1.
    """
    from training.data.dataset import load_training_set
    from training.engine.packing import pack as write_pack
    from training.recipes import RECIPES

    def keep(job: Job) -> None:
        """Pack a member's best weights, or its last where nothing has been evaluated yet, if they are new."""
        source = next((job.out / name for name in ("best.pt", "last.pt") if (job.out / name).is_file()), None)
        if pack is None or source is None or packed.get(job.name) == (source, source.stat().st_mtime_ns):
            return
        packed[job.name] = (source, source.stat().st_mtime_ns)
        try:
            write_pack(source, pack / job.name, round(part_mib * 2**20))
        except (OSError, ValueError) as error:
            typer.secho(f"{job.name}: not packed: {error}", fg="red", err=True)

    packed: dict[str, tuple[Path, int]] = {}
    stop_on_sigterm()
    with told(lambda: "stopped before any run began"):
        if recipe not in RECIPES:
            raise ValueError(f"no recipe {recipe!r}; there are {', '.join(RECIPES)}")
        shared = _shared(data, recipe, neck, genotype, family, teacher, epochs, split, cache, options or [])
        jobs = _jobs(members, out, shared, neck, genotype, family)
        # Once, so that runs do not each decode the same pictures at their start.
        load_training_set(data, split, cache, RECIPES[recipe]().data)
        outcome = run_jobs(
            jobs, parallel, None if minutes is None else minutes * 60, typer.echo, keep, status_every
        )  # fmt: skip
    if outcome.stopped or outcome.waiting:
        words = [f"{', '.join(names)} {what}" for names, what in (
            (outcome.stopped, "stopped"), (outcome.waiting, "not begun")) if names]  # fmt: skip
        typer.echo(f"{'; '.join(words)}: the same command goes on")
    for name, why in outcome.failed.items():
        typer.secho(f"error: {name} failed, {why} (see {out / name / 'train.log'})", fg="red", err=True)
    if outcome.failed:
        raise typer.Exit(1)
    if outcome.ended == "interrupt":
        raise typer.Exit(130)


def _shared(
    data: Path, recipe: str, neck: str, genotype: Path | None, family: Path | None, teacher: Path | None,
    epochs: float | None, split: str, cache: Path, options: list[str],
) -> tuple[str, ...]:  # fmt: skip
    """The options of `train` that all members have. Raises ValueError where `options` names one of this command's."""
    for text in options:
        if text.partition("=")[0] in _OWN:
            raise ValueError(f"{text.partition('=')[0]} belongs before the `--`, as an option of train-family")
    values = {
        "--data": data, "--recipe": recipe, "--neck": neck, "--genotype": genotype, "--family": family,
        "--teacher": teacher, "--epochs": epochs, "--split": split, "--cache": cache,
    }  # fmt: skip
    given = [(name, str(value)) for name, value in values.items() if value is not None]
    return (*(text for pair in given for text in pair), *options)


def _jobs(
    members: str, out: Path, shared: tuple[str, ...], neck: str, genotype: Path | None, family: Path | None
) -> list[Job]:
    """A job a member. Raises OSError, and ValueError where one is not known, named twice or cannot have that neck, so
    that none starts in vain."""
    from training.family import member_config

    names = [name.strip() for name in members.split(",") if name.strip()]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"--members takes names with commas between, each once, such as d1,d2, not {members!r}")
    for name in names:
        member_config(name, neck, genotype, family)
    return [Job(name, out / name, ("--member", name, "--out", str(out / name), *shared)) for name in names]
