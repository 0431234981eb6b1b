"""Detectors as sources of detections: a checkpoint, an exported file, an engine of TensorRT, or a running service.

What is served is what is measured: an exported file is run by the graph contract of `service.repository.manifest`, with
the service's letterbox.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from service.engines.base import Detections, EngineError
from service.engines.ort import open_cpu
from service.letterbox import fitting_size, letterbox, to_original
from service.repository.manifest import MANIFEST_NAME, InputSize
from service.repository.store import RepositoryError, load_manifest
from training.evaluation.detections import Pixels, Source

if TYPE_CHECKING:
    from training.models.detector import Detector
    from training.models.postprocess import PostprocessConfig

CHECKPOINT_SUFFIXES = (".pt", ".pth")
# An exported graph takes its best 2000 candidates, so a picture must have as many: one to each 4 x 4 pixels.
SMALLEST_SIDE = 192
TENSORRT_SUFFIXES = (".engine", ".plan")
SERVICE_SCHEMES = ("http://", "https://")
SOURCE_HELP = (
    "A checkpoint (.pt), an exported file (.onnx), a TensorRT engine (.engine, .plan), a model repository (all its "
    "variants), or a running service (http://host:port for all its variants, http://host:port#d0 for one)."
)


def default_sizes(long_side: int) -> tuple[InputSize, ...]:
    """Square, 4:3 and 3:4 of one long side, rounded up to multiples of 32: what every member is exported for."""
    long, short = _round_up(long_side), _round_up(long_side * 3 // 4)
    return tuple(InputSize(height=h, width=w) for h, w in ((long, long), (short, long), (long, short)))


def _round_up(value: int) -> int:
    return -(-value // 32) * 32


class BatchEngine(Protocol):
    """The one method of `service.engines.base.Engine` that is needed here."""

    def run(self, images: NDArray[np.uint8]) -> list[Detections]: ...


class EngineSource:
    """A serving graph, fed as the service feeds it."""

    def __init__(self, engine: BatchEngine, name: str, fingerprint: str, sizes: Sequence[InputSize] | None) -> None:
        """sizes: of one long side, one of which holds every picture; None: every picture at its own size, padded to
        `SMALLEST_SIDE` and a multiple of 32 at the right and bottom.

        Raises ValueError where there is no size.
        """
        if sizes is not None and not sizes:
            raise ValueError(f"{name}: no input size of the asked long side")
        self.name, self.fingerprint = name, fingerprint
        self.sizes = None if sizes is None else tuple(sizes)
        self.long_side = 0 if self.sizes is None else self.sizes[0].long_side
        self._engine = engine

    def __call__(self, pixels: Pixels) -> Detections:
        height, width = pixels.shape[:2]
        if self.sizes is None:
            sides = [max(SMALLEST_SIDE, _round_up(side)) for side in (height, width)]
            canvas = np.zeros((*sides, 3), dtype=np.uint8)
            canvas[:height, :width] = pixels
            found = self._run(canvas)
            limit = np.array([width, height, width, height], dtype=np.float32)
            return Detections(found.boxes.clip(0, limit), found.scores)
        size = fitting_size(width, height, self.sizes)
        if size is None:
            listed = ", ".join(map(str, self.sizes))
            raise ValueError(f"{self.name}: no input size of {listed} holds a picture of {width}x{height}")
        fitted = letterbox(pixels, size, width, height)
        found = self._run(fitted.canvas)
        return Detections(to_original(found.boxes, fitted, width, height), found.scores)

    def _run(self, canvas: Pixels) -> Detections:
        try:
            return self._engine.run(canvas[None])[0]
        except EngineError as error:
            raise ValueError(str(error)) from error


class OnnxSource(EngineSource):
    """An exported variant on ONNX Runtime's CPU provider, run as the service runs it."""

    def __init__(self, path: Path, name: str, sizes: Sequence[InputSize] | None, threads: int = 0) -> None:
        """sizes: see `EngineSource`; threads: 0 = all cores.

        Raises ValueError where the file is not an exported detector or there is no size.
        """
        if sizes is not None and not sizes:
            raise ValueError(f"{name}: no input size of the asked long side")
        try:
            engine = open_cpu(name, path, threads)
        except EngineError as error:
            raise ValueError(str(error)) from error
        super().__init__(engine, name, file_fingerprint(path), sizes)


class TorchSource:
    """A detector in PyTorch, with the paper's post-processing."""

    def __init__(
        self,
        detector: Detector,
        name: str,
        long_side: int | None,
        fingerprint: str,
        config: PostprocessConfig | None = None,
    ) -> None:
        """long_side: that pictures are resized to; None keeps every picture's own size."""
        from training.models.postprocess import PostprocessConfig

        self.name, self.long_side, self.fingerprint = name, long_side or 0, fingerprint
        self._detector, self._config = detector.eval(), config or PostprocessConfig()

    def __call__(self, pixels: Pixels) -> Detections:
        from training.engine.validate import detect_picture

        found = detect_picture(self._detector, pixels, self.long_side or None, self._config)
        return Detections(_float32(found.boxes), _float32(found.scores))


