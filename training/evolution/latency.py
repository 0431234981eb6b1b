"""Latency of single paths on the engine that will run them, measured once and kept.

What is measured is the network alone, one picture of one fixed size: no decoding, no resizing, no non-maximum
suppression, whose cost depends on the picture and is nearly the same for all paths.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from service.profiling import machine_name
from training.files import write_bytes
from training.models.detector import Detector, build_detector
from training.models.genotype import AutoFAEGenotype, genotype_of_kind
from training.supernet.path import SinglePath

Target = Literal["onnxruntime-cpu", "onnxruntime-cuda"]
PROVIDERS: dict[Target, str] = {
    "onnxruntime-cpu": "CPUExecutionProvider",
    "onnxruntime-cuda": "CUDAExecutionProvider",
}
OPSET = 18
_FEWEST_RUNS, _SECONDS, _WARM_UP = 5, 0.5, 2

Build = Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]


def target_named(name: str) -> Target:
    """The engine of that name. Raises ValueError where there is none, or not on this machine."""
    if name == "tensorrt":
        raise ValueError(
            "tensorrt is not offered by this command: building its engines takes minutes a candidate; search for "
            "onnxruntime-cuda, and measure the members that it finds with TensorRT afterwards"
        )
    for target, provider in PROVIDERS.items():
        if name == target:
            if provider not in ort.get_available_providers():
                raise ValueError(
                    f"{name} needs ONNX Runtime's {provider}, which is not installed here (pip install "
                    f"onnxruntime-gpu); there are {', '.join(ort.get_available_providers())}"
                )
            return target
    raise ValueError(f"no target {name!r}; there are {', '.join(PROVIDERS)}")


@dataclass(frozen=True)
class Setup:
    """What a latency is valid for. threads: of one operator on the CPU, 0 for as many as there are cores; size: height
    and width of the picture; genotype: JSON of the stacked AutoFAE, empty for the project's own; hardware: the machine,
    in words, empty for this one."""

    target: Target = "onnxruntime-cpu"
    threads: int = 1
    size: tuple[int, int] = (480, 640)
    genotype: str = ""
    hardware: str = ""

    def __post_init__(self) -> None:
        if min(self.size) < 32:
            raise ValueError(f"a picture has 32 pixels a side at least, not {self.size[0]}x{self.size[1]}")
        if self.threads < 0:
            raise ValueError(f"there cannot be {self.threads} threads")

    def describe(self) -> str:
        """Everything that a latency depends on besides the path; part of the cache's keys."""
        engine = f"{self.target} {ort.__version__}"
        threads = f"{self.threads or 'all'} threads"
        height, width = self.size
        machine = self.hardware or hardware_of(self.target)
        return f"{engine} | {machine} | {threads} | {height}x{width} | genotype {genotype_hash(self.genotype)}"


def hardware_of(target: Target) -> str:
    """This machine in words: processor and cores, and for CUDA the GPU before them."""
    if target == "onnxruntime-cuda" and torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {machine_name()}"
    return machine_name()


def genotype_hash(text: str) -> str:
    """Of the architecture that a genotype describes, wherever it comes from."""
    genotype = genotype_of_kind("autofae", text, AutoFAEGenotype)
    return hashlib.sha256(genotype.model_dump_json(exclude={"provenance"}).encode()).hexdigest()[:12]


