"""One case of `benchmarks.training`, in processes of its own: `python -m benchmarks.training_case TASK RESULT`, under
`torchrun` where it has several. TASK and RESULT are JSON files."""

from __future__ import annotations

import dataclasses
import datetime
import os
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from training.config import CropSize, TrainConfig
from training.data.cache import PictureCache, load_picture
from training.data.dataset import CropDataset, list_photos, load_training_set
from training.engine.cpu import prepare_cpu
from training.engine.distributed import World, world
from training.engine.loop import RunOptions, batches, on_device, parallel, train_step
from training.engine.optim import Ema, build_optimizer
from training.engine.precision import Precision, used
from training.family import member_config
from training.files import write_json
from training.models.detector import build_detector
from training.models.losses import Targets
from training.recipes import RECIPES

MEMBER = "d0"
WARM_UP = 3
PROFILED = 2
TOP = 15
_ENDLESS = 10**9  # steps
Batch = tuple[Tensor, list[Targets]]  # uint8 [N, 3, S, S] and what is in it


class Case(BaseModel):
    """One way to train. batch: crops a process; workers: loader processes of each; threads of each, 0: torch's default.

    data: pictures decoded at every access, cut by the loader from the cache, or cut on the device from a copy there.
    chosen: whether it is run without being named.
    """

    name: str
    side: int
    batch: int
    data: Literal["decode", "loader", "device"] = "loader"
    processes: int = 1
    threads: int = 1
    workers: int = 1
    precision: Precision = "bf16"
    compile: bool = False
    chosen: bool = True

    @property
    def key(self) -> tuple[str, int, int]:
        return self.name, self.side, self.batch


class Task(BaseModel):
    """A case and all that it needs. seconds: about how long to train."""

    case: Case
    data: Path
    split: str
    cache: Path
    recipe: str
    device: str
    seconds: float


class Part(BaseModel):
    """A part of a step or an operator of the profile: milliseconds a step, and share of the whole."""

    name: str
    ms: float
    share: float


class Speed(BaseModel):
    """What was measured of one case.

    pictures_s, megapixels_s: crops trained on a second, over all processes, and their pixels; data_pictures_s: crops
    that the data path of one process makes when nobody trains. waiting: share of the time that the loop is blocked on
    the next batch. first_step_s: the first step, with all that is set up or compiled then.
    parts: where a step's time goes, measured in steps of their own that wait for the device after each part.
    operators: the first by self time on the device (own children excluded), of the profile of a few further steps.
    load: of the machine over the minute before. memory_gib: largest allocation on a GPU.
    """

    case: Case
    date: str
    load: float
    memory_format: str = "channels_last"
    steps: int
    seconds: float
    pictures_s: float
    megapixels_s: float
    data_pictures_s: float
    waiting: float
    first_step_s: float
    parts: list[Part]
    operators: list[Part]
    memory_gib: float | None = None


class DecodedEachTime(PictureCache):
    """Pictures as a loader without a cache reads them: decoded at each access."""

    def __init__(self, known: PictureCache, files: Sequence[Path]) -> None:
        shapes: NDArray[np.int64] = np.array([known.shape(k) for k in range(len(known))], dtype=np.int64)
        super().__init__(Path(), shapes, known.offsets)
        self._files = files

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return load_picture(self._files[index])


class Trainer:
    """The loop's own parts, put together so that they can be timed. The stream of batches never ends."""

    def __init__(self, task: Task, config: TrainConfig, data: CropDataset, place: World) -> None:
        self.config, self.place, self.step = config, place, 0
        torch.manual_seed(config.seed)
        model = on_device(build_detector(config.model), place.device)
        self.optimizer = build_optimizer(model.parameters(), config.optim)
        self.ema, self.model = Ema(model, config.optim.ema), model
        self.network: nn.Module = parallel(model, place)
        if task.case.compile:
            self.network.compile(dynamic=False)
        for group in self.optimizer.param_groups:
            group["lr"] = config.optim.lr / 100  # weights stay tame
        self.stream = endless(task.case, config, data, place)

    def wait(self) -> Batch:
        """Take the next batch."""
        return next(self.stream)

    def train(self, batch: Batch, done: Callable[[str], None] = lambda _part: None) -> None:
        """One step on a batch, with the average of weights."""
        generator = torch.Generator().manual_seed(self.step)
        train_step(self.network, self.optimizer, self.config, *batch, generator, self.place.device, done)
        self.ema.update(self.model)
        done("moving average")
        self.step += 1

    def settle(self) -> float:
        """The time once the device has done all that it was given."""
        if self.place.device.type == "cuda":
            torch.cuda.synchronize(self.place.device)
        return time.perf_counter()


def endless(case: Case, config: TrainConfig, data: CropDataset, place: World) -> Generator[Batch, None, None]:
    """The batches of a run that does not end."""
    options = RunOptions(Path(), workers=case.workers, device_crops=case.data == "device")
    return batches(config, data, options, place, 0, _ENDLESS)


