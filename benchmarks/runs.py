"""Detections and timings of one detector on one split, kept on disk, so that an interrupted benchmark goes on where
it stopped."""

from __future__ import annotations

import datetime
import hashlib
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from benchmarks.hardware import cpu_model
from service.engines.base import Detections
from training.data.wider import PhotoAnnotation
from training.evaluation.detections import Run, Source, run_source


@dataclass(frozen=True)
class Measured:
    """A run, when it was made, the load of the machine then, and whether it came from the disk."""

    run: Run
    date: str
    load: float
    cached: bool


def split_fingerprint(photos: Sequence[PhotoAnnotation], images: Path) -> str:
    """Changes with the names or sizes of the picture files."""
    digest = hashlib.sha256()
    for photo in photos:
        path = images / photo.name
        digest.update(f"{photo.name} {path.stat().st_size if path.is_file() else -1}\n".encode())
    return digest.hexdigest()


def measure(
    source: Source, photos: Sequence[PhotoAnnotation], images: Path, cache: Path, threads: int, *, fresh: bool = False
) -> Measured:
    """Take the run from `cache`, or make it and keep it there.

    A run is found again where detector, long side, pictures, threads and processor are the same; `fresh` makes it anew.
    """
    identity = (
        source.name, source.fingerprint, str(source.long_side), split_fingerprint(photos, images), str(threads),
        cpu_model(),
    )  # fmt: skip
    key = hashlib.sha256("\n".join(identity).encode()).hexdigest()[:16]
    path = cache / f"{source.name}-{source.long_side}-{key}.npz"
    if not fresh and path.is_file():
        try:
            return _load(path)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error):
            pass  # damaged: it is measured again
    load = os.getloadavg()[0]
    measured = Measured(
        run_source(source, photos, images),
        datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        round(load, 2),
        cached=False,
    )
    _save(path, measured)
    return measured


def _save(path: Path, measured: Measured) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    run = measured.run
    found = list(run.found.values())
    partial = path.with_name(f"{path.stem}.{os.getpid()}.tmp")
    with partial.open("wb") as file:
        np.savez_compressed(
            file,
            names=np.array(list(run.found)),
            counts=np.array([len(one.scores) for one in found], dtype=np.int64),
            boxes=np.concatenate([np.zeros((0, 4), np.float32), *(one.boxes for one in found)]),
            scores=np.concatenate([np.zeros(0, np.float32), *(one.scores for one in found)]),
            sizes=np.array([run.sizes[name] for name in run.found], dtype=np.int64).reshape(-1, 2),
            wall=np.array(run.wall_seconds),
            cpu=np.array(run.cpu_seconds),
            date=np.array(measured.date),
            load=np.array(measured.load),
        )
    partial.replace(path)


def _load(path: Path) -> Measured:
    with np.load(path) as saved:
        names = [str(name) for name in saved["names"]]
        cuts = np.cumsum(saved["counts"])[:-1]
        boxes, scores = np.split(saved["boxes"], cuts), np.split(saved["scores"], cuts)
        run = Run(
            found={name: Detections(b, s) for name, b, s in zip(names, boxes, scores, strict=True)},
            sizes={name: (int(w), int(h)) for name, (w, h) in zip(names, saved["sizes"], strict=True)},
            wall_seconds=saved["wall"].tolist(),
            cpu_seconds=saved["cpu"].tolist(),
        )
        return Measured(run, str(saved["date"]), float(saved["load"]), cached=True)
