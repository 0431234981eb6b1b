"""Latencies: their cache, what a key holds, targets that are not there, real measurements, and the table of parts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from training.evolution import latency
from training.evolution.additive import AdditiveTable, error_report, measure, part_network, parts_of
from training.evolution.latency import (
    Build,
    Clock,
    LatencyCache,
    MeasuredLatency,
    Setup,
    Timing,
    export,
    path_network,
    target_named,
    time_network,
)
from training.models.genotype import default_genotype
from training.supernet.path import PathSpace, SinglePath

TINY = SinglePath("resnet18", (False,), 1, 8)
SETUP = Setup(size=(64, 64), hardware="a machine")


def never(_build: Build, _setup: Setup) -> Timing:
    raise AssertionError("measured")


def counting(calls: list[Setup], value: float = 5.0) -> Callable[[Build, Setup], Timing]:
    def measured(_build: Build, setup: Setup) -> Timing:
        calls.append(setup)
        return Timing(p50_ms=value + len(calls), runs=7)

    return measured


def test_a_cached_latency_is_never_measured_again(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "latencies.json"
    calls: list[Setup] = []
    first = MeasuredLatency(Clock(SETUP, LatencyCache(file), counting(calls)))
    assert first(TINY) == first(TINY) == 6.0
    assert len(calls) == 1
    assert MeasuredLatency(Clock(SETUP, LatencyCache(file), never))(TINY) == 6.0
    stored = json.loads(file.read_text())["timings"]
    assert list(stored.values()) == [{"p50_ms": 6.0, "runs": 7}]
    (key,) = stored
    for part in ("R18-FA-Hx1-8 | onnxruntime-cpu " + ort.__version__, "| a machine | 1 threads | 64x64 | genotype "):
        assert part in key


def test_everything_that_matters_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    other = default_genotype("autofa").model_dump_json()
    setups = [
        SETUP, Setup(size=(64, 96), hardware="a machine"), Setup(threads=2, size=(64, 64), hardware="a machine"),
        Setup(size=(64, 64), hardware="another"), Setup("onnxruntime-cuda", size=(64, 64), hardware="a machine"),
        Setup(size=(64, 64), hardware="a machine", genotype=other),
    ]  # fmt: skip
    cache = LatencyCache()
    calls: list[Setup] = []
    for setup in setups:
        MeasuredLatency(Clock(setup, cache, counting(calls)))(TINY)
    assert calls == setups
    MeasuredLatency(Clock(SETUP, cache, counting(calls)))(SinglePath("resnet18", (True,), 1, 8))
    assert len(calls) == len(setups) + 1
    monkeypatch.setattr(ort, "__version__", "99.9")
    MeasuredLatency(Clock(SETUP, cache, counting(calls)))(TINY)
    assert len(calls) == len(setups) + 2
    # This machine is named where no other is, and the same genotype found anew is the same architecture.
    monkeypatch.setattr(latency, "machine_name", lambda: "this one x2")
    assert "| this one x2 |" in Setup().describe()
    found = default_genotype("autofae")
    moved = found.model_copy(update={"provenance": found.provenance.model_copy(update={"seed": 99})})
    assert Setup(genotype=moved.model_dump_json()).describe() == Setup().describe()


def _store(file: Path, names: list[str]) -> None:
    cache = LatencyCache(file)
    for name in names:
        cache.put(name, Timing(p50_ms=len(name), runs=5))


def test_processes_do_not_lose_each_others_entries(tmp_path: Path) -> None:
    file = tmp_path / "latencies.json"
    early = LatencyCache(file)  # which has read an empty file
    names = [[f"{who}{k}" for k in range(25)] for who in "abc"]
    workers = [get_context("fork").Process(target=_store, args=(file, part)) for part in names]
    for worker in workers:
        worker.start()
    early.put("own", Timing(p50_ms=1.0, runs=5))
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert set(json.loads(file.read_text())["timings"]) == {"own", *itertools.chain(*names)}
    assert early.get("b7") == Timing(p50_ms=2.0, runs=5)  # read again where something is not known
    assert early.put("c3", Timing(p50_ms=9.0, runs=5)).p50_ms == 2.0  # the first counts
    assert sorted(p.name for p in tmp_path.iterdir()) == [".latencies.json.lock", "latencies.json"]


@pytest.mark.parametrize("text", ["{", '{"version": 2}', '{"timings": {"a": {"p50_ms": -1, "runs": 5}}}'])
def test_a_broken_cache_is_named_and_left_alone(tmp_path: Path, text: str) -> None:
    file = tmp_path / "latencies.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"latencies\.json is no cache of latencies"):
        LatencyCache(file)
    assert file.read_text() == text


def test_targets_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert target_named("onnxruntime-cpu") == "onnxruntime-cpu"
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ValueError, match=r"needs ONNX Runtime's CUDAExecutionProvider, .*pip install"):
        target_named("onnxruntime-cuda")
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert target_named("onnxruntime-cuda") == "onnxruntime-cuda"
    with pytest.raises(ValueError, match="tensorrt is not offered by this command"):
        target_named("tensorrt")
    with pytest.raises(ValueError, match="no target 'tpu'; there are onnxruntime-cpu, onnxruntime-cuda"):
        target_named("tpu")
    for wrong in ({"size": (16, 640)}, {"threads": -1}):
        with pytest.raises(ValueError, match=r"pixels|threads"):
            Setup(**wrong)


def test_a_provider_that_falls_back_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ort.InferenceSession

    class OnCpu:
        """ONNX Runtime goes on with the CPU where CUDA's libraries cannot be loaded."""

        def __new__(cls, file: str, options: ort.SessionOptions, providers: object) -> ort.InferenceSession:
            return real(file, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "InferenceSession", OnCpu)
    with pytest.raises(ValueError, match="CUDAExecutionProvider cannot be loaded here"):
        time_network(
            lambda: path_network(TINY, "", (64, 64)), Setup("onnxruntime-cuda", size=(64, 64), hardware="a machine")
        )


