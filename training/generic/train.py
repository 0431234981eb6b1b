"""Training and evaluation of a generic detector, top to bottom. A run can be cut off at any time and goes on."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from training.config import OptimConfig
from training.engine import checkpoint
from training.engine.optim import build_optimizer, learning_rate
from training.evaluation.coco import CocoScores, coco_ap
from training.generic.data import BatchOrder, CocoDataset, Key, collate
from training.generic.detectors import DETECTORS, GenericConfig
from training.models.backbone import BackboneName

LAST = "last.pt"
WARMUP_STEPS = 500
MILESTONES = (8 / 12, 11 / 12)


@dataclass(frozen=True)
class RunSettings:
    """What a run is, so that it is gone on with under the same settings alone.

    genotype: JSON of a searched neck, empty: the project's; imagenet: name of the file that the backbone began with;
    lr: for `batch`; train, val: names of the annotation files.
    """

    detector: str
    neck: str
    backbone: BackboneName
    width: int
    min_size: int
    max_size: int
    genotype: str
    imagenet: str | None
    epochs: int
    batch: int
    lr: float
    seed: int
    train: str
    val: str

    def build(self, categories: int) -> nn.Module:
        """The detector with fresh weights. Raises ValueError where the neck cannot be built."""
        return DETECTORS[self.detector].build(
            GenericConfig(self.backbone, self.neck, categories, self.width, self.min_size, self.max_size, self.genotype)
        )

    def check_same(self, stored: dict[str, Any], path: Path) -> None:
        """Raises ValueError where `stored`, found in `path`, are the settings of another run."""
        # Through JSON, as `stored` may have been.
        asked = json.loads(json.dumps(asdict(self)))
        for name, value in asked.items():
            if stored.get(name) != value:
                raise ValueError(
                    f"{path} belongs to a run with {name} {stored.get(name)}, not {value}; name another --out"
                )


@dataclass
class Progress:
    """What a run has done so far. seconds: in steps, over all starts; losses: mean of every epoch that is over;
    running: sum of the losses of the epoch that is not."""

    step: int = 0
    seconds: float = 0.0
    running: float = 0.0
    losses: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """Where a run happens. imagenet: weights of the backbone, a local file; workers: loader processes; save_every:
    steps between checkpoints, beside the one after every epoch."""

    out: Path
    device: torch.device
    workers: int = 0
    imagenet: Path | None = None
    save_every: int = 1000


def optim_config(settings: RunSettings, steps: int) -> OptimConfig:
    """The usual schedule of twelve epochs: SGD, warm-up over 500 steps, a tenth of the rate after epochs 8 and 11.

    Short runs warm up over a tenth of their steps. Gradients are clipped where they would be out of all proportion
    (FCOS's recipe does so at 35).
    """
    return OptimConfig(
        name="sgd", lr=settings.lr, momentum=0.9, weight_decay=1e-4, warmup_steps=min(WARMUP_STEPS, steps // 10),
        milestones=MILESTONES, clip_norm=35.0, ema=0.0,
    )  # fmt: skip


def train(settings: RunSettings, data: CocoDataset, categories: int, place: Place) -> tuple[nn.Module, Progress]:
    """Train `settings.epochs` epochs, from `out/last.pt` where there is one.

    An interrupt or SIGTERM ends the step under way, saves and is raised as KeyboardInterrupt. On a CPU a run that was
    cut off ends with the same weights as one that was not. Raises ValueError where `last.pt` is of another run.
    """
    torch.manual_seed(settings.seed)
    model = settings.build(categories)
    last, progress = place.out / LAST, Progress()
    checkpoint.remove_partials(place.out)
    found = _load(last, settings, len(data), categories) if last.is_file() else None
    backbone: Any = model.backbone
    if place.imagenet:
        if found is None:
            backbone.load_imagenet(place.imagenet)
        backbone.freeze_trained()
    model.to(place.device)
    per_epoch = BatchOrder(data.pictures, settings.batch, settings.seed, 0, 0).steps_per_epoch
    steps = settings.epochs * per_epoch
    config = optim_config(settings, steps)
    optimizer = build_optimizer((p for p in model.parameters() if p.requires_grad), config)
    if found is not None:
        model.load_state_dict(found["model"])
        optimizer.load_state_dict(found["optimizer"])
        progress = Progress(**found["progress"])

    def store() -> None:
        content = {
            "settings": asdict(settings), "pictures": len(data), "categories": categories, "progress": asdict(progress),
            "model": model.state_dict(), "optimizer": optimizer.state_dict(),
        }  # fmt: skip
        checkpoint.save(last, content)

    order = BatchOrder(data.pictures, settings.batch, settings.seed, progress.step, steps)
    model.train()
    name = f"{settings.detector} + {settings.neck}"
    with (
        Interrupt() as interrupt,
        tqdm(total=steps, initial=progress.step, desc=name, unit="step", mininterval=2.0) as bar,
    ):
        for images, targets in _loaded(data, order, place):
            began = time.monotonic()
            # Faster R-CNN draws which regions it learns from: by the step's own seed, so that no state is to be kept.
            torch.manual_seed(settings.seed * 1_000_003 + progress.step)
            rate = learning_rate(progress.step, steps, config)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = train_step(model, optimizer, images, targets, config.clip_norm)
            progress.step += 1
            progress.running += loss
            progress.seconds += time.monotonic() - began
            bar.set_postfix(loss=f"{loss:.3f}", lr=f"{rate:.1e}", refresh=False)
            bar.update()
            if progress.step % per_epoch == 0:
                progress.losses.append(progress.running / per_epoch)
                progress.running = 0.0
            if progress.step % per_epoch == 0 or progress.step % place.save_every == 0 or interrupt.asked:
                store()
            if interrupt.asked:
                raise KeyboardInterrupt
    return model, progress


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Sequence[Tensor],
    targets: Sequence[dict[str, Tensor]],
    clip_norm: float,
) -> float:
    """One optimiser step on pictures and boxes as `CocoDataset` has them. Returns the sum of the detector's losses."""
    device = next(model.parameters()).device
    terms: dict[str, Tensor] = model(
        _scaled(images, device), [{name: value.to(device) for name, value in target.items()} for target in targets]
    )
    loss = torch.stack(list(terms.values())).sum()
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    # A step whose gradient overflowed would poison the weights for good.
    if torch.isfinite(norm):
        optimizer.step()
    return float(loss.detach())


@torch.no_grad()
def detect(
    model: nn.Module, data: CocoDataset, categories: Sequence[int], batch: int, place: Place
) -> list[dict[str, Any]]:
    """Detections on all pictures as COCO's results have them: image_id, category_id, bbox [x, y, w, h] in pixels of the
    picture, score."""
    model.eval()
    rows: list[dict[str, Any]] = []
    keys: list[list[Key]] = [
        [(i, False) for i in range(at, min(at + batch, len(data)))] for at in range(0, len(data), batch)
    ]
    pictures = iter(data.pictures)
    for images, _ in tqdm(
        _loaded(data, keys, place), desc="evaluation", unit="batch", total=len(keys), mininterval=2.0
    ):
        for found in model(_scaled(images, place.device)):
            picture = next(pictures)
            boxes = found["boxes"].cpu()
            boxes[:, 2:] -= boxes[:, :2]
            for box, score, label in zip(
                boxes.tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True
            ):
                if label:  # no category has label 0, which RetinaNet and FCOS have an output for all the same
                    category = categories[label - 1]
                    rows.append({"image_id": picture.id, "category_id": category, "bbox": box, "score": score})
    return rows


def evaluate(
    model: nn.Module, data: CocoDataset, annotations: Path, categories: Sequence[int], batch: int, place: Place
) -> CocoScores:
    """COCO's numbers on all pictures of `annotations`."""
    return coco_ap(annotations, detect(model, data, categories, batch, place))


class Interrupt:
    """While entered, SIGINT and SIGTERM are noted in `asked`, so that no step is left half done; a second one is raised
    as KeyboardInterrupt at once."""

    def __init__(self) -> None:
        self.asked = False
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        self._former = {name: signal.signal(name, self._note) for name in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, handler in self._former.items():
            signal.signal(name, handler)

    def _note(self, _signal: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def _loaded(
    data: CocoDataset, batches: BatchOrder | list[list[Key]], place: Place
) -> Iterator[tuple[list[Tensor], list[dict[str, Tensor]]]]:
    loader: DataLoader[Any] = DataLoader(
        data, batch_sampler=batches, num_workers=place.workers, collate_fn=collate,
        pin_memory=place.device.type == "cuda", worker_init_fn=_in_worker,
    )  # fmt: skip
    try:
        yield from loader
    except ValueError as error:
        # A worker's error has its traceback in its message; the sentence is the last line.
        raise ValueError(str(error).strip().splitlines()[-1].removeprefix("ValueError: ")) from None


def _in_worker(_number: int) -> None:
    """Ctrl-C reaches workers too, and theirs is to finish the step's pictures."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _scaled(images: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    return [image.to(device, non_blocking=True).float() / 255 for image in images]


def _load(path: Path, settings: RunSettings, pictures: int, categories: int) -> dict[str, Any]:
    """A checkpoint of this run. Raises ValueError where it is none, or of another run."""
    content = checkpoint.read(path, "settings")
    settings.check_same(content["settings"], path)
    for name, count in (("pictures", pictures), ("categories", categories)):
        if content[name] != count:
            raise ValueError(f"{path} belongs to a run on {content[name]} {name}, not {count}; name another --out")
    return content
