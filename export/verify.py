"""Check a member's files: hashes, the graph's contract at every input size, and parity with the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from export.member import input_sizes
from service.engines.base import Detections
from service.engines.ort import open_cpu
from service.engines.tensorrt.plans import StoredPlan, damage
from service.letterbox import fitting_size, letterbox
from service.repository.manifest import Manifest, ModelFile
from service.repository.store import load_manifest, verify_file

if TYPE_CHECKING:
    from training.models.detector import Detector

SCORE_TOLERANCE = 0.02
BOX_TOLERANCE = 1.0  # pixels of the input; float16 weights move boxes by a few tenths
COMPARED_FROM = 0.2
"""Parity is asked of detections from this score on: nearer the threshold of 0.05, rounding decides what exists."""


@dataclass(frozen=True)
class Parity:
    """Largest differences over matched detections, and how many had no partner within the tolerances."""

    compared: int
    unmatched: int
    score: float
    box: float


def verify_member(folder: Path) -> list[str]:
    """Every fault of one member's folder, as sentences; an empty list means that it can be served. Of TensorRT's plans
    the hash alone is checked, since each runs on one kind of GPU."""
    manifest = load_manifest(folder / "manifest.json")
    faults = []
    for file in manifest.files:
        fault = verify_file(folder / file.path, file)
        faults += [fault] if fault else contract_faults(folder / file.path, file, manifest)
    broken = (damage(StoredPlan(plan, folder / plan.path)) for plan in manifest.plans)
    return [*faults, *(fault for fault in broken if fault)]


def contract_faults(path: Path, file: ModelFile, manifest: Manifest, long_side: int | None = None) -> list[str]:
    """Run a graph at every input size (of one long side, where named), alone and in a batch of two, and check its
    outputs' form."""
    engine = open_cpu(file.variant, path)
    faults = []
    noise = np.random.default_rng(0)
    for size in (size for size in manifest.input_sizes if long_side in (None, size.long_side)):
        pictures = noise.integers(0, 256, (2, size.height, size.width, 3), dtype=np.uint8)
        for found in (*engine.run(pictures), *engine.run(np.zeros_like(pictures[:1]))):
            reason = _form_fault(found, size.width, size.height, manifest)
            if reason:
                faults.append(f"{path} at {size}: {reason}")
    return faults


def _form_fault(found: Detections, width: int, height: int, manifest: Manifest) -> str | None:
    scores, boxes = found.scores, found.boxes
    if boxes.shape != (len(scores), 4) or len(scores) > manifest.thresholds.max_detections:
        return f"outputs of shape {boxes.shape} and {scores.shape}"
    if not len(scores):
        return None
    if (np.diff(scores) > 0).any():
        return "scores do not descend"
    if scores.min() <= manifest.thresholds.score or scores.max() > 1:
        return f"scores from {scores.min():.3f} to {scores.max():.3f}"
    if boxes.min() < 0 or (boxes[:, [0, 2]] > width).any() or (boxes[:, [1, 3]] > height).any():
        return "boxes beyond the picture"
    return None


def parity(ours: Detections, reference: Detections) -> Parity:
    """Match each detection of the reference to the nearest box of ours, from `COMPARED_FROM` on."""
    wanted = reference.scores >= COMPARED_FROM
    boxes, scores = reference.boxes[wanted], reference.scores[wanted]
    if not len(scores):
        return Parity(0, 0, 0.0, 0.0)
    if not len(ours.scores):
        return Parity(len(scores), len(scores), 0.0, 0.0)
    distance = np.abs(boxes[:, None] - ours.boxes[None]).max(axis=2)
    nearest = distance.argmin(axis=1)
    box = distance[np.arange(len(boxes)), nearest]
    score = np.abs(ours.scores[nearest] - scores)
    matched = (box <= BOX_TOLERANCE) & (score <= SCORE_TOLERANCE)
    largest = (float(score[matched].max()), float(box[matched].max())) if matched.any() else (0.0, 0.0)
    return Parity(len(scores), int((~matched).sum()), *largest)


def compare_with_checkpoint(
    folder: Path, checkpoint: Path, pictures: Sequence[NDArray[np.uint8]], long_side: int = 640
) -> dict[str, Parity]:
    """Parity of each full-precision variant with the PyTorch path, over all `pictures` (uint8 [h, w, 3])."""
    from export.build import open_detector

    detector, _ = open_detector(checkpoint)
    files = [file for file in load_manifest(folder / "manifest.json").files if file.precision != "int8"]
    return {
        file.variant: compare_with_detector(folder / file.path, file.variant, detector, pictures, long_side)
        for file in files
    }


def compare_with_detector(
    path: Path, variant: str, detector: Detector, pictures: Sequence[NDArray[np.uint8]], long_side: int
) -> Parity:
    """Parity of one serving graph with the PyTorch path, over all `pictures` (uint8 [h, w, 3]), letterboxed."""
    import torch

    from training.models.detector import normalize
    from training.models.postprocess import PostprocessConfig, postprocess

    engine, parts = open_cpu(variant, path), []
    for pixels in pictures:
        height, width = pixels.shape[:2]
        size = fitting_size(width, height, input_sizes((long_side,)))
        assert size is not None, "a square size holds every picture"
        canvas = letterbox(pixels, size, width, height).canvas
        with torch.no_grad():
            output = detector(normalize(torch.tensor(canvas).permute(2, 0, 1)[None]))
        boxes, scores = postprocess(output, size.height, size.width, PostprocessConfig())[0]
        parts.append(parity(engine.run(canvas[None])[0], Detections(boxes.numpy(), scores.numpy())))
    return Parity(
        sum(p.compared for p in parts), sum(p.unmatched for p in parts),
        max(p.score for p in parts), max(p.box for p in parts),
    )  # fmt: skip
