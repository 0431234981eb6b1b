"""What there is to measure: each engine with each of its forms of a member, or the reason why it cannot be measured."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from export.build import graph_of
from export.graph import PlainGraph
from export.member import save_onnx
from export.reference import TorchEngine
from service.engines.base import Detections, Engine, EngineError, check_images
from service.engines.ort import CPU_KIND, CUDA_KIND, open_cpu, open_cuda
from service.repository.manifest import Manifest, ModelFile, Precision, Thresholds
from service.repository.store import Repository
from training.engine.teacher import load_teacher
from training.models.detector import Detector, DetectorConfig

PYTORCH, TENSORRT = "pytorch", "tensorrt"
ENGINES = (PYTORCH, CPU_KIND, CUDA_KIND, TENSORRT)


@dataclass(frozen=True)
class Case:
    """One form of a member on one engine. device: `cpu` or `cuda`; model: the file that is run, none in PyTorch.

    nms: `plain`, `onnx`, `efficient` (TensorRT's plugin) or `greedy` (NumPy, on the host).
    """

    engine: str
    member: str
    variant: str
    precision: Precision
    nms: str
    device: str
    open: Callable[[], Engine]
    model: Path | None = None

    @property
    def name(self) -> str:
        return f"{self.engine} {self.variant}"


@dataclass(frozen=True)
class Absent:
    """What was asked for and is not measured."""

    name: str
    reason: str


class Member:
    """A member of the repository, its detector in PyTorch, and the graphs that are made of it for the occasion."""

    def __init__(self, folder: Path, manifest: Manifest, scratch: Path) -> None:
        self.folder, self.manifest, self._scratch = folder, manifest, scratch
        self.name = manifest.member

    @functools.cached_property
    def detector(self) -> Detector:
        """With the weights that are shipped. Raises ValueError where no full-precision file is."""
        full = next((file for file in self.manifest.files if file.precision == "fp32"), None)
        if full is None:
            raise ValueError(f"{self.folder} holds no fp32 file, which PyTorch's weights come from")
        return load_teacher(self.folder / full.path, DetectorConfig())

    def made(self, precision: Precision) -> Path:
        """The member's graph with plain NMS, exported now."""
        path = self._scratch / f"{self.name}-{precision}-plain.onnx"
        if not path.is_file():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the tracer, about constants that are meant to be such
                save_onnx(graph_of(self.detector, precision, "plain", half=False), path)
        return path


def members_of(repository: Repository, scratch: Path) -> list[Member]:
    """One for each member, in the order of their names. scratch: an existing folder for graphs made on the way."""
    found = {variant.manifest.member: variant for variant in repository.variants}
    return [Member(one.path.parent, one.manifest, scratch) for _, one in sorted(found.items())]


def cases_of(member: Member, engines: Sequence[str], threads: int) -> Iterator[Case | Absent]:
    """Everything that the engines asked for can run of a member. threads: of the CPU engines, 0 takes all."""
    makers = {PYTORCH: _pytorch, CPU_KIND: _cpu, CUDA_KIND: _cuda, TENSORRT: _tensorrt}
    for name in engines:
        yield from makers[name](member, threads)


def reference_of(member: Member) -> Engine:
    """What parity is measured against: float32 in PyTorch on the CPU, greedy NMS in NumPy."""
    return TorchEngine(member.name, member.detector, member.manifest.thresholds)


class TorchGraph:
    """The serving graph as PyTorch runs it on a device, NMS included; float32, TF32 off."""

    kind = PYTORCH
    max_batch: int | None = None

    def __init__(self, variant: str, detector: Detector, thresholds: Thresholds, device: str) -> None:
        torch.backends.cudnn.allow_tf32 = False
        self.variant, self._path, self._device = variant, Path(variant), device
        self._graph: nn.Module | None = PlainGraph(detector, thresholds).to(device).eval()
        state = self._graph.state_dict()
        self._bytes = sum(int(tensor.numel()) * int(tensor.element_size()) for tensor in state.values())

    def warm_up(self, height: int, width: int, batch: int = 1) -> None:
        self.run(np.zeros((batch, height, width, 3), dtype=np.uint8))

    def run(self, images: NDArray[np.uint8]) -> list[Detections]:
        """See `service.engines.base.Engine.run`."""
        if self._graph is None:
            raise EngineError(f"{self._path} is closed")
        check_images(images, self._path)
        try:
            with torch.no_grad():
                found = self._graph(torch.from_numpy(np.ascontiguousarray(images)).to(self._device))
                counts, boxes, scores = (tensor.cpu().numpy() for tensor in found)
        except RuntimeError as error:
            raise EngineError(f"{self._path} failed on input {images.shape}: {error}") from error
        return [Detections(boxes[k, :n].copy(), scores[k, :n].copy()) for k, n in enumerate(counts)]

    def memory_bytes(self) -> int:
        return self._bytes

    def close(self) -> None:
        self._graph = None


def _pytorch(member: Member, _threads: int) -> Iterator[Case | Absent]:
    """Threads are PyTorch's own, for the whole process."""
    name, limits = member.name, member.manifest.thresholds
    yield Case(PYTORCH, name, name, "fp32", "greedy", "cpu", lambda: reference_of(member))
    if torch.cuda.is_available():
        yield Case(
            f"{PYTORCH}-cuda", name, name, "fp32", "plain", "cuda",
            lambda: TorchGraph(name, copy.deepcopy(member.detector), limits, "cuda"),
        )  # fmt: skip
    else:
        yield Absent(f"{PYTORCH}-cuda {name}", "PyTorch sees no CUDA device")


def _cpu(member: Member, threads: int) -> Iterator[Case | Absent]:
    for file in member.manifest.files:
        if file.precision == "int8" and file.nms == "plain":
            yield Absent(f"{CPU_KIND} {file.variant}", "it is quantised for TensorRT")
        elif file.precision != "fp16":
            path = member.folder / file.path
            yield _onnx(CPU_KIND, member, file.variant, file.precision, file.nms, path, functools.partial(
                open_cpu, file.variant, path, threads))  # fmt: skip
        else:
            yield Absent(f"{CPU_KIND} {file.variant}", "it computes in float16, which is for GPUs")
    yield from _plain(CPU_KIND, member, "fp32", lambda name, path: open_cpu(name, path, threads))


def _cuda(member: Member, _threads: int) -> Iterator[Case | Absent]:
    from service.engines.cuda import device

    names = [file.variant for file in member.manifest.files if file.precision != "int8"]
    try:
        device()
    except EngineError as error:
        yield Absent(f"{CUDA_KIND} {', '.join(names)}", str(error))
        return
    for file in member.manifest.files:
        if file.precision != "int8":  # those in the repository are made for CPUs
            path = member.folder / file.path
            yield _onnx(CUDA_KIND, member, file.variant, file.precision, file.nms, path, functools.partial(
                open_cuda, file.variant, path))  # fmt: skip
    yield from _plain(CUDA_KIND, member, "fp32", open_cuda)
    if not any(file.precision == "fp16" for file in member.manifest.files):
        yield from _plain(CUDA_KIND, member, "fp16", open_cuda)


def _plain(
    engine: str, member: Member, precision: Precision, opened: Callable[[str, Path], Engine]
) -> Iterator[Case | Absent]:
    """The member's graph with plain NMS, unless the repository has it."""
    if any(file.nms == "plain" and file.precision == precision for file in member.manifest.files):
        return
    variant = f"{member.name}-{precision}-plain"
    try:
        path = member.made(precision)
    except ValueError as error:
        yield Absent(f"{engine} {variant}", str(error))
        return
    yield _onnx(engine, member, variant, precision, "plain", path, lambda: opened(variant, path))


def _onnx(
    engine: str, member: Member, variant: str, precision: Precision, nms: str, path: Path, opened: Callable[[], Engine]
) -> Case:
    device = "cuda" if engine == CUDA_KIND else "cpu"
    return Case(engine, member.name, variant, precision, nms, device, opened, path)


def _tensorrt(member: Member, _threads: int) -> Iterator[Case | Absent]:
    from service.engines.cuda import device
    from service.engines.tensorrt import api

    names = ", ".join(file.variant for file in member.manifest.files)
    try:
        trt, gpu = api.load(), device()
    except EngineError as error:
        yield Absent(f"{TENSORRT} {names}", str(error))
        return
    for file in member.manifest.files:
        yield _planned(member, file, str(trt.__version__), gpu.compute_capability, gpu.name)


def _planned(member: Member, file: ModelFile, version: str, capability: str, gpu: str) -> Case | Absent:
    from service.engines.tensorrt.engine import TensorRtEngine
    from service.engines.tensorrt.plans import find, stored_plans

    found, reasons = find(stored_plans(member.folder, member.manifest, None), file, version, capability, gpu)
    if found is None:
        why = "; ".join(reasons) or "no plan of it is in the manifest"
        return Absent(f"{TENSORRT} {file.variant}", f"{why}; build one: python -m export tensorrt {member.name}")
    plan, path = found.plan, found.path
    return Case(
        TENSORRT, member.name, file.variant, plan.precision, plan.nms, "cuda",
        lambda: TensorRtEngine(file.variant, path, plan.version_compatible, plan.nms != "plain"), path,
    )  # fmt: skip
