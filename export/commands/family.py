"""`all`: every member of a family that has a checkpoint, resumed and verified."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from export.commands.options import LONG_SIDES, Data, Repo, alone, numbers, reported
from service.engines.base import EngineError
from service.repository.manifest import MANIFEST_NAME
from service.repository.store import RepositoryError, load_manifest
from training.commands import EngineThreads

if TYPE_CHECKING:
    from export.family import Job, Options

CHECKPOINT = "best.pt"


def export_all(
    runs: Annotated[Path, typer.Option(help="Folder of training runs: <runs>/<member>/best.pt.")] = Path("runs"),
    repository: Repo = Path("models"),
    data: Data = Path("../shared/data/faces"),
    members: Annotated[str, typer.Option(help="Only these, with commas between, such as d0,d3.")] = "",
    family: Annotated[
        Path | None, typer.Option(help="family.json of `python -m training evolve`, instead of Table 7.")
    ] = None,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Export members WITHOUT a checkpoint with fresh weights, to be timed.")
    ] = False,
    dataset: Annotated[str, typer.Option(help="Name of the data in the manifest.")] = "faces",
    split: Annotated[str, typer.Option(help="Split to measure AP on.")] = "dev",
    limit: Annotated[int, typer.Option(min=0, help="Evenly spaced photos of it; 0 takes all.")] = 0,
    long_sides: Annotated[str, typer.Option(help="Long sides to measure.")] = LONG_SIDES,
    calibration: Annotated[int, typer.Option(min=1, help="Training photos that INT8 is calibrated on.")] = 160,
    threads: EngineThreads = 0,
    fp16: Annotated[bool, typer.Option("--fp16", help="Also a variant that computes in float16, for GPUs.")] = False,
    data_note: Annotated[
        str, typer.Option(help="What they were trained on, for the card.")
    ] = "photos in WIDER's layout",
) -> None:
    """Export, verify, quantise, measure and describe every member with a checkpoint; again to go on where it stopped.

    Then members that are slower than another and no better in AP.50 are put aside, into the hidden folder .unshipped.
    """
    with reported("stopped; the same command goes on from here"):
        from export.family import Options
        from export.member import LONG_SIDES as EXPORTED

        sides = numbers("--long-sides", long_sides)
        if strangers := [str(side) for side in sides if side not in EXPORTED]:
            raise ValueError(f"--long-sides: there is no {', '.join(strangers)}; there are {LONG_SIDES}")
        if not untrained and not runs.is_dir():
            raise FileNotFoundError(f"--runs: there is no folder {runs}")
        jobs = _jobs(runs, family, _names(members))
        options = Options(
            data=data, dataset=dataset, split=split, limit=limit, long_sides=sides, calibration=calibration,
            threads=threads, fp16=fp16, data_note=data_note,
        )  # fmt: skip
        repository.mkdir(parents=True, exist_ok=True)
        with alone(repository):
            if untrained:
                _export_untrained(jobs, repository)
            else:
                _export_trained(jobs, repository, options)


def _names(members: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in members.split(",") if part.strip()))


def _jobs(runs: Path, family: Path | None, names: tuple[str, ...]) -> list[Job]:
    """What is to be exported. Raises ValueError where a name is unknown, or means a member of another family too."""
    from export.build import Origin
    from export.family import Job
    from training.family import MEMBERS, load_family
    from training.supernet.path import SinglePath

    known = {}
    if family is None:
        known = {name: (path, Origin()) for name, path in MEMBERS.items()}
    else:
        found = load_family(family)
        for one in found.members:
            origin = Origin("machine", one.budget_ms, f"{found.hardware}, {found.target}")
            known[one.name] = (SinglePath.parse(one.path), origin)
        taken = sorted(set(known) & set(MEMBERS))
        if taken:
            raise ValueError(f"{family}: {', '.join(taken)} would replace Table 7's members; rename them in the file")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"--members: there is no {', '.join(unknown)}; there are {', '.join(known)}")
    jobs = []
    for name in names or known:
        checkpoint = runs / name / CHECKPOINT
        path, origin = known[name]
        jobs.append(Job(name, path, checkpoint if checkpoint.is_file() else None, origin))
    return jobs


def _export_trained(jobs: list[Job], repository: Path, options: Options) -> None:
    from export.family import export_member
    from export.shipping import LONG_SIDE, apply_rule

    _refuse(repository, trained=False)
    faults = []
    for job in jobs:
        if job.checkpoint is None:
            typer.echo(f"{job.member}: not trained")
            continue
        try:
            fresh = export_member(job, repository, options, typer.echo)
        except (RepositoryError, EngineError, ValueError) as error:
            # Its stage stays, and the others are not held up by it.
            faults.append(f"{job.member}: {error}")
            typer.secho(faults[-1], fg="red", err=True)
            continue
        typer.echo(f"{job.member}: {'done' if fresh else 'done before'}")
    if LONG_SIDE in options.long_sides:
        for sentence in apply_rule(repository, options.dataset, options.split_name, options.threads).values():
            typer.echo(sentence)
    if faults:
        raise ValueError(f"{len(faults)} member(s) failed: " + "; ".join(faults))


def _export_untrained(jobs: list[Job], repository: Path) -> None:
    from export.family import export_untrained

    _refuse(repository, trained=True)
    for job in jobs:
        if job.checkpoint is not None:
            typer.echo(f"{job.member}: trained, so it is not exported with fresh weights")
            continue
        typer.echo(f"{job.member}: exporting {job.path} with fresh weights")
        fresh = export_untrained(job, repository, typer.echo)
        typer.echo(f"{job.member}: {'done' if fresh else 'done before'}")


def _refuse(repository: Path, trained: bool) -> None:
    """Raise ValueError where the repository holds members of the other kind: they must not be taken for each other."""
    for path in sorted(repository.glob(f"*/{MANIFEST_NAME}")):
        if load_manifest(path).trained == trained:
            kind = "trained members; fresh weights go elsewhere, such as" if trained else "fresh weights; give"
            hint = "--repository build/untrained" if trained else "another --repository"
            raise ValueError(f"{path}: {repository} holds {kind} {hint}")
