"""`python -m training errors`: sheets to look at, and lists, of what a detector gets wrong on an annotated split."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from training.commands import EngineThreads, told
from training.data.cache import load_picture
from training.data.wider import PhotoAnnotation
from training.evaluation.detections import Pixels, Run, read_split, run_source, title_of
from training.evaluation.errors import (
    HIT_IOU,
    LOOSE_IOU,
    Cause,
    Error,
    Kind,
    Outcome,
    Reason,
    Side,
    Suspect,
    find_errors,
    find_suspects,
)
from training.evaluation.sheets import ANNOTATED, DETECTED, IGNORED, Layer, Tile, markdown_table
from training.evaluation.sheets import write_sheets as write_pages
from training.evaluation.sources import SOURCE_HELP, open_sources
from training.evaluation.wider import SIZE_BUCKETS
from training.files import check_writable, write_bytes, write_json

GROUPS = {"by_folder": "folder", "by_size": "bucket", "by_position": "position"}


@dataclass
class Tally:
    """Counts of one group. missed and false_positives: by kind."""

    faces: int = 0
    missed: Counter[Kind] = field(default_factory=Counter)
    false_positives: Counter[Kind] = field(default_factory=Counter)

    def content(self) -> dict[str, Any]:
        return {"faces": self.faces, "missed": self.missed, "false_positives": self.false_positives}


@dataclass(frozen=True)
class Totals:
    photos: int
    faces: int
    missed: int
    detections: int
    on_ignored: int
    false_positives: int


def errors_command(
    source: Annotated[str, typer.Argument(help=SOURCE_HELP)],
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for sheets and lists; one folder more for each of several variants. It must lie outside "
            "every git work tree, since the sheets show photos that must not be published."
        ),
    ],
    data: Annotated[Path, typer.Option(help="Folder in WIDER Face's layout, or its short form.")] = Path(
        "../shared/data/faces"
    ),
    split: Annotated[str, typer.Option(help="Annotated split: dev, or val of WIDER Face.")] = "dev",
    long_side: Annotated[int, typer.Option(min=1, help="Long side that photos are resized to, pixels.")] = 640,
    score: Annotated[float, typer.Option(min=0.0, max=1.0, help="Detections under this score are not made.")] = 0.4,
    limit: Annotated[int, typer.Option(min=0, help="Take that many evenly spaced photos; 0 takes all.")] = 0,
    top: Annotated[int, typer.Option(min=1, help="Tiles of each kind, 48 on a page.")] = 60,
    threads: EngineThreads = 0,
) -> None:
    """Show what a detector gets wrong: missed faces, false positives, loose boxes, and labels that look wrong.

    Writes contact sheets, errors.json, label-suspects.json and .md, and summary.md. Matching is the WIDER protocol's
    at IoU 0.5.
    """
    with told(lambda: "stopped"):
        check_out(out)
        photos, images = read_split(data, split, limit or None)
        sources = open_sources(source, long_side, threads)
        for one in sources:
            run = run_source(one, photos, images)
            folder = out if len(sources) == 1 else out / one.name
            folder.mkdir(parents=True, exist_ok=True)
            head = {"source": one.name, "long_side": one.long_side, "data": data.name, "split": split, "score": score}
            analyse(head, photos, run, folder, lambda name: load_picture(images / name), top)
            typer.echo(f"{title_of(one)}: see {folder / 'summary.md'}")


def check_out(out: Path) -> None:
    """Raises ValueError where sheets of unpublished photos could be committed by mistake, or where no folder can be."""
    place = out.resolve()
    project = Path(__file__).resolve().parents[2]
    for folder in (place, *place.parents):
        if folder == project or (folder / ".git").exists():
            raise ValueError(
                f"{out} lies inside the work tree {folder}; the sheets show photos that must not be published, "
                "so choose a folder outside it"
            )
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file; --out needs a folder")
    check_writable(out / "summary.md")


def analyse(
    head: dict[str, Any],
    photos: Sequence[PhotoAnnotation],
    run: Run,
    folder: Path,
    load: Callable[[str], Pixels],
    top: int,
) -> None:
    """Write everything about one run. head: `source`, `long_side`, `data`, `split` and `score`; load: takes a photo's
    name, gives uint8 [h, w, 3] RGB; top: tiles of each kind."""
    outcomes = [find_errors(photo, run.found[photo.name], run.sizes[photo.name], head["score"]) for photo in photos]
    suspects = [one for photo in photos for one in find_suspects(photo, run.found[photo.name], run.sizes[photo.name])]
    suspects.sort(key=lambda one: (one.photo, one.reason, one.box))
    write_all_sheets(outcomes, suspects, photos, run, folder, load, top, head["score"])
    write_json(folder / "label-suspects.json", head | suspects_content(suspects, outcomes))
    write_bytes(folder / "label-suspects.md", suspects_text(suspects).encode())
    write_json(folder / "errors.json", head | errors_content(outcomes))
    write_bytes(folder / "summary.md", summary_text(head, outcomes, suspects).encode())


def select(outcomes: Iterable[Outcome], score: float) -> dict[str, tuple[str, list[Error]]]:
    """The sheets: title and errors by file name, the worst first."""
    every = [error for outcome in outcomes for error in outcome.errors]
    # A face that a neighbour's detection reaches was not hit, but nobody would call it unseen.
    misses = [e for e in every if e.kind is Kind.MISS and not (e.cause is Cause.NEIGHBOUR and e.iou >= HIT_IOU)]
    weak = [e for e in misses if e.score is not None and e.score < score and e.iou >= LOOSE_IOU]
    found = [e for e in every if e.side is Side.DETECTION]
    background = [e for e in found if e.kind in (Kind.BACKGROUND, Kind.UNLABELLED)]
    loose = [e for e in found if e.kind is Kind.LOCALISATION]
    twice = [e for e in found if e.kind is Kind.DUPLICATE]

    def surest(error: Error) -> float:
        return -(error.score or 0.0)

    return {
        "misses-largest": ("Misses, largest first", sorted(misses, key=lambda e: -e.size)),
        "misses-lowest-score": (
            "Misses with an overlapping detection under the threshold, lowest score first",
            sorted(weak, key=lambda e: e.score or 0.0),
        ),
        "false-positives": ("False positives, surest first", sorted(background, key=surest)),
        "loose-boxes": ("Loose boxes: IoU 0.3 to 0.5 on a missed face, surest first", sorted(loose, key=surest)),
        "duplicates": ("Second boxes on a found face, surest first", sorted(twice, key=surest)),
    }


def write_all_sheets(
    outcomes: Sequence[Outcome],
    suspects: Sequence[Suspect],
    photos: Sequence[PhotoAnnotation],
    run: Run,
    folder: Path,
    load: Callable[[str], Pixels],
    top: int,
    score: float,
) -> None:
    by_name = {photo.name: photo for photo in photos}
    keep = lru_cache(maxsize=32)(load)

    def layers(name: str) -> tuple[Layer, ...]:
        photo, found = by_name[name], run.found[name]
        boxes = photo.boxes
        return (
            Layer(IGNORED, boxes[photo.ignore]),
            Layer(ANNOTATED, boxes[~photo.ignore]),
            Layer(DETECTED, found.boxes[found.scores >= score]),
        )

    for file, (title, errors) in select(outcomes, score).items():
        write_pages(folder, file, title, [error_tile(e, layers(e.photo)) for e in errors[:top]], keep)
    for file, reasons in {
        "suspects-unlabelled": (Reason.UNLABELLED,),
        "suspects-size": (Reason.LARGE, Reason.SMALL, Reason.SHIFTED),
        "suspects-boxes": (Reason.TWICE, Reason.DEGENERATE),
    }.items():
        chosen = sorted((one for one in suspects if one.reason in reasons), key=lambda one: -(one.score or 0.0))
        title = "Suspected labels: " + ", ".join(reasons)
        write_pages(folder, file, title, [suspect_tile(one, layers(one.photo)) for one in chosen[:top]], keep)


def error_tile(error: Error, layers: tuple[Layer, ...]) -> Tile:
    colours = (ANNOTATED, DETECTED) if error.side is Side.FACE else (DETECTED, ANNOTATED)
    numbers = [f"{error.pixels:.0f} px", caption_score(error.score), f"IoU {error.iou:.2f}"]
    # The counterpart is drawn as it is: an ignore region, or a detection under the threshold, has no thick line.
    other = () if error.other is None or error.side is Side.DETECTION else (Layer(colours[1], np.array([error.other])),)
    focus = Layer(colours[0], np.array([error.box]), 3)
    return Tile(error.photo, error.box, (*layers, *other, focus), (error.photo, "  ".join(filter(None, numbers))))


def suspect_tile(suspect: Suspect, layers: tuple[Layer, ...]) -> Tile:
    colour = DETECTED if suspect.reason is Reason.UNLABELLED else ANNOTATED
    side = max(suspect.box[2] - suspect.box[0], suspect.box[3] - suspect.box[1])
    iou = "" if suspect.iou is None else f"IoU {suspect.iou:.2f}"
    numbers = [f"{side:.0f} px", caption_score(suspect.score), iou, suspect.note]
    focus = Layer(colour, np.array([suspect.box]), 3)
    return Tile(suspect.photo, suspect.box, (*layers, focus), (suspect.photo, "  ".join(filter(None, numbers))))


def caption_score(score: float | None) -> str:
    return "" if score is None else f"score {score:.2f}"


def totals(outcomes: Iterable[Outcome]) -> Totals:
    seen = list(outcomes)
    errors = [error for outcome in seen for error in outcome.errors]
    return Totals(
        photos=len(seen),
        faces=sum(len(outcome.faces) for outcome in seen),
        missed=sum(error.side is Side.FACE for error in errors),
        detections=sum(outcome.detections for outcome in seen),
        on_ignored=sum(outcome.on_ignored for outcome in seen),
        false_positives=sum(error.side is Side.DETECTION for error in errors),
    )


def tally(outcomes: Iterable[Outcome], by: str) -> dict[str, Tally]:
    """Counts by one field of `Place`; groups in order of name, sizes from small to large."""
    groups: dict[str, Tally] = defaultdict(Tally)
    for outcome in outcomes:
        for place in outcome.faces:
            groups[getattr(place, by)].faces += 1
        for error in outcome.errors:
            group = groups[getattr(error.place, by)]
            (group.missed if error.side is Side.FACE else group.false_positives)[error.kind] += 1
    order = [bucket.name for bucket in SIZE_BUCKETS] if by == "bucket" else sorted(groups)
    return {name: groups[name] for name in order if name in groups}


def modes(outcomes: Iterable[Outcome], side: Side) -> dict[str, int]:
    """How often each kind and cause occurs, the most frequent first."""
    counted = Counter(error.mode for outcome in outcomes for error in outcome.errors if error.side is side)
    return dict(counted.most_common())


def box_ratios(outcomes: Iterable[Outcome]) -> dict[str, float]:
    """Median of `Outcome.ratios` by folder: under 1 where a source's annotators draw larger boxes than the detector."""
    ratios: dict[str, list[float]] = defaultdict(list)
    for outcome in outcomes:
        for place in outcome.faces[:1]:  # all faces of a photo lie in one folder
            ratios[place.folder] += outcome.ratios
    return {folder: float(np.median(values)) for folder, values in sorted(ratios.items()) if values}


