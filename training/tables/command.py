"""`python -m training table N`: one of the paper's tables, from the photos to Markdown."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from service.profiling import machine_name
from training.commands import TorchThreads, Workers, stop_on_sigterm, told, validation_split, whole_numbers


def table_command(
    number: Annotated[int, typer.Argument(help="1 to 8, as the paper numbers them.")],
    data: Annotated[
        Path, typer.Option(help="Folder in WIDER Face's layout, or its short form; COCO's folder for table 8.")
    ] = Path("../shared/data/faces"),
    budget: Annotated[str, typer.Option(help="smoke, small (CPU) or paper.")] = "small",
    out: Annotated[Path | None, typer.Option(help="Folder of results. [runs/table-N]")] = None,
    rows: Annotated[str, typer.Option(help="Only these rows, with commas between; the first always runs.")] = "",
    seeds: Annotated[str, typer.Option(help="Seeds, with commas between. [the budget's]")] = "",
    genotypes: Annotated[
        Path | None, typer.Option(help="Folder of kept genotypes, such as training/genotypes; others are searched.")
    ] = None,
    start: Annotated[Path | None, typer.Option(help="Weights whose backbone every run begins with.")] = None,
    imagenet: Annotated[
        Path | None,
        typer.Option(help="torchvision ImageNet weights: a file, or a folder with resnet50.pth and the like."),
    ] = None,
    official: Annotated[Path | None, typer.Option(help="Folder of WIDER's wider_{easy,medium,hard}_val.mat.")] = None,
    split: Annotated[str, typer.Option(help="Split to train on.")] = "train",
    dev_split: Annotated[
        str | None, typer.Option(help="Split to evaluate on. [dev, or val where the data has no dev]")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one.")] = None,
    threads: TorchThreads = 0,
    workers: Workers = 0,
    cache: Annotated[Path, typer.Option(help="Folder for decoded pictures.")] = Path(".cache/pictures"),
    keep: Annotated[bool, typer.Option("--keep", help="Keep the checkpoints of finished runs.")] = False,
    list_rows: Annotated[bool, typer.Option("--list", help="List the rows and stop.")] = False,
) -> None:
    """Train and evaluate every row of a table, and write it with the paper's values beside ours.

    Searched rows are searched first, on the same photos, unless --genotypes has them.
    Stop it at any time: finished runs are kept, a run that was cut off is resumed.
    Two such commands with other --rows or --seeds can share one --out.
    """
    import torch

    from training.engine.checkpoint import fingerprint
    from training.engine.cpu import prepare_cpu
    from training.engine.distributed import world as join
    from training.evaluation.detections import read_split
    from training.files import write_json
    from training.tables.budget import BUDGETS
    from training.tables.genotypes import Searches
    from training.tables.report import Settings, open_settings, read_results, write_table
    from training.tables.rows import table_spec
    from training.tables.run import Place, folder_of, run, slug

    prepare_cpu(threads)
    stop_on_sigterm()
    with told(lambda: "stopped; the same command goes on with the runs that are not done"):
        if budget not in BUDGETS:
            raise ValueError(f"no budget {budget!r}; there are {', '.join(BUDGETS)}")
        if number == 8:
            from training.tables.generic import run_table
            from training.tables.paper import GENERIC

            if list_rows:
                for pair in GENERIC:
                    typer.echo(" ".join(pair))
                return
            for option, given in (("--rows", rows), ("--seeds", seeds), ("--start", start)):
                if given:
                    raise ValueError(f"table 8 has no {option}: it runs its six cells once, from --imagenet if given")
            typer.echo(run_table(data, budget, out or Path("runs/table-8"), genotypes, imagenet, device, threads))
            return
        spec = table_spec(number)
        if list_rows:
            for row in spec.rows:
                typer.echo(row.name)
            return
        size = BUDGETS[budget]()
        tested = dev_split or validation_split(data)
        chosen = _choose(rows, [row.name for row in spec.rows])
        numbers = whole_numbers("--seeds", seeds) if seeds else size.seeds
        folder = out or Path(f"runs/table-{number}")
        multi_scale = spec.multi_scale and size.long_side is None
        with join(device) as world:
            hardware = torch.cuda.get_device_name() if world.device.type == "cuda" else machine_name()
            trained = f"{size.images} crops" if size.images else f"{size.train.epochs:g} epochs"
            sides = ", ".join(f"{s.batch} crops of {s.side} pixels" for s in size.train.sizes)
            one_pass = f"one pass at long side {size.long_side}" if size.long_side else "one pass at each photo's size"
            begun = start or imagenet
            kept = f"{genotypes.resolve().name}, sha256 {fingerprint(genotypes)}" if genotypes else None
            settings = Settings(
                table=number, budget=budget, data=data.name, split=tested,
                photos=len(read_split(data, tested, size.photos or None)[0]),
                protocol="several scales (0.5, 1, 1.5, 2)" if multi_scale else one_pass,
                training=f"{trained} of recipe `{size.train.recipe}` in steps of {sides}",
                start=f"the backbone of `{begun.name}`" if begun else None, hardware=hardware,
                official=official is not None, train_split=split,
                start_sha256=fingerprint(begun) if begun else None, genotypes=kept,
            )  # fmt: skip
            if world.main:
                open_settings(folder / "settings.json", settings)
            searches = Searches(
                genotypes, folder / "search", size.search, size.search_seeds, data, split, cache, hardware, start
            )
            place = Place(data, folder, split, tested, cache, start, imagenet, official, workers)
            for seed, row in ((n, r) for n in numbers for r in spec.rows if r.name in chosen):
                result = folder / "results" / f"{slug(row.name)}-{seed}.json"
                if result.is_file():
                    continue
                if world.main:
                    typer.echo(f"{row.name}, seed {seed}")
                genotype = searches.get(row.wanted, seed, world) if row.wanted else None
                done = run(row, genotype, seed, size, place, world, multi_scale)
                if world.main:
                    write_json(result, done.model_dump())
                    if not keep:
                        shutil.rmtree(folder_of(row, seed, place), ignore_errors=True)
                    typer.echo(f"  AP.50 {done.scores['ap50']:.4f}, AP {done.scores['ap']:.4f}")
            if world.main:
                results = read_results(folder / "results")
                typer.echo(write_table(folder, spec, settings, results))


def _choose(text: str, known: list[str]) -> list[str]:
    wanted = [name.strip() for name in text.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            raise ValueError(f"no row {name!r} in this table; `--list` names them")
    return [name for name in known if not wanted or name in wanted or name == known[0]]
