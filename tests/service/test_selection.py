"""Selection, letterboxing and the latency model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.letterbox import fitting_size, letterbox, scaled_size, sizes_by_long_side, to_original
from service.profiling import DecodeCost, Profile, Timing, decode_ms, percentile_99, read_profile, write_profile
from service.repository.manifest import InputSize
from service.scheduling.selection import Option, most_accurate

SIZES = tuple(InputSize(height=h, width=w) for h, w in ((64, 64), (64, 128), (128, 64), (128, 128)))


def option(ap50: float, infer_ms: float, before_ms: float = 0.0) -> Option:
    return Option(0, SIZES[0], ap50, before_ms, infer_ms)


options = st.lists(st.builds(option, st.floats(0, 1), st.floats(0.1, 1000), st.floats(0, 300)), min_size=1, max_size=30)


@given(choices=options, left=st.floats(-100, 3000), wait=st.floats(0, 500))
def test_never_predicted_to_miss_while_something_fits_and_never_less_accurate(
    choices: list[Option], left: float, wait: float
) -> None:
    chosen = most_accurate(choices, left, wait)
    times = {id(o): max(wait, o.before_ms) + o.infer_ms for o in choices}
    fitting = [o for o in choices if times[id(o)] <= left]
    assert chosen.feasible == bool(fitting)
    assert chosen.predicted_ms == times[id(chosen.option)]
    if fitting:
        assert chosen.predicted_ms <= left
        assert chosen.option.ap50 == max(o.ap50 for o in fitting)
    else:
        assert chosen.predicted_ms == min(times.values())


@given(choices=options, left=st.floats(0, 3000), more=st.floats(0, 3000))
def test_a_longer_budget_is_never_answered_worse(choices: list[Option], left: float, more: float) -> None:
    first, second = most_accurate(choices, left, 0.0), most_accurate(choices, left + more, 0.0)
    if first.feasible:
        assert second.option.ap50 >= first.option.ap50


def test_equals_are_settled_by_speed() -> None:
    assert most_accurate([option(0.5, 20), option(0.5, 10)], 100, 0).option.infer_ms == 10


def test_waiting_and_decoding_overlap() -> None:
    assert most_accurate([option(0.5, 10, before_ms=30)], 100, 50).predicted_ms == 60


@given(width=st.integers(1, 40000), height=st.integers(1, 40000))
def test_a_square_size_holds_every_picture(width: int, height: int) -> None:
    for side, sizes in sizes_by_long_side(SIZES).items():
        size = fitting_size(width, height, sizes)
        new_w, new_h = scaled_size(width, height, side)
        assert size is not None
        assert 1 <= new_w <= size.width
        assert 1 <= new_h <= size.height


def test_the_smallest_holding_size_is_taken() -> None:
    wide = sizes_by_long_side(SIZES)[128]
    assert str(fitting_size(400, 200, wide)) == "64x128"
    assert str(fitting_size(200, 400, wide)) == "128x64"
    assert str(fitting_size(300, 200, wide)) == "128x128"


@pytest.mark.parametrize("shape", [(1, 1), (2, 3000), (3000, 2), (50, 100), (64, 64)])
def test_boxes_come_back_to_the_original(shape: tuple[int, int]) -> None:
    height, width = shape
    pixels = np.full((height, width, 3), 200, np.uint8)
    size = fitting_size(width, height, sizes_by_long_side(SIZES)[128])
    assert size is not None
    fitted = letterbox(pixels, size, width, height)
    assert fitted.canvas.shape == (size.height, size.width, 3)
    new_w, new_h = scaled_size(width, height, 128)
    assert (fitted.canvas[:new_h, :new_w] == 200).all()
    assert not fitted.canvas[new_h:].any()
    whole = np.array([[0, 0, new_w, new_h]], np.float32)
    assert to_original(whole, fitted, width, height)[0].tolist() == pytest.approx([0, 0, width, height])


def profile(key: str = "k") -> Profile:
    timing = Timing(variant="v", height=64, width=64, p50_ms=10, p99_ms=12, runs=5)
    cost = DecodeCost(jpeg={1: 8.0, 2: 4.0, 4: 2.0, 8: 1.0}, png=20.0, webp=10.0)
    return Profile(key=key, timings=(timing,), decode=cost)


def test_p99_of_few_runs_is_their_largest_with_a_margin() -> None:
    assert percentile_99([1.0, 2.0, 3.0]) == pytest.approx(3.75)
    assert percentile_99([float(v) for v in range(1000)]) == pytest.approx(989.01)


def test_decoding_gets_cheaper_with_the_scale_that_jpeg_allows() -> None:
    cost = profile().decode
    costs = [decode_ms(cost, "JPEG", 4000, 3000, side) for side in (400, 640, 1500, 3000)]
    assert costs == sorted(costs)
    assert costs[0] < costs[1] < costs[2] < costs[3]
    assert decode_ms(cost, "PNG", 4000, 3000, 400) == decode_ms(cost, "PNG", 4000, 3000, 3000) > costs[3]


def test_profiles_are_kept_and_refused(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "profile.json"
    assert read_profile(path, "k") is None
    write_profile(path, profile())
    assert read_profile(path, "k") == profile()
    assert read_profile(path, "other hardware") is None
    path.write_text("{damaged")
    assert read_profile(path, "k") is None
