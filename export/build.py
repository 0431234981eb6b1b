"""From a detector to a member's first files: graph and manifest, with the place that the member has in its family."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from export.half import compute_in_half
from export.member import describe_file, input_sizes, provenance_of, save_onnx, with_file, write_manifest
from export.onnx_graph import OPSET, export_onnx
from service.profiling import machine_name
from service.repository.manifest import (
    MANIFEST_NAME,
    Architecture,
    Family,
    Manifest,
    ModelFile,
    Precision,
    Provenance,
    Thresholds,
)
from service.repository.store import load_manifest, sha256_of, verify_file
from training.engine.checkpoint import detector_config, load, load_detector
from training.engine.warm_start import load_exported
from training.family import count
from training.models.detector import Detector, DetectorConfig, build_detector
from training.models.genotype import AnyGenotype, AutoFAEGenotype, default_genotype, parse
from training.models.necks import NeckOptions
from training.supernet.path import SinglePath, backbone_name

_SPELT = {"fpn": "FPN", "autofae": "AutoFAE"}


@dataclass(frozen=True)
class Origin:
    """Where a member belongs. budget_ms (milliseconds) and found_for: of members of a machine family."""

    family: Family = "paper"
    budget_ms: float | None = None
    found_for: str = ""


def graph_of(detector: Detector, precision: Precision, nms: str, half: bool = True) -> onnx.ModelProto:
    """The serving graph. fp16 computes in half precision and takes plain NMS; fp32 may store its weights in `half`.

    Raises ValueError where the two do not go together.
    """
    if precision == "fp32":
        return export_onnx(detector, Thresholds(), nms, half)
    if precision != "fp16":
        raise ValueError(f"--precision is fp32 or fp16, not {precision!r}; `python -m export quantize` makes INT8")
    if nms != "plain":
        raise ValueError("a graph in fp16 is for GPUs and takes --nms plain")
    return compute_in_half(export_onnx(detector, Thresholds(), nms, half=False))


def architecture_of(config: DetectorConfig) -> Architecture:
    """What the manifest says of the network, with the genotype of a searched neck, and the single path of AutoFAE.
    Counting the arithmetic runs the network once at 480x640."""
    counts = count(config)
    found, path = _genotype_of(config), ""
    if config.neck == "autofae" and isinstance(found, AutoFAEGenotype):
        modules = config.neck_options.modules or found.modules
        path = str(SinglePath(config.backbone, tuple(modules), config.head_convs, config.channels))
    return Architecture(
        backbone=config.backbone, neck=config.neck, single_path=path,
        genotype=found.model_dump(mode="json") if found else None, head_convs=config.head_convs,
        channels=config.channels, parameters=counts.parameters, gmacs_vga=round(counts.gmacs_vga, 2),
    )  # fmt: skip


def _genotype_of(config: DetectorConfig) -> AnyGenotype | None:
    """What the neck is built from, spelt out: the project's own may be another one day. None of a neck made by hand."""
    if config.neck_options.genotype:
        return parse(config.neck_options.genotype)
    try:
        return default_genotype(config.neck)
    except ValueError:
        return None


def first_manifest(
    member: str, config: DetectorConfig, file: ModelFile, provenance: Provenance, origin: Origin, trained: bool = True
) -> Manifest:
    """A manifest without accuracy, which is measured later."""
    title = f"ASFD-{member.upper()}: {config.backbone}, {_SPELT.get(config.neck, config.neck.upper())} neck"
    if origin.family == "machine":
        title += f", found for {origin.found_for} within {origin.budget_ms:g} ms"
    return Manifest(
        member=member, title=title if trained else f"{title}, fresh weights", family=origin.family,
        budget_ms=origin.budget_ms, found_for=origin.found_for, trained=trained, architecture=architecture_of(config),
        input_sizes=input_sizes(), thresholds=Thresholds(), files=(file,), provenance=provenance,
    )  # fmt: skip


@contextmanager
def _readable(checkpoint: Path) -> Iterator[None]:
    """Raise ValueError that names the file where what it holds is no detector of this version."""
    try:
        yield
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        reason = str(error).strip().splitlines() or [""]
        raise ValueError(
            f"{checkpoint} holds no detector of this version ({type(error).__name__}: {reason[0]}); give a "
            "checkpoint of `python -m training train`"
        ) from error


