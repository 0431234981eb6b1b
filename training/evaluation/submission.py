"""Predictions as text, one file a photo, in the format of WIDER Face's evaluation server and its MATLAB code:

    0--Parade/0_Parade_marchingband_1_465.txt
        0_Parade_marchingband_1_465       the photo's name
        2                                 how many faces
        345.25 211.5 4.125 9.75 0.98123   x y width height score, never rounded to whole pixels
        ...

A folder that a run of ours writes also has `source.json`, which says of what; with it, a run that was cut off goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from service.engines.base import Detections
from training.evaluation.detections import Named, Source
from training.files import write_bytes, write_json

MARKER = "source.json"


def submission_path(folder: Path, name: str) -> Path:
    """Where the predictions of a photo lie. name: its path below the image folder, such as `event/file.jpg`."""
    return folder / PurePosixPath(name).with_suffix(".txt")


def format_submission(name: str, found: Detections) -> str:
    """The content of one file, best first. Nine digits bring float32 back exactly."""
    order = np.argsort(-found.scores, kind="stable")
    boxes = found.boxes[order].astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    rows = [
        " ".join(f"{value:.9g}" for value in (*box, score))
        for box, score in zip(boxes.tolist(), found.scores[order].tolist(), strict=True)
    ]
    return "\n".join([PurePosixPath(name).stem, str(len(rows)), *rows]) + "\n"


def parse_submission(path: Path) -> Detections:
    """Read one file. The name in its first line is not looked at, as WIDER's own code does not.

    Raises ValueError that names file and line.
    """
    lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    try:
        # Some tools write the number as 3.0.
        count = int(float(lines[1]))
    except (IndexError, ValueError, OverflowError):
        raise ValueError(f"{path}:2: expected how many faces there are, after the photo's name") from None
    if len(lines) != 2 + count:
        raise ValueError(f"{path}: {count} faces are announced, {len(lines) - 2} lines follow")
    table = np.zeros((count, 5))
    for at, line in enumerate(lines[2:]):
        try:
            x, y, width, height, score = (float(value) for value in line.split())
        except ValueError:
            raise ValueError(f"{path}:{at + 3}: expected `x y width height score`, got {line[:80]!r}") from None
        table[at] = x, y, x + width, y + height, score
    if not np.isfinite(table).all():
        raise ValueError(f"{path}: a number is not finite")
    return Detections(table[:, :4].astype(np.float32), table[:, 4].astype(np.float32))


def check_names(photos: Iterable[Named]) -> None:
    """Raises ValueError where two photos would share one file."""
    seen: dict[str, str] = {}
    for photo in photos:
        key = str(PurePosixPath(photo.name).with_suffix(".txt"))
        if key in seen:
            raise ValueError(f"{seen[key]} and {photo.name} would share {key}")
        seen[key] = photo.name


def read_submission(folder: Path, photos: Iterable[Named]) -> dict[str, Detections]:
    """What a folder says of each photo; files of other photos are not looked at.

    Raises FileNotFoundError where a photo has none (a photo without faces has one that says 0), ValueError on the first
    that is broken.
    """
    names = [photo.name for photo in photos]
    missing = [name for name in names if not submission_path(folder, name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(names)} photos have no file in {folder}, such as "
            f"{submission_path(folder, missing[0])}; a photo without faces needs one, too, that says 0"
        )
    return {name: parse_submission(submission_path(folder, name)) for name in names}


def whole_pixels(found: Mapping[str, Detections]) -> bool:
    """Whether every box lies on whole pixels: rounded predictions lose AP at high IoU on small faces."""
    boxes = [one.boxes for one in found.values() if len(one.boxes)]
    return bool(boxes) and all(bool((one == np.round(one)).all()) for one in boxes)


class SubmissionFolder:
    """A `detections.Store`: writes each photo's file as soon as it is known, and reads those of an earlier run."""

    def __init__(self, folder: Path, source: Source, about: Mapping[str, Any], photos: Iterable[Named]) -> None:
        """about: what else decides the predictions, such as the protocol; written to the marker.

        Raises ValueError where the folder holds predictions of something else, or of unknown origin.
        """
        check_names(photos)
        self.folder = folder
        identity = {
            "source": source.name, "long_side": source.long_side, "fingerprint": source.fingerprint, **about,
        }  # fmt: skip
        marker = folder / MARKER
        if marker.is_file():
            try:
                former = json.loads(marker.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{marker} is not JSON: choose another folder") from error
            if former != identity:
                raise ValueError(f"{folder} holds the predictions of another run, see {marker}: choose another folder")
        elif folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty, and no {MARKER} says what it holds: choose another folder")
        else:
            write_json(marker, identity)

    def get(self, name: str) -> Detections | None:
        path = submission_path(self.folder, name)
        return parse_submission(path) if path.is_file() else None

    def put(self, name: str, found: Detections) -> None:
        write_bytes(submission_path(self.folder, name), format_submission(name, found).encode())
