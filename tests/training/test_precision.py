"""Reduced precision where the machine is fast at it, float32 elsewhere."""

from __future__ import annotations

import pytest
import torch

from training.engine.precision import autocast, used


def _cpu_that(monkeypatch: pytest.MonkeyPatch, can: bool) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: can)


@pytest.mark.parametrize(("can", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cpu_that_would_emulate_bfloat16_computes_in_float32(
    monkeypatch: pytest.MonkeyPatch, can: bool, expected: torch.dtype
) -> None:
    _cpu_that(monkeypatch, can)
    convolution = torch.nn.Conv2d(3, 4, 3)
    with autocast("cpu", "bf16"):
        assert convolution(torch.zeros(1, 3, 8, 8)).dtype is expected


def test_what_the_recipe_asks_for_is_kept_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    _cpu_that(monkeypatch, False)
    assert used("cuda", "bf16") == "bf16"
    assert used("cuda", "fp32") == used("cpu", "fp32") == "fp32"
    assert torch.ops.mkldnn._is_mkldnn_bf16_supported() is False
