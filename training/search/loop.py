"""One search from one seed: weights and architecture in turns (paper, sections 4.2 and 5.1.3)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from training.config import TrainConfig
from training.data.dataset import NEGATIVES, CropDataset
from training.engine import checkpoint
from training.engine.distributed import World
from training.engine.loop import RunOptions, batches, forward_loss, on_device, some_crops
from training.engine.optim import build_optimizer, for_ranks, learning_rate
from training.engine.precision import autocast
from training.engine.validate import score_pictures
from training.engine.warm_start import start_from
from training.files import write_bytes, write_json
from training.models.detector import Detector, build_detector, initialize, normalize
from training.models.genotype import AnyGenotype, Provenance, load_genotype, parse, save_genotype
from training.search.base import SearchableNeck, entropy
from training.search.bilevel import average_gradients, check_agreement, first_order, second_order
from training.search.bilevel import backward as backward_of
from training.search.config import SearchConfig
from training.search.spaces import build_space
from training.supernet.calibration import recalibrate

LAST, RESULT, HISTORY = "last.pt", "genotype.json", "architecture.jsonl"
_RECALIBRATION_BATCHES = 20
_TOLERATED_OVERFLOWS = 10


@dataclass(frozen=True)
class SearchOptions:
    """out: this seed's folder; data: name of the data, for the genotype; hardware: of the machine, in words; start: a
    trained backbone, if any; workers: loader processes; save_every: steps between checkpoints."""

    out: Path
    data: str
    hardware: str
    start: Path | None = None
    workers: int = 0
    save_every: int = 100


def split_photos(names: Sequence[str], parts: tuple[int, int, int]) -> list[NDArray[np.bool_]]:
    """Three masks, bool [photos], that divide the photos as `parts` do, the same for every seed of a search.

    Photos without faces, which an evaluation has no use for, are divided between the first two. Raises ValueError where
    a part would get no photo.
    """
    draw = np.random.default_rng(20210)
    empty = np.array([name.startswith(f"{NEGATIVES}/") for name in names], dtype=bool)
    annotated = draw.permutation(np.flatnonzero(~empty))
    edges = np.round(np.cumsum([0, *parts]) / sum(parts) * len(annotated)).astype(int)
    groups = [annotated[low:high] for low, high in pairwise(edges)]
    if not all(len(group) for group in groups):
        divided = ":".join(map(str, parts))
        raise ValueError(f"{len(annotated)} photos cannot be divided {divided}; each part needs at least one")
    others = draw.permutation(np.flatnonzero(empty))
    cut = round(len(others) * parts[0] / (parts[0] + parts[1]))
    groups[0], groups[1] = np.concatenate((groups[0], others[:cut])), np.concatenate((groups[1], others[cut:]))
    masks = []
    for group in groups:
        mask = np.zeros(len(names), dtype=bool)
        mask[group] = True
        masks.append(mask)
    return masks


def temperature(step: int, steps: int, config: SearchConfig) -> float:
    """Of Eq. 6 at step `step` of `steps`."""
    first, last = config.temperature
    return first + (last - first) * min(1.0, step / max(1, steps - 1))


def search_steps(config: SearchConfig, photos: int, ranks: int) -> int:
    """Weight steps of the whole search."""
    share = config.split[0] / sum(config.split)
    batch = np.average([s.batch for s in config.train.sizes], weights=[s.share for s in config.train.sizes]) * ranks
    return max(2, round(config.train.epochs * photos * share / float(batch)))


class Search:
    """The state of one search. `run` goes on from where `out/last.pt` ends and returns the genotype; a search that is
    done is not done again."""

    def __init__(self, config: SearchConfig, data: CropDataset, options: SearchOptions, world: World) -> None:
        self.config, self.data, self.options, self.world = config, data, options, world
        masks = split_photos([photo.name for photo in data.photos], config.split)
        self.parts = [CropDataset(data.photos, data.cache, data.config, data.origins, mask) for mask in masks]
        self.held_out = np.flatnonzero(masks[2])
        self.steps = search_steps(config, len(data), world.size)
        self.origin = {
            "data": options.data, "photos": len(data), "steps": self.steps,
            "start": checkpoint.fingerprint(options.start) if options.start else None,
        }  # fmt: skip
        self.step, self.seconds, self.overflows, self.resumed = 0, 0.0, 0, False
        torch.manual_seed(config.train.seed)
        self.detector = self._build()
        neck = self.detector.neck
        assert isinstance(neck, SearchableNeck)
        self.neck = neck
        self.arch = list(neck.arch.values())
        known = {id(p) for p in self.arch}
        self.weights = [p for p in self.detector.parameters() if id(p) not in known]
        self.optimizer = build_optimizer(self.weights, config.train.optim)
        self.arch_optimizer = torch.optim.Adam(self.arch, config.arch_lr)

    def _build(self) -> Detector:
        config = self.config.train
        plain = build_detector(config.model)
        channels = plain.backbone.out_channels
        neck = build_space(self.config.space, channels, config.model.channels, self.config.options)
        initialize(neck)
        return on_device(build_detector(config.model, neck), self.world.device)

    def resume(self) -> bool:
        """Take up what `out/last.pt` has, once; whether there was a state. Raises ValueError where it is of other
        settings, data, steps or starting weights."""
        if not self.resumed and (content := checkpoint.unfinished(self.options.out / LAST, self.world.main)):
            self._restore(content)
            self.resumed = True
        return self.resumed

    def run(self) -> AnyGenotype:
        """Search to the end; every process returns the same. An interrupt saves the state before it is passed on."""
        main, out = self.world.main, self.options.out
        if self.resume():
            if self.step == self.steps and (out / RESULT).is_file():
                return load_genotype(out / RESULT)
        elif self.options.start:
            crops = some_crops(self.config.train, self.data, self.world.device)
            start_from(self.options.start, self.detector, self.config.train.model, crops, "backbone")
        writer = SummaryWriter(str(out)) if main else None
        bar = tqdm(total=self.steps, initial=self.step, unit="step", disable=not main, mininterval=2.0)
        # At each epoch, and ten times at least, so that short searches leave a history too.
        marks = max(round(self.config.train.epochs), min(10, self.steps))
        try:
            for weight_batch, arch_batch in self._pairs():
                began = time.monotonic()
                values = self._one_step(weight_batch, arch_batch)
                self.step += 1
                self.seconds += time.monotonic() - began
                if writer and self.step % 10 == 0:
                    bar.set_postfix({name: f"{value:.3f}" for name, value in values.items()})
                    self._log(writer, values)
                bar.update()
                if self.step * marks // self.steps > (self.step - 1) * marks // self.steps:
                    check_agreement(self.arch)
                    if main:
                        self._keep_history()
                if self.options.save_every and self.step % self.options.save_every == 0:
                    self._save()
        except KeyboardInterrupt:
            self._save()
            raise
        finally:
            bar.close()
            if writer:
                writer.close()
        self._save()
        return self._agreed(self._finish() if main else None)

    def _agreed(self, found: AnyGenotype | None) -> AnyGenotype:
        """The first process's genotype: it alone has evaluated it, and what is built next depends on that."""
        texts = [found.model_dump_json() if found else ""]
        if self.world.size > 1:
            dist.broadcast_object_list(texts, src=0)
        return parse(texts[0])

    def _pairs(self) -> Any:
        """Batches for the weights and for the architecture, of the steps that are left."""
        config = self.config.train
        run = RunOptions(self.options.out, workers=self.options.workers)
        weights = batches(config, self.parts[0], run, self.world, self.step, self.steps)
        # Other crops in another order, or both halves would move through their photos in step.
        other = replace(config, seed=config.seed + 7919)
        return zip(weights, batches(other, self.parts[1], run, self.world, self.step, self.steps), strict=True)

    def _one_step(self, weight_batch: Any, arch_batch: Any) -> dict[str, float]:
        config, device = self.config.train, self.world.device
        self.detector.train()
        heat = temperature(self.step, self.steps, self.config)
        # The noise depends on seed and step alone, so all processes sample the same architecture.
        self.neck.sample(heat, torch.Generator().manual_seed(config.seed * 7_368_787 + self.step))

        def loss(batch: Any, stream: int) -> torch.Tensor:
            key = (config.seed * 1_000_003 + self.step * 131 + self.world.rank) * 2 + stream
            terms = forward_loss(
                self.detector, config, batch[0], batch[1], torch.Generator().manual_seed(key), device
            )  # fmt: skip
            return terms.cls + terms.box

        rate = learning_rate(self.step, self.steps, for_ranks(config, self.world.size))
        values = {"temperature": heat}
        if self.step >= self.config.frozen * self.steps:
            if self.config.second_order:
                value = second_order(
                    lambda: loss(weight_batch, 0), lambda: loss(arch_batch, 1), self.arch, self.weights, rate,
                    config.optim.weight_decay,
                )  # fmt: skip
            else:
                value = first_order(lambda: loss(arch_batch, 1), self.arch, self.weights)
            self._update(self.arch_optimizer, self.arch)
            values["arch_loss"] = float(value)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        value = backward_of(lambda: loss(weight_batch, 0), self.weights, self.arch)
        self._update(self.optimizer, self.weights)
        values["loss"] = float(value)
        return values

    def _update(self, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> None:
        average_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, self.config.train.optim.clip_norm)
        # One overflow would poison the weights for good; many in a row are no accident.
        finite = bool(torch.isfinite(norm))
        self.overflows = 0 if finite else self.overflows + 1
        if finite:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if self.overflows >= _TOLERATED_OVERFLOWS:
            raise ValueError(
                f"{self.overflows} gradients in a row were not finite at step {self.step}: the search learns nothing; "
                "try precision fp32 or a lower rate"
            )

    def _log(self, writer: SummaryWriter, values: dict[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(f"search/{name}", value, self.step)
        for name, chances in self.neck.probabilities().items():
            kind, _, rest = name.partition("_")
            for k, value in enumerate(chances.tolist()):
                writer.add_scalar(f"{kind}/{rest}/{k}", value, self.step)
            if kind != "beta":
                writer.add_scalar(f"entropy/{name}", entropy(chances), self.step)

    def _keep_history(self) -> None:
        """The genotype of this moment, and all probabilities, one line each time."""
        save_genotype(self.options.out / f"step-{self.step:06}.json", self.neck.genotype(self._provenance()))
        path = self.options.out / HISTORY
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        lines = [line for line in lines if line["step"] < self.step]
        now = {name: [round(v, 5) for v in p.tolist()] for name, p in self.neck.probabilities().items()}
        lines.append({"step": self.step, "values": now})
        write_bytes(path, "".join(json.dumps(line) + "\n" for line in lines).encode())

    def _provenance(self, scores: dict[str, float] | None = None) -> Provenance:
        scores = scores or {}
        plain = json.loads(json.dumps(checkpoint.as_plain(self.config)))  # tuples become what JSON makes of them
        plain["train"].pop("model", None)
        return Provenance(
            method="search", data=self.options.data, photos=len(self.data), seed=self.config.train.seed,
            epochs=self.config.train.epochs * self.step / self.steps, mini_validation_ap50=scores.get("ap50"),
            mini_validation_ap=scores.get("ap"), hardware=self.options.hardware,
            date=time.strftime("%Y-%m-%d"),
            settings={**plain, "steps": self.step, "crops": self.config.train.sizes[0].side,
                      "channels": self.config.train.model.channels, "backbone": self.config.train.model.backbone,
                      "start": self.options.start.name if self.options.start else None,
                      "minutes": round(self.seconds / 60, 1)},
        )  # fmt: skip

    def _finish(self) -> AnyGenotype:
        """Derive the discrete detector, measure its norms anew, evaluate it on the photos kept for that."""
        detector = build_detector(self.config.train.model, self.neck.derive()).to(self.world.device)
        for part in ("backbone", "head"):
            getattr(detector, part).load_state_dict(getattr(self.detector, part).state_dict())
        crops = calibration_crops(self.config.train, self.parts[0], self.options, self.world)
        pictures = ((self.data.photos[k], self.data.cache[k]) for k in self._mini_validation())
        with autocast(self.world.device.type, self.config.train.precision):
            recalibrate(detector, crops)
            scores = score_pictures(detector, pictures, self.config.long_side)
        genotype = self.neck.genotype(self._provenance(scores))
        save_genotype(self.options.out / RESULT, genotype)
        return genotype

    def _mini_validation(self) -> list[int]:
        """Indices of the photos held out, evenly spaced ones where not all are wanted."""
        photos = [int(k) for k in self.held_out]
        wanted = self.config.mini_photos
        if not 0 < wanted < len(photos):
            return photos
        return [photos[int(k)] for k in np.linspace(0, len(photos) - 1, wanted)]

    def _save(self) -> None:
        if not self.world.main:
            return
        content = {
            "config": checkpoint.as_plain(self.config),
            "origin": self.origin,
            "detector": self.detector.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "arch_optimizer": self.arch_optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        checkpoint.save(self.options.out / LAST, content)
        write_json(self.options.out / "config.json", content["config"])

    def _restore(self, content: dict[str, Any]) -> None:
        if not checkpoint.same_settings(content["config"], checkpoint.as_plain(self.config)):
            where = self.options.out
            raise ValueError(f"{where} holds a search with other settings; name another --out, or remove that folder")
        checkpoint.check_origin(content.get("origin", {}), self.origin, self.options.out, "a search")
        self.detector.load_state_dict(content["detector"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.arch_optimizer.load_state_dict(content["arch_optimizer"])
        self.step, self.seconds = content["step"], content["seconds"]


def calibration_crops(config: TrainConfig, data: CropDataset, options: SearchOptions, world: World) -> Iterator[Tensor]:
    """Crops to measure norms on, as the network takes them: the statistics of a mixture are wrong for a part of it."""
    # In one process alone, so without a loss, which all processes would have to compute together.
    single = replace(world, rank=0, size=1)
    for images, _ in batches(config, data, RunOptions(options.out, workers=0), single, 0, _RECALIBRATION_BATCHES):
        yield normalize(images.to(world.device)).contiguous(memory_format=torch.channels_last)
