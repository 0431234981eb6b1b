"""`profile`: latency on this machine, with other detectors beside ours where they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from export.commands.options import Repo, numbers, reported
from service.repository.store import load_repository
from training.commands import EngineThreads
from training.files import check_writable

if TYPE_CHECKING:
    from export.profile import PeerRow
    from training.evaluation.detections import Source


def profile(
    repository: Repo = Path("models"),
    out: Annotated[Path, typer.Option(help="JSON file.")] = Path("benchmarks/results/profile.json"),
    batches: Annotated[str, typer.Option(help="Batch sizes.")] = "1",
    runs: Annotated[int, typer.Option(min=1, help="Runs per case.")] = 20,
    threads: EngineThreads = 0,
    peers: Annotated[
        Path | None, typer.Option(help="Also time other detectors: those in this folder, OpenCV's Haar and MTCNN.")
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FILE:KIND, another detector's ONNX file and its adapter in export/peers.py."),
    ] = None,
    accuracy: Annotated[
        Path | None, typer.Option(help="JSON of `make bench-accuracy`, for the other detectors' AP.")
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="PNG of AP.50 against p50 latency.")] = None,
    photo: Annotated[
        Path | None, typer.Option(help="Photo to time on; by default noise, and the astronaut beside others.")
    ] = None,
) -> None:
    """Measure p50 and p99 of every variant, input size and batch size on this machine."""
    with reported("stopped; nothing was written"):
        from export.profile import profile_repository, timing_photo
        from training.files import write_bytes, write_json

        others = _others(peers, peer or [], threads)
        known = _known(accuracy, figure, out)
        check_writable(out)
        check_writable(figure)
        loaded = load_repository(repository, untrained=True)
        picture = timing_photo(photo) if photo or others else None
        content = profile_repository(loaded, numbers("--batches", batches), runs, threads, picture)
        typer.echo(f"{content['hardware']}")
        for name in content["left_out"]:
            typer.echo(f"{name} is left out: it computes in float16, which is for GPUs")
        for row in content["rows"]:
            typer.echo(f"{row['variant']:10} {row['height']}x{row['width']} batch {row['batch']}: "
                       f"p50 {row['p50_ms']:.1f} ms, p99 {row['p99_ms']:.1f} ms")  # fmt: skip
        found: list[PeerRow] = []
        if others is not None and picture is not None:
            from export.profile import compared_sizes, profile_peers

            sizes = compared_sizes(sorted({size for v in loaded.variants for size in v.manifest.input_sizes}, key=str))
            found = profile_peers(others, sizes, runs, picture, lambda text: typer.echo(text, err=True))
            content["peers"] = [_peer_entry(row, known) for row in found]
        write_json(out, content)
        if figure is not None:
            from export.profile_figure import our_points, peer_points, profile_png

            photos, points = our_points(loaded, content["rows"], known)
            points += peer_points(found, known)
            write_bytes(figure, profile_png(photos, points, content["hardware"], threads))
        typer.echo(f"wrote {out}" + (f" and {figure}" if figure else ""))


def _others(folder: Path | None, named: list[str], threads: int) -> Any:
    """(long side) -> (name, how to open it) of every other detector that was asked for; None where none was."""
    if folder is None and not named:
        return None
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(f"--peers: there is no folder {folder}")
    try:
        from export.peers import find_peers, parse_peer
    except ImportError as error:
        raise ValueError(
            f"other detectors need the `bench` extra ({error}): pip install -e '.[training,export,bench]'"
        ) from None
    parsed = [parse_peer(text) for text in named]

    def at(side: int) -> list[tuple[str, Callable[[], Source]]]:
        found = find_peers(folder, side, threads) if folder is not None else []
        return found + [(one.name, partial(one.open, side, threads)) for one in parsed]

    return at


def _known(accuracy: Path | None, figure: Path | None, out: Path) -> Any:
    """Other detectors' AP, read before anything is measured, so that a wrong name costs no time."""
    if figure is not None and figure.suffix.lower() != ".png":
        raise ValueError(f"{figure}: figures are PNG files, so the name must end in .png")
    if accuracy is None:
        return None
    if accuracy.resolve() == out.resolve():
        raise ValueError(f"--out would replace {accuracy}, which AP is read from; name another file")
    from export.profile_figure import known_accuracy

    return known_accuracy(accuracy)


def _peer_entry(row: PeerRow, known: Any) -> dict[str, Any]:
    """A row for the JSON, printed on the way."""
    from export.profile_figure import ap_of

    ap = ap_of(row, known)
    typer.echo(
        f"{row.detector:20} at {row.long_side} (photo {row.height}x{row.width}): p50 {row.p50_ms:.1f} ms, "
        f"p99 {row.p99_ms:.1f} ms" + (f", AP.50 {ap[0]:.4f}" if ap else "")
    )
    return {**asdict(row), "ap50": None if ap is None else round(ap[0], 4)}
