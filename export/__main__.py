"""`python -m export`: from a checkpoint to a member of the model repository.

python -m export onnx runs/d0/best.pt --member d0      the graph, with NMS inside
python -m export quantize d0 --data ../shared/data/faces     its INT8 form, if that is worth it
python -m export accuracy d0 --data ../shared/data/faces     AP into the manifest
python -m export card d0                                     the model card
python -m export verify                                      check what is there
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from service.repository.manifest import MANIFEST_NAME, Accuracy, Manifest, Thresholds
from service.repository.store import RepositoryError, load_manifest, load_repository

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False,
                  rich_markup_mode=None)  # fmt: skip

Repo = Annotated[Path, typer.Option("--repository", help="Folder of the model repository.")]
Data = Annotated[Path, typer.Option(help="Photos in WIDER Face's layout.")]
Member = Annotated[str, typer.Argument(help="A member's name, such as d0.")]


def _fail(message: object) -> typer.Exit:
    typer.secho(f"error: {message}", fg="red", err=True)
    return typer.Exit(2)


def _manifest(repository: Path, member: str) -> Manifest:
    try:
        return load_manifest(repository / member / MANIFEST_NAME)
    except RepositoryError as error:
        raise _fail(error) from None


@app.command()
def onnx(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of `python -m training train`.")],
    member: Annotated[str, typer.Option(help="Name in the repository, and of the variant.")] = "d0",
    repository: Repo = Path("models"),
    nms: Annotated[str, typer.Option(help="onnx (NonMaxSuppression, for CPUs) or plain (fixed shapes).")] = "onnx",
    data_note: Annotated[str, typer.Option(help="What it was trained on, for the card.")] = "photos in WIDER's layout",
) -> None:
    """Write MEMBER's ONNX file and a new manifest, without the old weights' accuracy and other variants."""
    from export.member import architecture, describe_file, new_manifest, provenance_of, save_onnx, write_manifest
    from export.onnx_graph import OPSET, export_onnx
    from service.profiling import machine_name
    from training.engine.checkpoint import detector_config, load_detector
    from training.family import count

    try:
        detector, content = load_detector(checkpoint)
        graph = export_onnx(detector, Thresholds(), nms)
    except (FileNotFoundError, ValueError) as error:
        raise _fail(error) from None
    path = repository / member / f"{member}.onnx"
    save_onnx(graph, path)
    config = content["config"]
    counts = count(detector_config(config))
    finished = time.strftime("%Y-%m-%d", time.localtime(checkpoint.stat().st_mtime))
    provenance = provenance_of(content, data_note, machine_name(), finished)
    title = f"ASFD-{member.upper()}: {config['model']['backbone']}, {config['model']['neck'].upper()} neck"
    shape = architecture(config["model"], counts.parameters, counts.gmacs_vga)
    entry = describe_file(path, member, "fp32", nms, OPSET)
    write_manifest(path.parent, new_manifest(member, title, (entry,), shape, provenance))
    typer.echo(f"{path}: {path.stat().st_size / 2**20:.1f} MiB, {counts.gmacs_vga:.1f} GMAC at 480x640")


@app.command()
def quantize(
    member: Member,
    data: Data = Path("../shared/data/faces"),
    repository: Repo = Path("models"),
    pictures: Annotated[int, typer.Option(help="Training pictures to calibrate on.")] = 160,
    long_sides: Annotated[str, typer.Option(help="Where to compare accuracy and time.")] = "320,640",
    limit: Annotated[int, typer.Option(help="Photos of `dev` to compare on; 0 takes all.")] = 0,
    keep: Annotated[bool, typer.Option(help="Ship it whatever the comparison says.")] = False,
) -> None:
    """Make MEMBER's INT8 variant; it joins the manifest only where it loses less than 0.01 AP.50 and is faster."""
    from export.member import describe_file, save_onnx, with_file, write_manifest
    from export.onnx_graph import OPSET
    from export.quantize import quantize as run
    from export.quantize import worth_shipping
    from training.evaluation.sources import OnnxSource

    manifest = _manifest(repository, member)
    folder = repository / member
    full = next((f for f in manifest.files if f.precision != "int8"), None)
    if full is None:
        raise _fail(f"{member} has no full-precision file to start from")
    candidate = folder / f".{member}-int8.candidate.onnx"
    ap: dict[str, dict[int, float]] = {"full": {}, "int8": {}}
    ms: dict[str, dict[int, float]] = {"full": {}, "int8": {}}
    try:
        save_onnx(run(folder / full.path, _training_pictures(data, pictures), pictures, 640), candidate)
        for side in _sides(long_sides):
            sizes = [s for s in manifest.input_sizes if s.long_side == side]
            for name, path in (("full", folder / full.path), ("int8", candidate)):
                report, ms[name][side] = _score(OnnxSource(path, name, sizes), data, "dev", limit)
                ap[name][side] = report.ap50
                typer.echo(f"{name:5} at {side}: AP.50 {report.ap50:.4f}, {ms[name][side]:.1f} ms")
        worth = worth_shipping(ap["full"], ap["int8"], ms["full"], ms["int8"])
        if not worth and not keep:
            typer.echo("not shipped: it loses too much or is not faster")
            return
        final = folder / f"{member}-int8.onnx"
        candidate.replace(final)
        entry = describe_file(final, f"{member}-int8", "int8", full.nms, OPSET)
        write_manifest(folder, with_file(manifest, entry))
        typer.echo(f"shipped {final}: {final.stat().st_size / 2**20:.1f} MiB")
    except (FileNotFoundError, ValueError) as error:
        raise _fail(error) from None
    finally:
        candidate.unlink(missing_ok=True)


