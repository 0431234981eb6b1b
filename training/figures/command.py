"""`python -m training figure ...`: the paper's figures, each a PNG with its numbers as JSON beside it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Annotated

import typer

from training.commands import EngineThreads, told
from training.evaluation.detections import Source, read_split
from training.evaluation.official import read_subsets
from training.evaluation.protocols import FLIP_HELP, PROTOCOL_HELP, InputProtocol, label, open_by_protocol
from training.evaluation.sources import SOURCE_HELP, open_sources
from training.figures import architecture, distribution, front, gains, pictures, precision, roc
from training.figures.drawing import check_out, encode, new_figure, save
from training.files import write_bytes, write_json
from training.models.genotype import describe, load_genotype

figure_app = typer.Typer(
    no_args_is_help=True, help="Draw the paper's figures: a PNG each, with its numbers as JSON beside it."
)

Out = Annotated[Path, typer.Option(help="PNG file; its numbers go into the JSON file of the same name.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda, for a checkpoint.")]


@figure_app.command(name="front")
def front_command(
    results: Annotated[list[Path], typer.Option(help="JSON of `make bench-accuracy`; may be given several times.")],
    out: Out,
    metric: Annotated[str, typer.Option(help="ap50, or ap for AP[.50:.95].")] = "ap50",
) -> None:
    """Figure 1: AP against milliseconds a photo, ours and other detectors."""
    with told(lambda: "stopped"):
        check_out(out, results)
        if metric not in ("ap50", "ap"):
            raise ValueError(f"no metric {metric!r}; there are ap50 and ap")
        chosen: front.Metric = "ap50" if metric == "ap50" else "ap"
        read = front.read_results(results)
        save(front.draw_front(read, chosen), front.front_numbers(read, chosen), out)
        typer.echo(f"wrote {out}")


@figure_app.command(name="distribution")
def distribution_command(
    out: Out,
    wider: Annotated[
        list[str] | None, typer.Option(help="DIR:split in WIDER Face's layout, or its short form, with pictures.")
    ] = None,
    coco: Annotated[list[str] | None, typer.Option(help="Annotation file in COCO's format.")] = None,
    relative: Annotated[
        list[str] | None, typer.Option(help="FILE.npz:split with {split}_wh, {split}_image and {split}_images.")
    ] = None,
) -> None:
    """Figure 2 (b, c): distributions of the relative size of boxes and of their number a picture.

    Each option may be given several times, and NAME=... names its curve:

    --relative "WIDER Face train=../shared/data/wider/relative_boxes.npz:train"
    """
    with told(lambda: "stopped"):
        check_out(out, [Path(spec.rpartition("=")[2]) for spec in coco or []])
        sets = distribution.read_all(wider or [], coco or [], relative or [])
        numbers = distribution.distribution_numbers(sets)
        save(distribution.draw_distribution(sets), numbers, out)
        for row in numbers["rows"]:
            below = ", ".join(f"{value:.1f} % below {mark}" for mark, value in row["percent_of_boxes_below"].items())
            more = row["percent_of_pictures_with_more_boxes_than"]
            above = ", ".join(f"{value:.1f} % more than {mark}" for mark, value in more.items())
            typer.echo(f"{row['name']}: {row['boxes']} boxes, {below}; {row['pictures']} pictures, {above}")
        typer.echo(f"wrote {out}")


@figure_app.command(name="precision-recall")
def precision_recall_command(
    source: Annotated[list[str], typer.Argument(help=f"{SOURCE_HELP} Several may be given.")],
    out: Out,
    data: Annotated[Path, typer.Option(help="Folder in WIDER Face's layout, or its short form.")] = Path(
        "../shared/data/faces"
    ),
    split: Annotated[str, typer.Option(help="Split to evaluate on: dev, or val of WIDER Face.")] = "dev",
    long_side: Annotated[
        list[int] | None, typer.Option(help="Long side that photos are resized to; may be given several times. [640]")
    ] = None,
    protocol: Annotated[InputProtocol, typer.Option(help=PROTOCOL_HELP)] = InputProtocol.VGA,
    flip: Annotated[bool, typer.Option("--flip", help=FLIP_HELP)] = False,
    official: Annotated[
        Path | None, typer.Option(help="Folder of WIDER's wider_{easy,medium,hard}_val.mat: a panel each, for val.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Take that many evenly spaced photos; 0 takes all.")] = 0,
    threads: EngineThreads = 0,
    device: Device = None,
    fresh: Annotated[bool, typer.Option(help="Measure anew what the JSON beside the picture has.")] = False,
) -> None:
    """Figure 7: precision against recall by the WIDER protocol at IoU 0.5.

    Curves that the JSON beside the picture has from an earlier run of the same detector on the same photos are drawn
    again without measuring.
    """
    with told(lambda: "stopped; the same command goes on with the detectors that are not done"):
        numbers = check_out(out)
        new_figure(1, 1)  # rather now than after minutes of measuring
        photos, images = read_split(data, split, limit or None)
        subsets = read_subsets(official) if official is not None else {}
        sources = [
            one
            for where in source
            for one in open_by_protocol(where, protocol, long_side, flip=flip, threads=threads, device=device)
        ]
        head = precision.Curves(data=data.name, split=split, photos=len(photos), protocol=label(protocol, flip))
        curves = precision.measure_curves(sources, photos, images, subsets, head, numbers, fresh=fresh)
        write_bytes(out, encode(precision.draw_precision_recall(curves)))
        for row in curves.rows:
            typer.echo(f"{row.source} at {row.long_side or 'own size'}, {row.subset}: AP.50 {row.ap:.4f}")
        typer.echo(f"wrote {out}")


@figure_app.command(name="roc")
def roc_command(
    results: Annotated[list[Path], typer.Argument(help="JSON files of the FDDB evaluation.")],
    out: Out,
    most: Annotated[float, typer.Option(min=1, max=1e9, help="False positives at the right end of the axis.")] = 2000,
) -> None:
    """Figure 7: FDDB's discrete and continuous ROC curves."""
    with told(lambda: "stopped"):
        check_out(out, results)
        rows = roc.read_rocs(results)
        save(roc.draw_roc(rows, most), roc.roc_numbers(rows), out)
        typer.echo(f"wrote {out}")


