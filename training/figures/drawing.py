"""What all figures share: the canvas, the axes' style, reading inputs, and writing a PNG with its numbers beside it.

matplotlib comes with the `bench` extra and is imported when something is drawn. Figures are objects on Agg canvases,
so that nothing of pyplot's global state is touched.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from training.files import check_writable, write_bytes, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Model = TypeVar("Model", bound=BaseModel)

OURS = ("#0b6e4f", "#2f9e73", "#7bc8a4", "#145a86", "#3f8fc4")
LINES = ("#145a86", "#d9822b", "#0b6e4f", "#c2452d", "#7a4fa3", "#5b5b5b", "#c79a00", "#3f8fc4")
DASHES = ("-", "--", "-.", ":")
DPI = 150


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches. Raises ValueError where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError(
            "figures need matplotlib, which comes with the `bench` extra: pip install -e '.[training,bench]'"
        ) from None
    figure = Figure(figsize=(width, height), dpi=DPI)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.08)
    FigureCanvasAgg(figure)
    return figure


def style(axes: Axes, x: str, y: str, title: str = "") -> None:
    """Axis labels, a light grid behind the curves, and no frame to the top and the right."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if title:
        axes.set_title(title, fontsize=10)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def line_style(index: int) -> dict[str, Any]:
    """Colour and dashes of the curve of that number: both change, so that a curve shows through the one upon it."""
    return {"color": LINES[index % len(LINES)], "linestyle": DASHES[index % len(DASHES)], "linewidth": 1.8}


def check_out(out: Path, inputs: Iterable[Path] = ()) -> Path:
    """Where the numbers of the figure `out` go.

    Raises ValueError where `out` is no PNG, where one of the two files would replace one of `inputs`, or where they
    cannot be written.
    """
    if out.suffix.lower() != ".png":
        raise ValueError(f"{out}: figures are PNG files, so the name must end in .png")
    numbers = out.with_suffix(".json")
    for path in inputs:
        if path.resolve() in (out.resolve(), numbers.resolve()):
            raise ValueError(f"the numbers of {out} would replace {path}, which it is drawn from; name another --out")
    for file in (out, numbers):
        check_writable(file)
    return numbers


def encode(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def save(figure: Figure, numbers: Any, out: Path) -> None:
    """Write the PNG and, beside it, its numbers; each whole or not at all."""
    write_bytes(out, encode(figure))
    write_json(out.with_suffix(".json"), numbers)


def read_json(path: Path, kind: type[Model], described: str) -> Model:
    """Read a JSON file into a model. Raises FileNotFoundError, or ValueError that names the file, the field and what
    was expected (`described`)."""
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: expected {described}")
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ValueError(f"{path} is not {described}: {where}: {first['msg']}") from None


def read_mapping(path: Path, described: str) -> dict[str, Any]:
    """Read a JSON object of no fixed form. Raises as `read_json` does."""
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: expected {described}")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not {described}: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not {described}: it holds a {type(content).__name__}")
    return content
