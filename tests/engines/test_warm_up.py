"""What is run at start, so that no request pays for a first run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.engines.ort import CPU_KIND, CUDA_KIND
from service.models import _warm_up
from service.profiling import DecodeCost, Profile, Timing
from service.repository.store import load_repository
from tests.service.fake_model import write_fake_repository


class Noting:
    """An engine that notes what it is warmed up with."""

    variant, max_batch = "d0", None

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.ran: list[tuple[int, int, int]] = []

    def warm_up(self, height: int, width: int, batch: int = 1) -> None:
        self.ran.append((height, width, batch))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (CPU_KIND, [(64, 64, 1)]),
        (CUDA_KIND, [(64, 64, 1), (64, 64, 2), (64, 64, 3), (64, 64, 4), (64, 128, 1), (64, 128, 2)]),
        ("tensorrt", [(64, 64, 1), (64, 64, 2), (64, 64, 3), (64, 64, 4), (64, 128, 1), (64, 128, 2)]),
    ],
)
def test_a_gpu_runs_every_batch_that_may_be_formed(
    tmp_path: Path, kind: str, expected: list[tuple[int, int, int]]
) -> None:
    """Batches of three are never measured, and yet formed where four pay."""
    (variant,) = load_repository(write_fake_repository(tmp_path, ("d0",))).variants
    engine: Any = Noting(kind)
    timings = tuple(
        Timing(variant=name, height=64, width=width, batch=batch, p50_ms=1, p99_ms=1, runs=3)
        for name, width, batch in (("d0", 64, 1), ("d0", 128, 1), ("d1", 64, 8), ("d0", 64, 4), ("d0", 128, 2))
    )
    decode = DecodeCost(jpeg=dict.fromkeys((1, 2, 4, 8), 1.0), png=1, webp=1)
    _warm_up(engine, variant, Profile(key="", timings=timings, decode=decode))
    assert engine.ran == expected
