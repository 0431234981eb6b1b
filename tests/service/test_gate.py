"""The gate: who is let in, who is told what, and that places are given back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from service.contract import Ask
from service.errors import InfeasibleError, QueueFullError
from service.gate import Gate, Picture
from service.imaging.decode import ImageHeader
from service.models import Models, load_models
from service.observer import SilentObserver
from service.settings import Settings
from tests.service.fake_model import write_fake_repository

HEADER = ImageHeader("JPEG", 200, 100, 1, "RGB", 1)
SECOND = 1000.0


class Counting(SilentObserver):
    def __init__(self) -> None:
        self.sheds: list[str] = []

    def shed(self, reason: str) -> None:
        self.sheds.append(reason)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    """Every arm takes a second at long side 64, and four at 128; decoding takes nothing worth mentioning."""
    root = tmp_path_factory.mktemp("gate")
    settings = Settings(repository=write_fake_repository(root / "models"), cache_dir=root / "cache", max_batch=1)
    loaded = load_models(settings, lambda _: None)
    base = {(v, s.height, s.width): (SECOND if s.long_side == 64 else 4 * SECOND,) for v, s in loaded.index.keys}
    loaded.prediction.base = base
    loaded._typical = dict.fromkeys(base, 1.0)
    loaded._arms = tuple(loaded._arm(k, 0.0) for k in range(len(loaded.index.keys)))
    yield loaded
    loaded.close()


@pytest.fixture
def gate(models: Models) -> Gate:
    return Gate(models, Settings(queue_limit=8), Counting())


def ask(seconds: float, **changes: Any) -> Ask:
    return Ask(budget_ms=seconds * SECOND, tier=None, received=time.monotonic(), **changes)


def enter(gate: Gate, wish: Ask, count: int = 1, free_in: float = 0.0) -> list[Picture]:
    return gate.let_in([(b"", HEADER)] * count, wish, time.monotonic() + free_in)


def sheds(gate: Gate) -> list[str]:
    observer = gate._observer
    assert isinstance(observer, Counting)
    return observer.sheds


def test_a_picture_is_decoded_for_the_best_that_its_budget_allows(gate: Gate) -> None:
    (ample,) = enter(gate, ask(9.0))
    assert ample.decode_for.long_side == 128
    assert not ample.late
    # It waits for the first, on its fastest arm, so that four seconds are too long.
    (tight,) = enter(gate, ask(2.5))
    assert tight.decode_for.long_side == 64
    assert bin(tight.arms).count("1") == 2  # both variants, at this size


def test_a_picture_is_fitted_for_the_size_that_the_last_one_of_its_budget_had(gate: Gate) -> None:
    (first,) = enter(gate, ask(9.0))
    assert first.fit_for == first.decode_for
    small = min((size for _, size in gate._models.index.keys), key=lambda size: size.height * size.width)
    gate.starts(first, small)
    (second,) = enter(gate, ask(19.0))  # another kind of budget: nothing is known of it
    assert second.fit_for == second.decode_for
    (third,) = enter(gate, ask(6.5), free_in=3.0)
    assert (third.decode_for, third.fit_for) == (small, small)  # nothing larger fits
    for picture in (second, third):
        gate.leaves(picture)
    (fourth,) = enter(gate, ask(9.0))
    assert (fourth.decode_for.long_side, fourth.fit_for) == (128, small)
    gate.starts(fourth, fourth.decode_for)
    (fifth,) = enter(gate, ask(9.0))
    assert fifth.fit_for == fifth.decode_for


def test_who_cannot_be_on_time_is_refused_with_what_would_be(gate: Gate) -> None:
    for _ in range(3):
        enter(gate, ask(3.5))
    with pytest.raises(InfeasibleError) as refused:
        enter(gate, ask(3.5, on_infeasible="reject"))
    assert 4000 <= refused.value.extra["smallest_feasible_ms"] <= 4200
    assert refused.value.headers["Retry-After"] == "3"
    enter(gate, ask(4.5, on_infeasible="reject"))  # which is granted
    assert sheds(gate) == ["infeasible"]


def test_nobody_is_let_in_at_the_cost_of_another(gate: Gate) -> None:
    enter(gate, ask(1.5))
    enter(gate, ask(2.2))
    with pytest.raises(InfeasibleError):
        enter(gate, ask(1.9, on_infeasible="reject"))  # in time itself, but the second would be late


def test_late_ones_have_a_share_of_the_places(gate: Gate) -> None:
    late = [enter(gate, ask(0.1))[0] for _ in range(2)]
    assert all(picture.late for picture in late)
    with pytest.raises(QueueFullError, match="2 pictures wait already to be answered late"):
        enter(gate, ask(0.1))
    assert not enter(gate, ask(1.5))[0].late  # they are in nobody's way
    gate.leaves(late[0])
    assert enter(gate, ask(0.1))[0].late
    assert sheds(gate) == ["overload"]


def test_places_are_counted_in_pictures_and_given_back(gate: Gate) -> None:
    inside = enter(gate, ask(99.0), count=7)
    assert gate.inside == 7
    with pytest.raises(QueueFullError, match="7 pictures are inside already, of 8"):
        enter(gate, ask(99.0), count=2)
    assert sheds(gate) == ["queue_full"] * 2
    for picture in inside:
        gate.decoded(picture)
        gate.starts(picture, picture.fit_for)
        gate.leaves(picture)
    assert (gate.inside, gate.backlog_s(0.0)) == (0, 0.0)
    assert gate._decoding_ms == pytest.approx(0.0)


def test_several_pictures_share_one_budget(gate: Gate) -> None:
    with pytest.raises(InfeasibleError) as refused:
        enter(gate, ask(2.5, on_infeasible="reject"), count=3)
    assert 3000 <= refused.value.extra["smallest_feasible_ms"] <= 3200
    assert gate.inside == 0
    inside = enter(gate, ask(3.5), count=3)
    assert [picture.decode_for.long_side for picture in inside] == [64] * 3
    for picture in inside:
        gate.leaves(picture)
    assert [p.decode_for.long_side for p in enter(gate, ask(12.5), count=3)] == [128] * 3


def test_what_runs_is_waited_for(gate: Gate) -> None:
    with pytest.raises(InfeasibleError) as refused:
        enter(gate, ask(1.5, on_infeasible="reject"), free_in=2.0)
    assert 3000 <= refused.value.extra["smallest_feasible_ms"] <= 3200
