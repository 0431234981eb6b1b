"""Commands about one member: `onnx`, `quantize`, `accuracy`, `card`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from export.commands.options import (
    LONG_SIDES,
    Data,
    Member,
    Repo,
    alone,
    known_sides,
    manifest_of,
    reported,
    whole,
)
from service.repository.manifest import Accuracy, Name
from training.files import check_writable


def onnx(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of training; or for fp16 what MEMBER ships.")],
    member: Annotated[str, typer.Option(help="Name in the repository, and of the variant.")] = "d0",
    repository: Repo = Path("models"),
    precision: Annotated[str, typer.Option(help="fp32, or fp16, which computes in half precision, for GPUs.")] = "fp32",
    nms: Annotated[
        str, typer.Option(help="onnx (NonMaxSuppression, for CPUs) or plain (fixed shapes; the default of fp16).")
    ] = "",
    data_note: Annotated[str, typer.Option(help="What it was trained on, for the card.")] = "photos in WIDER's layout",
) -> None:
    """Write MEMBER's ONNX file and a new manifest, without the old weights' accuracy and other variants.

    --precision fp16 adds the variant MEMBER-fp16 to the manifest of the same checkpoint, where there is one; MEMBER's
    own fp32 .onnx does in its place.
    """
    with reported(), alone(repository):
        from typing import cast

        from export.build import Origin, export_checkpoint
        from service.repository.manifest import Precision

        _check_name(member)
        kind = nms or ("plain" if precision == "fp16" else "onnx")
        manifest = export_checkpoint(
            checkpoint, member, repository / member, cast(Precision, precision), kind, data_note, Origin()
        )
        file = manifest.files[-1]
        size, gmacs = file.size_bytes / 2**20, manifest.architecture.gmacs_vga
        typer.echo(f"{repository / member / file.path}: {size:.1f} MiB, {gmacs:.1f} GMAC at 480x640")


def _check_name(member: str) -> None:
    """Raise ValueError where it cannot name a member: checked before a file or folder has that name."""
    try:
        TypeAdapter(Name).validate_python(f"{member}-int8-gpu")
    except ValidationError:
        raise ValueError(
            f"--member is a short name of small letters, digits, dots, hyphens and underscores, not {member!r}"
        ) from None


def quantize(
    member: Member,
    data: Data = Path("../shared/data/faces"),
    repository: Repo = Path("models"),
    pictures: Annotated[int, typer.Option(min=1, help="Training pictures to calibrate on.")] = 160,
    long_sides: Annotated[str, typer.Option(help="Where to compare accuracy and time.")] = "320,640",
    limit: Annotated[int, typer.Option(min=0, help="Photos of `dev` to compare on; 0 takes all.")] = 0,
    keep: Annotated[bool, typer.Option(help="Ship it whatever the comparison says.")] = False,
    gpu: Annotated[
        bool, typer.Option("--gpu", help="In the form that TensorRT takes: MEMBER-int8-gpu, compared by AP.50 alone.")
    ] = False,
) -> None:
    """Make MEMBER's INT8 variant; it joins the manifest only where it loses less than 0.01 AP.50 and is faster."""
    with reported(), alone(repository):
        from export.member import describe_file, save_onnx, with_file, write_manifest
        from export.onnx_graph import OPSET
        from export.quantize import accurate, worth_shipping
        from export.quantize import quantize as run
        from export.scoring import score, training_pictures

        manifest = manifest_of(repository, member)
        folder = repository / member
        full = next((f for f in manifest.files if f.precision == "fp32"), None)
        if full is None:
            raise ValueError(f"{member} has no full-precision file to start from")
        sides = known_sides("--long-sides", long_sides, manifest)
        full_path = whole(folder / full.path, full)
        variant = f"{member}-int8-gpu" if gpu else f"{member}-int8"
        candidate, plain = folder / f".{variant}.candidate.onnx", folder / f".{variant}.plain.onnx"
        ap: dict[str, dict[int, float]] = {"full": {}, "int8": {}}
        ms: dict[str, dict[int, float]] = {"full": {}, "int8": {}}
        try:
            if gpu:
                _write_plain(full_path, plain)
            source = plain if gpu else full_path
            save_onnx(run(source, training_pictures(data, pictures), pictures, 640, gpu), candidate)
            for side in sides:
                for name, path in (("full", full_path), ("int8", candidate)):
                    report, ms[name][side] = score(path, name, manifest, side, data, "dev", limit)
                    ap[name][side] = report.ap50
                    typer.echo(f"{name:5} at {side}: AP.50 {report.ap50:.4f}, {ms[name][side]:.1f} ms")
            worth = accurate(ap["full"], ap["int8"])
            if not gpu:
                worth = worth_shipping(ap["full"], ap["int8"], ms["full"], ms["int8"])
            if not worth and not keep:
                typer.echo("not shipped: it loses too much" + ("" if gpu else " or is not faster"))
                return
            final = folder / f"{variant}.onnx"
            candidate.replace(final)
            entry = describe_file(final, variant, "int8", "plain" if gpu else full.nms, OPSET)
            write_manifest(folder, with_file(manifest, entry))
            typer.echo(f"shipped {final}: {final.stat().st_size / 2**20:.1f} MiB")
        finally:
            candidate.unlink(missing_ok=True)
            plain.unlink(missing_ok=True)


