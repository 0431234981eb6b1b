"""`python -m benchmarks.load`: traces of real photos against the running service, policy by policy."""

from __future__ import annotations

import math
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from training.commands import MAX_THREADS

DATA = Path("../shared/data/faces")


def main(
    policies: Annotated[str, typer.Option(help="Names with commas between, or all.")] = "all",
    loads: Annotated[str, typer.Option(help="Fractions of the measured capacity.")] = "0.3,0.7,1.5,5",
    traces: Annotated[str, typer.Option(help="poisson, diurnal, gamma with its CV^2.")] = "poisson,gamma4,diurnal",
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="Length of each trace.")] = 60.0,
    mix: Annotated[str, typer.Option(help="Shares of the tiers.")] = "realtime:1+interactive:1+standard:1+accurate:1",
    late_ok: Annotated[
        float, typer.Option(min=0, max=1, help="Share of requests that want a late answer rather than none.")
    ] = 0.2,
    data: Annotated[
        Path | None,
        typer.Option(help=f"Photos, in WIDER Face's layout (dev split). [default: {DATA}, or drawn ones]"),
    ] = None,
    photos: Annotated[int, typer.Option(min=1, max=10_000, help="Photos taken of them.")] = 200,
    repository: Annotated[Path, typer.Option(help="Model repository.")] = Path("models"),
    threads: Annotated[int, typer.Option(min=0, max=MAX_THREADS, help="Engine threads; 0 takes all cores.")] = 0,
    profile: Annotated[
        Path | None, typer.Option(help="JSON of `python -m export profile` for the simulator. [default: the service's]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of traces and photos.")] = 0,
    out: Annotated[Path, typer.Option(help="JSON file; the table (.md) and the picture (.png) go beside it.")] = Path(
        "benchmarks/results/load-cpu.json"
    ),
    cache: Annotated[Path, typer.Option(help="Where the service's profile is kept.")] = Path(".cache/load"),
    fresh: Annotated[bool, typer.Option(help="Replace earlier results.")] = False,
) -> None:
    """Play open-loop traces against the service as a user starts it, and set the simulator's word beside the client's.

    First the machine is measured: the service's profile, its overhead, the bare engine and the saturated service, whose
    pictures a second are load 1. An interrupted benchmark goes on with the same command.
    """
    from benchmarks.load.report import markdown
    from benchmarks.load.run import Plan, run
    from benchmarks.load.workload import drawn_photos, kind_of, read_photos
    from service.scheduling.policies import POLICIES
    from service.simulation.spec import parse_spec
    from training.commands import stop_on_sigterm, told
    from training.files import write_bytes

    stop_on_sigterm()
    with told(lambda: "stopped; the same command goes on with the runs that are not done"):
        names = tuple(POLICIES) if policies == "all" else _names("policies", policies)
        for name in names:
            if name not in POLICIES:
                raise ValueError(f"--policies {policies}: there is no {name!r}; there are {', '.join(POLICIES)}")
        kinds = _names("traces", traces)
        for kind in kinds:
            parse_spec(f"{kind_of(kind)}rate=1,seconds={seconds:g},mix={mix}")
        fractions = _fractions(loads)
        if data is None and not DATA.is_dir():
            typer.echo(f"note: no folder {DATA}; the pictures are drawn. --data names others", err=True)
            pictures, words = drawn_photos(), "drawn"
        else:
            folder = data or DATA
            pictures = read_photos(folder, photos, seed)
            words = f"{len(pictures)} of {folder.resolve().name}, dev split"
        plan = Plan(
            repository=repository, policies=names, loads=fractions, traces=kinds, seconds=seconds, mix=mix,
            late_ok=late_ok, seed=seed, threads=threads, data=words, cache=cache, out=out, profile=profile,
            command=shlex.join(["python", "-m", "benchmarks.load", *sys.argv[1:]]),
        )  # fmt: skip
        try:
            report = run(plan, pictures, fresh)
        except RuntimeError as error:
            raise ValueError(str(error)) from None
        table, picture = out.with_suffix(".md"), out.with_suffix(".png")
        write_bytes(table, markdown(report).encode())
        if report.results:
            from benchmarks.load.figure import draw

            draw(report, picture)
        typer.echo(f"wrote {out}, {table.name} and {picture.name}")


def _names(option: str, text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) != len(names):
        raise ValueError(f"--{option} {text!r}: name each once, with commas between")
    return names


def _fractions(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = (math.nan,)
    if not all(0 < load <= 100 for load in found) or len(set(found)) != len(found):
        raise ValueError(f"--loads {text!r}: fractions of the capacity, above 0 and at most 100, with commas between")
    return found


if __name__ == "__main__":
    typer.run(main)
