"""The engine benchmark: floors by hand, cards by name, and whole runs on a small member."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from typer import Typer
from typer.testing import CliRunner

from benchmarks.engines import __main__ as command
from benchmarks.engines import cases
from benchmarks.engines.cases import Absent, Case, TorchGraph
from benchmarks.engines.floor import CARDS, Device, Work, floor_of, known_card, overridden, work_of
from benchmarks.engines.report import contended
from benchmarks.engines.trace import shares_of
from benchmarks.hardware import describe
from export.__main__ import app as export
from export.reference import TorchEngine
from export.verify import parity
from service.engines import cuda
from service.engines.base import EngineError
from service.engines.cuda import CudaDevice
from service.engines.tensorrt import api
from service.repository.manifest import Thresholds
from service.repository.store import load_repository
from tests.export.conftest import CONFIG
from training.family import count
from training.models.detector import Detector

Pixels = NDArray[np.uint8]
CARD = Device(name="made", tflops={"fp32": 2.0, "fp16": 4.0}, gb_per_s=10.0, source="made")


@pytest.fixture(scope="module")
def app() -> Typer:
    made = Typer()
    made.command()(command.main)
    return made


@pytest.fixture(scope="module")
def repository(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A member in fp32 with ONNX's NMS, and in fp16."""
    folder = tmp_path_factory.mktemp("bench") / "models"
    for precision in ("fp32", "fp16"):
        arguments = ["--member", "tiny", "--repository", str(folder), "--precision", precision]
        done = CliRunner().invoke(export, ["onnx", str(checkpoint), *arguments])
        assert done.exit_code == 0, done.output
    return folder


@pytest.fixture
def slow_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Device]:
    """Figures of a processor, without measuring it; and no photos but the astronaut."""
    monkeypatch.setattr(command, "DATA", tmp_path / "none")
    threads = torch.get_num_threads()
    made = Device(name="made", tflops={"fp32": 0.1, "int8": 0.2}, gb_per_s=10.0, source="made")
    monkeypatch.setattr(command, "measured_cpu", lambda name, threads: made)
    yield made
    torch.set_num_threads(threads)


def test_floors_by_hand() -> None:
    work = Work(operations=4e9, activations=1e6, weights=5e6, input_bytes=1e6)
    one = floor_of(work, CARD, "fp32", 1)
    assert one.arithmetic_ms == pytest.approx(2.0)  # 4e9 operations at 2e12 a second
    assert one.memory_ms == pytest.approx((4 * 6e6 + 1e6) / 10e9 * 1e3)  # 2.5
    assert one.ms == one.memory_ms
    many = floor_of(work, CARD, "fp16", 8)
    assert many.arithmetic_ms == pytest.approx(8.0)
    assert many.memory_ms == pytest.approx((2 * 5e6 + 8 * (2e6 + 1e6)) / 10e9 * 1e3)  # 3.4
    assert many.ms == many.arithmetic_ms
    unknown = floor_of(work, CARD, "int8", 1)
    assert unknown.arithmetic_ms is None
    assert unknown.ms == unknown.memory_ms


def test_work_is_what_the_family_counts(detector: Detector) -> None:
    work = work_of(detector, 480, 640)
    assert work.operations / 2e9 == pytest.approx(count(CONFIG).gmacs_vga, rel=1e-3)
    assert work.input_bytes == 480 * 640 * 3
    smaller = work_of(detector, 256, 320)
    assert 0.2 < smaller.operations / work.operations < 0.4
    assert smaller.weights == work.weights
    assert not any(module._forward_hooks for module in detector.modules())


@pytest.mark.parametrize(
    ("driver", "card"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 SXM"), ("NVIDIA H100 PCIe", "H100 PCIe"), ("NVIDIA H200", "H200 SXM"),
        ("NVIDIA L4", "L4"), ("NVIDIA L40S", "L40S"), ("Tesla T4", "T4"), ("NVIDIA A10", "A10"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB SXM"), ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB PCIe"), ("NVIDIA A10G", None), ("NVIDIA GeForce RTX 4090", None),
    ],
)  # fmt: skip
def test_cards_are_found_by_the_drivers_name(driver: str, card: str | None) -> None:
    found = known_card(driver)
    assert (None if found is None else found.name) == card