def _float32(values: NDArray[np.float64]) -> NDArray[np.float32]:
    return values.astype(np.float32)


def file_fingerprint(*paths: Path) -> str:
    """Hash of the contents of some files, in order."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def open_sources(where: Path | str, long_side: int | None, threads: int = 0, device: str | None = None) -> list[Source]:
    """Every detector behind a path or an address, at one long side, or at the pictures' own sizes (None).

    where: a model repository or a folder of it (every variant for CPUs), an exported `.onnx` file (the variant that the
    manifest beside it names, or the file by itself at `default_sizes`), a checkpoint `.pt`, an engine of TensorRT
    (`.engine`, `.plan`), or the address of a running service (a string; see `remote.open_service`).
    Raises FileNotFoundError, ConnectionError or ValueError that says what was looked for.
    """
    if isinstance(where, str):
        if where.startswith(SERVICE_SCHEMES):
            from training.evaluation.remote import open_service

            return list(open_service(where, long_side))
        where = Path(where)
    if where.is_dir():
        manifests = sorted(where.glob(MANIFEST_NAME)) or sorted(where.glob(f"*/{MANIFEST_NAME}"))
        if not manifests:
            raise FileNotFoundError(
                f"no {MANIFEST_NAME} in {where} or in a folder of it; for predictions in text files, "
                "see `score-submission`"
            )
        return [source for path in manifests for source in _from_manifest(path, long_side, threads, None)]
    if not where.is_file():
        raise FileNotFoundError(f"{where} is neither a checkpoint, nor an ONNX file, nor a model repository")
    if where.suffix in CHECKPOINT_SUFFIXES:
        return [_from_checkpoint(where, long_side, threads, device)]
    if where.suffix in TENSORRT_SUFFIXES:
        return [_from_engine(where, long_side)]
    if where.suffix == ".onnx":
        manifest = where.parent / MANIFEST_NAME
        if manifest.is_file() and (named := _from_manifest(manifest, long_side, threads, where.name)):
            return named
        return [OnnxSource(where, where.stem, default_sizes(long_side) if long_side else None, threads)]
    raise ValueError(
        f"{where}: expected a checkpoint (.pt), an exported file (.onnx), a TensorRT engine (.engine, .plan) or a "
        "model repository"
    )


def _from_manifest(path: Path, long_side: int | None, threads: int, only: str | None) -> list[Source]:
    try:
        manifest = load_manifest(path)
    except RepositoryError as error:
        raise ValueError(str(error)) from error
    # What is named is run, wherever it belongs; of a whole member only what its kind of machine is served with.
    files = [f for f in manifest.files if (not f.for_gpus if only is None else Path(f.path).name == only)]
    sizes = None if long_side is None else tuple(s for s in manifest.input_sizes if s.long_side == long_side)
    if files and sizes == ():
        known = sorted({size.long_side for size in manifest.input_sizes})
        raise ValueError(f"{path}: {manifest.member} has no input size of long side {long_side}; it has {known}")
    return [OnnxSource(path.parent / file.path, file.variant, sizes, threads) for file in files]


def _from_checkpoint(path: Path, long_side: int | None, threads: int, device: str | None) -> Source:
    import torch

    from training.engine.checkpoint import load_detector
    from training.models.device import chosen_device

    if threads:
        torch.set_num_threads(threads)
    place = chosen_device(device)
    detector, _ = load_detector(path)
    detector = detector.to(place).to(memory_format=torch.channels_last)
    return TorchSource(detector, path.stem, long_side, file_fingerprint(path))


def _from_engine(path: Path, long_side: int | None) -> Source:
    from service.engines.tensorrt.engine import TensorRtEngine
    from service.engines.tensorrt.plans import StoredPlan, damage

    manifest = path.parent / MANIFEST_NAME
    plans = load_manifest(manifest).plans if manifest.is_file() else ()
    listed = next((plan for plan in plans if (path.parent / plan.path) == path), None)
    if listed is not None and (fault := damage(StoredPlan(listed, path))):
        raise ValueError(fault)
    try:
        engine = TensorRtEngine(
            path.stem, path, version_compatible=listed is not None and listed.version_compatible,
            plugins=listed is not None and listed.nms != "plain",
        )  # fmt: skip
    except EngineError as error:
        raise ValueError(str(error)) from error
    sizes = [InputSize(height=extent.least[1], width=extent.least[2]) for extent in engine.extents]
    if long_side is None or all(size.long_side != long_side for size in sizes):
        known = sorted({size.long_side for size in sizes})
        raise ValueError(f"{path} was built for fixed sizes; give a long side that it has: {known}")
    return EngineSource(engine, path.stem, file_fingerprint(path), [s for s in sizes if s.long_side == long_side])
