"""The figures but the seventh: numbers by hand or by another route, the files that commands read, and the pictures."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner, Result

from service.engines.base import Detections
from tests.evaluation.test_sources import BOXES, SCORES, constant_graph, write_split
from training.__main__ import app
from training.evaluation.sheets import TITLE
from training.figures import distribution, front, gains, pictures
from training.figures.drawing import check_out, encode, new_figure

Pixels = NDArray[np.uint8]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["figure", *map(str, arguments)])


def done(*arguments: object) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return picture.size


class Constant:
    """Says what the graph of `constant_graph` says, in pixels of a picture of 640 x 480, and counts."""

    name, long_side = "constant", 320

    def __init__(self, fingerprint: str = "one") -> None:
        self.fingerprint, self.calls = fingerprint, 0

    def __call__(self, pixels: Pixels) -> Detections:
        self.calls += 1
        scale = pixels.shape[1] / 320
        return Detections(BOXES[:2] * scale, SCORES[:2])


# Figure 1


def point(name: str, ms: float, ap50: float, side: int = 640, ours: bool = False) -> dict[str, Any]:
    return {"detector": name, "ours": ours, "long_side": side, "ap50": ap50, "ap": ap50 / 2, "ms_median": ms}


def results(*rows: dict[str, Any], split: str = "dev") -> dict[str, Any]:
    head = {"data": "faces", "split": split, "photos": 9, "threads": 1, "hardware": {"cpu": "a CPU", "cores": 2}}
    return {**head, "protocol": "wider", "rows": list(rows)}


def test_front_writes_every_point_and_which_nothing_faster_equals(tmp_path: Path) -> None:
    rows = [
        point("d0", 40, 0.80, 320, ours=True), point("d0", 90, 0.87, 640, ours=True), point("peer", 10, 0.85),
        point("slower", 95, 0.87), point("floor", 400, 0.3),
    ]  # fmt: skip
    file = write(tmp_path / "accuracy.json", results(*rows))
    out = tmp_path / "made" / "fig1.png"
    done("front", "--results", file, "--out", out)
    assert size_of(out)[0] > 1000
    numbers = read(out.with_suffix(".json"))
    assert numbers["metric"] == "ap50"
    assert [(row["detector"], row["on_front"]) for row in numbers["runs"][0]["rows"]] == [
        ("d0", False), ("d0", True), ("peer", True), ("slower", False), ("floor", False),
    ]  # fmt: skip
    done("front", "--results", file, "--results", file, "--metric", "ap", "--out", out)
    assert len(read(out.with_suffix(".json"))["runs"]) == 2


def test_front_names_what_is_far_below_at_the_bottom_edge_and_keeps_labels_apart() -> None:
    rows = [point("d0", 40, 0.8, ours=True), point("near", 42, 0.81), point("floor", 50, 0.3)]
    figure = front.draw_front([front.Results.model_validate(results(*rows))], "ap50")
    axes = figure.axes[0]
    assert axes.get_ylim()[0] > 0.7
    assert {text.get_text() for text in axes.texts} == {"d0", "near", "floor (0.30)"}
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(one.overlaps(other) for at, one in enumerate(boxes) for other in boxes[:at])


def test_front_refuses_other_files_and_other_photos(tmp_path: Path) -> None:
    dev = write(tmp_path / "dev.json", results(point("d0", 40, 0.8)))
    val = write(tmp_path / "val.json", results(point("d0", 40, 0.8), split="val"))
    out = tmp_path / "fig1.png"
    refused = run("front", "--results", dev, "--results", val, "--out", out)
    assert (refused.exit_code, "faces dev, faces val" in refused.output) == (2, True)
    other = write(tmp_path / "other.json", {"rows": []})
    assert "other.json is not the JSON of `make bench-accuracy`: data: Field required" in " ".join(
        run("front", "--results", other, "--out", out).output.split()
    )
    assert "no metric 'f1'" in run("front", "--results", dev, "--metric", "f1", "--out", out).output
    before = dev.read_bytes()
    assert "would replace" in run("front", "--results", dev, "--out", tmp_path / "dev.png").output
    assert dev.read_bytes() == before
    assert not out.exists()


# Figure 2 (b, c)


def test_relative_sizes_and_counts_are_the_same_from_all_three_forms(tmp_path: Path) -> None:
    """Two boxes of 64 x 64 and 128 x 32 pixels in a picture of 640 x 480, nothing in one of 320 x 320."""
    write_split(tmp_path, tmp_path / "dev" / "images", tmp_path / "split" / "dev_bbx_gt.txt")
    (tmp_path / "split" / "dev_bbx_gt.txt").write_text(
        "event/one.jpg\n3\n1 2 64 64 0 0 0 0 0 0\n9 9 128 32 0 0 0 0 0 0\n9 9 50 50 0 0 0 1 0 0\n"
        "event/two.png\n0\n0 0 0 0 0 0 0 0 0 0\n"
    )
    coco = write(
        tmp_path / "objects.json",
        {
            "images": [{"id": 7, "width": 640, "height": 480}, {"id": 3, "width": 320, "height": 320}],
            "annotations": [
                {"image_id": 7, "bbox": [1, 2, 64, 64]},
                {"image_id": 7, "bbox": [9, 9, 128, 32], "iscrowd": 0},
                {"image_id": 3, "bbox": [0, 0, 300, 300], "iscrowd": 1},
                {"image_id": 7, "bbox": [0, 0, 0, 9]},
            ],
        },
    )
    npz = tmp_path / "boxes.npz"
    wh = np.array([[0.1, 64 / 480], [0.2, 32 / 480], [0, 0.5]], dtype=np.float64)
    np.savez(npz, dev_wh=wh, dev_image=np.zeros(3, dtype=np.int32), dev_images=np.int64(2))
    sets = distribution.read_all([f"W={tmp_path}:dev"], [str(coco)], [f"relative={npz}:dev"])
    assert [one.name for one in sets] == ["relative", "W", "objects"]
    for one in sets:
        # Both boxes have 4096 pixels of 307200.
        np.testing.assert_allclose(one.sizes, [np.sqrt(4096 / 307200)] * 2, rtol=1e-6)
        assert one.counts.tolist() == [2, 0]
    row = distribution.distribution_numbers(sets)["rows"][2]
    assert row["percent_of_boxes_below"] == {"0.02": 0.0, "0.11": 0.0}
    assert (row["pictures"], row["boxes"]) == (2, 2)


def test_percentages_are_strictly_below_and_strictly_more() -> None:
    sizes = np.array([0.01, 0.02, 0.05, 0.11, 0.5])
    counts = np.array([0, 10, 11, 31, 151])
    row = distribution.distribution_numbers([distribution.Boxes("x", sizes, counts)])["rows"][0]
    assert row["percent_of_boxes_below"] == {"0.02": 20.0, "0.11": 60.0}
    assert row["percent_of_pictures_with_more_boxes_than"] == {"10": 60.0, "30": 40.0, "150": 20.0}
    x, y = distribution.steps(np.array([3, 1, 3, 8]))
    assert (x.tolist(), y.tolist()) == ([1, 3, 8], [25, 75, 100])


def test_distribution_command(tmp_path: Path) -> None:
    npz = tmp_path / "boxes.npz"
    wh = np.linspace(0.005, 0.5, 40, dtype=np.float32)[:, None].repeat(2, axis=1)
    np.savez(npz, train_wh=wh, train_image=np.arange(40) // 12, train_images=np.int64(5))
    out = tmp_path / "fig2.png"
    said = done("distribution", "--relative", f"{npz}:train", "--relative", f"again={npz}:train", "--out", out).output
    assert size_of(out)[0] > 1000
    rows = read(out.with_suffix(".json"))["rows"]
    assert [row["name"] for row in rows] == [f"{tmp_path.name} train", "again"]
    # 12, 12, 12, 4 and no box at all: three of five pictures have more than ten.
    assert rows[0]["percent_of_pictures_with_more_boxes_than"]["10"] == 60
    assert "60.0 % more than 10" in said


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--relative", "{tmp}/boxes.npz:val", "has no boxes of a split 'val'"),
        ("--relative", "{tmp}/none.npz:val", "no {tmp}/none.npz"),
        ("--wider", "{tmp}", "expected a path, a colon and a split"),
        ("--wider", "{tmp}:val", "no split 'val' below"),
        ("--coco", "{tmp}/broken.json", "expected `images` with id"),
        ("--coco", "{tmp}/none.json", "expected COCO annotations"),
    ],
)
def test_distribution_says_what_is_wrong(tmp_path: Path, option: str, value: str, words: str) -> None:
    np.savez(tmp_path / "boxes.npz", train_wh=np.ones((1, 2)))
    write(tmp_path / "broken.json", {"images": [{"id": 1}], "annotations": []})
    result = run("distribution", option, value.format(tmp=tmp_path), "--out", tmp_path / "x.png")
    assert result.exit_code == 2
    assert words.format(tmp=tmp_path) in result.output.replace("\n", " ")
    assert "nothing to draw" in run("distribution", "--out", tmp_path / "x.png").output


# Figure 8


def test_row_cells_fill_the_width_and_keep_the_shapes() -> None:
    cells = pictures.row_cells([1.0, 2.0, 0.5, 1.5, 1.0], 2)
    for row in (cells[:2], cells[2:4]):
        assert row[0][3] == row[1][3]
        right = row[1][0] + row[1][2]
        assert pictures.WIDTH - 3 <= right <= pictures.WIDTH
        assert row[1][0] == row[0][2] + pictures.GAP
    assert cells[1][2] / cells[1][3] == pytest.approx(2, abs=0.01)
    assert cells[4][3] == cells[2][3]  # the last row is not full
    assert cells[2][1] == cells[0][3] + pictures.GAP


def test_boxes_are_red_above_the_score_and_blue_below(tmp_path: Path, astronaut: Pixels) -> None:
    graph = constant_graph(tmp_path / "d0.onnx")  # always a face of 0.9 and one of 0.6
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    Image.fromarray(astronaut).save(tmp_path / "photos" / "b.png")
    Image.fromarray(astronaut[:256]).save(tmp_path / "photos" / "deep" / "a.jpg")
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    out = tmp_path / "fig8.png"
    common = ("boxes", graph, "--images", tmp_path / "photos", "--long-side", 320, "--out", out)

    def colours() -> set[Any]:
        with Image.open(out) as page:
            assert page.width == pictures.WIDTH
            return {colour for _, colour in page.getcolors(10**7) or []}

    done(*common)
    assert {pictures.SURE, pictures.UNSURE} <= colours()
    rows = read(out.with_suffix(".json"))["pictures"]
    assert [(row["picture"], row["width"], row["height"]) for row in rows] == [("b.png", 512, 512), ("a.jpg", 512, 256)]
    # In 320 pixels the first box is 32 32 96 96; the picture is 1.6 times as large.
    assert rows[0]["faces"][0] == {"box": [51.2, 51.2, 153.6, 153.6], "score": pytest.approx(0.9)}
    done(*common, "--least", "0.7")
    assert [len(row["faces"]) for row in read(out.with_suffix(".json"))["pictures"]] == [1, 1]
    done(*common, "--score", "0.95", "--limit", 1)
    assert len(read(out.with_suffix(".json"))["pictures"]) == 1


def test_a_box_is_drawn_where_it_was_found(astronaut: Pixels) -> None:
    """One picture of 512 pixels on a sheet of 1600: the box is 3.125 times as large."""
    found = Detections(np.array([[100, 40, 300, 200]], dtype=np.float32), np.array([0.9], dtype=np.float32))
    shown = pictures.Shown(Path("a.png"), Image.new("RGB", (512, 512)), (512, 512), found)
    page = np.asarray(pictures.draw_pictures([shown], 1, 0.8, 0.4, ""))[TITLE + pictures.GAP :]
    ys, xs = np.nonzero((page == pictures.SURE).all(axis=2))
    assert (xs.min(), ys.min(), xs.max(), ys.max()) == pytest.approx((312.5, 125, 937.5, 625), abs=1)


def test_pictures_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a picture or a folder"):
        pictures.find_pictures([tmp_path / "none"])
    with pytest.raises(FileNotFoundError, match="no picture"):
        pictures.find_pictures([tmp_path])
    (tmp_path / "a.jpg").write_text("not one")
    with pytest.raises(ValueError, match=r"a\.jpg is not a picture"):
        pictures.detect_pictures(Constant(), [tmp_path / "a.jpg"], 4, 0.4)


# Figure 2 (a)


def table(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"table": 4, "rows": list(rows), "budget": "whatever else is there"}


def line(name: str, ours: float | None, paper: float | None) -> dict[str, Any]:
    return {
        "name": name,
        "paper": None if paper is None else {"ap50_easy": 95.0, "ap50_hard": paper},
        "ours": None if ours is None else {"ap50": ours, "ap": 0.3},
    }


def test_gains_are_against_the_first_row_in_points(tmp_path: Path) -> None:
    rows = [line("FPN", 0.70, 82.9), line("PAFPN", 0.71, 82.4), line("own", 0.69, None), line("later", None, 85.0)]
    # One seed of two: the means differ by 0.03, the seed that both rows have by 0.02.
    rows.append(line("paired", 0.73, None) | {"gain": 0.02, "seeds": 1, "spread": None})
    file = write(tmp_path / "table4.json", table(*rows))
    out = tmp_path / "fig2a.png"
    done("gains", file, file, "--out", out)
    assert size_of(out)[1] > 300
    content = read(out.with_suffix(".json"))
    assert len(content["tables"]) == 2
    numbers = content["tables"][0]
    assert numbers["baseline"] == "FPN"
    assert [(row["name"], row["ours"], row["paper"]) for row in numbers["rows"]] == [
        ("PAFPN", pytest.approx(1.0), pytest.approx(-0.5)),
        ("own", pytest.approx(-1.0), None),
        ("later", None, pytest.approx(2.1)),
        ("paired", pytest.approx(2.0), None),
    ]


def test_gains_without_a_baseline_are_refused(tmp_path: Path) -> None:
    bare = write(tmp_path / "a.json", table(line("FPN", None, None), line("PAFPN", 0.7, 82.4)))
    with pytest.raises(ValueError, match="'FPN'; is that one measured yet"):
        gains.read_gains([bare])
    percent = write(tmp_path / "b.json", table(line("FPN", 70.0, None), line("PAFPN", 71.0, None)))
    with pytest.raises(ValueError, match=r"rows\.0\.ours\.ap50"):
        gains.read_gains([percent])


# All


def test_out_must_be_a_png_beside_nothing_that_is_read(tmp_path: Path) -> None:
    assert check_out(tmp_path / "a.png") == tmp_path / "a.json"
    with pytest.raises(ValueError, match=r"must end in \.png"):
        check_out(tmp_path / "a.json")
    with pytest.raises(ValueError, match="would replace"):
        check_out(tmp_path / "a.png", [tmp_path / "." / "a.json"])


def test_a_figure_leaves_no_trace_in_pyplot() -> None:
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    assert encode(new_figure(1, 1)).startswith(b"\x89PNG")
    assert pyplot.get_fignums() == before


def test_without_matplotlib_one_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *rest, **more)

    accuracy = write(tmp_path / "accuracy.json", results(point("d0", 40, 0.8)))
    table4 = write(tmp_path / "table4.json", table(line("FPN", 0.70, 82.9), line("PAFPN", 0.71, 82.4)))
    row = {"source": "peer", "false_positives": [5], "discrete": [0.5], "continuous": [0.3]}
    fddb = write(tmp_path / "fddb.json", {"rows": [row]})
    np.savez(tmp_path / "b.npz", train_wh=np.full((1, 2), 0.1), train_image=np.zeros(1), train_images=np.int64(1))
    monkeypatch.setattr(builtins, "__import__", without)
    for command in (
        ("front", "--results", accuracy), ("gains", table4), ("roc", fddb), ("precision-recall", "none.onnx"),
        ("distribution", "--relative", f"{tmp_path / 'b.npz'}:train"),
    ):  # fmt: skip
        result = run(*command, "--out", tmp_path / "fig.png")
        assert result.exit_code == 2
        assert "`bench` extra" in result.output
    assert not (tmp_path / "fig.png").exists()
