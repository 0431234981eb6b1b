"""Measuring within a time limit, and predictions that recover."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service.engines.base import Detections
from service.profiling import (
    Profile,
    Timing,
    base_latencies,
    measure,
    measure_engine,
    percentile_99,
    read_profile,
    write_profile,
)
from service.repository.manifest import InputSize
from service.scheduling.selection import Option, most_accurate
from tests.service.test_selection import SIZES, profile


class CountingEngine:
    """An engine that only counts, and takes `seconds` for each run."""

    kind = "counting"
    max_batch: int | None = None

    def __init__(self, seconds: float = 0.0) -> None:
        self.variant, self.seconds, self.runs = "v", seconds, 0

    def run(self, images: NDArray[np.uint8]) -> list[Detections]:
        self.runs += 1
        time.sleep(self.seconds)
        return []

    def warm_up(self, height: int, width: int, batch: int = 1) -> None: ...

    def memory_bytes(self) -> int:
        return 0

    def close(self) -> None: ...


def test_a_slow_engine_is_run_a_few_times_only() -> None:
    engine = CountingEngine()
    assert measure_engine(engine, SIZES[0], 0.0).runs == 3
    assert engine.runs == 4  # one of them to warm up


def test_a_fast_engine_is_run_often_but_not_for_ever() -> None:
    assert measure_engine(CountingEngine(), SIZES[0], 60.0).runs == 20


def test_every_pair_is_measured_even_after_the_time_is_spent() -> None:
    said: list[str] = []
    measured = measure([(CountingEngine(0.002), SIZES)], "k", 0.001, said.append)
    assert {(t.height, t.width) for t in measured.timings} == {(s.height, s.width) for s in SIZES}
    assert all(0 < t.p50_ms <= t.p99_ms for t in measured.timings)
    assert said[-1] == "measuring v at 128x128 (4 of 4)"
    assert set(measured.decode.jpeg) == {1, 2, 4, 8}


def test_small_inputs_come_first_whatever_the_engine() -> None:
    said: list[str] = []
    measure([(CountingEngine(), SIZES[::-1]), (CountingEngine(), SIZES)], "k", 0.001, said.append)
    assert [line.split(" ")[3] for line in said] == [str(SIZES[k]) for k in (0, 0, 2, 1, 1, 2, 3, 3)]


def test_fewer_runs_get_a_wider_margin() -> None:
    assert percentile_99([10.0] * 9) == pytest.approx(12.5)
    assert percentile_99([10.0] * 10) == pytest.approx(11.0)


class BatchingEngine(CountingEngine):
    """Takes `seconds` a run up to `free` pictures, and as much again for each further batch of them."""

    def __init__(self, seconds: float, free: int) -> None:
        super().__init__(seconds)
        self.free = free

    def run(self, images: NDArray[np.uint8]) -> list[Detections]:
        self.runs += 1
        time.sleep(self.seconds * -(-len(images) // self.free))
        return []


def test_batches_are_measured_as_far_as_they_pay() -> None:
    said: list[str] = []
    found = measure([(BatchingEngine(0.004, 2), SIZES)], "k", 0.001, said.append, max_batch=8)
    by_size: dict[tuple[int, int], list[int]] = {}
    for timing in found.timings:
        by_size.setdefault((timing.height, timing.width), []).append(timing.batch)
    assert by_size == {(s.height, s.width): [1, 2] for s in SIZES}
    curves = base_latencies(found)
    assert all(len(curve) == 2 and curve[0] <= curve[1] for curve in curves.values())
    assert "batches of 4" in said[-1]


def test_where_batches_do_not_pay_one_size_is_enough_to_see_it() -> None:
    said: list[str] = []
    found = measure([(BatchingEngine(0.004, 1), SIZES)], "k", 0.001, said.append, max_batch=8)
    assert [timing.batch for timing in found.timings] == [1] * len(SIZES)
    assert sum("batches" in line for line in said) == 1
    assert not [t for t in measure([(CountingEngine(), SIZES)], "k", 0.001, said.append).timings if t.batch > 1]


@pytest.mark.parametrize(
    "damage",
    [
        {"timings": []},
        {"decode": {"jpeg": {"1": 8.0}, "png": 20.0, "webp": 10.0}},
        {"decode": {"jpeg": {"1": 8.0, "2": 4.0, "4": 2.0, "8": 1.0}, "png": -1.0, "webp": 10.0}},
        {"timings": [{"variant": "v", "height": 64, "width": 64, "p50_ms": 0.0, "p99_ms": 0.0, "runs": 5}]},
    ],
)
def test_an_incomplete_or_absurd_profile_is_measured_anew(tmp_path: Path, damage: dict[str, object]) -> None:
    path = tmp_path / "profile.json"
    write_profile(path, profile())
    pairs = [("v", SIZES[0])]
    assert read_profile(path, "k", pairs) == profile()
    path.write_text(json.dumps({**json.loads(path.read_text()), **damage}))
    assert read_profile(path, "k", pairs) is None


def test_unmeasured_accuracy_prefers_the_larger_input_and_loses_to_measured() -> None:
    small, large = InputSize(height=64, width=64), InputSize(height=128, width=128)
    unmeasured = [Option(0, small, 0.0, 0.0, 5.0), Option(1, large, 0.0, 0.0, 50.0)]
    assert most_accurate(unmeasured, 1000.0, 0.0).option.size == large
    assert most_accurate(unmeasured, 10.0, 0.0).option.size == small
    measured = Option(2, small, 0.1, 0.0, 90.0)
    assert most_accurate([*unmeasured, measured], 1000.0, 0.0).option is measured


def test_an_input_that_holds_another_is_never_taken_to_be_faster() -> None:
    cost = profile().decode
    timings = tuple(
        Timing(variant="v", height=h, width=w, batch=b, p50_ms=ms, p99_ms=ms, runs=5)
        for h, w, b, ms in (
            (96, 128, 1, 10.0), (128, 96, 1, 12.0), (128, 128, 1, 9.0), (128, 128, 2, 20.0), (64, 64, 1, 30.0)
        )
    )  # fmt: skip
    found = base_latencies(Profile(key="k", timings=timings, decode=cost))
    assert found["v", 96, 128] == (10.0,)
    assert found["v", 128, 128] == pytest.approx((12.12, 20.0))
    assert found["v", 64, 64] == (30.0,)  # of another long side
