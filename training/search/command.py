"""`python -m training search`: find a neck on annotated photos."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, cast

import typer

from service.profiling import machine_name
from training.commands import TorchThreads, Workers, stop_on_sigterm, told, whole_numbers


def search_command(
    space: Annotated[
        str, typer.Argument(help="autofae, autofa, autofe, or a space that the paper compares with, such as darts-fa.")
    ] = "autofae",
    data: Annotated[Path, typer.Option(help="Folder in WIDER Face's layout, or its short form.")] = Path(
        "../shared/data/faces"
    ),
    out: Annotated[Path, typer.Option(help="Folder of results; a search found there is resumed.")] = Path(
        "runs/search"
    ),
    budget: Annotated[str, typer.Option(help="smoke, small (CPU), gpu, or paper.")] = "small",
    seeds: Annotated[str, typer.Option(help="Seeds, with commas between; the best on the mini-validation wins.")] = (
        "0,1,2"
    ),
    epochs: Annotated[float | None, typer.Option(help="Overrides the budget's length.")] = None,
    channels: Annotated[int | None, typer.Option(help="Overrides the budget's width.")] = None,
    position: Annotated[str, typer.Option(help="Of AutoFE: before, middle or after (Table 6).")] = "middle",
    nodes: Annotated[int, typer.Option(help="Of an AutoFE cell, its input counted.")] = 4,
    alpha_rule: Annotated[
        str, typer.Option(help="Of Eq. 2: relative (to the largest alpha) or absolute (as printed).")
    ] = "relative",
    gumbel: Annotated[str, typer.Option(help="Temperature of Eq. 6: under the sum, or as printed.")] = "sum",
    evaluate: Annotated[
        str | None,
        typer.Option(help="Edges of an AutoFE node in a step: all (Eq. 5) or the sampled one. [the budget's]"),
    ] = None,
    second_order: Annotated[bool, typer.Option(help="Look one weight step ahead (DARTS); twice the time.")] = False,
    start: Annotated[Path | None, typer.Option(help="Weights whose backbone is taken: a checkpoint or .onnx.")] = None,
    split: Annotated[str, typer.Option(help="Split to search on; it is divided 9:9:2.")] = "train",
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one.")] = None,
    threads: TorchThreads = 0,
    workers: Workers = 0,
    cache: Annotated[Path, typer.Option(help="Folder for decoded pictures.")] = Path(".cache/pictures"),
) -> None:
    """Search an architecture, once a seed, and keep all and the best.

    OUT/seed-S/genotype.json is what seed S found, with its AP on the photos kept for that;
    OUT/seed-S/step-*.json what it would have been at each epoch; OUT/genotype.json the best of all.
    Stop it at any time: the same command goes on where it stopped.

    Several processes: torchrun --nproc-per-node 4 -m training search ...
    """
    import torch

    from training.data.dataset import load_training_set
    from training.engine.cpu import prepare_cpu
    from training.engine.distributed import world as join
    from training.models.genotype import Position, describe, save_genotype
    from training.search.config import BUDGETS
    from training.search.loop import HISTORY, RESULT, Search, SearchOptions
    from training.search.relaxation import AlphaRule, GumbelFormula
    from training.search.report import both_rules, caveat, last_probabilities
    from training.search.space import Evaluate
    from training.search.spaces import SPACES

    prepare_cpu(threads)
    stop_on_sigterm()
    with told(lambda: f"stopped; run the same command again to go on from {out}"), join(device) as world:
        for value, known, what in (
            (budget, tuple(BUDGETS), "budget"), (space, SPACES, "space"),
            (position, ("before", "middle", "after"), "position"),
            (alpha_rule, ("relative", "absolute"), "rule"), (gumbel, ("sum", "printed"), "formula"),
            (evaluate or "all", ("all", "sampled"), "choice of edges"),
        ):  # fmt: skip
            if value not in known:
                raise ValueError(f"no {what} {value!r}; there are {', '.join(known)}")
        numbers = whole_numbers("--seeds", seeds)
        config = BUDGETS[budget]()
        chosen = replace(
            config.options, position=cast(Position, position), nodes=nodes, alpha_rule=cast(AlphaRule, alpha_rule),
            gumbel=cast(GumbelFormula, gumbel), evaluate=cast(Evaluate, evaluate or config.options.evaluate),
        )  # fmt: skip
        train = config.train
        if epochs is not None:
            train = replace(train, epochs=epochs)
        if channels is not None:
            train = replace(train, model=replace(train.model, channels=channels))
        config = replace(config, space=space, options=chosen, second_order=second_order)
        photos = load_training_set(data, split, cache, train.data)
        hardware = torch.cuda.get_device_name() if world.device.type == "cuda" else machine_name()
        found = []
        for seed in numbers:
            options = SearchOptions(out / f"seed-{seed}", data.name, hardware, start, workers)
            one = Search(replace(config, train=replace(train, seed=seed)), photos, options, world)
            one.resume()
            if world.main:
                typer.echo(f"{space}, seed {seed}: {one.steps} steps, {one.step} of them done")
            genotype = one.run()
            found.append(genotype)
            if world.main:
                typer.echo(describe(genotype))
        best = max(found, key=lambda g: g.provenance.mini_validation_ap50 or 0.0)
        best = best.model_copy(update={"provenance": best.provenance.model_copy(update={"seeds_tried": numbers})})
        if world.main:
            save_genotype(out / RESULT, best)
            typer.echo(f"best: seed {best.provenance.seed}, kept as {out / RESULT}")
            values = last_probabilities(out / f"seed-{best.provenance.seed}" / HISTORY)
            for line in (both_rules(values, chosen.alpha_threshold), caveat(space)):
                if line:
                    typer.echo(line)