def open_detector(checkpoint: Path) -> tuple[Detector, dict[str, Any]]:
    """The detector of a checkpoint and the whole of its content. Raises FileNotFoundError, and ValueError that names
    the file where it cannot be read or holds something else."""
    with _readable(checkpoint):
        return load_detector(checkpoint)


def export_checkpoint(
    checkpoint: Path, member: str, folder: Path, precision: Precision, nms: str, data_note: str, origin: Origin
) -> Manifest:
    """Write a checkpoint's graph and manifest into `folder`. fp32 begins the member anew; fp16 joins the manifest of
    the same checkpoint where there is one. In the checkpoint's place the member's own fp32 file makes its fp16 form.

    Raises FileNotFoundError, and ValueError that says what does not fit together.
    """
    if checkpoint.suffix == ".onnx":
        return _add_half(checkpoint, member, folder, precision, nms)
    detector, content = open_detector(checkpoint)
    digest = sha256_of(checkpoint)
    finished = time.strftime("%Y-%m-%d", time.localtime(checkpoint.stat().st_mtime))
    with _readable(checkpoint):
        config = detector_config(content["config"])
        made = provenance_of(content, data_note, machine_name(), finished, digest)
    model = graph_of(detector, precision, nms)
    variant = member if precision == "fp32" else f"{member}-{precision}"
    known = folder / MANIFEST_NAME
    joined = load_manifest(known) if precision == "fp16" and known.exists() else None
    if joined is not None and joined.provenance.checkpoint_sha256 != digest:
        raise ValueError(
            f"{known} does not say that it was made from {checkpoint}; export that with --precision fp32 first"
        )
    path = folder / f"{variant}.onnx"
    save_onnx(model, path)
    file = describe_file(path, variant, precision, nms, OPSET)
    manifest = with_file(joined, file) if joined else first_manifest(member, config, file, made, origin)
    write_manifest(folder, manifest)
    return manifest


def _add_half(shipped: Path, member: str, folder: Path, precision: Precision, nms: str) -> Manifest:
    """Give a member the fp16 form of what it ships in fp32, for who has no checkpoint of it."""
    manifest, source = load_manifest(folder / MANIFEST_NAME), shipped.resolve()
    known = next((f for f in manifest.files if (folder / f.path).resolve() == source and f.precision == "fp32"), None)
    if precision != "fp16" or known is None or verify_file(shipped, known):
        raise ValueError(
            f"{shipped}: an .onnx file makes nothing but the fp16 form of the member that ships it, in fp32 and as its "
            f"manifest {folder / MANIFEST_NAME} says; give a checkpoint for anything else"
        )
    detector = build_detector(_config_of(manifest.architecture))
    load_exported(detector, shipped, None)
    variant = f"{member}-fp16"
    path = folder / f"{variant}.onnx"
    save_onnx(graph_of(detector, precision, nms), path)
    manifest = with_file(manifest, describe_file(path, variant, precision, nms, OPSET))
    write_manifest(folder, manifest)
    return manifest


def _config_of(made: Architecture) -> DetectorConfig:
    """The detector that a manifest describes."""
    genotype = json.dumps(made.genotype) if made.genotype else ""
    if made.single_path:
        return SinglePath.parse(made.single_path).config(genotype=genotype)
    return DetectorConfig(
        backbone=backbone_name(made.backbone), neck=made.neck, channels=made.channels, head_convs=made.head_convs,
        neck_options=NeckOptions(genotype=genotype),
    )  # fmt: skip


def fresh_provenance(seed: int) -> Provenance:
    """Of weights that nobody has trained."""
    return Provenance(
        recipe="none", data="none: fresh weights", images_seen=0, seed=seed, hardware=machine_name(), train_hours=0,
        finished=time.strftime("%Y-%m-%d"),
    )  # fmt: skip


def check_path(member: str, wanted: SinglePath, checkpoint: Path) -> None:
    """Raise ValueError where a checkpoint is of another detector than the member's, or of none."""
    content = load(checkpoint)
    with _readable(checkpoint):
        config = detector_config(content["config"])
    same = (config.backbone, config.head_convs, config.channels) == (
        wanted.backbone,
        wanted.head_convs,
        wanted.channels,
    )
    if config.neck == "autofae" and config.neck_options.modules:
        same = same and tuple(config.neck_options.modules) == wanted.modules
    if not same:
        held = f"{config.backbone}, {config.neck}, {config.head_convs} head convolutions, {config.channels} channels"
        raise ValueError(f"{checkpoint} is no {member}: it holds {held}, but {member} is {wanted}")
