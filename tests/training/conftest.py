"""A small WIDER-layout data set, composed of a public-domain photograph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut

FACE = (174, 66, 272, 198)  # the astronaut's face: x1 y1 x2 y2 in the 512 x 512 picture


@pytest.fixture(scope="session")
def tiny_wider(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """root/{train,dev}/images with 6 and 3 photos, each one face at another scale, and one negative."""
    root = tmp_path_factory.mktemp("wider")
    source = Image.fromarray(astronaut())  # type: ignore[no-untyped-call]
    for split, sides in (("train", (160, 200, 240, 280, 320, 512)), ("dev", (192, 256, 384))):
        images = root / split / "images" / "event"
        images.mkdir(parents=True)
        lines = []
        for side in sides:
            source.resize((side, side)).save(images / f"{side}.png")
            x1, y1, x2, y2 = (round(v * side / 512) for v in FACE)
            lines += [f"event/{side}.png", "1", f"{x1} {y1} {x2 - x1} {y2 - y1} 0 0 0 0 0 0"]
        (root / "split").mkdir(exist_ok=True)
        (root / "split" / f"{split}_bbx_gt.txt").write_text("\n".join(lines) + "\n")
    negatives = root / "negatives" / "images"
    negatives.mkdir(parents=True)
    Image.fromarray(np.full((96, 128, 3), 90, np.uint8)).save(negatives / "grey.png")
    return root
