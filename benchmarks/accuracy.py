"""`python -m benchmarks.accuracy`: our variants and other detectors on the same photos, by the same evaluator, in one
run.

Every detector gets photos resized to the same long side and the same number of CPU threads, one photo at a time. Time
is that of the whole way from decoded pixels to boxes in the photo's pixels: resizing, normalisation, network,
decoding, NMS; reading and decoding the file is left out. It goes on where an interrupted run stopped, and without those
of the others that cannot be run.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel

from benchmarks.hardware import Hardware, describe
from benchmarks.runs import Measured, measure
from export.commands.options import numbers
from export.peers import find_peers
from training.commands import MAX_THREADS, told
from training.data.wider import PhotoAnnotation
from training.evaluation.detections import Source, read_split
from training.evaluation.sources import open_sources
from training.evaluation.wider import PROTOCOL, evaluate
from training.files import check_writable, write_bytes, write_json


class Row(BaseModel):
    """One detector at one long side. AP and recall in 0..1; times in milliseconds a photo; load of the machine at the
    start."""

    detector: str
    ours: bool
    long_side: int
    ap50: float
    ap: float
    ap50_strict: float
    recall50: float
    ap50_small: float | None
    ap50_medium: float | None
    ap50_large: float | None
    ms_median: float
    ms_mean: float
    cpu_ms_median: float
    cpu_ms_mean: float
    measured: str
    load: float


class Table(BaseModel):
    """One run of the benchmark."""

    data: str
    split: str
    photos: int
    faces: int
    ignored: int
    protocol: str = PROTOCOL
    threads: int
    hardware: Hardware
    rows: list[Row]


def score(detector: str, ours: bool, side: int, measured: Measured, photos: list[PhotoAnnotation]) -> Row:
    """Evaluate one run and take its times together."""
    run = measured.run
    report = evaluate(run.found, photos, photo_sizes=run.sizes)
    wall, cpu = ([1000 * value for value in values] for values in (run.wall_seconds, run.cpu_seconds))
    return Row(
        detector=detector,
        ours=ours,
        long_side=side,
        ap50=report.ap50,
        ap=report.ap,
        ap50_strict=report.ap50_strict,
        recall50=report.recall50,
        ap50_small=report.by_size["small"].ap50,
        ap50_medium=report.by_size["medium"].ap50,
        ap50_large=report.by_size["large"].ap50,
        ms_median=statistics.median(wall),
        ms_mean=statistics.fmean(wall),
        cpu_ms_median=statistics.median(cpu),
        cpu_ms_mean=statistics.fmean(cpu),
        measured=measured.date,
        load=measured.load,
    )


def contenders(
    repository: Path | None, peers: Path | None, sides: Sequence[int], threads: int
) -> Iterator[tuple[str, Callable[[], Source]]]:
    """(name, how to open it), the name empty where it is ours. Every one at every long side; what has one fixed size
    comes once.

    Haar and MTCNN come at one long side too, the largest of at most 640: they are there as a floor, and slow.
    """
    fixed: set[str] = set()
    floor_side = max((side for side in sides if side <= 640), default=min(sides))
    for side in sides:
        if repository is not None:
            for source in open_sources(repository, side, threads):
                yield "", lambda source=source: source  # type: ignore[misc]
        for name, build in find_peers(peers, side, threads):
            if name in ("haar", "mtcnn") and side != floor_side:
                continue
            if name.startswith("ultralight"):
                if name in fixed:
                    continue
                fixed.add(name)
            yield name, build


def main(
    data: Annotated[Path, typer.Option(help="Folder in WIDER Face's layout, or its short form.")] = Path(
        "../shared/data/faces"
    ),
    split: Annotated[str, typer.Option(help="Split to measure on.")] = "dev",
    peers: Annotated[
        Path | None, typer.Option(help="Folder with ONNX files of other detectors; Haar and MTCNN need none.")
    ] = Path("../shared/peers"),
    repository: Annotated[Path, typer.Option(help="Model repository: every variant in it takes part.")] = Path(
        "models"
    ),
    long_sides: Annotated[
        str, typer.Option(help="Long sides that every photo is resized to, pixels, with commas between.")
    ] = "320,480,640,960",
    out: Annotated[Path, typer.Option(help="JSON file; the table (.md) and the picture (.png) go beside it.")] = Path(
        "benchmarks/results/accuracy.json"
    ),
    threads: Annotated[int, typer.Option(min=1, max=MAX_THREADS, help="CPU threads of every detector.")] = 1,
    limit: Annotated[int, typer.Option(min=0, help="Take that many evenly spaced photos; 0 takes all.")] = 0,
    cache: Annotated[Path, typer.Option(help="Where finished runs are kept.")] = Path(".cache/benchmarks"),
    fresh: Annotated[bool, typer.Option(help="Measure anew what was measured before.")] = False,
) -> None:
    """Measure AP and time of our variants and of other detectors on the same photos, in one run."""
    from benchmarks.figure import draw
    from benchmarks.table import markdown, print_row

    with told(lambda: "stopped; the same command goes on with the detectors that are not done"):
        sides = numbers("--long-sides", long_sides)
        check_writable(out)
        photos, images = read_split(data, split, limit or None)
        if peers is not None and not peers.is_dir():
            typer.echo(f"note: no folder {peers}; of other detectors only Haar and MTCNN take part", err=True)
            peers = None
        own: Path | None = repository
        if not any(repository.glob("*/manifest.json")):
            typer.echo(f"note: no model in {repository}; only other detectors take part", err=True)
            own = None
        table = Table(
            data=data.name,
            split=split,
            photos=len(photos),
            faces=sum(int((~photo.ignore).sum()) for photo in photos),
            ignored=sum(int(photo.ignore.sum()) for photo in photos),
            threads=threads,
            hardware=describe(),
            rows=[],
        )
        for other, build in contenders(own, peers, sides, threads):
            try:
                source = build()
                measured = measure(source, photos, images, cache, threads, fresh=fresh)
            except Exception as error:
                if not other or isinstance(error, OSError):
                    raise
                # Other people's code raises what it likes, and must not cost the table.
                typer.echo(f"note: {other} is left out: {error}", err=True)
                continue
            table.rows.append(score(source.name, not other, source.long_side, measured, photos))
            print_row(table.rows[-1], first=len(table.rows) == 1, cached=measured.cached)
        if not table.rows:
            raise ValueError("no detector could be measured")
        write_json(out, table.model_dump())
        write_bytes(out.with_suffix(".md"), markdown(table).encode())
        draw(table, out.with_suffix(".png"))
        typer.echo(f"wrote {out}, {out.with_suffix('.md').name} and {out.with_suffix('.png').name}")


if __name__ == "__main__":
    typer.run(main)
