"""Which arms may answer a picture, and what batches cost."""

from __future__ import annotations

import pytest

from service.repository.manifest import InputSize
from service.scheduling.arms import ArmIndex, batch_curve

WIDE, TALL, SQUARE = (InputSize(height=h, width=w) for h, w in ((96, 128), (128, 96), (128, 128)))
SMALL = InputSize(height=64, width=64)
KEYS = [(name, size) for name in ("a", "b") for size in (WIDE, TALL, SQUARE, SMALL)]


def sizes(index: ArmIndex, mask: int) -> list[str]:
    return [f"{name} {size}" for k, (name, size) in enumerate(index.keys) if mask >> k & 1]


def test_a_picture_goes_to_the_tightest_size_of_each_side() -> None:
    index = ArmIndex(KEYS)
    assert sizes(index, index.mask(400, 300)) == ["a 96x128", "a 64x64", "b 96x128", "b 64x64"]
    assert sizes(index, index.mask(300, 400)) == ["a 128x96", "a 64x64", "b 128x96", "b 64x64"]
    assert [index.keys[k][1] for k in index.tight(300, 300)] == [SMALL, SQUARE] * 2


def test_squares_join_where_they_can_be_shared() -> None:
    index = ArmIndex(KEYS, batches=[("b", SQUARE), ("a", WIDE)])
    assert sizes(index, index.mask(400, 300)) == ["a 96x128", "a 64x64", "b 96x128", "b 128x128", "b 64x64"]
    assert index.mask(400, 300) & index.mask(300, 400) == index.narrowed(index.mask(300, 300), "b") | 1 << 3


def test_what_a_request_pins_narrows_the_choice() -> None:
    index = ArmIndex(KEYS)
    every = index.mask(400, 300)
    assert sizes(index, index.narrowed(every, "b")) == ["b 96x128", "b 64x64"]
    assert sizes(index, index.narrowed(every, None, 64)) == ["a 64x64", "b 64x64"]
    assert sizes(index, index.narrowed(every, "a", 128)) == ["a 96x128"]
    assert sizes(index, index.narrowed(every, most=100)) == ["a 64x64", "b 64x64"]


@pytest.mark.parametrize(
    ("measured", "curve"),
    [
        ({1: 10.0}, (10.0, 20.0, 30.0, 40.0)),
        ({1: 10.0, 4: 16.0}, (10.0, 12.0, 14.0, 16.0)),
        ({1: 10.0, 2: 8.0}, (10.0, 10.0, 10.0, 10.0)),
        ({2: 10.0, 3: 14.0}, (10.0, 10.0, 14.0, 18.0)),
    ],
)
def test_batches_between_and_beyond_the_measured(measured: dict[int, float], curve: tuple[float, ...]) -> None:
    assert batch_curve(measured, 4) == pytest.approx(curve)