def errors_content(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    groups = {key: {name: one.content() for name, one in tally(outcomes, by).items()} for key, by in GROUPS.items()}
    by_mode = {"missed": modes(outcomes, Side.FACE), "false_positives": modes(outcomes, Side.DETECTION)}
    rows = [error_row(error) for outcome in outcomes for error in outcome.errors]
    return {"totals": asdict(totals(outcomes)), **groups, "by_mode": by_mode, "errors": rows}


def error_row(error: Error) -> dict[str, Any]:
    row = rounded(asdict(error))
    return row | {"place": error.place._asdict()}


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Numbers as short as they are true: boxes to a hundredth of a pixel, the others to four places."""
    short = dict(row)
    for key, value in row.items():
        if isinstance(value, float):
            short[key] = round(value, 4)
        elif key in ("box", "other") and value is not None:
            short[key] = [round(number, 2) for number in value]
    return short


def suspects_content(suspects: Sequence[Suspect], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    photos: dict[str, list[dict[str, Any]]] = {}
    for suspect in suspects:
        row = rounded(asdict(suspect))
        photos.setdefault(row.pop("photo"), []).append(row)
    counts = Counter(suspect.reason for suspect in suspects)
    return {"counts": counts, "detected_over_annotated_side": box_ratios(outcomes), "photos": photos}


def suspects_text(suspects: Sequence[Suspect]) -> str:
    rows = []
    for one in suspects:
        suspicion = one.reason + (f" ({one.note})" if one.note else "")
        box = " ".join(f"{value:.0f}" for value in one.box)
        rows.append((one.photo, suspicion, number(one.score), number(one.iou), box))
    return "# Suspected label errors\n\n" + markdown_table(("photo", "suspicion", "score", "IoU", "box"), rows)


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def summary_text(head: dict[str, Any], outcomes: Sequence[Outcome], suspects: Sequence[Suspect]) -> str:
    all_of = totals(outcomes)
    found = all_of.faces - all_of.missed
    made = all_of.detections - all_of.on_ignored
    lines = [
        f"# Errors of {head['source']} at {head['long_side']} on {head['split']}, score {head['score']:g}\n",
        f"{all_of.photos} photos, {all_of.faces} faces: {found} found, {all_of.missed} missed "
        f"(recall {share(found, all_of.faces)}). {all_of.detections} detections, of which {all_of.on_ignored} lie on "
        f"ignore regions and {all_of.false_positives} are false positives (precision {share(found, made)}).\n",
    ]
    for title, by in (("Source folder", "folder"), ("Size", "bucket"), ("Position", "position")):
        lines += [f"## {title}\n", group_table(title.lower(), tally(outcomes, by))]
    for title, side in (("Missed faces", Side.FACE), ("False positives", Side.DETECTION)):
        lines += [f"## {title} by failure mode\n", markdown_table(("mode", "count"), modes(outcomes, side).items())]
    counts = Counter((suspect.photo.split("/")[0], suspect.reason) for suspect in suspects)
    ratios = box_ratios(outcomes)
    rows = [
        (name, *(counts[name, reason] for reason in Reason), number(ratios.get(name)))
        for name in tally(outcomes, "folder")
    ]
    lines += [
        "## Suspected label errors\n",
        "The last column is the median side of a detection over that of its annotated box: under 1 where the labels "
        "are larger than what the detector was taught.\n",
        markdown_table(("source folder", *Reason, "side"), rows),
    ]
    return "\n".join(lines)


def group_table(title: str, groups: dict[str, Tally]) -> str:
    wrong = (Kind.BACKGROUND, Kind.DUPLICATE, Kind.LOCALISATION, Kind.UNLABELLED)
    rows = []
    for name, one in groups.items():
        missed = one.missed.total()
        cells = [one.faces, missed, share(missed, one.faces), one.missed[Kind.LOCALISATION]]
        rows.append((name, *cells, one.false_positives.total(), *(one.false_positives[kind] for kind in wrong)))
    return markdown_table((title, "faces", "missed", "share", "of these loose", "false positives", *wrong), rows)


def share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"
