"""Training of a supernet: one single path a step (paper, section 4.3.1)."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from training.commands import undisturbed
from training.data.dataset import CropDataset
from training.engine import checkpoint
from training.engine.distributed import World
from training.engine.loop import RunOptions, batches, some_crops, steps_for, train_step
from training.engine.optim import build_optimizer, for_ranks, learning_rate
from training.engine.warm_start import stage, start_from
from training.files import write_json
from training.models.detector import Output
from training.models.genotype import AutoFAEGenotype, genotype_of_kind
from training.models.losses import Targets
from training.search.bilevel import check_agreement
from training.search.loop import split_photos
from training.supernet.config import SupernetConfig, path_at, sorts_before, widths_at
from training.supernet.importance import sort_channels
from training.supernet.network import Supernet
from training.supernet.path import SinglePath

LAST = "last.pt"
_TOLERATED_OVERFLOWS = 10


@dataclass(frozen=True)
class SupernetOptions:
    """out: the supernet's folder; start: trained weights, whose backbone is taken for the path's backbone of the same
    kind; imagenet: a folder of torchvision's `resnet18.pth` and the like; workers: loader processes; save_every: steps
    between checkpoints; data: name of the photos, which a resumed training must have again."""

    out: Path
    start: Path | None = None
    imagenet: Path | None = None
    workers: int = 1
    save_every: int = 200
    data: str = ""


class OnPath(nn.Module):
    """The supernet, or what wraps it for several processes, on one path at a time."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.path: SinglePath | None = None

    def forward(self, images: Tensor) -> Output:
        output: Output = self.network(images, self.path)
        return output