def _write_plain(full: Path, path: Path) -> None:
    """The graph of a shipped fp32 file again, with plain NMS and weights in float32."""
    from export.build import graph_of
    from export.member import save_onnx
    from training.engine.teacher import load_teacher
    from training.models.detector import DetectorConfig

    save_onnx(graph_of(load_teacher(full, DetectorConfig()), "fp32", "plain", half=False), path)


def accuracy(
    member: Member,
    data: Data = Path("../shared/data/faces"),
    split: Annotated[str, typer.Option(help="Split of the data.")] = "dev",
    dataset: Annotated[str, typer.Option(help="Name of the data in the manifest.")] = "faces",
    repository: Repo = Path("models"),
    long_sides: Annotated[str, typer.Option(help="Long sides to measure.")] = LONG_SIDES,
    variants: Annotated[str, typer.Option(help="Variants to measure, with commas between; none: all.")] = "",
    limit: Annotated[
        int, typer.Option(min=0, help="Evenly spaced photos, in the manifest as SPLIT:LIMIT; 0 takes all.")
    ] = 0,
    report: Annotated[Path | None, typer.Option(help="Also write the report at 640 of the first variant here.")] = None,
    measured: Annotated[
        Path | None, typer.Option(help="Take the rows from this JSON of `make bench-accuracy` instead of measuring.")
    ] = None,
) -> None:
    """Measure AP of MEMBER's variants through ONNX Runtime and put it into the manifest."""
    with reported("stopped; the rows measured so far are in the manifest"), alone(repository):
        from export.member import rows_of_benchmark, with_accuracy, write_atomically, write_manifest
        from export.scoring import score, split_name

        manifest = manifest_of(repository, member)
        folder = repository / member
        if measured:
            rows = rows_of_benchmark(_table(measured), manifest)
            write_manifest(folder, with_accuracy(manifest, rows))
            typer.echo(f"{len(rows)} rows of {measured} for {', '.join(sorted({row.variant for row in rows}))}")
            return
        names = [file.variant for file in manifest.files]
        wanted = [name for name in variants.split(",") if name] or names
        if strangers := [name for name in wanted if name not in names]:
            raise ValueError(f"{member} has no variant {', '.join(strangers)}; it has {', '.join(names)}")
        sides = known_sides("--long-sides", long_sides, manifest)
        if report and 640 not in sides:
            raise ValueError("--report is of long side 640, which --long-sides leaves out")
        check_writable(report)
        for file in (file for file in manifest.files if file.variant in wanted):
            path = whole(folder / file.path, file)
            for side in sides:
                found, ms = score(path, file.variant, manifest, side, data, split, limit)
                row = Accuracy(
                    variant=file.variant, dataset=dataset, split=split_name(split, limit), protocol=found.protocol,
                    long_side=side, ap50=round(found.ap50, 4), ap=round(found.ap, 4),
                )  # fmt: skip
                # Written after each, so that an interrupt loses one measurement at most.
                manifest = with_accuracy(manifest, (row,))
                write_manifest(folder, manifest)
                typer.echo(f"{file.variant} at {side}: AP.50 {row.ap50:.4f}, AP {row.ap:.4f}, {ms:.1f} ms")
                if report and file.variant == wanted[0] and side == 640:
                    write_atomically(report, found.to_json().encode())


def _table(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no table of `make bench-accuracy`: {error}") from None


def card(
    member: Member,
    repository: Repo = Path("models"),
    report: Annotated[Path | None, typer.Option(help="Report of `accuracy --report`, for AP by size.")] = None,
    failure: Annotated[list[str] | None, typer.Option(help="A known failure; may be given several times.")] = None,
) -> None:
    """Write MEMBER's CARD.md."""
    with reported():
        from export.card import SizeReport, render_card
        from export.member import write_atomically
        from training.figures.drawing import read_json

        sizes = read_json(report, SizeReport, "a report of `accuracy --report`").by_size if report else {}
        text = render_card(manifest_of(repository, member), sizes, failure or ["Not looked at yet."])
        write_atomically(repository / member / "CARD.md", text.encode())
        typer.echo(repository / member / "CARD.md")
