"""`python -m benchmarks.latency`: what one request costs, and what the service takes to start and to hold.

Engine times of every variant, input size and batch are those of `export.profile`. The HTTP round trip is measured on
the service as a user starts it: one client that waits for each answer, one photo in three sizes, every tier.
"""

from __future__ import annotations

import io
import tempfile
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image
from pydantic import BaseModel

from benchmarks.footprint import installed_sizes, service_requirements
from benchmarks.hardware import Hardware, describe
from benchmarks.server import Exchange, Server, closed_loop, running
from export.commands.options import numbers
from export.profile import profile_repository
from service.repository.store import load_repository
from service.settings import Settings
from training.commands import MAX_THREADS
from training.files import check_writable, write_json

PHOTO_SIZES = ((640, 480), (1920, 1080), (4032, 3024))
COLUMNS = ("p50", "p99", "decode", "infer", "on time")
HEADER = f"{'tier':12} {'budget':>7} {'photo':>10} " + " ".join(f"{name:>8}" for name in COLUMNS) + "  chosen"


class RoundTrip(BaseModel):
    """One tier and one photo size. Milliseconds; decode_ms and infer_ms: medians of what the service says."""

    tier: str
    budget_ms: float
    width: int
    height: int
    requests: int
    p50_ms: float
    p99_ms: float
    decode_ms: float
    infer_ms: float
    on_time: float
    chosen: str


class Footprint(BaseModel):
    """start seconds: to the first ready answer; memory: resident, all variants loaded, after all requests."""

    first_start_s: float
    later_start_s: float
    resident_idle_mib: float
    resident_mib: float
    installed_mb: float
    installed_largest_mb: dict[str, float]


class Report(BaseModel):
    """The whole benchmark. engine: rows of `export.profile`."""

    hardware: Hardware
    threads: int
    footprint: Footprint
    round_trips: list[RoundTrip]
    engine: list[dict[str, Any]]


def photo(width: int, height: int) -> bytes:
    """A JPEG of the size asked, quality 90: the astronaut photo (NASA, public domain) side by side until it is full."""
    from skimage.data import astronaut

    side = min(width, height)
    source: Any = astronaut()  # type: ignore[no-untyped-call]
    tile = np.asarray(Image.fromarray(source).resize((side, side), Image.Resampling.BICUBIC))
    pixels = np.tile(tile, (1, -(-width // side), 1))[:height, :width]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def summarise(tier: str, budget_ms: float, size: tuple[int, int], exchanges: list[Exchange]) -> RoundTrip:
    """Percentiles of one closed loop, and what was chosen most."""
    times = [exchange.milliseconds for exchange in exchanges]
    latencies = [exchange.answer["latency"] for exchange in exchanges]
    chosen = Counter(
        f"{model['variant']} {model['input']['width']}x{model['input']['height']}"
        for model in (exchange.answer["model"] for exchange in exchanges)
    )
    return RoundTrip(
        tier=tier,
        budget_ms=budget_ms,
        width=size[0],
        height=size[1],
        requests=len(exchanges),
        p50_ms=round(float(np.percentile(times, 50)), 2),
        p99_ms=round(float(np.percentile(times, 99)), 2),
        decode_ms=round(float(np.median([one["decode_ms"] for one in latencies])), 2),
        infer_ms=round(float(np.median([one["infer_ms"] for one in latencies])), 2),
        on_time=round(float(np.mean([one["deadline_met"] for one in latencies])), 4),
        chosen=chosen.most_common(1)[0][0],
    )


def round_trips(server: Server, tiers: dict[str, float], requests: int) -> list[RoundTrip]:
    """Every photo size in every tier, printed as it is done."""
    rows = []
    typer.echo(HEADER)
    for size in PHOTO_SIZES:
        picture = photo(*size)
        for tier, budget in tiers.items():
            row = summarise(tier, budget, size, closed_loop(server.port, picture, f"tier={tier}", requests))
            rows.append(row)
            typer.echo(
                f"{tier:12} {budget:7.0f} {f'{size[0]}x{size[1]}':>10} {row.p50_ms:8.1f} {row.p99_ms:8.1f} "
                f"{row.decode_ms:8.1f} {row.infer_ms:8.1f} {row.on_time:8.1%}  {row.chosen}"
            )
    return rows


def main(
    repository: Annotated[Path, typer.Option(help="Model repository.")] = Path("models"),
    requests: Annotated[int, typer.Option(min=1, help="Requests for each tier and photo size.")] = 50,
    runs: Annotated[int, typer.Option(min=1, help="Engine runs for each variant, input size and batch.")] = 30,
    batches: Annotated[str, typer.Option(help="Batch sizes of the engine, such as 1,2,4.")] = "1",
    threads: Annotated[int, typer.Option(min=0, max=MAX_THREADS, help="Engine threads; 0 takes all cores.")] = 0,
    out: Annotated[Path, typer.Option(help="JSON file to write.")] = Path("benchmarks/results/latency.json"),
) -> None:
    """Measure the engine, the HTTP round trip, start-up, memory and disk."""
    try:
        batch_sizes = numbers("--batches", batches)
        check_writable(out)
        models = load_repository(repository)
        sizes = installed_sizes(service_requirements())
        hardware = describe()
        with tempfile.TemporaryDirectory(prefix="asfd-bench-") as folder:
            with running(repository, Path(folder), threads) as server:
                first = server.ready_seconds
            with running(repository, Path(folder), threads) as server:
                later, idle = server.ready_seconds, server.resident_mib()
                typer.echo(f"ready after {first:.1f} s at first, {later:.1f} s later; {idle:.0f} MiB resident")
                trips = round_trips(server, Settings().tiers, requests)
                loaded = server.resident_mib()
        typer.echo(
            f"{loaded:.0f} MiB resident after that; dependencies take {sum(sizes.values()) / 1e6:.0f} MB on disk"
        )
        engine = profile_repository(models, batch_sizes, runs, threads)
        for row in engine["rows"]:
            case = f"{row['variant']:12} {row['width']}x{row['height']} batch {row['batch']}"
            typer.echo(f"{case:34} p50 {row['p50_ms']:8.1f} ms  p99 {row['p99_ms']:8.1f} ms")
        report = Report(
            hardware=hardware,
            threads=threads,
            footprint=Footprint(
                first_start_s=round(first, 2),
                later_start_s=round(later, 2),
                resident_idle_mib=round(idle, 1),
                resident_mib=round(loaded, 1),
                installed_mb=round(sum(sizes.values()) / 1e6, 1),
                installed_largest_mb={name: round(size / 1e6, 1) for name, size in list(sizes.items())[:8]},
            ),
            round_trips=trips,
            engine=engine["rows"],
        )
        write_json(out, report.model_dump())
        typer.echo(f"wrote {out}")
    except (OSError, RuntimeError, ValueError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)
        raise typer.Exit(130) from None


if __name__ == "__main__":
    typer.run(main)
