"""`python -m export all`, one member at a time: every step from checkpoint to published folder, each done once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.build import Origin, check_path, export_checkpoint, first_manifest, fresh_provenance, open_detector
from export.card import render_card
from export.fresh import drawn_picture, fresh_detector
from export.member import (
    LONG_SIDES,
    describe_file,
    save_onnx,
    with_accuracy,
    with_file,
    write_atomically,
    write_manifest,
)
from export.onnx_graph import OPSET, export_onnx, store_half
from export.quantize import quantize, worth_shipping
from export.scoring import score, split_name, training_pictures
from export.staging import Score, Stage, finished
from export.verify import Parity, compare_with_checkpoint, compare_with_detector, contract_faults, verify_member
from service.repository.manifest import MANIFEST_NAME, Accuracy, Manifest, Thresholds
from service.repository.store import load_manifest, sha256_of
from training.evaluation.detections import read_split
from training.supernet.path import SinglePath

MOST_UNMATCHED = 0.05
"""Share of detections that may differ from PyTorch's: near-equal boxes change places with the last bits of a sum."""
_INT8_SIDES = (320, 640)
_PARITY_SIDE = 320

Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """One member to be exported. checkpoint: None for fresh weights."""

    member: str
    path: SinglePath
    checkpoint: Path | None
    origin: Origin


@dataclass(frozen=True)
class Options:
    """How. limit: evenly spaced photos of `split` to measure AP on, 0 for all; calibration: photos that INT8's ranges
    come from; compared: photos that PyTorch is compared on; threads: of the measurements, 0 for all cores."""

    data: Path
    dataset: str = "faces"
    split: str = "dev"
    limit: int = 0
    long_sides: tuple[int, ...] = LONG_SIDES
    calibration: int = 160
    compared: int = 4
    threads: int = 0
    fp16: bool = False
    data_note: str = "photos in WIDER's layout"

    @property
    def split_name(self) -> str:
        return split_name(self.split, self.limit)


def export_member(job: Job, repository: Path, options: Options, say: Say) -> bool:
    """Do what is left to do of a trained member, and publish it. -> False where everything was done before.

    Raises FileNotFoundError, and ValueError that says what is wrong with the checkpoint or the graph.
    """
    assert job.checkpoint is not None
    task = _task(job, options)
    steps = [
        ("graph", _graph),
        ("verify", _verify),
        ("int8", _int8),
        *([("fp16", _fp16)] if options.fp16 else []),
        ("accuracy", _accuracy),
        ("card", _card),
    ]
    if finished(repository, job.member, task, tuple(name for name, _ in steps)):
        return False
    stage = Stage(repository, job.member, task)
    changed = False
    for name, step in steps:
        # What follows a step that is done now is done anew; measurements are taken from the record.
        if changed or name not in stage.record.done:
            changed = True
            step(stage, job, options, say)
            stage.mark(name)
    stage.publish()
    return True


def export_untrained(job: Job, repository: Path, say: Say, seed: int = 0) -> bool:
    """The member with fresh weights, for timing: its graph, compared with PyTorch on drawn pictures, and a manifest
    that says `trained: false`. -> False where it was there before. Raises ValueError where the graph differs."""
    task = hashlib.sha256(f"fresh {job.path} {seed}".encode()).hexdigest()
    if finished(repository, job.member, task, ("graph",)):
        return False
    stage = Stage(repository, job.member, task)
    config = job.path.config("autofae")
    detector = fresh_detector(config, seed)
    model = export_onnx(detector, Thresholds(), "onnx", half=False)
    path = stage.folder / f"{job.member}.onnx"
    save_onnx(model, path)
    # Compared before the weights are rounded, which random weights by the hundred layers would make the most of.
    pictures = [drawn_picture(240, 320, seed + 1), drawn_picture(320, 320, seed + 2)]
    say(f"{job.member}: {_checked(job.member, compare_with_detector(path, job.member, detector, pictures, 320))}")
    store_half(model)
    save_onnx(model, path)
    file = describe_file(path, job.member, "fp32", "onnx", OPSET)
    manifest = first_manifest(job.member, config, file, fresh_provenance(seed), job.origin, trained=False)
    faults = contract_faults(path, file, manifest, long_side=_PARITY_SIDE)
    if faults:
        raise ValueError("; ".join(faults))
    write_manifest(stage.folder, manifest)
    stage.mark("graph")
    stage.publish()
    return True


def _task(job: Job, options: Options) -> str:
    """What the results depend on: other weights, photos or sizes make a new task."""
    assert job.checkpoint is not None
    parts = (
        sha256_of(job.checkpoint), job.origin, options.dataset, options.split_name, options.long_sides,
        options.calibration,
    )  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _manifest(stage: Stage) -> Manifest:
    return load_manifest(stage.folder / MANIFEST_NAME)


def _graph(stage: Stage, job: Job, options: Options, say: Say) -> None:
    assert job.checkpoint is not None
    check_path(job.member, job.path, job.checkpoint)
    say(f"{job.member}: exporting {job.checkpoint}")
    export_checkpoint(job.checkpoint, job.member, stage.folder, "fp32", "onnx", options.data_note, job.origin)


