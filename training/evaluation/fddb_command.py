"""`python -m training evaluate-fddb`: FDDB's discrete and continuous ROC of a detector."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from training.commands import EngineThreads, told
from training.evaluation.command import SUBMISSION_HELP, median_ms, stopped, store_of, submission_folders
from training.evaluation.detections import run_source
from training.evaluation.ellipses import EllipseFit
from training.evaluation.fddb import READ_AT, FddbCurves, evaluate_fddb, read_folds
from training.evaluation.protocols import FLIP_HELP, PROTOCOL_HELP, InputProtocol, label, open_by_protocol
from training.evaluation.sources import SOURCE_HELP
from training.files import check_writable, write_json

HEADER = f"{'source':16} {'side':>5} {'regions':10} " + " ".join(
    f"{kind + '@' + str(count):>10}" for kind in ("disc", "cont") for count in READ_AT
)


def evaluate_fddb_command(
    source: Annotated[str, typer.Argument(help=SOURCE_HELP)],
    data: Annotated[Path, typer.Option(help="FDDB's folder: FDDB-folds with the lists, originalPics with the photos.")],
    long_side: Annotated[
        list[int] | None, typer.Option(help="Long side that photos are resized to; may be given several times. [640]")
    ] = None,
    protocol: Annotated[InputProtocol, typer.Option(help=PROTOCOL_HELP)] = InputProtocol.VGA,
    flip: Annotated[bool, typer.Option("--flip", help=FLIP_HELP)] = False,
    out: Annotated[Path | None, typer.Option(help="Write scores and curves to this JSON file.")] = None,
    submission: Annotated[Path | None, typer.Option(help=SUBMISSION_HELP)] = None,
    limit: Annotated[int, typer.Option(min=0, help="Take that many evenly spaced photos; 0 takes all.")] = 0,
    threads: EngineThreads = 0,
    device: Annotated[str | None, typer.Option(help="cpu or cuda, for a checkpoint.")] = None,
) -> None:
    """Measure FDDB's true-positive rates, discrete and continuous, at 1000 and 2000 false positives.

    Each is given twice: for the boxes as they are, and for upright ellipses made of them,
    since FDDB's faces are ellipses around the whole head.
    """
    with told(lambda: stopped(submission)):
        check_writable(out)
        photos, images = read_folds(data)
        if 0 < limit < len(photos):
            photos = [photos[int(index)] for index in np.linspace(0, len(photos) - 1, limit)]
        sources = open_by_protocol(source, protocol, long_side, flip=flip, threads=threads, device=device)
        about = {"protocol": str(protocol), "flip": flip}
        rows: list[dict[str, Any]] = []
        typer.echo(f"protocol: {label(protocol, flip)}, {len(photos)} photos")
        typer.echo(HEADER)
        for one, folder in zip(sources, submission_folders(submission, sources), strict=True):
            run = run_source(one, photos, images, store=store_of(folder, one, about, photos))
            for regions, fit in (("boxes", None), ("ellipses", EllipseFit())):
                curves = evaluate_fddb(run.found, photos, fit)
                typer.echo(f"{one.name:16} {one.long_side or 'own':>5} {regions:10} {rates(curves)}")
                rows.append(
                    {
                        "source": one.name, "long_side": one.long_side, "input_protocol": str(protocol), "flip": flip,
                        "regions": regions, "ms": median_ms(run), **curves.to_dict(),
                    }
                )  # fmt: skip
            if out is not None:
                write_json(out, {"data": data.name, "input_protocol": str(protocol), "flip": flip, "rows": rows})


def rates(curves: FddbCurves) -> str:
    """The four rates, under `HEADER`."""
    discrete, continuous = zip(*(curves.rate_at(count) for count in READ_AT), strict=True)
    return " ".join(f"{rate:10.4f}" for rate in (*discrete, *continuous))