def test_a_tiny_path_is_measured_for_real() -> None:
    timing = time_network(lambda: path_network(TINY, "", (64, 64)), SETUP)
    assert 0 < timing.p50_ms < 60_000
    assert timing.runs >= 5


def test_what_is_timed_computes_the_detectors_outputs(tmp_path: Path) -> None:
    network, (images,) = path_network(TINY, "", (64, 96))
    assert images.shape == (1, 3, 64, 96)
    export(network, (images,), tmp_path / "network.onnx")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(tmp_path / "network.onnx", options, providers=["CPUExecutionProvider"])
    logits, deltas = session.run(None, {"in0": images.numpy()})
    cells = 16 * 24 + 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1 * 1  # strides 4 to 128, rounded up
    assert logits.shape == (1, cells)
    assert deltas.shape == (1, cells, 4)
    with torch.no_grad():
        for mine, theirs in zip(network(images), (logits, deltas), strict=True):
            scale = float(mine.abs().max())
            np.testing.assert_allclose(mine.numpy() / scale, theirs / scale, atol=1e-4)


def test_the_sum_of_parts_by_hand() -> None:
    table = AdditiveTable(
        {"backbone resnet18": 10.0, "laterals basic 8": 1.0, "FA 8": 2.0, "FAE 8": 5.0, "head x1 8": 0.5}
    )  # fmt: skip
    assert table.predict(TINY) == 10 + 1 + 2 + 0.5
    assert table.predict(SinglePath("resnet18", (True, False, True), 1, 8)) == 10 + 1 + 5 + 2 + 5 + 0.5
    with pytest.raises(ValueError, match="lacks: head x2 8"):
        table.predict(SinglePath("resnet18", (True,), 2, 8))
    deep = SinglePath("resnet18", (True, False, True), 1, 8)
    # 13.5 for 10 is 35 % too long, 23.5 for 47 is 50 % too short.
    report = error_report(table, {TINY: 10.0, deep: 47.0})
    assert report.paths == 2
    assert report.mape == pytest.approx((0.35 + 0.5) / 2)
    assert report.bias == pytest.approx((0.35 - 0.5) / 2)
    assert report.worst == pytest.approx(0.5)
    assert report.worst_path == "R18-FAE-FA-FAE-Hx1-8"
    assert str(report).startswith("off by 42.5% in the mean of 2 paths (bias -7.5%), at worst by 50.0%")
    with pytest.raises(ValueError, match="at least one"):
        error_report(table, {})


def test_a_table_has_every_part_of_its_space_once() -> None:
    space = PathSpace(("resnet18", "resnet34", "resnet50"), 3, 2, (8, 16))
    calls: list[Setup] = []
    clock = Clock(SETUP, LatencyCache(), counting(calls))
    table = measure(space, clock)
    assert set(table.parts) == {name for path in space for name in parts_of(path)}
    assert len(table.parts) == len(calls) == 3 + 2 * 2 + 2 * 2 + 2 * 2
    # Parts have their own keys beside whole paths'.
    before = len(calls)
    MeasuredLatency(clock)(TINY)
    assert len(calls) == before + 1


def test_parts_together_are_the_path() -> None:
    path = SinglePath("resnet18", (True, False), 2, 8)
    names = parts_of(path)
    assert names == ["backbone resnet18", "laterals basic 8", "FAE 8", "FA 8", "head x2 8"]
    whole, (images,) = path_network(path, "", (64, 96))
    maps: tuple[torch.Tensor, ...] = (images,)
    weights = 0
    with torch.no_grad():
        for name in names:
            part, inputs = part_network(name, path, "", (64, 96))
            assert [x.shape for x in inputs] == [x.shape for x in maps]
            maps = part(*maps)
            weights += sum(p.numel() for p in part.parameters())
    assert [x.shape for x in maps] == [x.shape for x in whole(images)]
    assert weights == sum(p.numel() for p in whole.parameters())


def test_a_part_is_measured_for_real() -> None:
    timing = time_network(lambda: part_network("FAE 8", TINY, "", (64, 64)), SETUP)
    assert 0 < timing.p50_ms < 60_000
