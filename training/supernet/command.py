"""`python -m training supernet`: train the family's supernet; `cut`: take one path out of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from training.commands import TorchThreads, Workers, stop_on_sigterm, told, whole_numbers

Data = Annotated[Path, typer.Option(help="Folder in WIDER Face's layout, or its short form.")]
Cache = Annotated[Path, typer.Option(help="Folder for decoded pictures.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one.")]


def supernet_command(
    data: Data = Path("../shared/data/faces"),
    out: Annotated[Path, typer.Option(help="Folder of the supernet; one found there is trained on.")] = Path(
        "runs/supernet"
    ),
    budget: Annotated[str, typer.Option(help="smoke, small (CPU), gpu, or paper.")] = "small",
    genotype: Annotated[Path | None, typer.Option(help="Genotype of AutoFAE; default: the project's own.")] = None,
    backbones: Annotated[str, typer.Option(help="With commas between, such as resnet18,resnet34.")] = "",
    channels: Annotated[str, typer.Option(help="Widths, ascending, with commas between.")] = "",
    epochs: Annotated[float | None, typer.Option(help="Overrides the budget's length.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, paths and crops.")] = 0,
    start: Annotated[
        Path | None, typer.Option(help="Weights whose backbone the path's backbone of its kind starts from.")
    ] = None,
    imagenet: Annotated[Path | None, typer.Option(help="Folder of torchvision's resnet18.pth and the like.")] = None,
    split: Annotated[str, typer.Option(help="Split to train on; two of twenty photos are kept for evaluation.")] = (
        "train"
    ),
    device: Device = None,
    threads: TorchThreads = 0,
    workers: Workers = 1,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 200,
    cache: Cache = Path(".cache/pictures"),
) -> None:
    """Train a supernet: at each step one single path, at full width first, then ever narrower ones too.

    Stop it at any time: the same command goes on where it stopped.

    Several processes:  torchrun --nproc-per-node 8 -m training supernet ...

    Several machines:   torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29400
    -m training supernet ...  on each
    """
    from training.data.dataset import load_training_set
    from training.engine.cpu import prepare_cpu
    from training.engine.distributed import world as join
    from training.models.genotype import load_genotype
    from training.supernet.config import BUDGETS, SupernetConfig
    from training.supernet.loop import LAST, SupernetOptions, SupernetTraining
    from training.supernet.path import PathSpace, backbone_name

    prepare_cpu(threads)
    stop_on_sigterm()
    with told(lambda: f"stopped; run the same command again to go on from {out / LAST}"), join(device) as world:
        if budget not in BUDGETS:
            raise ValueError(f"no budget {budget!r}; there are {', '.join(BUDGETS)}")
        config: SupernetConfig = BUDGETS[budget]()
        space: PathSpace = config.space
        if backbones:
            space = replace(space, backbones=tuple(backbone_name(name.strip()) for name in backbones.split(",")))
        if channels:
            space = replace(space, channels=whole_numbers("--channels", channels))
        train = replace(config.train, seed=seed)
        if epochs is not None:
            train = replace(train, epochs=epochs)
        text = load_genotype(genotype).model_dump_json() if genotype else ""
        config = replace(config, space=space, train=train, genotype=text)
        photos = load_training_set(data, split, cache, train.data)
        options = SupernetOptions(out, start, imagenet, workers, save_every, data.name)
        training = SupernetTraining(config, photos, options, world)
        training.resume()
        if world.main:
            typer.echo(f"{len(space)} paths in one supernet, {training.steps} steps, {training.step} of them done")
        training.run()
        if world.main:
            typer.echo(f"done: {training.images} crops in {training.seconds / 60:.1f} min")


def cut_command(
    path: Annotated[str, typer.Argument(help="A single path such as R18-FA-Hx1-64, or d0 .. d6.")],
    supernet: Annotated[Path, typer.Option(help="Checkpoint of `python -m training supernet`.")] = Path(
        "runs/supernet/last.pt"
    ),
    out: Annotated[Path, typer.Option(help="Checkpoint to write.")] = Path("runs/cut/best.pt"),
    family: Annotated[Path | None, typer.Option(help="family.json of `evolve`, whose members are meant.")] = None,
    data: Data = Path("../shared/data/faces"),
    split: Annotated[str, typer.Option(help="Split whose photos the norms are measured on.")] = "train",
    cache: Cache = Path(".cache/pictures"),
) -> None:
    """Cut a path's detector out of a supernet, its norms measured anew, as a checkpoint like those of `train`."""
    import torch

    from training.data.dataset import load_training_set
    from training.engine.loop import some_crops
    from training.family import single_path
    from training.supernet.calibration import recalibrate
    from training.supernet.checkpoint import load_supernet, save_cut, supernet_config
    from training.supernet.loop import divide

    with told(lambda: "stopped; nothing was written"):
        wanted = single_path(path, family)
        whole, content = load_supernet(supernet)
        config = supernet_config(content)
        photos = load_training_set(data, split, cache, config.train.data)
        detector = whole.cut(wanted)
        recalibrate(detector, some_crops(config.train, divide(photos, config)[0], torch.device("cpu")))
        save_cut(out, detector, wanted, content)
        typer.echo(f"{out}: {wanted}, {sum(p.numel() for p in detector.parameters()) / 1e6:.1f} M parameters")