@figure_app.command(name="boxes")
def boxes_command(
    source: Annotated[str, typer.Argument(help=f"{SOURCE_HELP} One variant of it.")],
    images: Annotated[list[Path], typer.Option(help="Pictures, or folders of them; may be given several times.")],
    out: Annotated[
        Path,
        typer.Option(help="PNG file; the boxes go into the JSON file beside it. Do not publish photos of people."),
    ],
    score: Annotated[float, typer.Option(min=0, max=1, help="Boxes of a confidence above this are red.")] = 0.8,
    least: Annotated[float, typer.Option(min=0, max=1, help="Boxes under this confidence are not drawn.")] = 0.4,
    columns: Annotated[int, typer.Option(min=1, max=12, help="Pictures in a row.")] = 4,
    limit: Annotated[int, typer.Option(min=0, help="Take that many evenly spaced pictures; 0 takes all.")] = 24,
    long_side: Annotated[int, typer.Option(min=1, help="Long side that pictures are resized to, pixels.")] = 640,
    threads: EngineThreads = 0,
    device: Device = None,
) -> None:
    """Figure 8: pictures with the boxes found in them, red above a confidence of 0.8."""
    with told(lambda: "stopped"):
        paths = pictures.find_pictures(images, limit)
        check_out(out, paths)
        one = _only(open_sources(source, long_side, threads, device), source)
        shown = pictures.detect_pictures(one, paths, columns, least)
        buffer = io.BytesIO()
        title = f"{one.name} at long side {one.long_side}: {len(shown)} pictures"
        pictures.draw_pictures(shown, columns, score, least, title).save(buffer, "PNG")
        write_bytes(out, buffer.getvalue())
        write_json(out.with_suffix(".json"), pictures.pictures_numbers(shown, one, score, least))
        typer.echo(f"wrote {out}")


def _only(sources: list[Source], where: str) -> Source:
    if len(sources) > 1:
        names = ", ".join(source.name for source in sources)
        raise ValueError(f"{where} holds {names}; name the file of one of them")
    return sources[0]


@figure_app.command(name="gains")
def gains_command(
    tables: Annotated[list[Path], typer.Argument(help="JSON files of the tables.")],
    out: Out,
) -> None:
    """Figure 2 (a): what each row of a table gains over the first, beside the paper's gain on WIDER's hard subset."""
    with told(lambda: "stopped"):
        check_out(out, tables)
        read = gains.read_gains(tables)
        save(gains.draw_gains(read), gains.gains_numbers(read), out)
        typer.echo(f"wrote {out}")


@figure_app.command(name="genotype")
def genotype_command(
    genotype: Annotated[Path, typer.Argument(help="A genotype, such as training/genotypes/autofae.json.")], out: Out
) -> None:
    """Figure 6: an architecture that was found, as a graph."""
    with told(lambda: "stopped"):
        check_out(out, [genotype])
        found = load_genotype(genotype)
        save(architecture.draw_genotype(found), found.model_dump(), out)
        typer.echo(describe(found))
        typer.echo(f"wrote {out}")


@figure_app.command(name="search")
def search_command(
    history: Annotated[Path, typer.Argument(help="architecture.jsonl of one seed of a search.")], out: Out
) -> None:
    """How alpha, beta, kappa and gamma moved while a search ran."""
    with told(lambda: "stopped"):
        check_out(out, [history])
        lines = architecture.read_history(history)
        save(architecture.draw_history(lines), {"lines": lines}, out)
        typer.echo(f"wrote {out}")
