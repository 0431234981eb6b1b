"""Which engine is taken, what is said where it is not the best one, and that a machine without a GPU pays nothing."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.api.metrics import Metrics
from service.engines import select
from service.engines.base import EngineError, OutOfMemoryError
from service.engines.ort import CPU_KIND, CUDA_KIND, OnnxEngine, open_cpu
from service.engines.select import REASONS, Selection, Step, gpu_suspected, open_engines
from service.engines.tensorrt.build import BuildStoppedError
from service.models import load_models
from service.repository.store import RepositoryError, Variant, load_repository
from service.settings import EngineChoice, Settings
from tests.engines.fake_cuda import Error
from tests.engines.gpu_fakes import FakeGpu, install
from tests.engines.gpu_repository import MEMBERS, store_plan, write_gpu_repository

TENSORRT = "tensorrt"
HALVES = [f"{member}-fp16" for member in MEMBERS]


@dataclass
class Machine:
    """A fake GPU, a repository, and what was said and noted."""

    gpu: FakeGpu
    settings: Settings
    said: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def repository(self) -> Path:
        return self.settings.repository

    def open(self, engine: EngineChoice = "auto", suspected: bool = True, **settings: object) -> Selection:
        chosen = self.settings.model_copy(update={"engine": engine, **settings})
        repository = load_repository(self.repository)
        return open_engines(repository, chosen, self.said.append, self.steps.append, self.stop, lambda: suspected)


def _on_fake_cuda(variant: str, path: Path, cuda: object = None) -> OnnxEngine:
    engine = open_cpu(variant, path)
    engine.kind = CUDA_KIND
    return engine


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: Patch) -> Machine:
    gpu = install(monkeypatch)
    monkeypatch.setattr(select, "has_cuda", lambda: True)
    monkeypatch.setattr(select, "open_cuda", _on_fake_cuda)
    repository = write_gpu_repository(tmp_path / "models")
    return Machine(gpu, Settings(repository=repository, cache_dir=tmp_path / "cache", build_engines=False, max_batch=4))


def kinds(chosen: Selection) -> dict[str, str]:
    found = {one.variant.name: one.engine.kind for one in chosen.opened}
    for one in chosen.opened:
        assert one.engine.run(np.zeros((1, 64, 64, 3), np.uint8))  # each is open
        one.engine.close()
    return found


def test_plans_that_fit_are_taken(machine: Machine) -> None:
    stored = [store_plan(machine.gpu, machine.repository, name) for name in HALVES]
    chosen = machine.open()
    assert chosen.gpu == "Drawn GPU"
    assert [stored[k].plan.sha256 in one.identity for k, one in enumerate(chosen.opened)] == [True, True]
    assert kinds(chosen) == dict.fromkeys(HALVES, TENSORRT)
    assert machine.steps == []


Patch = pytest.MonkeyPatch


def _plans(**changes: object) -> Callable[[Machine, Patch], None]:
    """Plans for all, which differ from what would fit by `changes`."""

    def write(machine: Machine, _patch: Patch) -> None:
        for name in HALVES:
            store_plan(machine.gpu, machine.repository, name, **changes)

    return write


def _damage(machine: Machine, _patch: Patch) -> None:
    for name in HALVES:
        path = store_plan(machine.gpu, machine.repository, name).path
        path.write_bytes(path.read_bytes()[:-1] + b"!")


def _no_tensorrt(machine: Machine, patch: Patch) -> None:
    _plans()(machine, patch)
    for name in ("tensorrt", "tensorrt_lean"):
        patch.setitem(sys.modules, name, None)


def _no_memory(machine: Machine, patch: Patch) -> None:
    _plans()(machine, patch)
    patch.setattr(machine.gpu.cuda, "_Malloc", lambda _size: (Error.cudaErrorMemoryAllocation, None))


def _unloadable(machine: Machine, patch: Patch) -> None:
    """Whole, and of this version by their description alone."""
    data = machine.gpu.trt.plan([(64, 64)], 4, version="1.2.3")
    patch.setattr(machine.gpu.trt, "plan", lambda *_: data)
    _plans()(machine, patch)


@pytest.mark.parametrize(
    ("prepare", "reason", "sentence"),
    [
        (lambda *_: None, "no_plan", "d0-fp16 has no plan for this GPU: python -m service build-engines"),
        (_no_tensorrt, "no_library", "TensorRT is not installed"),
        (_plans(tensorrt="10.16.1.11"), "version_mismatch", "built with TensorRT 10.16.1.11"),
        (_plans(compute_capability="8.9", gpu="Other"), "gpu_mismatch", "8.9 (Other)"),
        (_plans(gpu="Other GPU"), "gpu_mismatch", "built for Other GPU"),
        (_plans(model_sha256="0" * 64), "no_plan", "d0-fp16"),
        (_damage, "damaged", "sha256"),
        (_no_memory, "out_of_memory", "GPU memory"),
        (_unloadable, "load_failed", "cannot be loaded by TensorRT"),
    ],
)
def test_what_cannot_be_had_is_said_counted_and_replaced_by_cuda(
    machine: Machine, prepare: Callable[[Machine, Patch], None], reason: str, sentence: str,
    caplog: pytest.LogCaptureFixture, monkeypatch: Patch,
) -> None:  # fmt: skip
    prepare(machine, monkeypatch)
    with caplog.at_level(logging.WARNING):
        chosen = machine.open()
    assert kinds(chosen) == dict.fromkeys(HALVES, CUDA_KIND)
    assert [(s.member, s.start, s.to, s.reason) for s in machine.steps] == [
        (member, TENSORRT, CUDA_KIND, reason) for member in MEMBERS
    ]
    assert sentence in caplog.text
    assert reason in REASONS


def test_without_cuda_libraries_it_is_the_cpu(machine: Machine, monkeypatch: Patch) -> None:
    monkeypatch.setattr(select, "has_cuda", lambda: False)
    assert kinds(machine.open()) == dict.fromkeys(["d0", "d0-int8", "d1", "d1-int8"], CPU_KIND)
    assert [(s.start, s.to, s.reason) for s in machine.steps[:2]] == [
        (TENSORRT, CUDA_KIND, "no_plan"), (CUDA_KIND, CPU_KIND, "no_library"),
    ]  # fmt: skip


@pytest.mark.parametrize("when", ["opened", "run"])
@pytest.mark.parametrize("fault", ["out_of_memory", "load_failed"])
def test_a_session_that_does_not_open_or_run_on_cuda(
    machine: Machine, monkeypatch: Patch, fault: str, when: str
) -> None:
    error = (OutOfMemoryError if fault == "out_of_memory" else EngineError)("d0-fp16.onnx: cuDNN is not here")
    shapes = []

    def refuse(*_: object) -> OnnxEngine:
        raise error

    def run(images: np.ndarray) -> list[np.ndarray]:
        shapes.append(images.shape)
        raise error

    def refuse_later(variant: str, path: Path, cuda: object = None) -> OnnxEngine:
        engine = _on_fake_cuda(variant, path)
        monkeypatch.setattr(engine, "run", run)
        return engine

    monkeypatch.setattr(select, "open_cuda", refuse if when == "opened" else refuse_later)
    assert set(kinds(machine.open()).values()) == {CPU_KIND}
    assert [s.reason for s in machine.steps if s.to == CPU_KIND] == [fault, fault]
    assert set(shapes) == ({(1, 128, 128, 3)} if when == "run" else set())  # the largest picture, before requests come


def test_a_plan_that_loads_and_does_not_run_is_closed_again(machine: Machine, monkeypatch: Patch) -> None:
    _plans()(machine, monkeypatch)
    before = machine.gpu.cuda.free
    machine.gpu.trt.execute_fails = True
    assert kinds(machine.open()) == dict.fromkeys(HALVES, CUDA_KIND)
    assert [s.reason for s in machine.steps] == ["load_failed"] * 2
    assert machine.gpu.cuda.free == before


def test_memory_that_does_not_suffice_for_int8_too_costs_int8_alone(
    machine: Machine, monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("d0-fp16", "d0-int8", "d1-fp16"):
        store_plan(machine.gpu, machine.repository, name)
    before, made = machine.gpu.cuda.free, select._from_plan

    def refuse(variant: Variant, *rest: Any) -> select.Opened:
        if variant.file.precision == "int8":
            raise OutOfMemoryError("no memory for d0-int8")
        return made(variant, *rest)

    monkeypatch.setattr(select, "_from_plan", refuse)
    assert kinds(machine.open()) == dict.fromkeys(HALVES, TENSORRT)
    assert machine.steps == []
    assert "d0-int8 is left out" in caplog.text
    assert machine.gpu.cuda.free == before


def test_no_device_means_the_cpu_for_all(
    machine: Machine, caplog: pytest.LogCaptureFixture, monkeypatch: Patch
) -> None:
    _plans()(machine, monkeypatch)
    monkeypatch.setattr(machine.gpu.cuda, "_GetDeviceCount", lambda: (Error.cudaErrorInsufficientDriver, None))
    with caplog.at_level(logging.WARNING):
        chosen = machine.open()
    assert chosen.gpu == ""
    assert set(kinds(chosen).values()) == {CPU_KIND}
    assert {(s.reason, s.to) for s in machine.steps} == {("no_device", CUDA_KIND), ("no_device", CPU_KIND)}
    assert caplog.text.count("no NVIDIA driver") == 1  # not once for each member and engine


def test_members_go_each_their_own_way(machine: Machine) -> None:
    store_plan(machine.gpu, machine.repository, "d1-fp16")
    assert kinds(machine.open()) == {"d0-fp16": CUDA_KIND, "d1-fp16": TENSORRT}


def test_int8_runs_on_a_gpu_only_where_somebody_built_its_plan(machine: Machine) -> None:
    store_plan(machine.gpu, machine.repository, "d0-fp16")
    store_plan(machine.gpu, machine.repository, "d0-int8")
    assert kinds(machine.open()) == {"d0-fp16": TENSORRT, "d0-int8": TENSORRT, "d1-fp16": CUDA_KIND}


def test_without_float16_files_cuda_takes_float32(tmp_path: Path, machine: Machine) -> None:
    root = write_gpu_repository(tmp_path / "other", half=False)
    machine.settings = machine.settings.model_copy(update={"repository": root})
    assert kinds(machine.open()) == dict.fromkeys(MEMBERS, CUDA_KIND)


def test_missing_plans_are_built_at_start_and_kept(machine: Machine, monkeypatch: Patch) -> None:
    chosen = machine.open(build_engines=True)
    assert kinds(chosen) == dict.fromkeys(HALVES, TENSORRT)
    assert machine.steps == []
    progress = [text for text in machine.said if text.startswith("building d0-fp16 for Drawn GPU, ")]
    assert progress == [f"building d0-fp16 for Drawn GPU, {n} %" for n in (16, 33, 50, 66, 83, 100)]
    builds = len(machine.gpu.trt.named("Builder.build_serialized_network"))
    assert builds == len(HALVES)
    assert kinds(machine.open(build_engines=True)) == dict.fromkeys(HALVES, TENSORRT)
    assert len(machine.gpu.trt.named("Builder.build_serialized_network")) == builds
    # A plan of another version is built anew.
    _plans(tensorrt="10.16.1.11")(machine, monkeypatch)
    assert kinds(machine.open(build_engines=True)) == dict.fromkeys(HALVES, TENSORRT)
    assert machine.steps == []


def test_a_build_that_fails(machine: Machine) -> None:
    machine.gpu.trt.builds = False
    assert kinds(machine.open(build_engines=True)) == dict.fromkeys(HALVES, CUDA_KIND)
    assert [s.reason for s in machine.steps] == ["build_failed"] * 2
    assert "no tactic fits" in machine.steps[0].detail


def test_a_build_ends_when_the_service_does(machine: Machine) -> None:
    machine.gpu.trt.on_step = machine.stop.set
    with pytest.raises(BuildStoppedError):
        machine.open(build_engines=True)
    assert machine.steps == []  # nobody is left who would want another engine
    assert not list(machine.repository.rglob("*.plan"))


def test_the_lean_runtime_builds_nothing(machine: Machine, monkeypatch: Patch) -> None:
    machine.gpu = install(monkeypatch, "lean-11.4")
    assert kinds(machine.open(build_engines=True)) == dict.fromkeys(HALVES, CUDA_KIND)
    assert {s.reason for s in machine.steps} == {"no_plan"}


@pytest.mark.parametrize("engine", ["tensorrt", "cuda"])
def test_an_engine_that_was_asked_for_and_cannot_be_had_is_an_error(
    machine: Machine, monkeypatch: Patch, engine: EngineChoice
) -> None:
    monkeypatch.setattr(select, "has_cuda", lambda: False)
    with pytest.raises(EngineError, match=rf"ASFD_ENGINE is {engine}, which d0 cannot have \(no_"):
        machine.open(engine, suspected=False)
    assert machine.steps == []
    before = machine.gpu.cuda.free
    store_plan(machine.gpu, machine.repository, "d0-fp16")
    with pytest.raises(EngineError, match=r"which d[01] cannot have"):
        machine.open(engine)
    assert machine.gpu.cuda.free == before  # d0's engine, which could be had, is closed again


def test_asked_for_by_name(machine: Machine, monkeypatch: Patch) -> None:
    _plans()(machine, monkeypatch)
    assert kinds(machine.open("cuda")) == dict.fromkeys(HALVES, CUDA_KIND)
    assert kinds(machine.open("tensorrt")) == dict.fromkeys(HALVES, TENSORRT)
    calls = len(machine.gpu.cuda.calls)
    assert set(kinds(machine.open("cpu")).values()) == {CPU_KIND}
    assert len(machine.gpu.cuda.calls) == calls  # nobody looks for a GPU then


def test_float16_alone_and_no_gpu_is_an_error(machine: Machine) -> None:
    for member in MEMBERS:
        path = machine.repository / member / "manifest.json"
        manifest = load_repository(machine.repository).variants
        files = [v.file for v in manifest if v.manifest.member == member and v.file.precision == "fp16"]
        kept = next(v.manifest for v in manifest if v.manifest.member == member)
        path.write_text(kept.model_copy(update={"files": tuple(files), "accuracy": ()}).model_dump_json())
    for suspected in (False, True):
        machine.gpu.cuda.fail["cudaGetDeviceCount"] = Error.cudaErrorNoDevice
        with pytest.raises(RepositoryError, match="only fp16 variants"):
            machine.open(suspected=suspected)


def test_what_runs_where_is_a_metric_and_part_of_the_profiles_key(machine: Machine, monkeypatch: Patch) -> None:
    monkeypatch.setattr(select, "gpu_suspected", lambda: True)
    monkeypatch.setattr("service.models.open_engines", lambda *a: open_engines(*a, lambda: True))
    store_plan(machine.gpu, machine.repository, "d0-fp16")
    metrics = Metrics({"standard": 1000.0})
    models = load_models(machine.settings, lambda _: None, observer=metrics)
    assert max(arm.max_batch for arm in models.arms() if arm.variant == "d0-fp16") <= 4
    text = metrics.render("")[0].decode()
    assert 'asfd_engine_info{engine="tensorrt",variant="d0-fp16"} 1.0' in text
    assert 'asfd_engine_fallback_total{from="tensorrt",reason="no_plan",to="onnxruntime-cuda"} 1.0' in text
    on_gpu = models.profile.key
    models.close()
    before = len(machine.gpu.seen)
    again = load_models(machine.settings, lambda _: None)
    assert again.profile.key == on_gpu
    warmed = {image.shape[:3] for image in machine.gpu.seen[before:]}
    assert {(1, h, w) for h, w in ((64, 64), (64, 128), (128, 64), (128, 128))} <= warmed
    again.close()
    on_cpu = load_models(machine.settings.model_copy(update={"engine": "cpu"}), lambda _: None)
    assert on_cpu.profile.key != on_gpu
    on_cpu.close()


def test_a_machine_without_a_gpu_pays_nothing(tmp_path: Path) -> None:
    root = write_gpu_repository(tmp_path / "models")
    code = f"""
import sys, time
from pathlib import Path
from service.engines.select import gpu_suspected, open_engines
from service.repository.store import load_repository
from service.settings import Settings
steps = []
chosen = open_engines(
    load_repository(Path({str(root)!r})), Settings(), print, steps.append, suspected=lambda: False
)
assert sorted(one.engine.kind for one in chosen.opened) == ["onnxruntime-cpu"] * 4
assert not steps
began = time.perf_counter()
for _ in range(1000):
    gpu_suspected()
assert time.perf_counter() - began < 1, "the probe takes more than a millisecond"
found = [name for name in sys.modules if name.split(".")[0] in ("cuda", "tensorrt", "tensorrt_lean", "torch")]
assert not found, found
assert "service.engines.tensorrt.engine" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


@pytest.mark.gpu
def test_a_gpu_is_suspected_where_there_is_one() -> None:
    assert gpu_suspected()