def _sides(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise _fail(f"--long-sides takes numbers with commas between, not {text!r}") from None


def _training_pictures(data: Path, count: int) -> Iterator[NDArray[np.uint8]]:
    from training.data.cache import load_picture
    from training.data.layout import resolve_split
    from training.data.wider import read_annotations

    paths = resolve_split(data, "train")
    photos = read_annotations(paths.annotations)
    for index in np.linspace(0, len(photos) - 1, count):
        yield load_picture(paths.images / photos[int(index)].name)


def _score(source: Any, data: Path, split: str, limit: int) -> tuple[Any, float]:
    """(report of the WIDER protocol with face sizes, median milliseconds a photo)."""
    from training.evaluation.detections import read_split, run_source
    from training.evaluation.wider import evaluate

    photos, images = read_split(data, split, limit or None)
    run = run_source(source, photos, images)
    return evaluate(run.found, photos, photo_sizes=run.sizes), float(np.median(run.wall_seconds)) * 1e3


@app.command()
def accuracy(
    member: Member,
    data: Data = Path("../shared/data/faces"),
    split: Annotated[str, typer.Option(help="Split of the data.")] = "dev",
    dataset: Annotated[str, typer.Option(help="Name of the data in the manifest.")] = "faces",
    repository: Repo = Path("models"),
    long_sides: Annotated[str, typer.Option(help="Long sides to measure.")] = "320,480,640,960",
    limit: Annotated[int, typer.Option(help="Evenly spaced photos; 0 takes all.")] = 0,
    report: Annotated[Path | None, typer.Option(help="Also write the report at 640 of the first variant here.")] = None,
    measured: Annotated[
        Path | None, typer.Option(help="Take the rows from this JSON of `make bench-accuracy` instead of measuring.")
    ] = None,
) -> None:
    """Measure AP of every variant of MEMBER through ONNX Runtime and put it into the manifest."""
    from export.member import rows_of_benchmark, with_accuracy, write_atomically, write_manifest
    from training.evaluation.sources import OnnxSource

    manifest = _manifest(repository, member)
    folder = repository / member
    first = manifest.files[0].variant
    try:
        if measured:
            rows = rows_of_benchmark(json.loads(measured.read_text(encoding="utf-8")), manifest)
            write_manifest(folder, with_accuracy(manifest, rows))
            typer.echo(f"{len(rows)} rows of {measured} for {', '.join(sorted({row.variant for row in rows}))}")
            return
        for file in manifest.files:
            for side in _sides(long_sides):
                sizes = [s for s in manifest.input_sizes if s.long_side == side]
                found, ms = _score(OnnxSource(folder / file.path, file.variant, sizes), data, split, limit)
                row = Accuracy(
                    variant=file.variant, dataset=dataset, split=split, protocol=found.protocol, long_side=side,
                    ap50=round(found.ap50, 4), ap=round(found.ap, 4),
                )  # fmt: skip
                # Written after each, so that an interrupt loses one measurement at most.
                manifest = with_accuracy(manifest, (row,))
                write_manifest(folder, manifest)
                typer.echo(f"{file.variant} at {side}: AP.50 {row.ap50:.4f}, AP {row.ap:.4f}, {ms:.1f} ms")
                if report and file.variant == first and side == 640:
                    write_atomically(report, found.to_json().encode())
    except (FileNotFoundError, ValueError) as error:
        raise _fail(error) from None


@app.command()
def card(
    member: Member,
    repository: Repo = Path("models"),
    report: Annotated[Path | None, typer.Option(help="Report of `accuracy --report`, for AP by size.")] = None,
    failure: Annotated[list[str] | None, typer.Option(help="A known failure; may be given several times.")] = None,
) -> None:
    """Write MEMBER's CARD.md."""
    from export.card import render_card
    from export.member import write_atomically

    content = json.loads(report.read_text()) if report else None
    text = render_card(_manifest(repository, member), content, failure or ["Not looked at yet."])
    write_atomically(repository / member / "CARD.md", text.encode())
    typer.echo(repository / member / "CARD.md")


@app.command(name="list")
def list_members(repository: Repo = Path("models")) -> None:
    """List members, variants and their accuracy."""
    try:
        loaded = load_repository(repository)
    except RepositoryError as error:
        raise _fail(error) from None
    for variant in loaded.variants:
        rows = [r for r in variant.manifest.accuracy if r.variant == variant.name]
        scores = ", ".join(f"{r.long_side}: {r.ap50:.3f}" for r in rows) or "not measured"
        size = variant.file.size_bytes / 2**20
        typer.echo(f"{variant.name:12} {variant.file.precision}  {size:5.1f} MiB  AP.50 by long side: {scores}")


@app.command()
def verify(
    repository: Repo = Path("models"),
    checkpoint: Annotated[Path | None, typer.Option(help="Also compare with this checkpoint (one member).")] = None,
    member: Annotated[str | None, typer.Option(help="Only this member.")] = None,
    pictures: Annotated[list[Path] | None, typer.Option(help="Pictures to compare on; give it several times.")] = None,
) -> None:
    """Check hashes, run every file at every input size, and compare with the checkpoint where one is given."""
    from export.verify import compare_with_checkpoint, verify_member

    folders = [repository / member] if member else sorted(p.parent for p in repository.glob(f"*/{MANIFEST_NAME}"))
    if not folders:
        raise _fail(f"{repository} holds no member")
    faults = []
    for folder in folders:
        try:
            faults += verify_member(folder)
            if checkpoint and pictures:
                from training.data.cache import load_picture

                loaded = [load_picture(path) for path in pictures]
                for variant, result in compare_with_checkpoint(folder, checkpoint, loaded).items():
                    typer.echo(f"{variant}: {result}")
                    if result.unmatched:
                        faults.append(f"{variant}: {result.unmatched} of {result.compared} detections differ")
        except (RepositoryError, FileNotFoundError, ValueError) as error:
            raise _fail(error) from None
    if faults:
        raise _fail("; ".join(faults))
    typer.echo(f"{len(folders)} member(s): every file is whole and keeps the contract")


@app.command()
def profile(
    repository: Repo = Path("models"),
    out: Annotated[Path, typer.Option(help="JSON file.")] = Path("benchmarks/results/profile.json"),
    batches: Annotated[str, typer.Option(help="Batch sizes.")] = "1",
    runs: Annotated[int, typer.Option(help="Runs per case.")] = 20,
    threads: Annotated[int, typer.Option(help="Threads; 0 takes all cores.")] = 0,
) -> None:
    """Measure p50 and p99 of every variant, input size and batch size on this machine."""
    from export.member import write_atomically
    from export.profile import profile_repository

    try:
        content = profile_repository(load_repository(repository), tuple(_sides(batches)), runs, threads)
    except RepositoryError as error:
        raise _fail(error) from None
    write_atomically(out, (json.dumps(content, indent=1) + "\n").encode())
    typer.echo(f"{content['hardware']}")
    for row in content["rows"]:
        typer.echo(f"{row['variant']:10} {row['height']}x{row['width']} batch {row['batch']}: "
                   f"p50 {row['p50_ms']:.1f} ms, p99 {row['p99_ms']:.1f} ms")  # fmt: skip


if __name__ == "__main__":
    sys.exit(app())
