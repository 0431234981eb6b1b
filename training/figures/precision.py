"""Figure 7, WIDER Face's side: precision against recall by the protocol of `training.evaluation.wider`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ValidationError

from training.data.wider import PhotoAnnotation
from training.evaluation.detections import Source, run_source
from training.evaluation.wider import Floats, Found, average_precision, precision_recall
from training.figures.drawing import line_style, new_figure, style
from training.files import write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Curve(BaseModel):
    """One detector on one set of faces. subset: `all`, or an official subset; long_side: pixels, 0 for the pictures'
    own sizes; key: changes with whatever may change
    the curve; precision, recall: at the protocol's thresholds, in 0..1; ap: at `iou`, in 0..1."""

    source: str
    long_side: int
    subset: str
    key: str
    iou: float
    faces: int
    ap: float
    recall: list[float]
    precision: list[float]


class Curves(BaseModel):
    """protocol: at which sizes the detectors saw the photos, such as `vga`."""

    data: str
    split: str
    photos: int
    protocol: str
    rows: list[Curve] = []


def measure_curves(
    sources: Sequence[Source],
    photos: Sequence[PhotoAnnotation],
    images: Path,
    subsets: Mapping[str, Sequence[PhotoAnnotation]],
    head: Curves,
    saved: Path,
    *,
    fresh: bool = False,
) -> Curves:
    """Run every source and write `saved` after each. A curve found there whose source and photos are the same is not
    measured again, unless `fresh`.

    subsets: official subsets by name, cut down to the photos that are run; empty takes the annotations of `photos`.
    head: what the curves are of, without any yet. Raises ValueError where a subset lists none of the photos.
    """
    names = {photo.name for photo in photos}
    panels = {name: [one for one in rows if one.name in names] for name, rows in subsets.items()}
    panels = panels or {"all": list(photos)}
    for name, rows in panels.items():
        if not rows:
            raise ValueError(f"the official subset {name} lists none of the photos of {head.data} {head.split}")
    known = {} if fresh else {(row.key, row.subset): row for row in _saved_rows(saved)}
    curves = head.model_copy(update={"rows": []})
    for source in sources:
        keys = {name: _key(source, photos, rows) for name, rows in panels.items()}
        before = [known.get((key, name)) for name, key in keys.items()]
        done = [row for row in before if row is not None]
        if len(done) < len(panels):
            run = run_source(source, photos, images, warm_up=0)
            done = [_curve(source, keys[name], name, run.found, rows) for name, rows in panels.items()]
        curves.rows += [row.model_copy(update={"source": source.name}) for row in done]
        for row in done:
            known.pop((row.key, row.subset), None)
        # Curves of an earlier run stay in the file until this one is whole.
        write_json(saved, curves.model_copy(update={"rows": [*curves.rows, *known.values()]}).model_dump())
    write_json(saved, curves.model_dump())
    return curves


def _curve(
    source: Source, key: str, subset: str, found: Mapping[str, Found], photos: Sequence[PhotoAnnotation]
) -> Curve:
    recall, precision = precision_recall(found, photos)
    return Curve(
        source=source.name,
        long_side=source.long_side,
        subset=subset,
        key=key,
        iou=0.5,
        faces=sum(int((~photo.ignore).sum()) for photo in photos),
        ap=average_precision(recall, precision),
        recall=recall.tolist(),
        precision=precision.tolist(),
    )


def _key(source: Source, run_on: Sequence[PhotoAnnotation], scored_on: Sequence[PhotoAnnotation]) -> str:
    """Hash of the detector, its input size, and names, boxes and ignore flags of all photos."""
    digest = hashlib.sha256(f"{source.fingerprint} {source.long_side}".encode())
    for photos in (run_on, scored_on):
        for photo in photos:
            digest.update(photo.name.encode() + photo.boxes.tobytes() + photo.ignore.tobytes())
    return digest.hexdigest()


def _saved_rows(path: Path) -> list[Curve]:
    """Curves of an earlier run; none where there is no such file, or it is something else."""
    try:
        return Curves.model_validate_json(path.read_bytes()).rows
    except (OSError, ValidationError):
        return []


def draw_precision_recall(curves: Curves) -> Figure:
    """A panel a subset, a curve a detector, the best AP first in the legend."""
    subsets = list(dict.fromkeys(row.subset for row in curves.rows))
    names = list(dict.fromkeys((row.source, row.long_side) for row in curves.rows))
    figure = new_figure(max(6.2, 4.4 * len(subsets)), 4.8)
    panels = figure.subplots(1, len(subsets), squeeze=False)[0]
    for panel, (axes, subset) in enumerate(zip(panels, subsets, strict=True)):
        rows = sorted((row for row in curves.rows if row.subset == subset), key=lambda row: -row.ap)
        for row in rows:
            number = names.index((row.source, row.long_side))
            recall, precision = drawn_part(np.array(row.recall), np.array(row.precision))
            label = f"{row.source} at {row.long_side or 'own size'}: {row.ap:.3f}"
            axes.plot(recall, precision, label=label, **line_style(number))
        what = f"{curves.data} {curves.split}" + ("" if subset == "all" else f", {subset}")
        about = f"{what}: {curves.photos} photos, {rows[0].faces} faces\nprotocol: {curves.protocol}"
        style(axes, "recall", "" if panel else "precision", about)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.01)
        axes.legend(loc="lower left", fontsize=9, title="AP.50", title_fontsize=9, alignment="left")
    return figure


def drawn_part(recall: Floats, precision: Floats) -> tuple[Floats, Floats]:
    """Without the first thresholds, which no detection passes: 0/0 is no precision. [n], [n] -> [k], [k]."""
    passed = np.flatnonzero((recall > 0) | (precision > 0))
    start = passed[0] if passed.size else len(recall)
    return recall[start:], precision[start:]
