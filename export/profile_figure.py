"""Accuracy against latency: our AP.50 from the manifests, other detectors' from `make bench-accuracy`, all times from
one profile."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.profile import PeerRow, compared_sizes
from service.repository.store import Repository
from training.figures.drawing import encode, read_json
from training.figures.front import Machine, Point, Results, draw_front


@dataclass(frozen=True)
class Known:
    """AP.50 and AP of other detectors on one split, by name and long side."""

    data: str
    split: str
    ap: dict[tuple[str, int], tuple[float, float]]


def known_accuracy(path: Path) -> Known:
    """From the JSON of `make bench-accuracy`. Raises FileNotFoundError, and ValueError that names what is wrong."""
    results = read_json(path, Results, "the JSON of `make bench-accuracy`")
    rows = {(row.detector, row.long_side): (row.ap50, row.ap) for row in results.rows if not row.ours}
    return Known(results.data, results.split, rows)


def our_points(repository: Repository, rows: Sequence[dict[str, Any]], known: Known | None) -> tuple[str, list[Point]]:
    """(data set and split, points) of our variants at batch 1 and at the compared size of each long side.

    The photos are those of `known`, or the first that a manifest lists; AP on others is left out, since it cannot share
    a figure. rows: of the profile.
    """
    accuracy = {
        (row.variant, row.dataset, row.split, row.long_side): row
        for variant in repository.variants
        for row in variant.manifest.accuracy
    }
    first = next(((key[1], key[2]) for key in accuracy), ("", ""))
    data, split = (known.data, known.split) if known else first
    sizes = {variant.name: compared_sizes(variant.manifest.input_sizes) for variant in repository.variants}
    points = []
    for row in rows:
        size = next((one for one in sizes[row["variant"]] if one.width == row["width"]), None)
        if row["batch"] != 1 or size is None or size.height != row["height"]:
            continue
        found = accuracy.get((row["variant"], data, split, size.long_side))
        if found is not None:
            points.append(
                Point(detector=row["variant"], ours=True, long_side=size.long_side, ap50=found.ap50, ap=found.ap,
                      ms_median=row["p50_ms"])
            )  # fmt: skip
    return f"{data} {split}", points


def peer_points(rows: Sequence[PeerRow], known: Known | None) -> list[Point]:
    """Points of the other detectors whose AP is known. A file `scrfd_500m.onnx` is found as `scrfd-500m`, too."""
    points = []
    for row in rows:
        found = ap_of(row, known)
        if found is not None:
            points.append(
                Point(detector=row.detector, ours=False, long_side=row.long_side, ap50=found[0], ap=found[1],
                      ms_median=row.p50_ms)
            )  # fmt: skip
    return points


def ap_of(row: PeerRow, known: Known | None) -> tuple[float, float] | None:
    """(AP.50, AP) of another detector at its long side, or None where it was not measured."""
    if known is None:
        return None
    names = (row.detector, row.detector.replace("_", "-"), row.detector.partition("_")[0])
    return next((known.ap[name, row.long_side] for name in names if (name, row.long_side) in known.ap), None)


def profile_png(photos: str, points: Sequence[Point], hardware: str, threads: int) -> bytes:
    """A PNG of AP.50 against p50 (log scale), with the front that nothing faster equals.

    photos: name of data set and split. Raises ValueError where there is no point, or no matplotlib.
    """
    if not points:
        raise ValueError(f"no figure: nothing that was timed has AP on {photos or 'any photos'} in its manifest")
    data, _, split = photos.rpartition(" ")
    results = Results(
        data=data, split=split, photos=0, threads=threads or os.cpu_count() or 1, hardware=Machine(cpu=hardware),
        rows=list(points),
    )  # fmt: skip
    figure = draw_front([results], "ap50")
    axes = figure.axes[0]
    axes.set_title(f"p50 of one photo at 4:3, AP.50 of all photos; {hardware}", fontsize=9)
    return encode(figure)
