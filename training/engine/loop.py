"""The training loop, top to bottom."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from training.config import TrainConfig
from training.data.dataset import CropDataset, StreamSampler, collate
from training.data.device_crops import device_batches, pictures_on
from training.data.photometric import augment
from training.data.rotation import rotate
from training.engine import checkpoint
from training.engine.distributed import World
from training.engine.growth import grow_from
from training.engine.optim import Ema, build_optimizer, for_ranks, learning_rate
from training.engine.precision import autocast
from training.engine.teacher import load_teacher
from training.engine.warm_start import Keep, stage, start_from
from training.files import write_json
from training.models.detector import Detector, Output, build_detector, normalize
from training.models.distillation import distillation_loss
from training.models.losses import Losses, Targets, detection_loss

LAST, BEST = "last.pt", "best.pt"
_TOLERATED_OVERFLOWS = 5
_ENDLESS = 1 << 31  # steps of a run that ends by the clock
Validate = Callable[[Detector], dict[str, float]]


@dataclass
class Progress:
    """What a run has done so far. seconds: spent in steps, waiting for their data and saving, over all starts."""

    step: int = 0
    images: int = 0
    seconds: float = 0.0
    best: float = -1.0


@dataclass(frozen=True)
class RunOptions:
    """out: the run's folder; workers: loader processes; save_every and validate_every in steps (0: only at the end).

    minutes: the run, its schedule included, ends after so many of them, however many steps that makes; None: after the
    recipe's epochs.
    init: a checkpoint or exported file to start from, of which `keep` is taken (see `warm_start.start_from`).
    grow: the same of a smaller member, which is made larger (see `growth.grow_from`).
    device_crops: cut crops on the device instead of in loader processes; None: on a GPU that has room for the pictures.
    teacher: of a run whose config has `distill`, a checkpoint or a member's exported file.
    """

    out: Path
    workers: int = 1
    save_every: int = 200
    validate_every: int = 0
    minutes: float | None = None
    compile: bool = False
    init: Path | None = None
    grow: Path | None = None
    imagenet: Path | None = None
    keep: Keep = "all"
    device_crops: bool | None = None
    teacher: Path | None = None


def steps_for(config: TrainConfig, photos: int, ranks: int) -> int:
    """Number of steps that show `photos` pictures `epochs` times."""
    return max(1, round(config.epochs * photos / config.images_a_step(ranks)))


def steps_by(minutes: float, progress: Progress) -> int:
    """How many steps a run has in all that ends after so many minutes, at the speed that it had so far."""
    return round(progress.step * minutes * 60 / progress.seconds) if progress.seconds else _ENDLESS


def train(config: TrainConfig, data: CropDataset, options: RunOptions, world: World, validate: Validate) -> Progress:
    """Train, resuming from `out/last.pt` where it exists; leaves `last.pt` and, by AP.50, `best.pt`.

    An interrupt (Ctrl-C, SIGTERM turned into KeyboardInterrupt) saves the state before it is passed on.
    """
    torch.manual_seed(config.seed)
    device = world.device
    model = on_device(build_detector(config.model), device)
    if options.imagenet:
        model.backbone.load_imagenet(options.imagenet)
    stages = [stage(f"ImageNet ({options.imagenet.name})", 0, 0.0)] if options.imagenet else []
    teacher = _teacher(config, options, device)
    last = options.out / LAST
    if world.main:
        checkpoint.remove_partials(options.out)
    if options.init and not last.is_file():
        stages = start_from(options.init, model, config.model, some_crops(config, data, device), options.keep)
    elif options.grow and not last.is_file():
        stages = grow_from(options.grow, model, config.model, some_crops(config, data, device))
    if config.distill:
        stages = [*stages, stage(f"teacher {config.distill.teacher}", 0, 0.0)]
    optim = for_ranks(config, world.size)
    optimizer = build_optimizer(model.parameters(), optim)
    ema, progress = Ema(model, config.optim.ema), Progress()
    if last.is_file():
        content = checkpoint.load(last)
        _check_same_run(content["config"], config, last)
        progress, stages = _restore(content, model, optimizer, ema), content.get("stages", [])
    if world.main:
        write_json(options.out / "config.json", checkpoint.as_plain(config))
    if options.minutes is None:
        steps = stop = steps_for(config, len(data), world.size)
    elif world.size > 1:
        raise ValueError("a run by the clock (--minutes) has one process: several would not agree on its last step")
    else:
        steps, stop = steps_by(options.minutes, progress), _ENDLESS
    network = parallel(model, world)
    if options.compile:
        network.compile(dynamic=False)
        if teacher:
            teacher.compile(dynamic=False)
    writer = SummaryWriter(str(options.out)) if world.main else None

    def store(name: str) -> None:
        if world.main:
            checkpoint.save(options.out / name, _state(config, model, optimizer, ema, progress, steps, stages))

    def check() -> None:
        scores = validate(_averaged(config, ema, device)) if world.main else {}
        if scores.get("ap50", -1.0) > progress.best:
            former, progress.best = progress.best, scores["ap50"]
            try:
                store(BEST)
            except BaseException:  # an interrupt: what is saved next must not claim a best that is not there
                progress.best = former
                raise
        for name, value in scores.items():
            if writer:
                writer.add_scalar(f"dev/{name}", value, progress.step)
        if world.main:
            with (options.out / "dev.jsonl").open("a") as log:
                log.write(json.dumps({"step": progress.step, "images": progress.images, **scores}) + "\n")

    lost, since = 0, 0.0
    bar = tqdm(total=steps, initial=progress.step, unit="step", disable=not world.main, mininterval=2.0)
    try:
        for images, targets in batches(config, data, options, world, progress.step, stop):
            since = since or time.monotonic()  # what is done before the first batch is no part of the speed
            if options.minutes is not None:
                bar.total = steps = steps_by(options.minutes, progress)
                if progress.step >= steps:
                    break
            rate = learning_rate(progress.step, steps, optim)
            for group in optimizer.param_groups:
                group["lr"] = rate
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + progress.step * 131 + world.rank)
            terms = train_step(network, optimizer, config, images, targets, generator, device, teacher=teacher)
            ema.update(model)
            progress.step += 1
            progress.images += len(images) * world.size
            now = time.monotonic()
            progress.seconds, since = progress.seconds + now - since, now
            if writer and progress.step % 10 == 0:
                values = {name: float(value) for name, value in terms.items()}
                lost = 0 if math.isfinite(values["grad"]) else lost + 1
                if lost >= _TOLERATED_OVERFLOWS:
                    raise ValueError(
                        f"gradients were not finite in {lost} samples in a row, the last of step "
                        f"{progress.step}: the run learns nothing; try precision fp32 or a lower rate"
                    )
                bar.set_postfix({**{k: f"{v:.3f}" for k, v in values.items()}, "lr": f"{rate:.1e}"})
                for name, value in values.items():
                    writer.add_scalar(f"train/{name}", value, progress.step)
                writer.add_scalar("train/lr", rate, progress.step)
            bar.update()
            if options.save_every and progress.step % options.save_every == 0:
                store(LAST)
            if options.validate_every and progress.step % options.validate_every == 0:
                check()
                since = time.monotonic()
    except KeyboardInterrupt:
        store(LAST)
        raise
    finally:
        bar.close()
        if writer:
            writer.close()
    store(LAST)  # before the evaluation, which takes minutes and can be interrupted
    check()
    store(LAST)
    return progress


def train_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    images: Tensor,
    targets: list[Targets],
    generator: torch.Generator,
    device: torch.device,
    done: Callable[[str], None] = lambda _part: None,
    teacher: nn.Module | None = None,
) -> dict[str, Tensor]:
    """One optimiser step. Returns loss terms and the gradient's norm before clipping, as tensors on the device.

    done: called with the name of each part of the step once it has been issued. teacher: used if `config.distill`.
    """
    network.train()
    seen = forward(network, config, images, targets, generator, device, done)
    losses = detection_loss(seen.output, seen.targets, config.loss)
    total, terms = losses.cls + losses.box, {"cls": losses.cls.detach(), "box": losses.box.detach()}
    done("matching and loss")
    if teacher is not None and config.distill:
        with torch.no_grad(), autocast(device.type, config.precision):
            said = teacher(seen.images)
        taught = distillation_loss(seen.output, said, config.distill)
        total = total + taught.score + taught.box
        terms |= {"teacher_score": taught.score.detach(), "teacher_box": taught.box.detach()}
        done("teacher")
    torch.autograd.backward(total)
    done("backward")
    norm = nn.utils.clip_grad_norm_(network.parameters(), config.optim.clip_norm)
    # A step whose gradient overflowed would poison weights and average for good.
    if torch.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    done("optimiser")
    return {**terms, "grad": norm, "positives": losses.positives}


def forward_loss(
    network: nn.Module,
    config: TrainConfig,
    images: Tensor,
    targets: list[Targets],
    generator: torch.Generator,
    device: torch.device,
) -> Losses:
    """`forward`, and what the labels say of it."""
    seen = forward(network, config, images, targets, generator, device)
    return detection_loss(seen.output, seen.targets, config.loss)


class Seen(NamedTuple):
    """images: float [N, 3, S, S], augmented and normalised; targets: of these; output: what the network says."""

    images: Tensor
    targets: list[Targets]
    output: Output


def forward(
    network: nn.Module,
    config: TrainConfig,
    images: Tensor,
    targets: list[Targets],
    generator: torch.Generator,
    device: torch.device,
    done: Callable[[str], None] = lambda _part: None,
) -> Seen:
    """Augment a batch of crops, uint8 [N, 3, S, S], on the device, and run the network on it."""
    images = images.to(device, non_blocking=True)
    targets = [Targets(t.faces.to(device, non_blocking=True), t.ignored.to(device, non_blocking=True)) for t in targets]
    images, targets = rotate(images, targets, config.rotation, generator)
    x = normalize(augment(images, config.photometric, generator)).contiguous(memory_format=torch.channels_last)
    done("augmentation")
    with autocast(device.type, config.precision):
        output = network(x)
    done("forward")
    return Seen(x, targets, output)


def batches(
    config: TrainConfig, data: CropDataset, options: RunOptions, world: World, start: int, stop: int
) -> Generator[tuple[Tensor, list[Targets]], None, None]:
    """Crops and targets of steps `start` to `stop`: uint8 [N, 3, S, S], the same crops however they are cut."""
    sizes = [(s.side, s.batch, s.share) for s in config.sizes]
    sampler = StreamSampler(data.weights(), sizes, config.seed, start, stop, world.rank)
    pictures = pictures_on(world.device, data.cache, options.device_crops)
    if pictures is not None:
        yield from device_batches(data, sampler, pictures)
        return
    loader: DataLoader[Any] = DataLoader(
        data,
        batch_sampler=sampler,
        num_workers=options.workers,
        collate_fn=collate,
        pin_memory=world.device.type == "cuda",
        prefetch_factor=4 if options.workers else None,
    )
    yield from loader


def on_device(model: Detector, device: torch.device) -> Detector:
    """The model on its device; convolutions are faster with channels last, on CPUs and GPUs alike."""
    model.to(device)
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def parallel(model: Detector, world: World) -> nn.Module:
    """The model as all processes train it: gradients are averaged, and on GPUs statistics of the norms are shared."""
    if world.size == 1:
        return model
    if world.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]  # in place
    for parameter in model.parameters():
        if parameter.ndim == 4:
            # 1x1 kernels pass for channels last with other strides than their gradients', of which DDP complains.
            parameter.data = torch.empty_like(parameter.data, memory_format=torch.channels_last).copy_(parameter.data)
    return DistributedDataParallel(model)


def some_crops(config: TrainConfig, data: CropDataset, device: torch.device) -> Iterator[Tensor]:
    """A few batches as the network takes them, to measure norms on."""
    side = max(s.side for s in config.sizes)
    for keys in StreamSampler(data.weights(), [(side, 8, 1.0)], config.seed, 0, 12):
        images = collate([data[key] for key in keys])[0].to(device)
        yield normalize(images).contiguous(memory_format=torch.channels_last)


def _averaged(config: TrainConfig, ema: Ema, device: torch.device) -> Detector:
    model = on_device(build_detector(config.model), device)
    model.load_state_dict(ema.state)
    return model.eval()


def _teacher(config: TrainConfig, options: RunOptions, device: torch.device) -> Detector | None:
    """Raises ValueError where there is a teacher without anything to learn from it, or the other way round."""
    if (config.distill is None) != (options.teacher is None):
        lacking = "has no teacher to learn from" if config.distill else "does not learn from its teacher"
        raise ValueError(f"{options.out}: the run {lacking}; config and options have to name one together")
    return on_device(load_teacher(options.teacher, config.model), device) if options.teacher else None


def _check_same_run(stored: dict[str, Any], config: TrainConfig, path: Path) -> None:
    """Raises ValueError where the checkpoint is of another recipe, member, seed or teacher: a mixture."""
    asked = checkpoint.as_plain(config)
    for name, words in (("recipe", "recipe"), ("model", "model"), ("seed", "seed"), ("distill", "teacher")):
        # Older checkpoints say nothing of a teacher, and had none.
        if not checkpoint.same_settings(stored.get(name), asked[name]):
            raise ValueError(f"{path} belongs to a run of another {words}; name another --out, or remove that folder")


def _state(
    config: TrainConfig, model: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema, progress: Progress, steps: int,
    stages: list[dict[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    return {
        "config": checkpoint.as_plain(config),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "ema": ema.state,
        "ema_updates": ema.updates,
        "progress": checkpoint.as_plain(progress),
        "stages": stages,
        "steps": steps,
    }


def _restore(state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema) -> Progress:
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    ema.load(state["ema"], state["ema_updates"])
    return Progress(**state["progress"])
