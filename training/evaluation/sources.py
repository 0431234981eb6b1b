"""The project's own detectors as sources of detections: a file of the model repository, or a checkpoint.

What is served is what is measured: `OnnxSource` runs an exported file by the graph contract of
`service.repository.manifest`, with the service's letterbox.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from service.engines.base import Detections
from service.repository.manifest import MANIFEST_NAME, InputSize, Manifest
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


def letterbox(pixels: Pixels, sizes: Sequence[InputSize]) -> tuple[Pixels, float]:
    """Resize `pixels` [h, w, 3] to the long side of `sizes` and place it top left on the smallest of them that holds
    it.

    -> (canvas uint8 [H, W, 3], scale): divide boxes by `scale` to go back to the picture's pixels.
    """
    height, width = pixels.shape[:2]
    scale = sizes[0].long_side / max(height, width)
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    holding = [size for size in sizes if size.height >= new_height and size.width >= new_width]
    size = min(holding, key=lambda one: one.height * one.width)
    if (new_height, new_width) != (height, width):
        image = Image.fromarray(pixels).resize((new_width, new_height), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
    canvas = np.zeros((size.height, size.width, 3), dtype=np.uint8)
    canvas[:new_height, :new_width] = pixels
    return canvas, scale


class OnnxSource:
    """An exported variant on ONNX Runtime's CPU provider. sizes: the input sizes of one long side."""

    def __init__(self, path: Path, name: str, sizes: Sequence[InputSize], threads: int = 0) -> None:
        """threads: of the session, 0 = all cores. Raises ValueError where the file is not an exported detector."""
        if not sizes:
            raise ValueError(f"{name}: no input size of the asked long side")
        self.name, self.long_side, self.sizes = name, sizes[0].long_side, tuple(sizes)
        self.fingerprint = file_fingerprint(path)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ValueError(f"{path} cannot be read as an ONNX file: {error}") from error
        wanted = {"num_detections", "boxes", "scores"}
        if not wanted <= {output.name for output in self._session.get_outputs()}:
            raise ValueError(f"{path} is not an exported detector: it lacks the outputs {', '.join(sorted(wanted))}")

    def __call__(self, pixels: Pixels) -> Detections:
        canvas, scale = letterbox(pixels, self.sizes)
        counts, boxes, scores = self._session.run(["num_detections", "boxes", "scores"], {"images": canvas[None]})
        count = int(counts[0])
        return Detections((boxes[0, :count] / scale).astype(np.float32), scores[0, :count].astype(np.float32))


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
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path} is not a valid manifest: {error}") from error
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
