"""The error analysis: every kind of error from hand-made boxes, sheets as pictures, and the command around them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from service.engines.base import Detections
from tests.evaluation.test_sources import constant_graph
from training.__main__ import app
from training.data.cache import load_picture
from training.data.wider import PhotoAnnotation
from training.evaluation import errors_command, sheets
from training.evaluation.errors import Cause, Kind, Reason, Side, find_errors, find_suspects, is_near, place_of
from training.evaluation.errors_command import Totals
from training.evaluation.sources import OnnxSource, default_sizes
from training.evaluation.wider import evaluate, iou_matrix

SIZE = (1000, 800)
FACE = (100, 100, 199, 199)  # 100 x 100 pixels, both borders taken in
LOOSE = (100, 100, 199, 139)  # IoU 0.40
FAR = (600, 500, 660, 560)


def photo(*boxes: tuple[float, ...], ignore: tuple[bool, ...] = (), name: str = "event/p.jpg") -> PhotoAnnotation:
    flags = np.array(ignore or [False] * len(boxes), dtype=bool)
    return PhotoAnnotation(name, np.array(boxes, dtype=np.float64).reshape(-1, 4), flags)


def found(*rows: tuple[float, ...]) -> Detections:
    """rows: x1 y1 x2 y2 score."""
    table = np.array(rows, dtype=np.float32).reshape(-1, 5)
    return Detections(table[:, :4], table[:, 4])


def sort_out(annotated: PhotoAnnotation, *rows: tuple[float, ...], score: float = 0.35) -> list[tuple[str, str, str]]:
    errors = find_errors(annotated, found(*rows), SIZE, score).errors
    return [(error.side, error.kind, error.cause) for error in errors]


def test_a_hit_and_a_silent_ignore_region_are_no_errors() -> None:
    annotated = photo(FACE, FAR, ignore=(False, True))
    assert sort_out(annotated, (*FACE, 0.9)) == []
    outcome = find_errors(annotated, found((*FACE, 0.9), (*FAR, 0.8), (*FAR, 0.1)), SIZE, 0.35)
    assert (len(outcome.faces), outcome.detections, outcome.on_ignored, outcome.errors) == (1, 2, 1, ())
    assert outcome.ratios == pytest.approx((1.0,))


@pytest.mark.parametrize(
    ("rows", "cause", "score", "iou"),
    [
        ([], Cause.UNSEEN, None, 0.0),
        ([(100, 100, 199, 109, 0.1)], Cause.UNSEEN, 0.1, 0.1),
        ([(*FACE, 0.34), (100, 100, 199, 189, 0.2)], Cause.LOW_SCORE, 0.34, 1.0),
        ([(*LOOSE, 0.3)], Cause.LOW_AND_LOOSE, 0.3, 0.4),
    ],
)
def test_misses(rows: list[tuple[float, ...]], cause: Cause, score: float | None, iou: float) -> None:
    (error,) = find_errors(photo(FACE), found(*rows), SIZE, 0.35).errors
    assert (error.side, error.kind, error.cause) == (Side.FACE, Kind.MISS, cause)
    assert error.score == (None if score is None else pytest.approx(score))
    assert error.iou == pytest.approx(iou)
    assert (error.pixels, error.size, error.box) == (99, 0.099, FACE)
    assert (error.other is None) == (score is None)


def test_a_loose_box_on_a_missed_face_is_told_from_both_sides() -> None:
    face, detection = find_errors(photo(FACE), found((*LOOSE, 0.8)), SIZE, 0.35).errors
    for error, side, own, other in ((face, Side.FACE, FACE, LOOSE), (detection, Side.DETECTION, LOOSE, FACE)):
        assert (error.side, error.kind, error.cause) == (side, Kind.LOCALISATION, Cause.LOOSE)
        assert (error.box, error.other) == (own, other)
        assert error.iou == pytest.approx(0.4)
        assert error.score == pytest.approx(0.8)

    # A better box under the threshold does not hide it.
    assert [kind for _, kind, _ in sort_out(photo(FACE), (*LOOSE, 0.8), (*FACE, 0.2))] == [Kind.LOCALISATION] * 2


def test_duplicates() -> None:
    for second, cause in (((100, 100, 199, 179), Cause.SECOND), (LOOSE, Cause.LOOSE_SECOND)):
        assert sort_out(photo(FACE), (*FACE, 0.9), (*second, 0.5)) == [(Side.DETECTION, Kind.DUPLICATE, cause)]
    # A loose box that scores better than the hit is still the second one.
    assert [kind for _, kind, _ in sort_out(photo(FACE), (*FACE, 0.5), (*LOOSE, 0.9))] == [Kind.DUPLICATE]


def test_false_positives() -> None:
    alone = (Side.DETECTION, Kind.BACKGROUND, Cause.ALONE)
    assert sort_out(photo(FACE), (*FACE, 0.9), (*FAR, 0.59)) == [alone]
    unlabelled = (Side.DETECTION, Kind.UNLABELLED, Cause.ALONE)
    assert sort_out(photo(FACE), (*FACE, 0.9), (*FAR, 0.61)) == [unlabelled]
    assert sort_out(photo(), (*FAR, 0.9)) == [unlabelled]
    beside = (Side.DETECTION, Kind.BACKGROUND, Cause.BESIDE_FACE)
    assert sort_out(photo(FACE), (*FACE, 0.9), (180, 100, 279, 199, 0.8)) == [beside]
    # A loose box on an ignore region is punished by the protocol, but no face is missed there.
    region = photo(FACE, ignore=(True,))
    assert sort_out(region, (*LOOSE, 0.9)) == [(Side.DETECTION, Kind.BACKGROUND, Cause.BESIDE_IGNORED)]


def test_what_is_near() -> None:
    others = np.array([FACE], dtype=np.float64)
    assert is_near((140, 140, 160, 160), others)  # deep inside, IoU 0.04
    assert is_near((0, 0, 900, 700), np.array([[10.0, 10.0, 20.0, 20.0], [440.0, 340.0, 470.0, 360.0]]))
    assert not is_near((195, 195, 300, 300), others)
    assert not is_near(FAR, np.zeros((0, 4)))


def test_a_face_whose_detection_belongs_to_a_neighbour() -> None:
    shifted = (120, 100, 219, 199)  # IoU with FACE 0.67
    assert sort_out(photo(FACE, shifted), (118, 100, 217, 199, 0.9)) == [(Side.FACE, Kind.MISS, Cause.NEIGHBOUR)]
    # A box of its own, though under the threshold, says more than the neighbour's edge.
    beside = (140, 100, 239, 199)  # IoU 0.43
    errors = find_errors(photo(FACE, beside), found((*beside, 0.9), (*FACE, 0.3)), SIZE, 0.35).errors
    assert [(error.cause, round(error.score or 0, 2)) for error in errors] == [(Cause.LOW_SCORE, 0.3)]


def test_errors_add_up_to_what_the_protocol_counts() -> None:
    rng = np.random.default_rng(5)
    annotated, detected, outcomes = [], {}, []
    for index in range(30):
        corners = rng.uniform(0, 500, (6, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(20, 90, (6, 2))], axis=1)
        one = PhotoAnnotation(f"event/{index}", boxes, rng.random(6) < 0.3)
        guesses = np.concatenate([boxes + rng.normal(0, 8, boxes.shape), boxes[:3] + 5.0, boxes[::-1] * 0.7])
        detected[one.name] = Detections(guesses.astype(np.float32), rng.random(len(guesses)).astype(np.float32))
        annotated.append(one)
        outcomes.append(find_errors(one, detected[one.name], SIZE, 0.4))
    kept = {name: Detections(d.boxes[d.scores >= 0.4], d.scores[d.scores >= 0.4]) for name, d in detected.items()}
    report, total = evaluate(kept, annotated), errors_command.totals(outcomes)
    hits = total.faces - total.missed
    assert (report.photos, report.faces, report.detections) == (total.photos, total.faces, total.detections)
    assert report.recall50 == pytest.approx(hits / total.faces)
    assert total.false_positives == total.detections - total.on_ignored - hits
    assert {error.kind for outcome in outcomes for error in outcome.errors} == set(Kind)


def test_places() -> None:
    assert place_of("a/b/c.jpg", (10, 10, 59, 40), SIZE) == ("a", "small", "inside")
    assert place_of("c.jpg", (10, 10, 60, 40), SIZE) == (".", "medium", "inside")
    for box in ((2, 10, 152, 40), (10, 0, 160, 40), (848, 10, 998, 40), (10, 648, 40, 801)):
        assert place_of("a/c.jpg", box, SIZE) == ("a", "large", "border")


def test_counts_by_group() -> None:
    first = find_errors(photo(FACE, FAR, name="a/1.jpg"), found((*LOOSE, 0.8), (400, 0, 600, 200, 0.9)), SIZE, 0.35)
    outcomes = [first, find_errors(photo((0, 0, 40, 40), name="b/1.jpg"), found((0, 0, 40, 40, 0.5)), SIZE, 0.35)]
    by_folder = errors_command.tally(outcomes, "folder")
    missed, wrong = {Kind.LOCALISATION: 1, Kind.MISS: 1}, {Kind.LOCALISATION: 1, Kind.UNLABELLED: 1}
    assert by_folder["a"].content() == {"faces": 2, "missed": missed, "false_positives": wrong}
    assert by_folder["b"].content() == {"faces": 1, "missed": {}, "false_positives": {}}
    by_size = errors_command.tally(outcomes, "bucket")
    counted = {name: (one.faces, one.missed.total()) for name, one in by_size.items()}
    assert counted == {"small": (1, 0), "medium": (2, 2), "large": (0, 0)}
    assert errors_command.tally(outcomes, "position")["border"].faces == 1
    assert errors_command.modes(outcomes, Side.FACE)[f"localisation: {Cause.LOOSE}"] == 1
    assert errors_command.box_ratios(outcomes) == pytest.approx({"a": 0.4**0.5, "b": 1.0})


def reasons(annotated: PhotoAnnotation, *rows: tuple[float, ...]) -> list[Reason]:
    return [one.reason for one in find_suspects(annotated, found(*rows), SIZE)]


def test_suspects() -> None:
    assert reasons(photo(FACE), (*FACE, 0.9), (*FAR, 0.61)) == [Reason.UNLABELLED]
    assert reasons(photo(FACE), (*FACE, 0.9), (*FAR, 0.59)) == []
    assert reasons(photo(FACE), (120, 120, 179, 185, 0.7)) == [Reason.LARGE]
    assert reasons(photo(FACE), (120, 120, 179, 185, 0.5)) == []
    assert reasons(photo(FACE), (80, 80, 229, 229, 0.7)) == [Reason.SMALL]
    assert reasons(photo(FACE), (140, 100, 239, 199, 0.7)) == [Reason.SHIFTED]
    (twice,) = find_suspects(photo(FACE, (100, 100, 199, 189)), found(), SIZE)
    assert twice.reason == Reason.TWICE
    assert twice.iou == pytest.approx(0.9)
    assert reasons(photo(FACE, FACE, ignore=(False, True))) == []


DEFECTS = {(9, 9, 9, 30): "no area", (9, 9, 11, 11): "2 x 2", (9, 9, 20, 60): "no shape", (990, 9, 1090, 90): "middle"}


@pytest.mark.parametrize(("box", "note"), DEFECTS.items())
def test_degenerate_boxes(box: tuple[float, ...], note: str) -> None:
    suspects = find_suspects(photo(FACE, box), found((*FACE, 0.9)), SIZE)
    assert [one.reason for one in suspects] == [Reason.DEGENERATE]
    assert note in suspects[0].note
    # The reader marks boxes without area as ignored; any other ignore region may have the shape it likes.
    assert len(find_suspects(photo(box, ignore=(True,)), found(), SIZE)) == (note == "no area")


def tile(box: tuple[float, float, float, float], *layers: sheets.Layer) -> sheets.Tile:
    return sheets.Tile("event/p.png", box, layers, ("event/p.png", "100 px"))


def test_a_tile_shows_boxes_in_their_colours_at_their_places(astronaut: NDArray[np.uint8]) -> None:
    focus = (174.0, 66.0, 272.0, 198.0)
    boxes = {sheets.ANNOTATED: focus, sheets.DETECTED: (180, 80, 290, 205), sheets.IGNORED: (140, 100, 170, 140)}
    drawn = tile(focus, *(sheets.Layer(colour, np.array([box])) for colour, box in boxes.items()))
    picture = sheets.draw_tile(astronaut, drawn)
    assert picture.size == (sheets.TILE, sheets.TILE)
    left, top, side = sheets.window(focus)
    assert side == round(2.4 * 132)
    for colour, (x1, y1, x2, y2) in boxes.items():
        for x, y in ((x1, y1), (x2, y2), (x1, y2)):
            at = round((x - left) * sheets.TILE / side), round((y - top) * sheets.TILE / side)
            assert picture.getpixel(at) == colour
    # The photo is under the boxes: the middle of the tile is the middle of the face.
    scale = side / sheets.TILE
    middle = np.asarray(picture)[80:95, 80:95].mean(axis=(0, 1))
    rows, columns = (slice(round(start + 80 * scale), round(start + 95 * scale)) for start in (top, left))
    np.testing.assert_allclose(middle, astronaut[rows, columns].mean(axis=(0, 1)), atol=4)


def test_tiles_of_boxes_at_and_beyond_the_border(astronaut: NDArray[np.uint8]) -> None:
    for x, y, side in ((-30, -30, 40), (505, 505, 25), (900, 900, 50), (40, 40, 0)):
        assert sheets.draw_tile(astronaut, tile((x, y, x + side, y + side))).size == (sheets.TILE, sheets.TILE)


def test_pages_have_the_promised_size_and_old_ones_go(astronaut: NDArray[np.uint8], tmp_path: Path) -> None:
    one = tile((174, 66, 272, 198), sheets.Layer(sheets.ANNOTATED, np.array([[174, 66, 272, 198]]), 3))
    pages = sheets.write_sheets(tmp_path, "misses", "Misses", [one] * 50, lambda _: astronaut)
    assert [path.name for path in pages] == ["misses-1.png", "misses-2.png"]
    for path, tiles in zip(pages, (48, 2), strict=True):
        with Image.open(path) as picture:
            picture.load()
            assert (picture.format, picture.size) == ("PNG", sheets.sheet_size(tiles))
    assert sheets.sheet_size(48) == (8 * sheets.TILE, sheets.TITLE + 6 * (sheets.TILE + sheets.CAPTION))
    with Image.open(pages[0]) as picture:
        corner = sheets.tile_corner(9)  # second row, second column
        inside = np.asarray(picture.crop((*corner, corner[0] + sheets.TILE, corner[1] + sheets.TILE)))[2:-2, 2:-2]
        np.testing.assert_array_equal(inside, np.asarray(sheets.draw_tile(astronaut, one))[2:-2, 2:-2])
        caption = np.asarray(picture.crop((corner[0], corner[1] + sheets.TILE, corner[0] + 90, corner[1] + 200)))
        assert caption.max() > 200  # something is written there
    assert sheets.write_sheets(tmp_path, "misses", "Misses", [one], lambda _: astronaut) == pages[:1]
    assert sheets.write_sheets(tmp_path, "none", "None", [], lambda _: astronaut) == []
    assert [path.name for path in tmp_path.iterdir()] == ["misses-1.png"]


@pytest.fixture
def data(tmp_path: Path, astronaut: NDArray[np.uint8]) -> Path:
    """One photo of 512 pixels. The detector of `constant_graph` sees, at long side 512, (32, 32, 96, 96) at 0.9 and
    (160, 64, 224, 128) at 0.6; the astronaut's face is annotated, and so is the first of the two."""
    images = tmp_path / "data" / "dev" / "images" / "event"
    images.mkdir(parents=True)
    Image.fromarray(astronaut).save(images / "one.png")
    (tmp_path / "data" / "split").mkdir()
    (tmp_path / "data" / "split" / "dev_bbx_gt.txt").write_text(
        "event/one.png\n3\n174 66 98 132 0 0 0 0 0 0\n32 32 64 64 0 0 0 0 0 0\n400 400 50 50 0 0 0 1 0 0\n"
    )
    return tmp_path / "data"