def measure(task: Task, place: World) -> Speed:
    """Measure one case. All processes take the same number of steps."""
    case, load = task.case, os.getloadavg()[0]
    config = dataclasses.replace(
        RECIPES[task.recipe](),
        model=member_config(MEMBER),
        sizes=(CropSize(case.side, case.batch),),
        precision=case.precision,
    )
    data = load_training_set(task.data, task.split, task.cache, config.data)
    if case.data == "decode":
        decoded = DecodedEachTime(data.cache, list_photos(task.data, task.split)[1])
        data = CropDataset(data.photos, decoded, data.config, data.origins)
    alone = data_speed(case, config, data, place, task.seconds / 4)
    trainer = Trainer(task, config, data, place)
    with closing(trainer.stream):
        began = trainer.settle()
        trainer.train(trainer.wait())
        first = trainer.settle() - began
        began = trainer.settle()
        for _ in range(WARM_UP):
            trainer.train(trainer.wait())
        pace = slowest((trainer.settle() - began) / WARM_UP, place)
        steps = max(3, round(task.seconds / pace))
        seconds, waited = timed(trainer, steps)
        parts = split(trainer, max(2, min(50, round(task.seconds / 4 / pace))))
        operators = profiled(trainer)
    pictures = steps * case.batch * place.size / seconds
    return Speed(
        case=case.model_copy(update={"precision": used(task.device, case.precision)}),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        load=round(load, 2),
        steps=steps,
        seconds=round(seconds, 3),
        pictures_s=round(pictures, 2),
        megapixels_s=round(pictures * case.side**2 / 1e6, 3),
        data_pictures_s=round(alone, 1),
        waiting=round(waited / seconds, 4),
        first_step_s=round(first, 2),
        parts=parts,
        operators=operators,
        memory_gib=peak_gib(place.device),
    )


def data_speed(case: Case, config: TrainConfig, data: CropDataset, place: World, seconds: float) -> float:
    """Crops a second that one process can be given, from its second batch on."""
    with closing(endless(case, config, data, place)) as stream:
        next(stream)
        count, began = 0, time.perf_counter()
        while count == 0 or time.perf_counter() - began < seconds:
            images, _ = next(stream)
            count += len(images)
        if place.device.type == "cuda":
            torch.cuda.synchronize(place.device)
        return count / (time.perf_counter() - began)


def slowest(seconds: float, place: World) -> float:
    """The largest of what the processes give."""
    if place.size == 1:
        return seconds
    value = torch.tensor(seconds, dtype=torch.float64, device=place.device)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return float(value)


def timed(trainer: Trainer, steps: int) -> tuple[float, float]:
    """Seconds that so many steps take, and those of them in which the loop waits for the next batch."""
    waited, began = 0.0, trainer.settle()
    for _ in tqdm(range(steps), unit="step", leave=False, disable=not trainer.place.main):
        asked = time.perf_counter()
        batch = trainer.wait()
        waited += time.perf_counter() - asked
        trainer.train(batch)
    return trainer.settle() - began, waited


def split(trainer: Trainer, steps: int) -> list[Part]:
    """Where a step's time goes, in its order."""
    spent: dict[str, float] = {}
    last = trainer.settle()

    def done(part: str) -> None:
        nonlocal last
        now = trainer.settle()
        spent[part] = spent.get(part, 0.0) + now - last
        last = now

    for _ in range(steps):
        batch = trainer.wait()
        done("waiting for data")
        trainer.train(batch, done)
    whole = sum(spent.values())
    return [_part(name, 1000 * seconds / steps, seconds / whole) for name, seconds in spent.items()]


def profiled(trainer: Trainer) -> list[Part]:
    """The operators that take most of a step, by self time on the device. Only the first process has a profiler."""
    cuda = trainer.place.device.type == "cuda"
    if not trainer.place.main:
        for _ in range(PROFILED):
            trainer.train(trainer.wait())
        return []
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as recorded:
        for _ in range(PROFILED):
            trainer.train(trainer.wait())
        trainer.settle()
    # Kernels have rows of their own on the device; the rows of the operators that launch them name what they are for.
    rows: list[Any] = [row for row in recorded.key_averages() if row.device_type.name == "CPU"]
    times = {row.key: row.self_device_time_total if cuda else row.self_cpu_time_total for row in rows}
    whole = sum(times.values()) or 1.0
    first = sorted(times.items(), key=lambda item: -item[1])[:TOP]
    return [_part(name, microseconds / 1000 / PROFILED, microseconds / whole) for name, microseconds in first]


def _part(name: str, ms: float, share: float) -> Part:
    return Part(name=name, ms=round(ms, 3), share=round(share, 4))


def peak_gib(device: torch.device) -> float | None:
    """The most memory that was allocated on a GPU at a time."""
    return round(torch.cuda.max_memory_allocated(device) / 2**30, 2) if device.type == "cuda" else None


def main(task_file: str, result_file: str) -> int:
    """Measure the task; the result is a `Speed`, or {"error": a sentence}."""
    task = Task.model_validate_json(Path(task_file).read_text(encoding="utf-8"))
    prepare_cpu(task.case.threads)
    try:
        with world(task.device) as place:
            speed = measure(task, place)
            if place.main:
                write_json(Path(result_file), speed.model_dump())
    except (OSError, RuntimeError, ValueError) as error:
        first_line = (str(error).strip() or repr(error)).splitlines()[0]
        write_json(Path(result_file), {"error": first_line})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
