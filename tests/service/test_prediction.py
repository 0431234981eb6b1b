"""Predicted latencies: true to the profile at first, to what is seen later."""

from __future__ import annotations

import numpy as np
import pytest

from service.repository.manifest import InputSize
from service.scheduling.prediction import Correction, Prediction

SMALL, LARGE = InputSize(height=64, width=64), InputSize(height=96, width=96)
BASE = {("a", 64, 64): (10.0, 18.0), ("a", 96, 96): (40.0,), ("b", 64, 64): (5.0,)}


def test_without_runs_the_profile_counts() -> None:
    prediction = Prediction(BASE)
    assert prediction.latencies_ms("a", SMALL, 0.0) == (10.0, 18.0)


def test_contention_on_one_arm_is_expected_of_all() -> None:
    prediction = Prediction(BASE)
    for _ in range(5):
        prediction.observe("a", SMALL, 1, 15.0, now=1.0)
    assert prediction.latencies_ms("b", SMALL, 1.0)[0] == pytest.approx(5.0 * 1.5 * prediction.margin)
    assert prediction.latencies_ms("a", SMALL, 1.0)[1] == pytest.approx(18.0 * 1.5 * prediction.margin)


def test_one_outlier_rules_nothing_out() -> None:
    prediction = Prediction(BASE)
    prediction.observe("a", SMALL, 1, 100.0, now=1.0)
    assert 10 < prediction.latencies_ms("a", SMALL, 1.0)[0] < 15
    assert prediction.latencies_ms("b", SMALL, 1.0)[0] == pytest.approx(5.0 * prediction.margin)


def test_good_news_of_one_arm_is_not_expected_of_others() -> None:
    prediction = Prediction(BASE)
    for _ in range(50):
        prediction.observe("a", SMALL, 1, 5.0, now=1.0)
    assert prediction.latencies_ms("a", SMALL, 1.0)[0] == pytest.approx(5.0, rel=0.01)
    assert prediction.latencies_ms("b", SMALL, 1.0)[0] == pytest.approx(5.0)


def test_a_slow_spell_is_forgotten() -> None:
    prediction = Prediction(BASE)
    for _ in range(5):
        prediction.observe("a", SMALL, 1, 50.0, now=0.0)
    assert prediction.latencies_ms("a", LARGE, 100.0)[0] > 150
    assert prediction.latencies_ms("a", LARGE, 121.0)[0] == pytest.approx(40.0 * prediction.margin)


def test_all_batch_sizes_of_an_arm_share_its_ratio() -> None:
    prediction = Prediction(BASE)
    assert prediction.observe("a", SMALL, 2, 36.0, now=0.0) == 18.0
    for _ in range(30):
        prediction.observe("a", SMALL, 2, 36.0, now=0.0)
    assert prediction.latencies_ms("a", SMALL, 0.0)[0] == pytest.approx(20.0 * prediction.margin)


@pytest.mark.parametrize("spread", [0.05, 0.5])
def test_the_margin_finds_the_rate_of_misses_that_is_meant(spread: float) -> None:
    """Log-normal times, of which about one in a hundred may be above what was predicted just before."""
    prediction, random = Prediction(BASE), np.random.default_rng(0)
    missed = []
    for k in range(6000):
        now = k * 0.02
        predicted = prediction.latencies_ms("a", SMALL, now)[0]
        measured = 6.0 * float(np.exp(random.normal(0, spread)))
        prediction.observe("a", SMALL, 1, measured, now)
        missed.append(measured > predicted)
    assert 0.002 < np.mean(missed[1000:]) < 0.025


def test_what_was_learnt_is_kept_and_fades_like_the_rest() -> None:
    prediction = Prediction(BASE)
    for _ in range(40):
        prediction.observe("a", SMALL, 1, 20.0, now=7.0)
    kept = Correction.model_validate_json(prediction.correction("key").model_dump_json())
    later = Prediction(BASE)
    later.resume(kept, now=1000.0)
    assert later.latencies_ms("a", SMALL, 1000.0) == pytest.approx(prediction.latencies_ms("a", SMALL, 7.0))
    assert later.latencies_ms("a", SMALL, 1130.0)[0] == pytest.approx(10.0 * kept.margin)
    assert later.runs("a", SMALL) == 40
    assert later.runs("b", SMALL) == 0


def test_what_was_learnt_of_models_that_are_gone_is_left_out() -> None:
    later = Prediction(BASE)
    later.resume(Correction(key="k", ratios={"z/8x8": (9.0,)}), now=0.0)
    assert later.latencies_ms("b", SMALL, 0.0) == (5.0,)
