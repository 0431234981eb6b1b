"""Draw the faces that were found: a box for each, its score beside it where there is room."""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

MAX_LONG_SIDE = 1920
"""Long side of the annotated picture in pixels, at most: enough for a screen, small enough to send."""

ImageFormat = Literal["JPEG", "PNG"]

_BOX = (64, 224, 120)
_EDGE = (8, 24, 16)
_TEXT = (6, 32, 18)
_JPEG_QUALITY = 90


def annotate(
    picture: Image.Image,
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    *,
    original_width: int,
    original_height: int,
    image_format: ImageFormat = "JPEG",
) -> bytes:
    """Encode `picture` with the faces drawn on.

    picture: RGB, at any scale of the original; boxes: float32 [K, 4] in original pixels; scores: [K]. The result keeps
    the size of `picture`, or is shrunk to a long side of `MAX_LONG_SIDE`.
    """
    if max(picture.size) > MAX_LONG_SIDE:
        ratio = MAX_LONG_SIDE / max(picture.size)
        size = (max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio)))
        picture = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    else:
        picture = picture.copy()
    scale = np.array([picture.width / original_width, picture.height / original_height] * 2)
    _draw(picture, np.asarray(boxes, dtype=np.float64).reshape(-1, 4) * scale, scores)
    out = io.BytesIO()
    if image_format == "JPEG":
        picture.save(out, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
    else:
        picture.save(out, "PNG", compress_level=3)
    return out.getvalue()


def _draw(picture: Image.Image, boxes: NDArray[np.float64], scores: NDArray[np.float32]) -> None:
    draw = ImageDraw.Draw(picture)
    long_side = max(picture.size)
    font = ImageFont.load_default(size=min(28, max(11, long_side // 60)))
    # Worst first, so that the surest faces lie on top; labels last, so that no box crosses them.
    order = np.argsort(scores, kind="stable")
    for index in order:
        _draw_box(draw, boxes[index], _line_width(boxes[index], long_side))
    for index in order:
        _draw_label(
            draw, picture.size, boxes[index], f"{scores[index]:.2f}", font, _line_width(boxes[index], long_side)
        )


def _line_width(box: NDArray[np.float64], long_side: int) -> int:
    """Thick enough for the picture, thin enough that a small face stays visible inside its box."""
    side = min(box[2] - box[0], box[3] - box[1])
    return int(max(1, min(max(2, round(long_side / 420)), side // 14)))


def _draw_box(draw: ImageDraw.ImageDraw, box: NDArray[np.float64], width: int) -> None:
    x1, y1, x2, y2 = (round(float(value)) for value in box)
    x2, y2 = max(x1, min(x2, draw.im.size[0] - 1)), max(y1, min(y2, draw.im.size[1] - 1))
    if width >= 2:  # a dark edge keeps the box readable on bright ground
        draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=_EDGE, width=width + 2)
    draw.rectangle((x1, y1, x2, y2), outline=_BOX, width=width)


def _draw_label(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    box: NDArray[np.float64],
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    line: int,
) -> None:
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    pad = 3
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    if box[2] - box[0] < 0.8 * width:
        return  # in a crowd, labels wider than their faces would hide the neighbours
    x = float(min(max(0.0, box[0] - line / 2), max(0, size[0] - width)))
    y = box[1] - height if box[1] >= height else box[1] + line  # inside the box at the upper edge of the picture
    x, y = round(x), round(float(y))
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=_BOX)
    draw.text((x + pad - left, y + pad - top), text, font=font, fill=_TEXT)
