"""A plan of one variant, built and put where it will be found: for `python -m export tensorrt`, and for the service,
which builds anew what cannot be used."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from service.engines.base import EngineError
from service.engines.cuda import device
from service.engines.tensorrt.build import BuildOptions, Progress, build_plan, builder_module
from service.engines.tensorrt.plans import StoredPlan, file_name, save
from service.repository.manifest import Manifest, ModelFile, Plan
from service.repository.store import verify_file

_log = logging.getLogger(__name__)


def make_plan(
    folder: Path,
    file: ModelFile,
    options: BuildOptions,
    cache: Path | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] = _log.info,
    stop: threading.Event | None = None,
    candidates: Path | None = None,
) -> StoredPlan:
    """Build the plan of `file`, in its member's `folder`, and write it there, or into `cache` where that cannot be
    written. candidates: what to build from in place of the file, with `options.efficient_nms`: the same graph up to its
    candidates.

    Raises `EngineError`, `BuildStoppedError`, KeyboardInterrupt, OSError; what was there before is still there then.
    """
    path = folder / file.path
    fault = verify_file(path, file)
    if fault:
        raise EngineError(fault)
    if file.nms != "plain" and candidates is None:
        raise EngineError(
            f"{path} ends in ONNX's NonMaxSuppression, whose output has no fixed shape; TensorRT plans are built from "
            "files with plain NMS: `python -m export onnx CHECKPOINT --precision fp16 --nms plain` makes one"
        )
    trt = builder_module(path)
    gpu = device()
    data = build_plan(candidates or path, options, progress, say, stop)
    plan = Plan(
        variant=file.variant,
        path="unnamed.plan",
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        model_sha256=file.sha256,
        tensorrt=trt.__version__,
        compute_capability=gpu.compute_capability,
        gpu=gpu.name,
        precision=file.precision,
        max_batch=options.max_batch,
        input_sizes=options.input_sizes,
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
        nms="efficient" if options.efficient_nms else "plain",
        built=time.strftime("%Y-%m-%d"),
    )
    return save(folder, cache, plan.model_copy(update={"path": file_name(plan)}), data)


def default_options(file: ModelFile, manifest: Manifest, timing_cache: Path | None = None) -> BuildOptions:
    """Options for a variant of which there is no plan: every input size of the member, batches of up to 8."""
    return BuildOptions(
        input_sizes=manifest.input_sizes,
        tf32=file.precision != "fp32",
        timing_cache=timing_cache,
        max_detections=manifest.thresholds.max_detections,
    )


def serves(plan: Plan, options: BuildOptions) -> bool:
    """Whether a plan takes everything that one built with `options` would."""
    return (
        set(options.input_sizes) <= set(plan.input_sizes)
        and options.max_batch <= plan.max_batch
        and options.version_compatible <= plan.version_compatible
        and options.hardware_compatible in ("none", plan.hardware_compatible)
        and (options.efficient_nms is not None) == (plan.nms == "efficient")
    )
