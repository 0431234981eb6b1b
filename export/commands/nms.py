"""`nms`: whether the iterations of the NMS in GPU graphs suffice, on the most crowded photos at hand."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from export.commands.options import LONG_SIDES, Data, Repo, manifest_of, numbers, reported
from training.files import check_writable

if TYPE_CHECKING:
    from export.nms_report import Report


def nms(
    sources: Annotated[list[str], typer.Argument(help="Members of the repository, checkpoints, or .onnx files.")],
    data: Data = Path("../shared/data/faces"),
    repository: Repo = Path("models"),
    splits: Annotated[str, typer.Option(help="Splits to take photos from, such as dev,train.")] = "dev",
    photos: Annotated[int, typer.Option(min=1, help="Photos of each split, those with the most faces.")] = 36,
    long_sides: Annotated[str, typer.Option(help="Long sides of the input.")] = LONG_SIDES,
    out: Annotated[Path | None, typer.Option(help="Also write the report here, as JSON.")] = None,
) -> None:
    """Count the iterations that Cluster-NMS needs, compare fewer with greedy NMS, and time it on the CPU and, where
    there is one, on the GPU."""
    with reported("stopped; nothing was written"):
        from export.nms_report import build_report
        from training.evaluation.sources import SMALLEST_SIDE
        from training.files import write_json

        named = [pair for source in sources for pair in _files(source, repository)]
        parts = tuple(dict.fromkeys(part.strip() for part in splits.split(",") if part.strip()))
        if not parts:
            raise ValueError("--splits takes names with commas between, such as dev,train")
        sides = numbers("--long-sides", long_sides)
        if any(side % 32 or not SMALLEST_SIDE <= side <= 4096 for side in sides):
            raise ValueError(f"--long-sides takes multiples of 32 from {SMALLEST_SIDE} to 4096, not {long_sides}")
        check_writable(out)
        report = build_report(named, data, parts, photos, sides)
        _print(report)
        if out is not None:
            write_json(out, report.model_dump())
            typer.echo(f"wrote {out}")


def _files(source: str, repository: Path) -> list[tuple[str, Path]]:
    """(name, file) of a checkpoint, of an exported file, or of each of a member's variants with ONNX's NMS."""
    path = Path(source)
    if path.suffix:
        return [(path.stem, path)]
    found = [
        (file.variant, repository / source / file.path)
        for file in manifest_of(repository, source).files
        if file.nms == "onnx"
    ]
    if not found:
        raise ValueError(f"{repository / source} has no file with ONNX's NMS, whose graph names its candidates")
    return found


def _print(report: Report) -> None:
    typer.echo(f"{report.hardware}, load {report.load:g}; {report.scenes} pictures of {report.data}")
    for row in report.rows:
        spread = ", ".join(f"{count}: {pictures}" for count, pictures in row.needed.items())
        typer.echo(
            f"{row.source} at {row.long_side}: up to {row.candidates_max} candidates, {row.kept_max} kept; iterations "
            f"needed (pictures): {spread}; {row.needed_with_all_max} with boxes below the threshold; "
            f"{row.unequal} not greedy in the end"
        )
        for short in row.short:
            if short.pictures:
                typer.echo(
                    f"  {short.iterations} iterations: {short.pictures} of {row.pictures} pictures differ, "
                    f"{short.extra} boxes too many and {short.missing} too few"
                )
    for where, cost in (("one CPU thread", report.cost), (report.gpu, report.gpu_cost)):
        if cost is not None:
            typer.echo(
                f"NMS of one picture with {cost.candidates} candidates, {where}: {cost.fixed_ms:.1f} ms and "
                f"{cost.iteration_ms:.2f} ms an iteration, so {cost.chosen_ms:.1f} ms with {report.iterations}; ONNX's "
                f"NonMaxSuppression takes {cost.operator_ms:.1f} ms"
            )
    if report.gpu_absent:
        typer.echo(f"not timed on a GPU: {report.gpu_absent}")