def divide(data: CropDataset, config: SupernetConfig) -> tuple[CropDataset, NDArray[np.int64]]:
    """(photos to train on, indices of those kept for the evaluation of paths)."""
    train, held_out = config.split
    first, second, kept = split_photos(
        [photo.name for photo in data.photos], (train - train // 2, train // 2, held_out)
    )
    part = CropDataset(data.photos, data.cache, data.config, data.origins, first | second)
    return part, np.flatnonzero(kept)


def held_out_photos(data: CropDataset, config: SupernetConfig, most: int = 0) -> list[int]:
    """Indices of photos that the supernet never learns from, evenly spaced ones where not all are wanted."""
    kept = divide(data, config)[1]
    wanted = most or config.mini_photos
    if 0 < wanted < len(kept):
        kept = kept[np.linspace(0, len(kept) - 1, wanted).astype(int)]
    return [int(k) for k in kept]


def build_supernet(config: SupernetConfig) -> Supernet:
    """A supernet with fresh weights. Raises ValueError where the genotype is none of AutoFAE."""
    return Supernet(config.space, genotype_of_kind("autofae", config.genotype, AutoFAEGenotype))


class SupernetTraining:
    """The state of one training. `run` goes on from where `out/last.pt` ends."""

    def __init__(self, config: SupernetConfig, data: CropDataset, options: SupernetOptions, world: World) -> None:
        self.config, self.options, self.world = config, options, world
        self.part, _ = divide(data, config)
        seen = round(len(data) * config.split[0] / sum(config.split))
        self.steps = steps_for(config.train, seen, world.size)
        self.origin = {
            "data": options.data, "photos": len(data), "steps": self.steps,
            "start": checkpoint.fingerprint(options.start) if options.start else None,
            "imagenet": checkpoint.fingerprint(options.imagenet) if options.imagenet else None,
        }  # fmt: skip
        self.step, self.images, self.seconds, self.overflows, self.resumed = 0, 0, 0.0, 0, False
        self.stages: list[dict[str, Any]] = []
        torch.manual_seed(config.train.seed)
        self.supernet = build_supernet(config).to(world.device)
        self.weights = list(self.supernet.parameters())
        self.optimizer = build_optimizer(self.weights, config.train.optim)

    def resume(self) -> bool:
        """Take up what `out/last.pt` has, once; whether there was a state. Raises ValueError where it is of other
        settings, data, steps or starting weights."""
        if not self.resumed and (content := checkpoint.unfinished(self.options.out / LAST, self.world.main)):
            self._restore(content)
            self.resumed = True
        return self.resumed

    def run(self) -> Supernet:
        """Train to the end and return the supernet in eval mode. An interrupt saves before it is passed on."""
        if not self.resume():
            self._begin()
        train = self.config.train
        wrapped: nn.Module = self.supernet
        if self.world.size > 1:
            wrapped = DistributedDataParallel(self.supernet, find_unused_parameters=True)
        network = OnPath(wrapped)
        writer = SummaryWriter(str(self.options.out)) if self.world.main else None
        bar = tqdm(total=self.steps, initial=self.step, unit="step", disable=not self.world.main, mininterval=2.0)
        run = RunOptions(self.options.out, workers=self.options.workers)
        try:
            for images, targets in batches(train, self.part, run, self.world, self.step, self.steps):
                with undisturbed():
                    network.path = path_at(self.step, self.steps, self.config)
                    terms = self._one_step(network, images, targets)
                if writer and self.step % 10 == 0:
                    bar.set_postfix(
                        path=str(network.path), cls=f"{float(terms['cls']):.3f}", box=f"{float(terms['box']):.3f}"
                    )
                    for name, value in terms.items():
                        writer.add_scalar(f"supernet/{name}", float(value), self.step)
                    writer.add_scalar("supernet/widths", len(widths_at(self.step, self.steps, self.config)), self.step)
                bar.update()
                if self.options.save_every and self.step % self.options.save_every == 0:
                    check_agreement(self.weights)
                    self._save()
        except KeyboardInterrupt:
            self._save()
            raise
        finally:
            bar.close()
            if writer:
                writer.close()
        check_agreement(self.weights)
        self._save()
        return self.supernet.eval()

    def _one_step(self, network: OnPath, images: Tensor, targets: list[Targets]) -> dict[str, Tensor]:
        began, train = time.monotonic(), self.config.train
        if sorts_before(self.step, self.steps, self.config):
            sort_channels(self.supernet, self.optimizer)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.steps, for_ranks(train, self.world.size))
        generator = torch.Generator().manual_seed(train.seed * 1_000_003 + self.step * 131 + self.world.rank)
        terms = train_step(network, self.optimizer, train, images, targets, generator, self.world.device)
        self.overflows = 0 if math.isfinite(float(terms["grad"])) else self.overflows + 1
        if self.overflows >= _TOLERATED_OVERFLOWS:
            raise ValueError(
                f"{self.overflows} gradients in a row were not finite at step {self.step}: the supernet learns "
                "nothing; try a lower rate"
            )
        self.step += 1
        self.images += len(images) * self.world.size
        self.seconds += time.monotonic() - began
        return terms

    def _begin(self) -> None:
        """Give the backbones what they start from."""
        for name in self.config.space.backbones if self.options.imagenet else ():
            assert self.options.imagenet is not None
            self.supernet.backbones[name].load_imagenet(self.options.imagenet / f"{name}.pth")
            self.stages.append(stage(f"ImageNet ({name}.pth)", 0, 0.0))
        if self.options.start is None:
            return
        taken = []
        for name in self.config.space.backbones:
            path = SinglePath(name, (True,), 1, self.config.space.channels[0])
            detector = self.supernet.cut(path)
            crops = some_crops(self.config.train, self.part, self.world.device)
            try:
                past = start_from(self.options.start, detector, path.config(), crops, "backbone")
            except ValueError:  # another kind of ResNet, which keeps what it has
                continue
            self.stages += past
            self.supernet.backbones[name].load_state_dict(detector.backbone.state_dict())
            taken.append(name)
        if not taken:
            known = ", ".join(self.config.space.backbones)
            raise ValueError(f"{self.options.start} has none of the supernet's backbones ({known})")

    def _save(self) -> None:
        if not self.world.main:
            return
        content = {
            "config": checkpoint.as_plain(self.config),
            "origin": self.origin,
            "supernet": self.supernet.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "images": self.images,
            "seconds": self.seconds,
            "steps": self.steps,
            "stages": self.stages,
        }
        checkpoint.save(self.options.out / LAST, content)
        write_json(self.options.out / "config.json", content["config"])

    def _restore(self, content: dict[str, Any]) -> None:
        if not checkpoint.same_settings(content["config"], checkpoint.as_plain(self.config)):
            where = self.options.out
            raise ValueError(f"{where} holds a supernet with other settings; name another --out, or remove that folder")
        origin = {"steps": content["steps"], **content.get("origin", {})}
        checkpoint.check_origin(origin, self.origin, self.options.out, "a supernet")
        self.supernet.load_state_dict(content["supernet"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.step, self.images, self.seconds = content["step"], content["images"], content["seconds"]
        self.stages = content["stages"]
