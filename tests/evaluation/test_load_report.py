"""The load benchmark's report: bars by hand, and results that are resumed and never mixed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.hardware import describe
from benchmarks.load.capacity import Capacity, Overhead, Saturation
from benchmarks.load.figure import draw
from benchmarks.load.report import Identity, Memory, Report, Row, bars, markdown, overloads, resume, save


def identity(**changes: Any) -> Identity:
    values: dict[str, Any] = {
        "cpu": "drawn", "cores": 2, "threads": 0, "service": "s", "models": "m", "data": "drawn", "photos": "p",
        "seconds": 10.0, "mix": "standard:1", "late_ok": 0.2, "seed": 0, "profile": "",
    }  # fmt: skip
    return Identity(**values | changes)


def report(*rows: Row, **changes: Any) -> Report:
    return Report(
        hardware=describe(), command="python -m benchmarks.load", identity=identity(**changes),
        default_policy="roll_out", results=list(rows),
    )  # fmt: skip


def row(policy: str, load: float, attainment: float, ap: float, goodput: float, after: float = 100.0) -> Row:
    return Row(
        policy=policy, load=load, trace="poisson", spec="poisson:", rate=10.0, requests=100, on_time=90, late=7,
        dropped=3, failed=0, attainment=attainment, effective_ap=ap, answered_ap=0.8, goodput_per_s=goodput,
        p50_ms=None, p99_ms=None, refused_p99_ms=None, lag_ms_p99=0.5, mean_batch=1.0, statuses={}, tiers={}, arms={},
        simulated_attainment=0.98, simulated_effective_ap=0.77, simulated_late=1, simulated_dropped=1,
        memory_mib=Memory(before=80, quarter=100, after=after, most=120), client_cpu=0.1, date="", load_average=0.0,
    )  # fmt: skip


def test_results_are_resumed_and_never_mixed(tmp_path: Path) -> None:
    path = tmp_path / "load.json"
    assert resume(path, report()).results == []
    save(report(row("fixed", 0.7, 0.9, 0.5, 10.0)), path)
    kept = resume(path, report())
    assert kept.has("fixed", 0.7, "poisson")
    assert not kept.has("fixed", 0.3, "poisson")
    assert not kept.has("roll_out", 0.7, "poisson")
    assert set(json.loads(path.read_text())) >= {"hardware", "default_policy", "capacity", "results"}
    with pytest.raises(ValueError, match=r"seconds 10\.0 there, 20\.0 now; seed 0 there, 1 now"):
        resume(path, report(seconds=20.0, seed=1))
    path.write_text("{}")
    with pytest.raises(ValueError, match="no result of this benchmark"):
        resume(path, report())


def test_bars_and_overload_by_hand(tmp_path: Path) -> None:
    rows = [
        row("roll_out", 0.7, 0.991, 0.80, 10.0), row("roll_out", 1.5, 0.9, 0.6, 20.0),
        row("roll_out", 5.0, 0.2, 0.1, 17.0, after=104.0), row("fixed", 0.7, 0.9, 0.7, 9.0),
        row("slack_fit", 0.7, 0.9, 0.81, 9.0),
    ]  # fmt: skip
    (over,) = overloads(rows)
    assert (over.policy, over.peak_load, over.load) == ("roll_out", 1.5, 5.0)
    assert [over.ratio, over.memory] == pytest.approx([0.85, 1.04])
    whole = report(*rows)
    whole.overhead = Overhead(
        requests=9, client_p50_ms=1.5, client_p99_ms=6.0, server_p50_ms=1, server_p99_ms=2, queue_p50_ms=0,
        queue_p99_ms=0, decode_ms=4, decode_cv=0.2, load=0,
    )  # fmt: skip
    whole.capacity = Capacity(variant="d0", long_side=320, profile_per_s=30, service_per_s=25, contention=1.2)
    whole.saturation = [
        Saturation(variant="d0", long_side=320, engine_per_s=28, service_per_s=25, ratio=25 / 28, client_cpu=0.1)
    ]
    save(whole, tmp_path / "load.json")
    found = {what: good for what, _, good in bars(whole)}
    assert found == {
        "poisson at 70%: on time at least 99%": True,
        "poisson at 70%: effective AP.50 above that of fixed": True,
        "poisson at 70%: effective AP.50 above that of slack_fit": False,
        "overhead by the service's clock below 2 ms at p50": True,
        "overhead by the service's clock below 5 ms at p99": True,
        "overhead by the client's clock below 2 ms at p50": True,
        "overhead by the client's clock below 5 ms at p99": False,
        "saturated d0@320: at least 90% of the bare engine": False,
        "poisson at 5 times capacity: goodput at least 90% of its peak": False,
        "poisson at 5 times capacity: memory at most 105% of a quarter's": True,
    }
    text = markdown(whole)
    assert "| poisson | 0.7 | **roll_out** | 99.10% | 98.00% | 0.8000 | 0.7700 | 7 | 3 | 0 | 10.0 |" in text
    assert "| poisson at 70%: effective AP.50 above that of slack_fit | 0.8000 against 0.8100 | **missed** |" in text
    draw(whole, tmp_path / "load.png")
    with Image.open(tmp_path / "load.png") as picture:
        assert picture.format == "PNG"
    assert markdown(report()).startswith("# Real load")  # before anything was measured
