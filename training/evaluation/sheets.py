"""Contact sheets: many small cut-outs of photos on one page, boxes drawn on, a caption below each."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from training.evaluation.detections import Pixels
from training.evaluation.errors import Box
from training.files import write_bytes

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

COLUMNS, ROWS = 8, 6
TILE = 175  # pixels; a row of 8 is about what an image viewer shows without shrinking
CAPTION = 32
TITLE = 28

ANNOTATED: Colour = (64, 224, 120)
DETECTED: Colour = (255, 64, 160)
IGNORED: Colour = (80, 160, 255)
LEGEND = (("annotated", ANNOTATED), ("detected", DETECTED), ("ignore region", IGNORED))

_CONTEXT = 2.4  # side of a cut-out over the long side of its box
_LEAST_PIXELS = 48  # of the photo in a cut-out: below that, a face is hard to tell from a blot
_BACKGROUND, _TEXT = (24, 24, 24), (235, 235, 235)


@dataclass(frozen=True)
class Layer:
    """Boxes of one colour, float [n, 4] x1 y1 x2 y2 in pixels of the photo, with lines of `width` pixels of the
    tile."""

    colour: Colour
    boxes: NDArray[Any]
    width: int = 1


@dataclass(frozen=True)
class Tile:
    """One cut-out. box: what it is centred on, in pixels of the photo; layers: drawn in this order; caption: two
    lines."""

    photo: str
    box: Box
    layers: tuple[Layer, ...]
    caption: tuple[str, str]


def window(box: Box) -> tuple[int, int, int]:
    """The square around a box that a tile shows: left, top and side in pixels of the photo. It may reach outside."""
    side = max(_LEAST_PIXELS, round(_CONTEXT * max(box[2] - box[0], box[3] - box[1])))
    return round((box[0] + box[2] - side) / 2), round((box[1] + box[3] - side) / 2), side


def draw_tile(pixels: Pixels, tile: Tile) -> Image.Image:
    """pixels: the whole photo, uint8 [h, w, 3] RGB -> RGB of `TILE` by `TILE` pixels."""
    left, top, side = window(tile.box)
    height, width = pixels.shape[:2]
    inside = (max(0, left), max(0, top), min(width, left + side), min(height, top + side))
    cut = Image.new("RGB", (side, side), _BACKGROUND)
    if inside[2] > inside[0] and inside[3] > inside[1]:
        part = Image.fromarray(np.ascontiguousarray(pixels[inside[1] : inside[3], inside[0] : inside[2]]))
        cut.paste(part, (inside[0] - left, inside[1] - top))
    picture = cut.resize((TILE, TILE), Image.Resampling.LANCZOS)
    draw_layers(picture, tile.layers, (left, top), TILE / side)
    return picture


def draw_layers(picture: Image.Image, layers: Iterable[Layer], corner: tuple[float, float], scale: float) -> None:
    """Draw boxes on a cut-out. corner: left and top of the cut-out in the photo; scale: pixels of the cut-out over
    pixels of the photo."""
    draw = ImageDraw.Draw(picture)
    for layer in layers:
        corners = np.asarray(layer.boxes, dtype=np.float64).reshape(-1, 4) - (*corner, *corner)
        for x1, y1, x2, y2 in np.rint(corners * scale).astype(int).tolist():
            draw.rectangle((min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)), None, layer.colour, layer.width)


def sheet_size(tiles: int) -> tuple[int, int]:
    """(width, height) in pixels of a sheet; as many rows as `tiles` need."""
    return COLUMNS * TILE, TITLE + -(-tiles // COLUMNS) * (TILE + CAPTION)


def tile_corner(index: int) -> tuple[int, int]:
    """Left and top of a tile in its sheet, in pixels."""
    row, column = divmod(index, COLUMNS)
    return column * TILE, TITLE + row * (TILE + CAPTION)


def draw_sheet(title: str, tiles: Sequence[Tile], load: Callable[[str], Pixels]) -> Image.Image:
    """One page. load: takes a photo's name, gives its pixels, uint8 [h, w, 3] RGB."""
    page = Image.new("RGB", sheet_size(len(tiles)), _BACKGROUND)
    draw = ImageDraw.Draw(page)
    draw_title(draw, title, page.width)
    small: Font = ImageFont.load_default(size=11)
    for index, tile in enumerate(tiles):
        left, top = tile_corner(index)
        page.paste(draw_tile(load(tile.photo), tile), (left, top))
        draw.rectangle((left, top, left + TILE - 1, top + TILE - 1), outline=_BACKGROUND)
        for line, text in enumerate(tile.caption):
            at = (left + 3, top + TILE + 2 + 14 * line)
            draw.text(at, _shorten(draw, text, small, TILE - 6), fill=_TEXT, font=small)
    return page


def draw_title(
    draw: ImageDraw.ImageDraw, title: str, width: int, legend: Sequence[tuple[str, Colour]] = LEGEND
) -> None:
    """Write the first `TITLE` pixels of a page of that width: the title to the left, the colours to the right."""
    font: Font = ImageFont.load_default(size=14)
    draw.text((6, 6), title, fill=_TEXT, font=font)
    right = float(width)
    for label, colour in reversed(legend):
        right -= draw.textlength(label, font=font) + 12
        draw.text((right, 6), label, fill=colour, font=font)


def _shorten(draw: ImageDraw.ImageDraw, text: str, font: Font, width: int) -> str:
    """Cut the middle out where the text is too long: a photo's folder and number stand at its ends."""
    if draw.textlength(text, font=font) <= width:
        return text
    for keep in range(len(text) // 2, 0, -1):
        shorter = f"{text[:keep]}...{text[-keep:]}"
        if draw.textlength(shorter, font=font) <= width:
            return shorter
    return text[:1]


def write_sheets(
    folder: Path, name: str, title: str, tiles: Sequence[Tile], load: Callable[[str], Pixels]
) -> list[Path]:
    """Write `name-1.png`, `name-2.png`, ... of 48 tiles each, and remove pages that a former, longer run left."""
    pages = [tiles[start : start + COLUMNS * ROWS] for start in range(0, len(tiles), COLUMNS * ROWS)]
    written = []
    for number, page in enumerate(pages, start=1):
        path = folder / f"{name}-{number}.png"
        buffer = io.BytesIO()
        heading = f"{title} ({number} of {len(pages)})"
        draw_sheet(heading, page, load).save(buffer, "PNG", compress_level=6)
        write_bytes(path, buffer.getvalue())
        written.append(path)
    number = len(pages) + 1
    while (stale := folder / f"{name}-{number}.png").is_file():
        stale.unlink()
        number += 1
    return written


def markdown_table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """First column to the left, the others to the right."""
    columns = list(head)
    lines = ["| " + " | ".join(columns) + " |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
