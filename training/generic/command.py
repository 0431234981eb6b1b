"""`python -m training generic`: one cell of the paper's Table 8, a detector with one of two necks on COCO-like data."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from math import inf
from pathlib import Path
from typing import Annotated, Any

import typer

from training.commands import TorchThreads, Workers, told
from training.files import write_json

RESULT = "result.json"
SHOWN = ("AP", "AP.50", "AP.75")
NECKS = ("fpn", "autofae")
BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101")


def generic_command(
    train_images: Annotated[Path, typer.Option(help="Folder of pictures to train on.")],
    train_json: Annotated[Path, typer.Option(help="Their annotations, as instances_train2017.json.")],
    val_images: Annotated[Path, typer.Option(help="Folder of pictures to evaluate on.")],
    val_json: Annotated[Path, typer.Option(help="Their annotations, as instances_val2017.json.")],
    detector: Annotated[str, typer.Option(help="retinanet, fcos or faster-rcnn.")] = "retinanet",
    neck: Annotated[str, typer.Option(help="fpn or autofae.")] = "fpn",
    out: Annotated[Path | None, typer.Option(help="Folder of the run. [runs/generic/DETECTOR-NECK]")] = None,
    backbone: Annotated[str, typer.Option(help="resnet18, resnet34, resnet50 or resnet101.")] = "resnet50",
    imagenet: Annotated[
        Path | None, typer.Option(help="torchvision ImageNet weights of the backbone, a file; else it is untrained.")
    ] = None,
    genotype: Annotated[Path | None, typer.Option(help="Genotype of autofae, a file; default: the project's.")] = None,
    width: Annotated[int, typer.Option(min=8, max=4096, help="Channels of neck and head.")] = 256,
    min_size: Annotated[
        int, typer.Option(min=32, max=10_000, help="Shorter side that pictures are resized to, pixels.")
    ] = 800,
    max_size: Annotated[int, typer.Option(min=32, max=10_000, help="Longer side that they may have, pixels.")] = 1333,
    epochs: Annotated[int, typer.Option(min=1, help="Times that every picture is shown.")] = 12,
    batch: Annotated[int, typer.Option(min=2, help="Pictures a step.")] = 16,
    lr: Annotated[
        float | None, typer.Option(help="Rate of SGD; default: 0.01 (Faster R-CNN 0.02) for 16 pictures a step.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of weights and of the order of pictures.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one.")] = None,
    threads: TorchThreads = 0,
    workers: Workers = 2,
) -> None:
    """Train a generic detector with FPN or AutoFAE as its neck, and measure COCO's AP (paper, Table 8).

    Everything but the neck is the same for both. Stop it at any time; the same command goes on. A finished run is
    printed and not repeated.
    """
    out = out or Path("runs/generic") / f"{detector}-{neck}"
    with told(lambda: f"stopped; the same command goes on from what is in {out}"):
        result = run_cell(
            detector, neck, backbone, train_images, train_json, val_images, val_json, out, imagenet, genotype, width,
            min_size, max_size, epochs, batch, lr, seed, device, threads, workers,
        )  # fmt: skip
        typer.echo(_line(result))


def run_cell(
    detector: str, neck: str, backbone: Any, train_images: Path, train_json: Path, val_images: Path, val_json: Path,
    out: Path, imagenet: Path | None, genotype: Path | None, width: int, min_size: int, max_size: int, epochs: int,
    batch: int, lr: float | None, seed: int, device: str | None, threads: int, workers: int,
) -> dict[str, Any]:  # fmt: skip
    """Train and evaluate one detector with one neck, or read what a finished run left in `out`. -> its result.

    Raises ValueError or OSError that says which setting, file or annotation is wrong.
    """
    import torch

    from service.profiling import machine_name
    from training.engine.cpu import prepare_cpu
    from training.generic.data import CocoDataset, read_annotations
    from training.generic.detectors import DETECTORS
    from training.generic.train import Place, RunSettings, evaluate, train
    from training.models.device import chosen_device
    from training.models.genotype import load_genotype

    for name, there, option in (
        (detector, DETECTORS, "detector"), (neck, NECKS, "neck"), (backbone, BACKBONES, "backbone"),
    ):  # fmt: skip
        if name not in there:
            raise ValueError(f"no {option} {name!r}; there are {', '.join(there)}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("this command trains in one process; start it without torchrun")
    if max_size < min_size:
        raise ValueError(f"--max-size {max_size} is below --min-size {min_size}")
    if lr is not None and not 0 < lr < inf:
        raise ValueError(f"--lr is a rate above 0, not {lr:g}")
    if genotype:
        load_genotype(genotype)  # names the file, where it is none
    settings = RunSettings(
        detector, neck, backbone, width, min_size, max_size,
        genotype=genotype.read_text(encoding="utf-8") if genotype else "",
        imagenet=imagenet.name if imagenet else None, epochs=epochs, batch=batch,
        lr=DETECTORS[detector].lr * batch / 16 if lr is None else lr, seed=seed, train=train_json.name,
        val=val_json.name,
    )  # fmt: skip
    done = out / RESULT
    if done.is_file():
        return _finished(done, settings)
    if find_spec("pycocotools") is None:
        raise ValueError("COCO's AP needs pycocotools, which is not installed: pip install pycocotools")
    chosen = chosen_device(device)
    prepare_cpu(threads)
    place = Place(out, chosen, workers, imagenet)
    learned, held = read_annotations(train_json), read_annotations(val_json)
    if learned.categories != held.categories:
        raise ValueError(f"{train_json} and {val_json} do not have the same categories")
    if not any(len(picture.boxes) for picture in held.pictures):
        raise ValueError(f"{val_json} has no boxes, so that there is nothing to measure on")
    with_boxes = [picture for picture in learned.pictures if len(picture.boxes)]
    data, val = CocoDataset(train_images, with_boxes), CocoDataset(val_images, held.pictures)
    left_out = len(learned.pictures) - len(with_boxes)
    typer.echo(
        f"{detector} + {neck}: {len(data)} pictures ({left_out} without boxes left out), "
        f"{len(learned.categories)} categories, {epochs} epochs on {chosen}"
    )
    out.mkdir(parents=True, exist_ok=True)
    model, progress = train(settings, data, len(learned.categories), place)
    scores = evaluate(model, val, val_json, learned.categories, batch, place)
    backbone_and_neck: Any = model.backbone
    result = {
        "settings": vars(settings),
        "AP": scores.ap, "AP.50": scores.ap50, "AP.75": scores.ap75,
        "AP.small": scores.ap_small, "AP.medium": scores.ap_medium, "AP.large": scores.ap_large,
        "losses": progress.losses,
        "train": {"pictures": len(data), "left_out": left_out, "boxes": sum(len(p.boxes) for p in with_boxes)},
        "val": {"pictures": scores.images, "detections": scores.detections},
        "parameters": {"all": _parameters(model), "neck": _parameters(backbone_and_neck.neck)},
        "seconds": round(progress.seconds, 1),
        "hardware": torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else machine_name(),
    }  # fmt: skip
    write_json(done, result)
    return result


def _finished(path: Path, settings: Any) -> dict[str, Any]:
    """The result of a run that is over. Raises ValueError where it is of another run."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        stored = result["settings"]
        if not isinstance(stored, dict) or any(name not in result for name in (*SHOWN, "hardware")):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is not a result of this command; name another --out") from None
    settings.check_same(stored, path)
    return dict(result)


def _parameters(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _line(result: dict[str, Any]) -> str:
    numbers = ", ".join(f"{name} {'-' if result[name] is None else format(result[name], '.4f')}" for name in SHOWN)
    settings = result["settings"]
    return f"{settings['detector']} + {settings['neck']}: {numbers} on {settings['val']} ({result['hardware']})"
