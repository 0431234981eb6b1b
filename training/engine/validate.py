"""Run a detector over an annotated split, each picture resized to one long side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from training.data.cache import load_picture
from training.data.layout import resolve_split
from training.data.wider import PhotoAnnotation, read_annotations
from training.evaluation.wider import evaluate
from training.models.detector import Detector, normalize
from training.models.postprocess import PostprocessConfig, postprocess


class Found(NamedTuple):
    """boxes: float64 [K, 4] x1 y1 x2 y2 in pixels of the picture; scores: float64 [K], best first."""

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]


@torch.no_grad()
def detect_picture(
    detector: Detector, pixels: NDArray[np.uint8], long_side: int | None, config: PostprocessConfig
) -> Found:
    """pixels: uint8 [h, w, 3] RGB -> faces in pixels of the picture.

    long_side None keeps the picture's own size. The picture is padded to a multiple of 32 at the right and bottom.
    """
    height, width = pixels.shape[:2]
    scale = 1.0 if long_side is None else long_side / max(height, width)
    new_w, new_h = max(1, round(width * scale)), max(1, round(height * scale))
    resized = np.asarray(Image.fromarray(pixels).resize((new_w, new_h), Image.Resampling.BILINEAR))
    canvas = np.zeros((-(-new_h // 32) * 32, -(-new_w // 32) * 32, 3), dtype=np.uint8)
    canvas[:new_h, :new_w] = resized
    device = next(detector.parameters()).device
    x = torch.from_numpy(canvas).permute(2, 0, 1)[None].to(device)
    output = detector(normalize(x).contiguous(memory_format=torch.channels_last))
    boxes, scores = postprocess(output, new_h, new_w, config)[0]
    factor = np.array([width / new_w, height / new_h] * 2)
    return Found(boxes.cpu().numpy().astype(np.float64) * factor, scores.cpu().numpy().astype(np.float64))


def detect_split(
    detector: Detector,
    root: Path,
    split: str,
    long_side: int | None,
    config: PostprocessConfig,
    limit: int | None = None,
) -> Iterator[tuple[PhotoAnnotation, Found]]:
    """Yield every photo's annotation with what the detector found; `limit` takes evenly spaced photos."""
    paths = resolve_split(root, split)
    photos = read_annotations(paths.annotations)
    if limit and limit < len(photos):
        photos = [photos[int(i)] for i in np.linspace(0, len(photos) - 1, limit)]
    for photo in tqdm(photos, desc=f"{split} at {long_side or 'own size'}", unit="photo", leave=False):
        yield photo, detect_picture(detector, load_picture(paths.images / photo.name), long_side, config)


def score_split(
    detector: Detector, root: Path, split: str, long_side: int, limit: int | None = None
) -> dict[str, float]:
    """AP.50, AP and recall of a split by the WIDER protocol."""
    return _scores(detect_split(detector, root, split, long_side, PostprocessConfig(), limit))


def score_pictures(
    detector: Detector, pictures: Iterable[tuple[PhotoAnnotation, NDArray[np.uint8]]], long_side: int
) -> dict[str, float]:
    """The same of decoded pictures, uint8 [h, w, 3], with their annotations."""
    config = PostprocessConfig()
    return _scores((photo, detect_picture(detector, pixels, long_side, config)) for photo, pixels in pictures)


def _scores(results: Iterable[tuple[PhotoAnnotation, Found]]) -> dict[str, float]:
    found: dict[str, Found] = {}
    photos: list[PhotoAnnotation] = []
    for photo, faces in results:
        found[photo.name] = faces
        photos.append(photo)
    report = evaluate(found, photos)
    return {"ap50": report.ap50, "ap": report.ap, "recall50": report.recall50}