def test_cards_have_sane_figures() -> None:
    for _, card in CARDS:
        assert 1 < card.tflops["fp32"] < card.tflops["fp16"] < card.tflops["int8"] < 3000
        assert 100 < card.gb_per_s < 10_000
        assert card.source
    own = overridden(CARD, 7.0, None)
    assert (own.tflops["int8"], own.gb_per_s) == (7.0, 10.0)
    assert "given: tflops" in own.source
    assert overridden(CARD, None, None) == CARD


def test_an_unknown_gpu_needs_figures(monkeypatch: pytest.MonkeyPatch, slow_cpu: Device) -> None:
    monkeypatch.setattr(cuda, "device", lambda: CudaDevice("NVIDIA X1", "9.9", 2**30))
    with pytest.raises(ValueError, match=r"NVIDIA X1.*--peak-tflops"):
        command.devices(None, 100.0, 1)
    found, name = command.devices(5.0, 100.0, 1)
    assert (name, found["cuda"].tflops["fp16"], found["cuda"].gb_per_s) == ("NVIDIA X1", 5.0, 100.0)
    assert found["cpu"] == slow_cpu
    monkeypatch.setattr(cuda, "device", lambda: CudaDevice("NVIDIA H200", "9.0", 2**30))
    assert command.devices(None, None, 1)[0]["cuda"].gb_per_s == 4800


def test_profiles_are_summed_by_operator_without_the_warm_up() -> None:
    def node(operator: str, ts: int, dur: int) -> dict[str, object]:
        return {"cat": "Node", "name": f"{operator}_1_kernel_time", "ts": ts, "dur": dur, "args": {"op_name": operator}}

    events = [
        {"cat": "Session", "name": "model_run", "ts": 0, "dur": 50}, node("Conv", 1, 9000),
        {"cat": "Session", "name": "model_run", "ts": 100, "dur": 50}, node("Conv", 101, 3000), node("Relu", 105, 1000),
        {"cat": "Session", "name": "session_initialization", "ts": 0, "dur": 5},
    ]  # fmt: skip
    shares = shares_of(events, runs=1)
    assert [(one.operator, one.share, one.ms) for one in shares] == [("Conv", 0.75, 3.0), ("Relu", 0.25, 1.0)]
    assert shares_of([]) == []


def test_a_busy_machine_is_called_contended() -> None:
    machine = describe()
    assert contended(machine.model_copy(update={"load": machine.cores * 0.5}))
    assert not contended(machine.model_copy(update={"load": 0.05}))


def test_a_whole_run(app: Typer, repository: Path, slow_cpu: Device, tmp_path: Path) -> None:
    out = tmp_path / "engines.json"
    arguments = ["--repository", str(repository), "--batches", "1,3", "--size", "192x256", "--seconds", "0"]
    more = ["--threads", "1", "--pictures", "3", "--trace", str(tmp_path / "trace"), "--out", str(out)]
    done = CliRunner().invoke(app, [*arguments, *more])
    assert done.exit_code == 0, done.output
    report = json.loads(out.read_text())
    measured = {(row["engine"], row["variant"], row["nms"], row["batch"]) for row in report["rows"]}
    wanted = {("pytorch", "tiny", "greedy"), ("onnxruntime-cpu", "tiny", "onnx"),
              ("onnxruntime-cpu", "tiny-fp32-plain", "plain")}  # fmt: skip
    assert {(*one, batch) for one in wanted for batch in (1, 3)} <= measured
    for row in report["rows"]:
        assert row["runs"] >= 5
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["floor_ms"] == max(row["arithmetic_floor_ms"], row["memory_floor_ms"])
        assert row["load"] >= 0
        assert row["date"]
    agreement = {one["name"]: one for one in report["parity"]}
    for name in ("onnxruntime-cpu tiny", "onnxruntime-cpu tiny-fp32-plain"):
        assert agreement[name]["compared"] > 20
        assert agreement[name]["unmatched"] == 0
    assert "float16" in report["absent"]["onnxruntime-cpu tiny-fp16"]
    if not torch.cuda.is_available():
        assert {"pytorch-cuda tiny", "onnxruntime-cuda tiny, tiny-fp16", "tensorrt tiny, tiny-fp16"} <= set(
            report["absent"]
        )
    assert report["operators"]["onnxruntime-cpu tiny, batch 3"][0]["share"] > 0.2
    assert len(list((tmp_path / "trace").glob("onnxruntime-cpu-*.json"))) == 4
    text = out.with_suffix(".md").read_text()
    for words in ("| pytorch | tiny |", "## Parity", "## Not measured", "## Where the time goes", "(made)"):
        assert words in text


