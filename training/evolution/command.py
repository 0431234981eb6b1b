"""`python -m training evolve`: search the family of a machine in a supernet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from training.commands import MAX_THREADS, stop_on_sigterm, told


def evolve_command(
    supernet: Annotated[Path, typer.Option(help="Checkpoint of `python -m training supernet`.")] = Path(
        "runs/supernet/last.pt"
    ),
    data: Annotated[Path, typer.Option(help="The photos that the supernet was trained on a part of.")] = Path(
        "../shared/data/faces"
    ),
    out: Annotated[Path, typer.Option(help="Folder of results; a search found there is resumed.")] = Path(
        "runs/evolve"
    ),
    target: Annotated[str, typer.Option(help="Engine that latency is measured on: onnxruntime-cpu or -cuda.")] = (
        "onnxruntime-cpu"
    ),
    budgets: Annotated[str, typer.Option(help="Latency budgets in ms, with commas between.")] = "50,100,200,400",
    population: Annotated[int, typer.Option(help="Candidates of a generation; half are mutations, half crossed.")] = 50,
    iterations: Annotated[int, typer.Option(help="Generations after the first.")] = 50,
    top_k: Annotated[int, typer.Option(help="Candidates that breed.")] = 10,
    latency_weight: Annotated[float, typer.Option(help="AP.50 that a candidate loses at the whole budget.")] = 0.01,
    seed: Annotated[int, typer.Option(help="Seed of both searches.")] = 0,
    threads: Annotated[
        int, typer.Option(min=0, max=MAX_THREADS, help="CPU threads of the engine; 0: as many as there are cores.")
    ] = 1,
    size: Annotated[str, typer.Option(help="Height and width that latency is measured at.")] = "480x640",
    latency: Annotated[
        str, typer.Option(help="measured, of each whole path, or additive: a sum of parts, the winners measured.")
    ] = "measured",
    latencies: Annotated[Path, typer.Option(help="File that measured latencies are kept in and taken from.")] = Path(
        ".cache/latencies.json"
    ),
    long_side: Annotated[int, typer.Option(min=0, help="Of the mini-validation, pixels; 0: the supernet's own.")] = 0,
    photos: Annotated[
        int, typer.Option(min=0, help="Photos of the mini-validation; 0: the supernet's own number.")
    ] = 0,
    split: Annotated[str, typer.Option(help="Split that the supernet was trained on; a tenth was kept for this.")] = (
        "train"
    ),
    device: Annotated[
        str | None, typer.Option(help="Where slices are evaluated: cpu or cuda; default: cuda where there is one.")
    ] = None,
    cache: Annotated[Path, typer.Option(help="Folder for decoded pictures.")] = Path(".cache/pictures"),
) -> None:
    """Find the best path of a supernet within each latency budget, by the genetic search, beside a random one.

    OUT/family.json has the members, for --family of `train` and `describe`; OUT/front.csv what no faster path equals;
    OUT/history.csv every candidate; OUT/front.png both searches' fronts. Stop it at any time: the same command goes on
    where it stopped, also with further budgets.

    Latency is that of the network alone, batch 1, without decoding, resizing and non-maximum suppression.

    Several processes evaluate at once: torchrun --nproc-per-node 4 -m training evolve ...
    """
    from training.engine.cpu import prepare_cpu
    from training.engine.distributed import world as join
    from training.evolution.genetic import EvolutionConfig
    from training.evolution.latency import Setup, target_named
    from training.evolution.run import MODES, Run, RunOptions

    prepare_cpu()
    stop_on_sigterm()
    with (
        told(lambda: f"stopped; run the same command again to go on from {out}"),
        join(device) as world,
    ):
        if latency not in MODES:
            raise ValueError(f"no latency {latency!r}; there are {', '.join(MODES)}")
        config = EvolutionConfig(
            population=population, iterations=iterations, top_k=top_k, mutations=population // 2,
            crossovers=population // 2, latency_weight=latency_weight,
        )  # fmt: skip
        setup = Setup(target_named(target), threads, numbers_of_size(size))
        options = RunOptions(
            supernet, data, out, milliseconds("--budgets", budgets), seed, latency == "additive", latencies, long_side,
            photos, split, cache,
        )  # fmt: skip
        Run(config, setup, options, world, typer.echo if world.main else lambda _: None).go()


def milliseconds(option: str, text: str) -> tuple[float, ...]:
    """`50,12.5` -> (12.5, 50.0), each once. Raises ValueError that names the option."""
    try:
        values = {float(part) for part in text.split(",")}
    except ValueError:
        values = set()
    if not values or not all(0 < value < float("inf") for value in values):
        raise ValueError(f"{option} takes milliseconds above 0 with commas between, such as 20,50,100, not {text!r}")
    return tuple(sorted(values))


def numbers_of_size(text: str) -> tuple[int, int]:
    """`480x640` -> (480, 640), height first. Raises ValueError."""
    parts = text.split("x")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise ValueError(f"--size takes height and width, such as 480x640, not {text!r}")
    return int(parts[0]), int(parts[1])