def _fp16(stage: Stage, job: Job, options: Options, say: Say) -> None:
    assert job.checkpoint is not None
    say(f"{job.member}: exporting in float16")
    manifest = export_checkpoint(
        job.checkpoint, job.member, stage.folder, "fp16", "plain", options.data_note, job.origin
    )
    file = next(file for file in manifest.files if file.precision == "fp16")
    path, (detector, _) = stage.folder / file.path, open_detector(job.checkpoint)
    # On this CPU, which computes in float16 slowly, and so at one long side.
    if faults := contract_faults(path, file, manifest, long_side=_PARITY_SIDE):
        raise ValueError("; ".join(faults))
    result = compare_with_detector(path, file.variant, detector, _pictures(options), _PARITY_SIDE)
    say(f"{file.variant}: {_checked(job.member, result)}")


def _verify(stage: Stage, job: Job, options: Options, say: Say) -> None:
    assert job.checkpoint is not None
    faults = verify_member(stage.folder)
    if faults:
        raise ValueError("; ".join(faults))
    pictures = _pictures(options)
    for result in compare_with_checkpoint(stage.folder, job.checkpoint, pictures, _PARITY_SIDE).values():
        say(f"{job.member}: {_checked(job.member, result)}")


def _checked(member: str, result: Parity) -> str:
    """A sentence about a comparison with PyTorch. Raises ValueError where it failed."""
    if not result.compared:
        return "nothing was found that could be compared with PyTorch's"
    if result.unmatched > MOST_UNMATCHED * result.compared:
        raise ValueError(f"{member}: {result.unmatched} of {result.compared} detections differ from PyTorch's")
    return (
        f"{result.compared} detections compared with PyTorch's, {result.unmatched} differ; otherwise scores by at most "
        f"{result.score:.5f}, boxes by {result.box:.3f} pixels"
    )


def _pictures(options: Options) -> list[NDArray[np.uint8]]:
    from training.data.cache import load_picture

    photos, images = read_split(options.data, options.split, options.compared)
    return [load_picture(images / photo.name) for photo in photos]


def _int8(stage: Stage, job: Job, options: Options, say: Say) -> None:
    """Quantise, compare as `python -m export quantize` does, and let the variant join where it is worth it."""
    manifest = _manifest(stage)
    full, name = manifest.files[0], f"{job.member}-int8"
    candidate = stage.folder / f"{name}.candidate"
    if not candidate.exists():
        say(f"{job.member}: quantising")
        pictures = training_pictures(options.data, options.calibration)
        save_onnx(quantize(stage.folder / full.path, pictures, options.calibration, 640), candidate)
    sides = tuple(side for side in _INT8_SIDES if side in options.long_sides) or options.long_sides[:1]
    both = ((full.variant, stage.folder / full.path), (name, candidate))
    scores = {
        (variant, side): _score(stage, variant, path, side, options, say) for side in sides for variant, path in both
    }
    ap, ap8 = ({side: scores[variant, side].ap50 for side in sides} for variant, _ in both)
    ms, ms8 = ({side: scores[variant, side].ms for side in sides} for variant, _ in both)
    if worth_shipping(ap, ap8, ms, ms8):
        final = stage.folder / f"{name}.onnx"
        write_atomically(final, candidate.read_bytes())
        write_manifest(stage.folder, with_file(manifest, describe_file(final, name, "int8", full.nms, OPSET)))
    else:
        stage.record.notes.append(f"{name} is not shipped: it loses too much or is not faster")
        say(stage.record.notes[-1])
    candidate.unlink()


def _score(stage: Stage, variant: str, path: Path, side: int, options: Options, say: Say) -> Score:
    """From the record, or measured and put there at once, so that an interrupt loses one measurement at most."""
    known = stage.record.scores.setdefault(variant, {})
    if side not in known:
        report, ms = score(
            path, variant, _manifest(stage), side, options.data, options.split, options.limit, options.threads
        )
        known[side] = Score(ap50=round(report.ap50, 4), ap=round(report.ap, 4), protocol=report.protocol, ms=ms)
        stage.save()
        say(f"{variant} at {side}: AP.50 {known[side].ap50:.4f}, AP {known[side].ap:.4f}, {ms:.1f} ms")
    return known[side]


def _accuracy(stage: Stage, job: Job, options: Options, say: Say) -> None:
    """AP of what a CPU serves at every long side. What is for GPUs is not measured on a CPU."""
    manifest = _manifest(stage)
    rows = []
    for file in (file for file in manifest.files if not file.for_gpus):
        for side in options.long_sides:
            found = _score(stage, file.variant, stage.folder / file.path, side, options, say)
            rows.append(
                Accuracy(variant=file.variant, dataset=options.dataset, split=options.split_name, long_side=side,
                         protocol=found.protocol, ap50=found.ap50, ap=found.ap)
            )  # fmt: skip
    write_manifest(stage.folder, with_accuracy(manifest, tuple(rows)))


def _card(stage: Stage, job: Job, options: Options, say: Say) -> None:
    text = render_card(_manifest(stage), {}, ["Not looked at yet."])
    write_atomically(stage.folder / "CARD.md", text.encode())
