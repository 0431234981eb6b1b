"""`python -m training evaluate`: AP of detectors on an annotated split; `score-submission`: of predictions as text."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from service.engines.base import Detections
from training.commands import EngineThreads, told, validation_split
from training.data.wider import PhotoAnnotation
from training.evaluation.detections import Named, Run, Source, read_split, run_source, upright_size
from training.evaluation.official import read_subsets
from training.evaluation.protocols import FLIP_HELP, PROTOCOL_HELP, InputProtocol, label, open_by_protocol
from training.evaluation.sources import SOURCE_HELP
from training.evaluation.submission import SubmissionFolder, read_submission, whole_pixels
from training.evaluation.wider import Report, evaluate
from training.files import check_writable, write_json

OFFICIAL_HELP = "Folder of WIDER's wider_{easy,medium,hard}_val.mat; adds those three, for val."
SUBMISSION_HELP = (
    "Also write one text file a photo, in WIDER's format; a run that was cut off goes on from them. With several "
    "variants or sizes, one folder more for each."
)
SPLIT_HELP = "By default dev, or val where there is no dev, as in WIDER Face."


def evaluate_command(
    source: Annotated[str, typer.Argument(help=SOURCE_HELP)],
    data: Annotated[Path, typer.Option(help="Folder in WIDER Face's layout, or its short form.")] = Path(
        "../shared/data/faces"
    ),
    split: Annotated[str | None, typer.Option(help=f"Split to evaluate on. {SPLIT_HELP}")] = None,
    long_side: Annotated[
        list[int] | None, typer.Option(help="Long side that photos are resized to; may be given several times. [640]")
    ] = None,
    protocol: Annotated[InputProtocol, typer.Option(help=PROTOCOL_HELP)] = InputProtocol.VGA,
    flip: Annotated[bool, typer.Option("--flip", help=FLIP_HELP)] = False,
    out: Annotated[Path | None, typer.Option(help="Write the full reports to this JSON file.")] = None,
    official: Annotated[Path | None, typer.Option(help=OFFICIAL_HELP)] = None,
    submission: Annotated[Path | None, typer.Option(help=SUBMISSION_HELP)] = None,
    limit: Annotated[int, typer.Option(min=0, help="Take that many evenly spaced photos; 0 takes all.")] = 0,
    threads: EngineThreads = 0,
    device: Annotated[str | None, typer.Option(help="cpu or cuda, for a checkpoint.")] = None,
) -> None:
    """Measure AP.50 and AP[.50:.95] by the WIDER protocol, by face size too.

    Small faces are under 5 % of the photo's long side, large ones 15 % and more.

    `strict` is AP.50 with false positives on photos without faces counted,
    which the WIDER protocol leaves out.
    """
    with told(lambda: stopped(submission)):
        check_writable(out)
        split = split or validation_split(data)
        photos, images = read_split(data, split, limit or None)
        subsets = read_subsets(official) if official is not None else {}
        check_subsets(subsets, photos)
        sources = open_by_protocol(source, protocol, long_side, flip=flip, threads=threads, device=device)
        folders = submission_folders(submission, sources)
        about = {"protocol": str(protocol), "flip": flip}
        rows: list[dict[str, Any]] = []
        typer.echo(f"protocol: {label(protocol, flip)}")
        typer.echo(HEADER)
        for one, folder in zip(sources, folders, strict=True):
            run = run_source(one, photos, images, store=store_of(folder, one, about, photos))
            report = evaluate(run.found, photos, photo_sizes=run.sizes)
            milliseconds = median_ms(run)
            typer.echo(table_row(one.name, one.long_side, report, milliseconds))
            row = {"source": one.name, "long_side": one.long_side, "input_protocol": str(protocol), "flip": flip}
            row |= {"ms": milliseconds, **asdict(report)} | details(report, run.found, subsets)
            rows.append(row)
            if out is not None:
                write_json(
                    out,
                    {
                        "data": data.name, "split": split, "input_protocol": str(protocol), "flip": flip, "rows": rows,
                    },
                )  # fmt: skip


def score_submission_command(
    folder: Annotated[Path, typer.Argument(help="Predictions in WIDER's format: event/photo.txt, of any detector.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Folder in WIDER Face's layout, or its short form; not needed where --official is given."),
    ] = None,
    split: Annotated[str | None, typer.Option(help=f"Split that was predicted. {SPLIT_HELP}")] = None,
    official: Annotated[Path | None, typer.Option(help=OFFICIAL_HELP)] = None,
    out: Annotated[Path | None, typer.Option(help="Write the full report to this JSON file.")] = None,
) -> None:
    """Measure AP of predictions in text files, as `evaluate` measures a detector.

    With --official alone, neither photos nor annotations in text are needed.
    """
    with told(lambda: "stopped"):
        check_writable(out)
        if data is None and official is None:
            raise ValueError("nothing to score against: give --data, --official, or both")
        subsets = read_subsets(official) if official is not None else {}
        row: dict[str, Any] = {"source": folder.name}
        if data is not None:
            split = split or validation_split(data)
            photos, images = read_split(data, split)
            check_subsets(subsets, photos)
            found = read_submission(folder, photos)
            report = evaluate(
                found, photos, photo_sizes={photo.name: upright_size(images / photo.name) for photo in photos}
            )
            typer.echo(HEADER)
            typer.echo(table_row(folder.name, None, report, None))
            row |= asdict(report) | details(report, found, subsets)
            row["data"], row["split"] = data.name, split
        else:
            found = read_submission(folder, subsets["hard"])
            row["official"] = official_scores(found, subsets)
            typer.echo(official_line(row["official"]))
        if whole_pixels(found):
            typer.secho("note: every box lies on whole pixels, which costs AP at high IoU", fg="yellow", err=True)
        if out is not None:
            write_json(out, row)


def details(
    report: Report, found: Mapping[str, Detections], subsets: Mapping[str, Sequence[PhotoAnnotation]]
) -> dict[str, Any]:
    """Print what has no column in the table. -> what it adds to the row: `official`, where subsets are given."""
    if report.best is not None:
        best = report.best
        typer.echo(
            f"  best F1 {best.f1:.4f} at score {best.score:.2f}: precision {best.precision:.4f}, "
            f"recall {best.recall:.4f}"
        )
    if not subsets:
        return {}
    scores = official_scores(found, subsets)
    typer.echo(f"  {official_line(scores)}")
    return {"official": scores}


def check_subsets(subsets: Mapping[str, Sequence[PhotoAnnotation]], photos: Sequence[Named]) -> None:
    """Raises ValueError where an official subset does not list all of `photos`."""
    for rows in subsets.values():
        listed = {row.name for row in rows}
        if strangers := [photo.name for photo in photos if photo.name not in listed]:
            raise ValueError(
                f"{len(strangers)} of {len(photos)} photos are not in WIDER's official ground truth, which is for its "
                f"split `val`, such as {strangers[0]!r}; leave --official out"
            )


def official_scores(
    found: Mapping[str, Detections], subsets: Mapping[str, Sequence[PhotoAnnotation]]
) -> dict[str, dict[str, float]]:
    """AP.50, AP[.50:.95] and the number of counted faces on each official subset, over the photos that were run, all
    of which belong to the subsets."""
    scores = {}
    for name, photos in subsets.items():
        report = evaluate(found, [photo for photo in photos if photo.name in found])
        scores[name] = {"ap50": report.ap50, "ap": report.ap, "faces": report.faces}
    return scores


def official_line(scores: Mapping[str, Mapping[str, float]]) -> str:
    """`AP.50: easy 0.9720, ...; AP: easy 0.6280, ...`"""
    texts = []
    for title, key in (("AP.50", "ap50"), ("AP", "ap")):
        texts.append(f"{title}: " + ", ".join(f"{name} {score[key]:.4f}" for name, score in scores.items()))
    return "; ".join(texts)


def submission_folders(submission: Path | None, sources: Sequence[Source]) -> list[Path | None]:
    """One folder a source: the given one, or folders in it named after variant and long side."""
    if submission is None or len(sources) == 1:
        return [submission] * len(sources)
    return [submission / f"{one.name}-{one.long_side or 'own'}" for one in sources]


def store_of(
    folder: Path | None, source: Source, about: Mapping[str, Any], photos: Sequence[Named]
) -> SubmissionFolder | None:
    return None if folder is None else SubmissionFolder(folder, source, about, photos)


def stopped(submission: Path | None) -> str:
    """What an interrupted run says."""
    return "stopped" if submission is None else f"stopped; run the same command again to go on from {submission}"


def median_ms(run: Run) -> float | None:
    """Of the photos that were run, milliseconds; None where all came from files."""
    return 1000 * statistics.median(run.wall_seconds) if run.wall_seconds else None


COLUMNS = ("AP.50", "AP", "small", "medium", "large", "strict", "recall", "ms")
HEADER = f"{'source':16} {'side':>5} " + " ".join(f"{name:>7}" for name in COLUMNS)


def table_row(name: str, long_side: int | None, report: Report, milliseconds: float | None) -> str:
    """One line under `HEADER`; sizes are AP.50, a dash where there is no such face, or no such number."""
    sizes = [report.by_size[size].ap50 for size in ("small", "medium", "large")]
    numbers = [report.ap50, report.ap, *sizes, report.ap50_strict, report.recall50]
    cells = " ".join("      -" if number is None else f"{number:7.4f}" for number in numbers)
    side = "-" if long_side is None else "own" if long_side == 0 else str(long_side)
    time = "      -" if milliseconds is None else f"{milliseconds:7.1f}"
    return f"{name:16} {side:>5} {cells} {time}"
