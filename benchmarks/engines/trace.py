"""Where an engine's time goes: ONNX Runtime's own profile, or PyTorch's profiler."""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.engines.cases import Case
from benchmarks.engines.report import Share
from service.engines.base import Engine
from service.engines.ort import CPU_KIND, CUDA_KIND
from training.files import write_bytes

RUNS = 5
TOP = 8


def trace(case: Case, engine: Engine, batch: NDArray[np.uint8], folder: Path, threads: int) -> list[Share]:
    """Profile `RUNS` runs of a batch, write the profile into `folder`, and return the largest shares by operator.

    ONNX Runtime: its JSON for chrome://tracing or Perfetto, with one node at a time; PyTorch: a table. TensorRT's own
    profiler is `nsys profile`'s business: an empty list.
    """
    stem = re.sub(r"[^a-z0-9.]+", "-", f"{case.name}-batch{len(batch)}".lower())
    if case.engine in (CPU_KIND, CUDA_KIND) and case.model is not None:
        content = _onnx_profile(case, batch, threads)
        write_bytes(folder / f"{stem}.json", content)
        return shares_of(json.loads(content))
    if engine.kind == "pytorch":
        shares, table = _torch_profile(engine, batch, case.device == "cuda")
        write_bytes(folder / f"{stem}.txt", table.encode())
        return shares
    return []


def shares_of(events: list[dict[str, Any]], runs: int = RUNS) -> list[Share]:
    """The largest shares of an ONNX Runtime profile, by operator, without its first run, which is the warm-up."""
    starts = sorted(event["ts"] for event in events if event.get("name") == "model_run")
    began = starts[1] if len(starts) > 1 else 0
    times: dict[str, float] = defaultdict(float)
    for event in events:
        operator = event.get("args", {}).get("op_name")
        if event.get("cat") == "Node" and operator and event["name"].endswith("_kernel_time") and event["ts"] >= began:
            times[operator] += event["dur"] / 1e3
    return _largest(times, runs)


def _largest(times: dict[str, float], runs: int) -> list[Share]:
    whole = sum(times.values())
    if not whole:
        return []
    ordered = sorted(times.items(), key=lambda item: -item[1])[:TOP]
    return [Share(operator=name, share=round(ms / whole, 4), ms=round(ms / runs, 3)) for name, ms in ordered]


def _onnx_profile(case: Case, batch: NDArray[np.uint8], threads: int) -> bytes:
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        chosen = ["CUDAExecutionProvider"] if case.engine == CUDA_KIND else []
        session = ort.InferenceSession(str(case.model), options, providers=[*chosen, "CPUExecutionProvider"])
        for _ in range(RUNS + 1):
            session.run(None, {"images": batch})
        return Path(session.end_profiling()).read_bytes()


def _torch_profile(engine: Engine, batch: NDArray[np.uint8], cuda: bool) -> tuple[list[Share], str]:
    from torch.profiler import ProfilerActivity, profile

    engine.run(batch)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        for _ in range(RUNS):
            engine.run(batch)
    averages = profiler.key_averages()
    key = "self_device_time_total" if cuda else "self_cpu_time_total"
    times = {event.key: float(getattr(event, key)) / 1e3 for event in averages}
    return _largest(times, RUNS), averages.table(sort_by=key, row_limit=40)
