"""Figure 8: whole pictures with the boxes that a detector finds, red where its confidence is above 0.8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from service.engines.base import Detections
from training.data.cache import load_picture
from training.evaluation.detections import Source, title_of
from training.evaluation.sheets import TITLE, Colour, Layer, draw_layers, draw_title

SURE: Colour = (235, 30, 40)
UNSURE: Colour = (70, 170, 255)
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")

WIDTH = 1600  # pixels of the sheet
GAP = 6
_LEAST_ASPECT, _LARGEST_ASPECT = 0.4, 3.0  # of the cells: a panorama may not take a whole row
_BACKGROUND = (255, 255, 255)
_TITLE_BAR = (24, 24, 24)


@dataclass(frozen=True)
class Shown:
    """One picture, scaled down to what a sheet can show, and what was found, in pixels of the original. size: (width,
    height) of the original."""

    path: Path
    picture: Image.Image
    size: tuple[int, int]
    found: Detections


def find_pictures(where: Sequence[Path], limit: int = 0) -> list[Path]:
    """Picture files: those named, and those of the folders named, in order of their names; `limit` takes that many
    evenly spaced ones.

    Raises FileNotFoundError where there is nothing.
    """
    paths: list[Path] = []
    for one in where:
        if one.is_dir():
            paths += sorted(path for path in one.rglob("*") if path.suffix.lower() in SUFFIXES)
        elif one.is_file():
            paths.append(one)
        else:
            raise FileNotFoundError(f"no {one}: expected a picture or a folder of pictures")
    if not paths:
        raise FileNotFoundError(f"no picture ({', '.join(SUFFIXES)}) in {', '.join(map(str, where))}")
    if 0 < limit < len(paths):
        paths = [paths[int(index)] for index in np.linspace(0, len(paths) - 1, limit)]
    return paths


def detect_pictures(source: Source, paths: Sequence[Path], columns: int, least: float) -> list[Shown]:
    """Run `source` on every picture and keep what scores at least `least`. Raises ValueError on what is no picture."""
    shown = []
    bound = max(1, 2 * WIDTH // columns)  # no cell is larger, so that many pictures stay small in memory
    for path in tqdm(paths, desc=title_of(source), unit="photo", leave=False):
        pixels = load_picture(path)
        found = source(pixels)
        kept = found.scores >= least
        picture = Image.fromarray(pixels)
        picture.thumbnail((bound, bound), Image.Resampling.LANCZOS)
        size = (pixels.shape[1], pixels.shape[0])
        shown.append(Shown(path, picture, size, Detections(found.boxes[kept], found.scores[kept])))
    return shown


def row_cells(aspects: Sequence[float], columns: int) -> list[tuple[int, int, int, int]]:
    """Where pictures of these aspects (width over height) go: left, top, width, height in pixels of the sheet.

    Pictures of a row share a height at which the row is as wide as the sheet; a last row that is not full takes the
    height of the row above, or what its pictures would have as a full row of squares.
    """
    cells = []
    top, height = 0, (WIDTH - GAP * (columns - 1)) // columns
    for start in range(0, len(aspects), columns):
        row = [min(max(aspect, _LEAST_ASPECT), _LARGEST_ASPECT) for aspect in aspects[start : start + columns]]
        fitting = int((WIDTH - GAP * (len(row) - 1)) / sum(row))
        height = fitting if len(row) == columns else min(fitting, height)
        left = 0
        for aspect in row:
            cells.append((left, top, max(1, int(aspect * height)), height))
            left += cells[-1][2] + GAP
        top += height + GAP
    return cells


def draw_pictures(shown: Sequence[Shown], columns: int, score: float, least: float, title: str) -> Image.Image:
    """The contact sheet, RGB, `WIDTH` pixels wide. score: boxes above it are red."""
    cells = row_cells([one.size[0] / one.size[1] for one in shown], columns)
    page = Image.new("RGB", (WIDTH, TITLE + GAP + max(top + height for _, top, _, height in cells)), _BACKGROUND)
    draw = ImageDraw.Draw(page)
    draw.rectangle((0, 0, WIDTH, TITLE - 1), fill=_TITLE_BAR)
    legend = [(f"above {score:g}", SURE), (f"{least:g} to {score:g}", UNSURE)]
    draw_title(draw, title, WIDTH, legend if least < score else legend[:1])
    for one, (left, top, width, height) in zip(shown, cells, strict=True):
        scale = min(width / one.size[0], height / one.size[1])
        fitted = (max(1, round(one.size[0] * scale)), max(1, round(one.size[1] * scale)))
        picture = one.picture.resize(fitted, Image.Resampling.LANCZOS)
        sure = one.found.scores > score
        layers = [Layer(UNSURE, one.found.boxes[~sure], 2), Layer(SURE, one.found.boxes[sure], 2)]
        draw_layers(picture, layers, (0, 0), scale)
        page.paste(picture, (left + (width - fitted[0]) // 2, TITLE + GAP + top + (height - fitted[1]) // 2))
    return page


def pictures_numbers(shown: Sequence[Shown], source: Source, score: float, least: float) -> dict[str, Any]:
    """Every box of every picture, x1 y1 x2 y2 in pixels of the picture, with its score, best first."""
    rows = []
    for one in shown:
        order = np.argsort(-one.found.scores, kind="stable")
        faces = [
            {"box": [round(float(value), 1) for value in one.found.boxes[at]], "score": float(one.found.scores[at])}
            for at in order
        ]
        rows.append({"picture": one.path.name, "width": one.size[0], "height": one.size[1], "faces": faces})
    return {"source": source.name, "long_side": source.long_side, "score": score, "least": least, "pictures": rows}