def run(source: Path, data: Path, out: Path) -> tuple[int, str]:
    """-> (exit status, output)."""
    options = ["--data", str(data), "--long-side", "512", "--threads", "1", "--out", str(out)]
    result = CliRunner().invoke(app, ["errors", str(source), *options])
    return result.exit_code, result.output


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return constant_graph(tmp_path / "d0.onnx")


def test_the_command_writes_lists_and_sheets(graph: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(graph, data, out)[0] == 0
    content = json.loads((out / "errors.json").read_text())
    assert content["totals"] == asdict(Totals(1, 2, missed=1, detections=2, on_ignored=0, false_positives=1))
    iou = iou_matrix((174, 66, 272, 198), (160, 64, 224, 128))[0, 0]
    miss, wrong = content["errors"]
    assert (miss["photo"], miss["kind"], miss["box"]) == ("event/one.png", "miss", [174, 66, 272, 198])
    assert (wrong["kind"], wrong["score"]) == ("background false positive", 0.6)
    assert miss["iou"] == wrong["iou"] == pytest.approx(iou, abs=1e-4)
    assert miss["size"] == pytest.approx(132 / 512, abs=1e-4)
    assert miss["place"] == {"folder": "event", "bucket": "large", "position": "inside"}
    assert content["by_folder"]["event"]["missed"] == {"miss": 1}
    assert content["by_size"]["medium"]["false_positives"] == {"background false positive": 1}
    assert json.loads((out / "label-suspects.json").read_text())["photos"] == {}
    summary = (out / "summary.md").read_text()
    assert "| event | 2 | 1 | 50.0% | 0 | 1 | 1 | 0 | 0 | 0 |" in summary
    assert "recall 50.0%" in summary
    pictures = {"misses-largest-1.png", "false-positives-1.png"}
    assert {Image.open(out / name).size for name in pictures} == {sheets.sheet_size(1)}
    lists = {"errors.json", "label-suspects.json", "label-suspects.md", "summary.md"}
    assert {path.name for path in out.iterdir()} == lists | pictures


def test_suspects_are_listed_by_file_name(graph: Path, data: Path, tmp_path: Path) -> None:
    labels = data / "split" / "dev_bbx_gt.txt"
    labels.write_text("event/one.png\n2\n160 64 64 64 0 0 0 0 0 0\n300 300 0 40 0 0 0 0 0 0\n")
    out = tmp_path / "out"
    assert run(graph, data, out)[0] == 0
    content = json.loads((out / "label-suspects.json").read_text())
    assert content["counts"] == {"probable unlabelled face": 1, "degenerate box": 1}
    first, second = content["photos"]["event/one.png"]
    assert (first["reason"], second["reason"]) == ("degenerate box", "probable unlabelled face")
    assert second["box"] == [32, 32, 96, 96]
    assert "| event/one.png | degenerate box (no area: 0 x 40 px) |" in (out / "label-suspects.md").read_text()
    assert {"suspects-unlabelled-1.png", "suspects-boxes-1.png"} <= {path.name for path in out.iterdir()}


def test_an_out_inside_a_work_tree_is_refused(graph: Path, data: Path, tmp_path: Path) -> None:
    project = Path(__file__).parents[2]
    linked = tmp_path / "linked"
    linked.symlink_to(project)
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone" / ".git").write_text("gitdir: elsewhere\n")  # as `git worktree add` leaves it
    for out in (project / "runs" / "errors-test", project, linked / "errors-test", tmp_path / "clone" / "a" / "b"):
        status, output = run(graph, data, out)
        assert status == 2
        assert output.startswith(f"error: {out} lies inside the work tree")
    assert not (project / "runs" / "errors-test").exists()
    assert not (tmp_path / "clone" / "a").exists()


def test_mistakes_end_in_one_sentence(graph: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a graph")
    (tmp_path / "broken.pt").write_bytes(b"not a checkpoint")
    for source, folder, out, message in (
        (tmp_path / "none.pt", data, tmp_path / "out", "neither a checkpoint"),
        (tmp_path / "broken.onnx", data, tmp_path / "out", "broken.onnx"),
        (tmp_path / "broken.pt", data, tmp_path / "out", "broken.pt"),
        (tmp_path, data, tmp_path / "out", "no manifest.json"),
        (graph, tmp_path / "nothing", tmp_path / "out", "no split 'dev'"),
        (graph, data, graph, "is a file"),
        (graph, data, graph / "deeper", "is a file"),
    ):
        status, output = run(source, folder, out)
        assert (status, output[:7]) == (2, "error: ")
        assert message in output
        assert "Traceback" not in output
        assert not (tmp_path / "out").exists()


def test_an_interrupted_run_leaves_no_half_file(
    graph: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    calls: list[Path] = []

    def interrupted(path: Path) -> NDArray[np.uint8]:
        calls.append(path)
        if len(calls) == 2:  # the first sheet is written, the second is begun
            raise KeyboardInterrupt
        return load_picture(path)

    monkeypatch.setattr(errors_command, "load_picture", interrupted)
    monkeypatch.setattr(errors_command, "lru_cache", lambda maxsize: lambda load: load)
    status, output = run(graph, data, out)
    assert (status, output.split()[-1]) == (130, "stopped")
    assert [path.name for path in out.iterdir()] == ["misses-largest-1.png"]
    assert Image.open(out / "misses-largest-1.png").getbbox() is not None


def test_a_write_that_is_cut_off_leaves_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "page.png"
    sheets.write_bytes(target, b"former")
    written = Path.write_bytes

    def cut_off(path: Path, content: bytes) -> int:
        written(path, content[:2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", cut_off)
    with pytest.raises(KeyboardInterrupt):
        sheets.write_bytes(target, b"latter")
    assert [path.name for path in tmp_path.iterdir()] == ["page.png"]
    assert target.read_bytes() == b"former"


def test_several_variants_get_a_folder_each(
    graph: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = [OnnxSource(graph, name, default_sizes(512), threads=1) for name in ("d0", "d0-int8")]
    monkeypatch.setattr(errors_command, "open_sources", lambda *_: variants)
    assert run(tmp_path, data, tmp_path / "out")[0] == 0
    for name in ("d0", "d0-int8"):
        assert json.loads((tmp_path / "out" / name / "errors.json").read_text())["source"] == name


def test_sheets_show_the_worst_first() -> None:
    sizes = {"small": (10, 10, 40, 40), "large": (100, 100, 400, 400), "medium": (600, 100, 700, 200)}
    weak = ((*sizes["large"], 0.3), (*sizes["small"], 0.06), (*sizes["medium"], 0.2))
    sure = ((500, 600, 560, 660, 0.5), (700, 600, 760, 660, 0.9))
    outcome = find_errors(photo(*sizes.values()), found(*weak, *sure), SIZE, 0.35)
    chosen = errors_command.select([outcome], 0.35)

    def boxes(name: str) -> list[tuple[float, ...]]:
        return [error.box for error in chosen[name][1]]

    assert boxes("misses-largest") == [sizes["large"], sizes["medium"], sizes["small"]]
    assert boxes("misses-lowest-score") == [sizes["small"], sizes["medium"], sizes["large"]]
    assert [round(error.score or 0, 1) for error in chosen["false-positives"][1]] == [0.9, 0.5]
    assert chosen["loose-boxes"][1] == chosen["duplicates"][1] == []