class Timing(BaseModel):
    """p50_ms: median of `runs` runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    p50_ms: float = Field(gt=0, allow_inf_nan=False)
    runs: int = Field(ge=1)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    timings: dict[str, Timing] = {}


class LatencyCache:
    """Timings by key in a JSON file that several processes may share; what one has stored, none measures again.

    file: None keeps them for the life of the object alone. Raises ValueError where the file is no such cache.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self._timings = self._read()

    def get(self, key: str) -> Timing | None:
        """The timing of that key, if this or another process has stored one."""
        if key not in self._timings:
            self._timings = self._read() | self._timings
        return self._timings.get(key)

    def put(self, key: str, timing: Timing) -> Timing:
        """Store a timing and return the one that counts: another process's, if that was first."""
        if self.file is None:
            return self._timings.setdefault(key, timing)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        # Under a lock, since an entry written between reading and renaming would be lost.
        with self.file.with_name(f".{self.file.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._timings |= self._read()
            kept = self._timings.setdefault(key, timing)
            content = _File(timings=dict(sorted(self._timings.items()))).model_dump()
            write_bytes(self.file, (json.dumps(content, indent=1) + "\n").encode())
        return kept

    def _read(self) -> dict[str, Timing]:
        if self.file is None or not self.file.is_file():
            return {}
        try:
            return _File.model_validate_json(self.file.read_bytes()).timings
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise ValueError(f"{self.file} is no cache of latencies: {where}: {first['msg']}") from None


class Clock:
    """Times networks on one engine, by name, unless the cache has their time."""

    def __init__(self, setup: Setup, cache: LatencyCache, measure: Callable[[Build, Setup], Timing] | None = None):
        self.setup, self.cache = setup, cache
        self._measure = measure or time_network
        self._where = setup.describe()

    def time(self, name: str, build: Build) -> float:
        """Milliseconds of the network of that name. build: the network in eval mode and its inputs, if needed."""
        key = f"{name} | {self._where}"
        timing = self.cache.get(key) or self.cache.put(key, self._measure(build, self.setup))
        return timing.p50_ms


class MeasuredLatency:
    """Milliseconds of whole paths."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def __call__(self, path: SinglePath) -> float:
        setup = self.clock.setup
        return self.clock.time(str(path), lambda: path_network(path, setup.genotype, setup.size))


class _Maps(nn.Module):
    """What a detector computes of a picture, without its anchors, which are constants."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        output = self.detector(images)
        return output.logits, output.deltas


def path_network(path: SinglePath, genotype: str, size: tuple[int, int]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The path's stand-alone detector with fresh weights, and a random picture. Raises ValueError where the genotype
    is none."""
    network = _Maps(build_detector(path.config("autofae", genotype)))
    return network.eval(), (torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)),)


def time_network(build: Build, setup: Setup) -> Timing:
    """Export a network, load it into the engine, and time it: after a warm-up, five runs and half a second at least."""
    network, inputs = build()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        export(network, inputs, file)
        run = _runner(file, inputs, setup)
    for _ in range(_WARM_UP):
        run()
    samples: list[float] = []
    until = time.perf_counter() + _SECONDS
    while len(samples) < _FEWEST_RUNS or time.perf_counter() < until:
        began = time.perf_counter()
        run()
        samples.append((time.perf_counter() - began) * 1e3)
    return Timing(p50_ms=float(np.median(samples)), runs=len(samples))


def export(network: nn.Module, inputs: tuple[Tensor, ...], file: Path) -> None:
    """Write a network as ONNX at the fixed sizes of its inputs, `in0`, `in1` and so on; batch norms are folded."""
    network.eval()
    # The exporter warns of every size that becomes a constant, which is what is wanted here.
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, inputs, file, input_names=[f"in{k}" for k in range(len(inputs))], opset_version=OPSET,
            dynamo=False,
        )  # fmt: skip


def _runner(file: Path, inputs: tuple[Tensor, ...], setup: Setup) -> Callable[[], Any]:
    """One run of the network in the engine, its inputs and outputs where the engine computes."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = setup.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # As the service runs them.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    provider = PROVIDERS[setup.target]
    place = "cuda" if setup.target == "onnxruntime-cuda" else "cpu"
    device = torch.cuda.current_device() if place == "cuda" and torch.cuda.is_available() else 0
    chosen = (provider, {"device_id": str(device)}) if place == "cuda" else provider
    session = ort.InferenceSession(str(file), options, providers=[chosen])
    # ONNX Runtime goes on without a provider that cannot be loaded, and would time the CPU.
    if provider not in session.get_providers():
        raise ValueError(f"{provider} cannot be loaded here, so that nothing can be timed on {setup.target}")
    binding = session.io_binding()
    for k, x in enumerate(inputs):
        binding.bind_ortvalue_input(f"in{k}", ort.OrtValue.ortvalue_from_numpy(x.numpy(), place, device))
    for output in session.get_outputs():
        binding.bind_output(output.name, place, device)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run
