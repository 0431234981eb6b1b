"""Latency of each variant, input size and batch size on this machine."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from service.engines.ort import OnnxCpuEngine
from service.profiling import hardware_name, percentile_99
from service.repository.store import Repository

PROFILE_VERSION = 1


@dataclass(frozen=True)
class Row:
    """Milliseconds of one run of the whole batch."""

    variant: str
    height: int
    width: int
    batch: int
    p50_ms: float
    p99_ms: float
    runs: int


def profile_repository(repository: Repository, batches: tuple[int, ...], runs: int, threads: int) -> dict[str, Any]:
    """Time every combination, each after two runs of warm-up. JSON-ready; hardware and date named."""
    rows = []
    work = [(v, s, b) for v in repository.variants for s in v.manifest.input_sizes for b in batches]
    engine: OnnxCpuEngine | None = None
    for variant, size, batch in tqdm(work, desc="profiling", unit="case"):
        if engine is None or engine.variant != variant.name:
            engine = OnnxCpuEngine(variant.name, variant.path, threads)
        pictures = np.random.default_rng(0).integers(0, 256, (batch, size.height, size.width, 3), dtype=np.uint8)
        samples = []
        for k in range(runs + 2):
            began = time.perf_counter()
            engine.run(pictures)
            if k >= 2:
                samples.append((time.perf_counter() - began) * 1e3)
        p50, p99 = float(np.median(samples)), percentile_99(samples)
        rows.append(Row(variant.name, size.height, size.width, batch, round(p50, 2), round(p99, 2), runs))
    return {
        "version": PROFILE_VERSION,
        "hardware": hardware_name(threads),
        "date": time.strftime("%Y-%m-%d"),
        "rows": [asdict(row) for row in rows],
    }