def test_what_fails_is_named_and_the_others_go_on(
    app: Typer, repository: Path, slow_cpu: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> TorchEngine:
        raise EngineError("d0.onnx has a hole")

    def two(member: cases.Member, engines: object, threads: int) -> list[Case | Absent]:
        whole = Case("pytorch", "tiny", "tiny", "fp32", "greedy", "cpu", lambda: cases.reference_of(member))
        return [dataclasses.replace(whole, variant="holed", open=broken), whole]

    monkeypatch.setattr(command, "cases_of", two)
    out = tmp_path / "engines.json"
    arguments = ["--repository", str(repository), "--batches", "1", "--size", "192x192", "--seconds", "0"]
    done = CliRunner().invoke(app, [*arguments, "--pictures", "2", "--out", str(out)])
    assert done.exit_code == 0, done.output
    report = json.loads(out.read_text())
    assert report["absent"] == {"pytorch holed": "d0.onnx has a hole"}
    assert [row["variant"] for row in report["rows"]] == ["tiny"]


def test_with_tensorrt_and_no_plan_the_command_that_builds_one_is_named(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "load", lambda: SimpleNamespace(__version__="11.4.0.1"))
    monkeypatch.setattr(cuda, "device", lambda: CudaDevice("NVIDIA H200", "9.0", 2**30))
    (member,) = cases.members_of(load_repository(repository), tmp_path)
    found = list(cases.cases_of(member, ("tensorrt",), 1))
    assert [one.name for one in found] == ["tensorrt tiny", "tensorrt tiny-fp16"]
    for one in found:
        assert isinstance(one, Absent)
        assert "no plan of it" in one.reason
        assert "python -m export tensorrt tiny" in one.reason


def test_a_gpu_gets_every_form_but_int8_for_cpus(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "device", lambda: CudaDevice("NVIDIA H200", "9.0", 2**30))
    (member,) = cases.members_of(load_repository(repository), tmp_path)
    found = [one for one in cases.cases_of(member, ("onnxruntime-cuda",), 1) if isinstance(one, Case)]
    assert [(one.variant, one.precision, one.nms, one.device) for one in found] == [
        ("tiny", "fp32", "onnx", "cuda"), ("tiny-fp16", "fp16", "plain", "cuda"),
        ("tiny-fp32-plain", "fp32", "plain", "cuda"),
    ]  # fmt: skip
    assert found[2].model == tmp_path / "tiny-fp32-plain.onnx"
    assert found[2].model.is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--engines", "onnxruntime-cpu,caffe"], "there is no caffe"), (["--size", "480"], "--size"),
        (["--size", "481x640"], "multiples of 32"), (["--batches", "0,1"], "--batches"),
        (["--members", "d9"], "no member d9"), (["--repository", "nowhere"], "nowhere"),
    ],
)  # fmt: skip
def test_bad_arguments_are_explained(
    app: Typer, repository: Path, slow_cpu: Device, arguments: list[str], sentence: str, tmp_path: Path
) -> None:
    base = ["--repository", str(repository), "--pictures", "2", "--out", str(tmp_path / "out.json")]
    done = CliRunner().invoke(app, [*base, *arguments])
    assert done.exit_code == 2
    assert sentence in done.output
    assert not (tmp_path / "out.json").exists()


def test_the_graph_in_pytorch_agrees_with_the_reference(detector: Detector, crowd: Pixels) -> None:
    _compare(TorchGraph("tiny", detector, Thresholds(), "cpu"), detector, crowd)


@pytest.mark.gpu
def test_the_graph_in_pytorch_agrees_with_the_reference_on_a_gpu(detector: Detector, crowd: Pixels) -> None:
    import copy

    _compare(TorchGraph("tiny", copy.deepcopy(detector), Thresholds(), "cuda"), detector, crowd)


def _compare(engine: TorchGraph, detector: Detector, crowd: Pixels) -> None:
    batch = np.stack([crowd[:256, :320], crowd[200:456, 100:420]])
    reference = TorchEngine("tiny", detector).run(batch)
    for ours, wanted in zip(engine.run(batch), reference, strict=True):
        result = parity(ours, wanted)
        assert result.compared > 10
        assert result.unmatched == 0
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run(batch)
