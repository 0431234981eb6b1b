"""`python -m training evaluate`: AP of a checkpoint or of exported files on an annotated split."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from training.commands import told
from training.data.wider import PhotoAnnotation
from training.evaluation.detections import Run, Source, read_split, run_source
from training.evaluation.official import read_subsets
from training.evaluation.sources import open_sources
from training.evaluation.wider import Report, evaluate
from training.files import write_json


def evaluate_command(
    source: Annotated[
        Path,
        typer.Argument(help="A checkpoint (.pt), an exported file (.onnx), or a model repository (all its variants)."),
    ],
    data: Annotated[Path, typer.Option(help="Folder in WIDER Face's layout, or its short form.")] = Path(
        "../shared/data/faces"
    ),
    split: Annotated[str, typer.Option(help="Split to evaluate on: dev, or val of WIDER Face.")] = "dev",
    long_side: Annotated[
        list[int] | None, typer.Option(help="Long side that photos are resized to; may be given several times. [640]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the full reports to this JSON file.")] = None,
    official: Annotated[
        Path | None, typer.Option(help="Folder of WIDER's wider_{easy,medium,hard}_val.mat; adds those three, for val.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Take that many evenly spaced photos; 0 takes all.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 takes all cores.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu or cuda, for a checkpoint.")] = None,
) -> None:
    """Measure AP.50 and AP[.50:.95] by the WIDER protocol, by face size too.

    Small faces are under 5 % of the photo's long side, large ones 15 % and more.

    `strict` is AP.50 with false positives on photos without faces counted,
    which the WIDER protocol leaves out.
    """
    with told(lambda: "stopped"):
        photos, images = read_split(data, split, limit or None)
        subsets = read_subsets(official) if official is not None else {}
        rows: list[dict[str, Any]] = []
        typer.echo(HEADER)
        for side in long_side or [640]:
            for one in open_sources(source, side, threads, device):
                run = run_source(one, photos, images)
                report = evaluate(run.found, photos, photo_sizes=run.sizes)
                milliseconds = 1000 * statistics.median(run.wall_seconds)
                typer.echo(table_row(one, report, milliseconds))
                if report.best is not None:
                    best = report.best
                    typer.echo(
                        f"  best F1 {best.f1:.4f} at score {best.score:.2f}: precision {best.precision:.4f}, "
                        f"recall {best.recall:.4f}"
                    )
                row = {"source": one.name, "long_side": side, "ms": milliseconds, **asdict(report)}
                if subsets:
                    row["official"] = official_scores(run, subsets)
                    typer.echo("  " + ", ".join(f"{name} {value:.4f}" for name, value in row["official"].items()))
                rows.append(row)
                if out is not None:
                    write_json(out, {"data": data.name, "split": split, "rows": rows})


def official_scores(run: Run, subsets: Mapping[str, Sequence[PhotoAnnotation]]) -> dict[str, float]:
    """AP.50 on each official subset, over the photos that were run."""
    return {
        name: evaluate(run.found, [photo for photo in photos if photo.name in run.found]).ap50
        for name, photos in subsets.items()
    }


COLUMNS = ("AP.50", "AP", "small", "medium", "large", "strict", "recall", "ms")
HEADER = f"{'source':16} {'side':>5} " + " ".join(f"{name:>7}" for name in COLUMNS)


def table_row(source: Source, report: Report, milliseconds: float) -> str:
    """One line under `HEADER`; sizes are AP.50, a dash where there is no such face."""
    sizes = [report.by_size[name].ap50 for name in ("small", "medium", "large")]
    numbers = [report.ap50, report.ap, *sizes, report.ap50_strict, report.recall50]
    cells = " ".join("      -" if number is None else f"{number:7.4f}" for number in numbers)
    return f"{source.name:16} {source.long_side:5} {cells} {milliseconds:7.1f}"
