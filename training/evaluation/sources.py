"""The project's own detectors as sources of detections: a file of the model repository, or a checkpoint.

What is served is what is measured: `OnnxSource` runs an exported file by the graph contract of
`service.repository.manifest`, with the service's letterbox.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from service.engines.base import Detections, EngineError
from service.engines.ort import OnnxCpuEngine
from service.letterbox import fitting_size, letterbox, to_original
from service.repository.manifest import MANIFEST_NAME, InputSize
from service.repository.store import RepositoryError, load_manifest
from training.evaluation.detections import Pixels, Source

if TYPE_CHECKING:
    from training.models.detector import Detector
    from training.models.postprocess import PostprocessConfig

CHECKPOINT_SUFFIXES = (".pt", ".pth")


def default_sizes(long_side: int) -> tuple[InputSize, ...]:
    """Square, 4:3 and 3:4 of one long side, rounded up to multiples of 32: what every member is exported for."""
    long, short = _round_up(long_side), _round_up(long_side * 3 // 4)
    return tuple(InputSize(height=h, width=w) for h, w in ((long, long), (short, long), (long, short)))


def _round_up(value: int) -> int:
    return -(-value // 32) * 32


class OnnxSource:
    """An exported variant on ONNX Runtime's CPU provider, run as the service runs it."""

    def __init__(self, path: Path, name: str, sizes: Sequence[InputSize], threads: int = 0) -> None:
        """sizes: of one long side, one of which holds every picture; threads: 0 = all cores.

        Raises ValueError where the file is not an exported detector or there is no size.
        """
        if not sizes:
            raise ValueError(f"{name}: no input size of the asked long side")
        self.name, self.long_side, self.sizes = name, sizes[0].long_side, tuple(sizes)
        self.fingerprint = file_fingerprint(path)
        try:
            self._engine = OnnxCpuEngine(name, path, threads)
        except EngineError as error:
            raise ValueError(str(error)) from error

    def __call__(self, pixels: Pixels) -> Detections:
        height, width = pixels.shape[:2]
        size = fitting_size(width, height, self.sizes)
        if size is None:
            listed = ", ".join(map(str, self.sizes))
            raise ValueError(f"{self.name}: no input size of {listed} holds a picture of {width}x{height}")
        fitted = letterbox(pixels, size, width, height)
        found = self._engine.run(fitted.canvas[None])[0]
        return Detections(to_original(found.boxes, fitted, width, height), found.scores)


class TorchSource:
    """A detector in PyTorch, with the paper's post-processing."""

    def __init__(
        self, detector: Detector, name: str, long_side: int, fingerprint: str, config: PostprocessConfig | None = None
    ) -> None:
        from training.models.postprocess import PostprocessConfig

        self.name, self.long_side, self.fingerprint = name, long_side, fingerprint
        self._detector, self._config = detector.eval(), config or PostprocessConfig()

    def __call__(self, pixels: Pixels) -> Detections:
        from training.engine.validate import detect_picture

        found = detect_picture(self._detector, pixels, self.long_side, self._config)
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


def open_sources(where: Path, long_side: int, threads: int = 0, device: str | None = None) -> list[Source]:
    """Every detector behind a path, at one long side.

    where: a model repository or a folder of it (every variant), an exported `.onnx` file (the variant that the
    manifest beside it names, or the file by itself at `default_sizes`), or a checkpoint `.pt`.
    Raises FileNotFoundError or ValueError that says what was looked for.
    """
    if where.is_dir():
        manifests = sorted(where.glob(MANIFEST_NAME)) or sorted(where.glob(f"*/{MANIFEST_NAME}"))
        if not manifests:
            raise FileNotFoundError(f"no {MANIFEST_NAME} in {where} or in a folder of it")
        return [source for path in manifests for source in _from_manifest(path, long_side, threads, None)]
    if not where.is_file():
        raise FileNotFoundError(f"{where} is neither a checkpoint, nor an ONNX file, nor a model repository")
    if where.suffix in CHECKPOINT_SUFFIXES:
        return [_from_checkpoint(where, long_side, threads, device)]
    if where.suffix == ".onnx":
        manifest = where.parent / MANIFEST_NAME
        if manifest.is_file() and (named := _from_manifest(manifest, long_side, threads, where.name)):
            return named
        return [OnnxSource(where, where.stem, default_sizes(long_side), threads)]
    raise ValueError(f"{where}: expected a checkpoint (.pt), an exported file (.onnx) or a model repository")


def _from_manifest(path: Path, long_side: int, threads: int, only: str | None) -> list[Source]:
    try:
        manifest = load_manifest(path)
    except RepositoryError as error:
        raise ValueError(str(error)) from error
    sizes = tuple(size for size in manifest.input_sizes if size.long_side == long_side)
    files = [file for file in manifest.files if only is None or Path(file.path).name == only]
    if files and not sizes:
        known = sorted({size.long_side for size in manifest.input_sizes})
        raise ValueError(f"{path}: {manifest.member} has no input size of long side {long_side}; it has {known}")
    return [OnnxSource(path.parent / file.path, file.variant, sizes, threads) for file in files]


def _from_checkpoint(path: Path, long_side: int, threads: int, device: str | None) -> Source:
    import torch

    from training.engine.checkpoint import load_detector

    if threads:
        torch.set_num_threads(threads)
    detector, _ = load_detector(path)
    detector = detector.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    detector = detector.to(memory_format=torch.channels_last)
    return TorchSource(detector, path.stem, long_side, file_fingerprint(path))
