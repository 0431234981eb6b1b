"""Models with their predictions: kept between starts, refused where they would be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.models import Models, load_models
from service.settings import Settings
from tests.service.fake_model import write_fake_repository


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        repository=write_fake_repository(tmp_path / "models"), cache_dir=tmp_path / "cache", max_batch=1
    )  # fmt: skip


def load(settings: Settings, clock: Clock) -> Models:
    return load_models(settings, lambda _: None, clock)


def teach(models: Models, clock: Clock, factor: float) -> None:
    for _ in range(40):
        clock.now += 0.1
        models.observe(0, 1, models.prediction.base["d0", 64, 64][0] * factor)


def test_what_was_learnt_is_there_at_the_next_start(settings: Settings) -> None:
    clock = Clock()
    first = load(settings, clock)
    teach(first, clock, 3.0)
    learnt = first.arms()[0].latency_ms
    first.close()
    second = load(settings, clock)
    assert second.profile == first.profile
    assert second.arms()[0].latency_ms == pytest.approx(learnt, rel=0.01)
    second.close()


def test_what_was_learnt_with_other_threads_is_not_used(settings: Settings) -> None:
    clock = Clock()
    first = load(settings, clock)
    teach(first, clock, 3.0)
    first.close()
    other = load(settings.model_copy(update={"intra_op_threads": 1}), clock)
    assert other.profile.key != first.profile.key
    assert other.prediction.runs("d0", other.index.keys[0][1]) == 0
    other.close()


@pytest.mark.parametrize("content", [b"{damaged", b'{"key": "x", "margin": 99}', b"\xff"])
def test_damaged_corrections_cost_nothing_but_what_they_held(
    settings: Settings, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    load(settings, Clock()).close()
    (path,) = settings.cache_dir.glob("correction-*.json")
    path.write_bytes(content)
    models = load(settings, Clock())
    assert models.arms()[0].latency_ms == models.prediction.base["d0", 64, 64]
    assert "is damaged" in caplog.text
    models.close()


def test_arms_stay_the_same_objects_until_their_prediction_moves(settings: Settings) -> None:
    clock = Clock()
    models = load(settings, clock)
    before = models.arms()
    models.observe(0, 1, models.prediction.base["d0", 64, 64][0])
    clock.now += 1
    assert all(a is b for a, b in zip(before, models.arms(), strict=True))
    teach(models, clock, 2.0)
    after = models.arms()
    assert after[0].latency_ms[0] > 1.9 * before[0].latency_ms[0]
    assert [arm.ap50 for arm in after] == [arm.ap50 for arm in before]
    models.close()


def test_predictions_move_when_refreshed_or_by_themselves_once_they_are_stale(settings: Settings) -> None:
    clock = Clock()
    models = load(settings, clock)
    before = models.arms()
    for _ in range(40):
        models.observe(0, 1, 3.0 * before[0].latency_ms[0])
    assert models.arms()[0] is before[0]
    models.refresh()
    assert models.arms()[0].latency_ms[0] > 2.9 * before[0].latency_ms[0]
    clock.now += 3600
    assert models.arms()[0].latency_ms[0] == pytest.approx(before[0].latency_ms[0] * models.prediction.margin)
    models.close()


def test_corrections_are_kept_once_a_minute(settings: Settings) -> None:
    clock = Clock()
    models = load(settings, clock)
    assert models.correction_due() is None
    clock.now += 61
    due = models.correction_due()
    assert due is not None
    assert models.correction_due() is None
    models.save(due)
    (path,) = settings.cache_dir.glob("correction-*.json")
    assert path.read_bytes() == due
    models.close()
