"""Traces: their statistics, what a specification and a CSV file may say, and the profile that loads are stated in."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from service.repository.manifest import InputSize
from service.scheduling.arms import batch_curve
from service.settings import Settings
from service.simulation.profile import SimProfile, capacity, read_profile
from service.simulation.spec import DEFAULT_TIERS, parse_spec
from service.simulation.trace import Arrival, generate, load_trace, read_csv
from tests.service.made_profile import row, seven_rows, write_profile


@pytest.fixture
def seven(tmp_path: Path) -> SimProfile:
    return read_profile(write_profile(tmp_path / "seven.json", seven_rows()))


def times(text: str, rate: float, seed: int = 0) -> np.ndarray:
    return np.array([arrival.at_s for arrival in generate(parse_spec(text), rate, seed)])


@pytest.mark.parametrize(("text", "cv2"), [("poisson:", 1.0), ("gamma:cv2=4,", 4.0), ("gamma:cv2=0.25,", 0.25)])
def test_gaps_have_the_rate_and_the_squared_coefficient_of_variation(text: str, cv2: float) -> None:
    gaps = np.diff(times(f"{text}rate=50,seconds=2000", 50.0), prepend=0.0)
    n = len(gaps)
    # The mean of n gaps has the relative standard error sqrt(cv2 / n): five of them.
    assert 1 / gaps.mean() == pytest.approx(50, rel=5 * math.sqrt(cv2 / n))
    assert gaps.var() / gaps.mean() ** 2 == pytest.approx(cv2, rel=0.06)
    # Gamma gaps of shape 1 / cv2 have the skewness 2 sqrt(cv2), which no other kind of gaps of that variance has.
    skewness = ((gaps - gaps.mean()) ** 3).mean() / gaps.std() ** 3
    assert skewness == pytest.approx(2 * math.sqrt(cv2), rel=0.12)


def test_a_day_has_its_mean_rate_its_swing_and_its_bursts() -> None:
    plain = times("diurnal:rate=200,seconds=400,swing=0.8,bursts=0", 200.0)
    assert len(plain) == pytest.approx(80_000, rel=0.02)
    # The integral of 1 - 0.8 cos over the first tenth is 0.1 - 0.8 sin(0.2 pi) / (2 pi), of the whole 1.
    for begin in (0.0, 0.9):
        share = np.mean((plain >= begin * 400) & (plain < (begin + 0.1) * 400))
        assert share == pytest.approx(0.1 - 0.8 * math.sin(0.2 * math.pi) / (2 * math.pi), rel=0.06)
    bursty = times("diurnal:rate=200,seconds=400,swing=0,bursts=1,burst_factor=5,burst_seconds=40", 200.0)
    assert len(bursty) == pytest.approx(80_000, rel=0.02)
    # Weight 1 for 360 s and 5 for 40 s make 560: the burst has 5 * 40 / 560 of all arrivals in a tenth of the time.
    counts = np.histogram(bursty, bins=400, range=(0, 400))[0]
    window = np.convolve(counts, np.ones(40), "valid").max()
    assert window / len(bursty) == pytest.approx(200 / 560, rel=0.05)


def test_mix_sizes_and_late_ok_have_their_shares() -> None:
    spec = parse_spec(
        "poisson:rate=100,seconds=200,tiers=a:50+b:500+c:900,mix=a:1+b:3,sizes=640x480:3+480x640:1,late_ok=0.2"
    )
    trace = generate(spec, 100.0, 1)
    n = len(trace)
    assert {(a.tier, a.budget_ms) for a in trace} == {("a", 50.0), ("b", 500.0)}
    assert sum(a.tier == "a" for a in trace) / n == pytest.approx(0.25, abs=0.02)
    assert sum((a.width, a.height) == (480, 640) for a in trace) / n == pytest.approx(0.25, abs=0.02)
    assert sum(a.late_ok for a in trace) / n == pytest.approx(0.2, abs=0.02)


def test_default_tiers_are_those_of_the_service_in_equal_parts() -> None:
    assert dict(DEFAULT_TIERS) == Settings.model_fields["tiers"].get_default(call_default_factory=True)
    assert parse_spec("poisson:rate=1,seconds=1").tiers == tuple((name, ms, 0.25) for name, ms in DEFAULT_TIERS)


def test_seeds_repeat_and_differ_and_the_mix_does_not_move_arrivals(seven: SimProfile) -> None:
    one = load_trace("gamma:rate=20,cv2=4,seconds=20", seven, 7)
    assert load_trace("gamma:rate=20,cv2=4,seconds=20", seven, 7) == one
    assert load_trace("gamma:rate=20,cv2=4,seconds=20", seven, 8) != one
    assert load_trace("gamma:rate=20,cv2=4,seconds=20,seed=7", seven, 8) == one
    other = load_trace("gamma:rate=20,cv2=4,seconds=20,mix=accurate:1", seven, 7)
    assert [a.at_s for a in other] == [a.at_s for a in one]


def test_load_is_a_fraction_of_the_capacity(seven: SimProfile) -> None:
    # f0 at 256x320 takes 9 * 256 * 320 / (480 * 640) = 2.4 ms alone, and 2.4 * (0.2 + 0.8 * 8) = 15.84 ms for eight.
    assert capacity(seven, [(640, 480, 1.0)]) == pytest.approx(8 / 15.84e-3)
    # At 640 the tightest size: 9 * 6.6 = 59.4 ms for eight.
    assert capacity(seven, [(640, 480, 1.0)], "f0@640") == pytest.approx(8 / 59.4e-3)
    # A square picture fits the square alone, 4 / 3 as slow; half and half take the mean time.
    assert capacity(seven, [(640, 480, 1.0), (500, 500, 1.0)], "f0@640") == pytest.approx(8 / (59.4e-3 * 7 / 6))
    trace = load_trace("poisson:load=0.5,reference=f0@640,seconds=100", seven)
    assert len(trace) / 100 == pytest.approx(0.5 * 8 / 59.4e-3, rel=0.06)
    with pytest.raises(ValueError, match=r"no arm of that name.*there are f0@320"):
        load_trace("poisson:load=0.5,reference=f9,seconds=100", seven)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("uniform:rate=1", "'uniform:rate=1': there is no trace of that kind; there are poisson"),
        ("poisson:seconds=60", "either rate="),
        ("poisson:rate=1,load=0.5,seconds=60", "either rate="),
        ("poisson:rate=1", "needs seconds="),
        ("poisson:rate=0,seconds=60", "rate must be a number from 1e-06 to 1e.06, not '0'"),
        ("poisson:rate=inf,seconds=60", "rate must be a number"),
        ("poisson:rate=x,seconds=60", "not 'x'"),
        ("poisson:rate=1,seconds=60,cv2=4", "poisson has no option 'cv2'; it has rate"),
        ("gamma:rate=1,seconds=60,cv2=1000", "cv2 must be a number from 1e-06 to 100"),
        ("poisson:rate=1,rate=2,seconds=60", "given twice"),
        ("poisson:rate,seconds=60", "'rate' needs a value"),
        ("poisson:rate=1,seconds=60,mix=fast:1", "mix has no tier 'fast'; there are realtime"),
        ("poisson:rate=1,seconds=60,mix=realtime", "name:number"),
        ("poisson:rate=1,seconds=60,mix=realtime:1+realtime:2", "each name once"),
        ("poisson:rate=1,seconds=60,tiers=a:-5", "tiers must be a number from 0.001 to 600000, not '-5'"),
        ("poisson:rate=1,seconds=60,sizes=640", "WIDTHxHEIGHT"),
        ("poisson:rate=1,seconds=60,late_ok=2", "between 0 and 1"),
        ("poisson:rate=1,seconds=60,seed=-1", "whole number"),
        ("poisson:rate=1,seconds=60,seed=" + "9" * 5000, "seed must be a whole number from 0 to 9223372036854775807"),
        ("poisson:rate=1,seconds=60,mix=realtime:1e308+standard:1e308", "mix must be a number from 1e-06 to 1e.06"),
        ("poisson:rate=1,seconds=60,sizes=640x480:1e308", "sizes must be a number from 1e-06 to 1e.06"),
        ("poisson:rate=1e-320,seconds=1e308", "rate must be a number from"),
        ("gamma:rate=1,seconds=60,cv2=1e-320", "cv2 must be a number from"),
        ("poisson:rate=1,seconds=60,reference=d0", "give load="),
        ("diurnal:rate=1,seconds=60,swing=1.5", "swing must be between 0 and 1"),
        ("diurnal:rate=1,seconds=60,bursts=1000000000", "bursts must be a whole number from 0 to 1000, not"),
        ("diurnal:rate=1,seconds=60,bursts=99999999999999999999", "bursts must be a whole number from 0 to 1000, not"),
        ("diurnal:rate=1,seconds=60,burst_factor=1e308", "burst_factor must be a number from 0.001 to 10000, not"),
    ],
)
def test_a_bad_specification_is_explained(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        parse_spec(text)
    assert len(str(caught.value)) < 400


def test_too_many_and_too_few_arrivals_are_explained(seven: SimProfile) -> None:
    with pytest.raises(ValueError, match="more than 2000000 arrivals"):
        load_trace("poisson:rate=1e5,seconds=1e5", seven)
    with pytest.raises(ValueError, match="has no arrivals"):
        load_trace("poisson:rate=1e-6,seconds=1", seven)


def test_csv_is_read_sorted_with_defaults(tmp_path: Path, seven: SimProfile) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s, budget_ms, tier, width, height, late_ok\n2.5,400,slow,,,1\n0.25,150,,1920,1080,\n")
    expected = (Arrival(0.25, 150.0, "", 1920, 1080, False), Arrival(2.5, 400.0, "slow", 640, 480, True))
    assert load_trace(str(path), seven) == expected
    path.write_text("budget_ms,arrival_s\n100,1\n")
    assert read_csv(path) == (Arrival(1.0, 100.0),)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "line 1: the heading must name arrival_s, budget_ms"),
        ("arrival_s,budget\n1,2\n", "line 1: .*it reads 'arrival_s,budget'"),
        ("arrival_s,budget_ms,budget_ms\n1,2,3\n", "each once"),
        ("arrival_s,budget_ms\n", "no arrivals below"),
        ("arrival_s,budget_ms\n1,100\nsoon,100\n", "line 3: arrival_s must be a number, 0 or more, not 'soon'"),
        ("arrival_s,budget_ms\n-1,100\n", "line 2: arrival_s"),
        ("arrival_s,budget_ms\n1,0\n", "line 2: budget_ms must be above 0"),
        ("arrival_s,budget_ms\n1,nan\n", "line 2: budget_ms"),
        ("arrival_s,budget_ms\n1\n", "line 2: it has more or fewer values"),
        ("arrival_s,budget_ms\n1,2,3\n", "line 2: it has more or fewer values"),
        ("arrival_s,budget_ms,width\n1,2,0\n", "line 2: width must be a number of pixels, not '0'"),
        ("arrival_s,budget_ms\n1e308,100\n", "line 2: arrival_s must be at most"),
        ("arrival_s,budget_ms,width\n1,2," + "9" * 5000 + "\n", "line 2: width must be a number of pixels, not '9"),
        ("arrival_s,budget_ms,late_ok\n1,2,maybe\n", "line 2: late_ok must be 0 or 1, not 'maybe'"),
    ],
)
def test_a_bad_csv_file_is_explained_by_its_line(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=sentence):
        read_csv(path)


def test_what_is_neither_file_nor_specification_is_explained(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="give a CSV file, or a specification of poisson, gamma, diurnal"):
        read_csv(tmp_path / "none.csv")
    (tmp_path / "picture.csv").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ValueError, match="not a text file"):
        read_csv(tmp_path / "picture.csv")


def test_batches_that_were_not_measured() -> None:
    assert batch_curve({1: 10.0, 4: 22.0}, 6) == pytest.approx((10, 14, 18, 22, 26, 30))
    assert batch_curve({2: 10.0}, 4) == pytest.approx((10, 10, 15, 20))
    # Four measured faster than two count as slow as two, and no slope leads below that.
    assert batch_curve({1: 10.0, 2: 20.0, 4: 15.0}, 6) == pytest.approx((10, 20, 20, 20, 20, 20))


def test_profile_becomes_arms_and_times(tmp_path: Path) -> None:
    rows = [row("a", 480, 640, 1, 10.0, 16.0, 0.5), row("a", 480, 640, 4, 22.0, 40.0, 0.5)]
    profile = read_profile(write_profile(tmp_path / "p.json", [*rows, row("b", 640, 640, 1, 30.0, 30.0, 0.7)]))
    assert (profile.hardware, profile.date) == ("a drawn machine", "2026-01-01")
    first, second = profile.arms
    assert (first.variant, str(first.size), first.ap50) == ("a", "480x640", 0.5)
    assert first.latency_ms == pytest.approx((16, 24, 32, 40))
    assert second.latency_ms == pytest.approx((30, 60, 90, 120))
    assert profile.seconds(0, 1, 0.0) == pytest.approx(0.010)
    assert profile.seconds(1, 2, 1.7) == pytest.approx(0.060)
    z = np.random.default_rng(0).standard_normal(40_000)
    drawn = np.array([profile.seconds(0, 1, float(value)) for value in z]) * 1e3
    assert np.median(drawn) == pytest.approx(10, rel=0.01)
    assert np.percentile(drawn, 99) == pytest.approx(16, rel=0.02)
    assert drawn.max() == pytest.approx(10 * 1.6 ** (3.0902 / 2.3263), rel=1e-3)  # clipped at the 99.9 % quantile
    assert len(read_profile(tmp_path / "p.json", max_batch=2).arms[0].latency_ms) == 2


def test_arms_of_a_picture_are_the_tightest_size_and_the_square(seven: SimProfile) -> None:
    def of(width: int, height: int) -> set[str]:
        mask = seven.arms_for(width, height)
        allowed = [arm for k, arm in enumerate(seven.arms) if mask >> k & 1]
        return {f"{arm.variant} {arm.size}" for arm in allowed if arm.variant in ("f0", "f6")}

    def named(*sizes: str) -> set[str]:
        return {f"{variant} {size}" for variant in ("f0", "f6") for size in sizes}

    assert of(640, 480) == named("256x320", "320x320", "480x640", "640x640")
    assert of(1080, 1920) == named("320x256", "320x320", "640x480", "640x640")
    assert of(500, 500) == named("320x320", "640x640")
    wide = SimProfile(tuple(a for a in seven.arms if a.size == InputSize(height=480, width=640)), ())
    assert wide.arms_for(480, 640) == 0


def test_a_profile_that_cannot_be_used_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    with pytest.raises(FileNotFoundError, match="python -m export profile"):
        read_profile(path)
    good = row("a", 480, 640, 1, 10.0, 16.0, 0.5)
    without = {name: value for name, value in good.items() if name != "ap50"}
    cases = [
        ([{**good}, without | {"batch": 2}], r"row 1 \(a at 480x640, batch 2\) has no ap50.*export accuracy"),
        ([{**good, "ap50": None}], "row 0 .* has no ap50"),
        ([good, good], "row 1 .* is there twice"),
        ([good, {**good, "batch": 2, "ap50": 0.6}], "another ap50"),
        ([{**good, "p50_ms": -1}], "rows.0.p50_ms"),
        ([{**good, "p50_ms": 1e-300}], "rows.0.p50_ms"),
        ([{**good, "p99_ms": 1e300}], "rows.0.p99_ms"),
        ([{**good, "height": 100}], "rows.0.height"),
        ([], "rows"),
    ]
    for rows, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            read_profile(write_profile(path, rows))
    for version in (1, 99):
        path.write_text(json.dumps({"version": version, "rows": [good]}))
        with pytest.raises(ValueError, match=f"version: this is version {version}, and version 2 is needed; make"):
            read_profile(path)
    for text in ("{", "[]", json.dumps({"version": 2}), json.dumps({"rows": [good]})):
        path.write_text(text)
        with pytest.raises(ValueError, match="is not a profile"):
            read_profile(path)
    with pytest.raises(ValueError, match="largest batch must be"):
        read_profile(write_profile(path, [good]), max_batch=0)
