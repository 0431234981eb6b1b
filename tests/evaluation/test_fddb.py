"""FDDB: areas against sums over a fine grid, matching and curves by hand, the folder, the command."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer import Typer
from typer.testing import CliRunner

from service.engines.base import Detections
from tests.evaluation.test_sources import constant_graph
from training.evaluation.ellipses import (
    EllipseFit,
    circle_areas,
    ellipses_of_boxes,
    polygon_areas,
    polygon_ellipse_iou,
    polygons_of_boxes,
    polygons_of_ellipses,
)
from training.evaluation.fddb import FddbCurves, FddbPhoto, evaluate_fddb, match_steps, read_folds
from training.evaluation.fddb_command import evaluate_fddb_command

Floats = NDArray[np.float64]


def grid_iou(box: Floats, ellipse: Floats) -> float:
    """By counting points, 20 a pixel and direction."""
    major, minor, angle, cx, cy = ellipse
    reach = major + 1
    low = np.minimum(box[:2], [cx - reach, cy - reach])
    high = np.maximum(box[2:], [cx + reach, cy + reach])
    x, y = np.meshgrid(np.arange(low[0], high[0], 0.05), np.arange(low[1], high[1], 0.05))
    along = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
    across = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
    in_ellipse = (along / major) ** 2 + (across / minor) ** 2 <= 1
    in_box = (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3])
    return float((in_ellipse & in_box).sum() / (in_ellipse | in_box).sum())


def test_areas_by_hand() -> None:
    # A square of side 2 around the unit circle, a square inside it, a quadrant, and one outside.
    around, inside, quadrant, outside = (
        polygons_of_boxes([box])[0]
        for box in ([-1, -1, 1, 1], [-0.5, -0.5, 0.5, 0.5], [0, 0, 5, 5], [2, 2, 3, 3])
    )  # fmt: skip
    polygons = np.stack([around, inside, quadrant, outside])
    np.testing.assert_allclose(circle_areas(polygons), [np.pi, 1, np.pi / 4, 0], atol=1e-12)
    np.testing.assert_allclose(
        circle_areas(polygons[:, ::-1]), [np.pi, 1, np.pi / 4, 0], atol=1e-12
    )  # either way round
    np.testing.assert_allclose(polygon_areas(polygons), [4, 1, 25, 1])
    # A strip |y| <= 1/2 cuts the circle to 2 * (asin(1/2) + 1/2 * sqrt(3)/2).
    strip = polygons_of_boxes([[-9, -0.5, 9, 0.5]])
    assert circle_areas(strip)[0] == pytest.approx(2 * (np.pi / 6 + np.sqrt(3) / 4))


def test_iou_by_hand() -> None:
    # Half-axes 20 and 10, upright: its bounding box is 20 x 40 and IoU pi / 4. Lying, the box holds less of it.
    upright = [20, 10, np.pi / 2, 50, 60]
    box = polygons_of_boxes([[40, 40, 60, 80]])
    assert polygon_ellipse_iou(box, [upright])[0, 0] == pytest.approx(np.pi / 4)
    assert polygon_ellipse_iou(box, [[20, 10, 0.0, 50, 60]])[0, 0] < 0.55
    assert polygon_ellipse_iou(box, [[20, 10, 0.0, 500, 60]])[0, 0] == 0.0
    assert polygon_ellipse_iou(polygons_of_boxes(np.zeros((0, 4))), [upright]).shape == (0, 1)
    assert polygon_ellipse_iou(box, np.zeros((0, 5))).shape == (1, 0)
    assert polygon_ellipse_iou(polygons_of_boxes([[50, 60, 50, 60]]), [upright])[0, 0] == 0.0  # no area, no overlap


def test_iou_agrees_with_counting() -> None:
    rng = np.random.default_rng(5)
    for _ in range(12):
        ellipse = np.array([*sorted(rng.uniform(6, 18, 2))[::-1], rng.uniform(-1.6, 1.6), *rng.uniform(20, 30, 2)])
        corner = rng.uniform(5, 25, 2)
        box = np.concatenate([corner, corner + rng.uniform(10, 25, 2)])
        assert polygon_ellipse_iou(polygons_of_boxes([box]), [ellipse])[0, 0] == pytest.approx(
            grid_iou(box, ellipse), abs=3e-3
        )


def test_the_angle_turns_from_x_to_y_with_y_down() -> None:
    # At 45 degrees the major axis runs from the upper left to the lower right of the picture.
    ellipse = [20, 5, np.pi / 4, 50, 50]
    lower_right, upper_right = polygons_of_boxes([[50, 50, 70, 70]]), polygons_of_boxes([[50, 30, 70, 50]])
    assert polygon_ellipse_iou(lower_right, [ellipse])[0, 0] > 3 * polygon_ellipse_iou(upper_right, [ellipse])[0, 0]


def test_polygons_stand_for_ellipses_as_accurately_as_stated() -> None:
    ellipses = np.array([[30, 20, 0.7, 50, 50]])
    polygon = polygons_of_ellipses(ellipses)
    assert polygon_areas(polygon)[0] == pytest.approx(np.pi * 600)
    assert polygon_ellipse_iou(polygon, ellipses)[0, 0] > 1 - 2e-4
    others = np.array([[28, 22, 0.2, 55, 48], [15, 14, 1.0, 60, 60]])
    fine = polygon_ellipse_iou(polygons_of_ellipses(ellipses, 20_000), others)
    np.testing.assert_allclose(polygon_ellipse_iou(polygon, others), fine, atol=2e-4)


def test_boxes_become_upright_ellipses() -> None:
    # 100 wide, 120 high: half-axes 72 and 50, centre raised by 12; its lowest point is the box's lower border.
    ellipse = ellipses_of_boxes([[0, 0, 100, 120]])[0]
    np.testing.assert_allclose(ellipse, [72, 50, np.pi / 2, 50, 48])
    assert ellipse[4] + ellipse[0] == pytest.approx(120)
    wide = ellipses_of_boxes([[0, 0, 200, 100]], EllipseFit(half_height=0.5, lift=0.0))[0]
    np.testing.assert_allclose(wide, [100, 50, 0, 100, 50])


def step(score: float, fp: int, hits: int, overlap: float) -> list[float]:
    return [score, fp, hits, overlap]


def test_matching_is_one_to_one_with_the_largest_sum() -> None:
    # Alone, the first detection takes face 0 (0.8). With the second, which fits face 0 alone, the sum is largest when
    # the first moves to face 1 (0.7 + 0.75): a greedy matching would leave the second without a face.
    steps = match_steps(np.array([[0.8, 0.7], [0.75, 0.0]]), np.array([0.9, 0.5]))
    np.testing.assert_allclose(steps, [step(0.9, 0, 1, 0.8), step(0.5, 0, 1, 0.65)])


def test_a_second_hit_on_a_face_and_a_miss_are_false_positives() -> None:
    iou = np.array([[0.8], [0.0], [0.6]])
    np.testing.assert_allclose(
        match_steps(iou, np.array([0.9, 0.8, 0.7])),
        [step(0.9, 0, 1, 0.8), step(0.8, 1, 0, 0.0), step(0.7, 1, 0, 0.0)],
    )


def test_exactly_one_half_is_a_false_positive_that_still_adds_its_overlap() -> None:
    np.testing.assert_allclose(match_steps(np.array([[0.5]]), np.array([0.9])), [step(0.9, 1, 0, 0.5)])
    np.testing.assert_allclose(match_steps(np.array([[0.51]]), np.array([0.9])), [step(0.9, 0, 1, 0.51)])


def test_equal_scores_are_one_step() -> None:
    np.testing.assert_allclose(
        match_steps(np.array([[0.6, 0.0], [0.0, 0.0]]), np.array([0.9, 0.9])), [step(0.9, 1, 1, 0.6)]
    )


def test_a_photo_without_faces_has_false_positives_alone() -> None:
    np.testing.assert_allclose(match_steps(np.zeros((1, 0)), np.array([0.9])), [step(0.9, 1, 0, 0.0)])


def test_matching_agrees_with_trying_everything() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        iou = np.where(rng.random((4, 3)) < 0.4, 0.0, rng.random((4, 3)))
        got = match_steps(iou, np.array([0.9, 0.8, 0.7, 0.6]))[:, 3].cumsum()
        for count in range(1, 5):
            # Faces go to detections or, beyond `count`, to nobody.
            best = max(
                sum(iou[row, face] for face, row in enumerate(rows) if row < count)
                for rows in itertools.permutations(range(count + 3), 3)
            )
            assert got[count - 1] == pytest.approx(best)


def detections(*rows: tuple[float, ...]) -> Detections:
    table = np.array(rows, dtype=np.float32).reshape(-1, 5)
    return Detections(table[:, :4], table[:, 4])


# The ellipse inscribed in [40, 40, 60, 80], and its box's IoU with it.
FACE, BOX, FIT = [20, 10, np.pi / 2, 50, 60], (40, 40, 60, 80), np.pi / 4
NOWHERE = (200, 200, 220, 240)


def photos(*faces: list[list[float]]) -> list[FddbPhoto]:
    return [FddbPhoto(f"{at}.jpg", 1, np.array(rows, dtype=np.float64).reshape(-1, 5)) for at, rows in enumerate(faces)]


def test_the_curves_by_hand() -> None:
    # Four faces in three photos. By score: hit, miss, hit, miss of two at 0.5 (one in the photo without a face).
    listed = photos([FACE], [FACE, [20, 10, np.pi / 2, 150, 60]], [[20, 10, np.pi / 2, 50, 60]], [])
    found = {
        "0.jpg": detections((*BOX, 0.9), (*NOWHERE, 0.8)),
        "1.jpg": detections((*BOX, 0.7), (*NOWHERE, 0.5)),
        "3.jpg": detections((*BOX, 0.5)),
    }
    curves = evaluate_fddb(found, listed)
    assert (curves.images, curves.faces, curves.detections) == (4, 4, 5)
    np.testing.assert_allclose(curves.scores, [0.9, 0.8, 0.7, 0.5])
    assert curves.false_positives.tolist() == [0, 1, 1, 3]
    np.testing.assert_allclose(curves.discrete, [0.25, 0.25, 0.5, 0.5])
    np.testing.assert_allclose(curves.continuous, np.array([1, 1, 2, 2]) * FIT / 4)
    assert curves.rate_at(0) == pytest.approx((0.25, FIT / 4))
    assert curves.rate_at(2) == pytest.approx((0.5, FIT / 2))
    content = curves.to_dict()
    assert content["discrete"] == {"1000": 0.5, "2000": 0.5}
    assert content["curve"]["fp"] == [0, 1, 3]
    assert content["curve"]["discrete"] == [0.25, 0.5, 0.5]
    assert content["curve"]["score"] == pytest.approx([0.9, 0.7, 0.5])
    assert curves.to_dict(end=1)["curve"]["fp"] == [0, 1]
    json.dumps(content)


def test_rates_stop_where_false_positives_do() -> None:
    # 1500 false positives above the second hit: it is beyond 1000 and within 2000.
    listed = photos([FACE], [FACE])
    many = [(*NOWHERE, 0.5 + at / 10_000) for at in range(1500)]
    curves = evaluate_fddb({"0.jpg": detections((*BOX, 0.9), *many), "1.jpg": detections((*BOX, 0.1))}, listed)
    assert curves.rate_at(1000)[0] == 0.5
    assert curves.rate_at(2000)[0] == 1.0
    assert evaluate_fddb({"0.jpg": detections((*NOWHERE, 0.9))}, listed).rate_at(0) == (0.0, 0.0)


def test_curves_never_fall_back() -> None:
    # The third threshold changes a matching for the better and takes one false positive back.
    counts = np.array([0, 2, 1, 1, 3])
    rates = np.array([0.1, 0.1, 0.3, 0.4, 0.5])
    curves = FddbCurves(1, 10, 9, np.array([0.9, 0.8, 0.7, 0.6, 0.5]), counts, rates, rates)
    assert curves.to_dict()["curve"]["fp"] == [0, 1, 3]
    assert curves.to_dict()["curve"]["discrete"] == [0.1, 0.4, 0.5]
    assert [curves.rate_at(count)[0] for count in (0, 1, 2, 3)] == [0.1, 0.4, 0.4, 0.5]


def test_ellipses_fit_better_than_boxes() -> None:
    listed = photos([FACE])
    fit = EllipseFit(half_width=0.5, half_height=0.5, lift=0.0)
    curves = evaluate_fddb({"0.jpg": detections((*BOX, 0.9))}, listed, fit)
    assert curves.continuous[-1] > 1 - 2e-4


def test_a_silent_detector_and_strangers() -> None:
    curves = evaluate_fddb({}, photos([FACE]))
    assert curves.rate_at(1000) == (0.0, 0.0)
    assert curves.to_dict()["curve"]["fp"] == []
    with pytest.raises(ValueError, match=r"x\.jpg"):
        evaluate_fddb({"x.jpg": detections()}, photos([FACE]))


# --- the folder and the command -------------------------------------------------------------------


def write_fddb(root: Path) -> None:
    """Ten folds of one photo each; every second one has the ellipse inscribed in the first box of `constant_graph` at
    a long side of 320, twice as large."""
    folds = root / "FDDB-folds"
    folds.mkdir(parents=True)
    for fold in range(1, 11):
        name = f"2002/08/{fold:02}/big/img_{fold}"
        picture = root / "originalPics" / f"{name}.jpg"
        picture.parent.mkdir(parents=True)
        Image.fromarray(np.full((480, 640, 3), 90, dtype=np.uint8)).save(picture)
        (folds / f"FDDB-fold-{fold:02}.txt").write_text(f"{name}\n")
        face = "64.0 64.0 1.57 128.0 128.0  1\n" if fold % 2 else ""
        (folds / f"FDDB-fold-{fold:02}-ellipseList.txt").write_text(f"{name}\n{fold % 2}\n{face}")


def test_the_folds_are_read(tmp_path: Path) -> None:
    write_fddb(tmp_path)
    listed, images = read_folds(tmp_path)
    assert [photo.fold for photo in listed] == list(range(1, 11))
    assert listed[0].name == "2002/08/01/big/img_1.jpg"
    assert listed[0].ellipses.tolist() == [[64, 64, 1.57, 128, 128]]
    assert listed[1].ellipses.shape == (0, 5)
    assert images == tmp_path / "originalPics"


@pytest.mark.parametrize(
    ("file", "content", "error", "message"),
    [
        ("FDDB-fold-03-ellipseList.txt", "2002/08/03/big/img_3\n1\n10 5 0.5\n", ValueError, "txt:3: expected an ell"),
        ("FDDB-fold-03-ellipseList.txt", "2002/08/03/big/img_3\nx\n", ValueError, "txt:2: expected the number"),
        ("FDDB-fold-03-ellipseList.txt", "2002/08/03/big/img_3\n1\n9 0 1 5 5 1\n", ValueError, "expected an ellipse"),
        ("FDDB-fold-03.txt", "2002/08/03/big/other\n", ValueError, "does not annotate"),
        ("FDDB-fold-10.txt", None, FileNotFoundError, "FDDB-fold-10.txt"),
        ("FDDB-fold-01.txt", None, FileNotFoundError, "expected FDDB's folds"),
    ],
)  # fmt: skip
def test_broken_folds_are_named(
    tmp_path: Path, file: str, content: str | None, error: type[Exception], message: str
) -> None:
    write_fddb(tmp_path)
    path = tmp_path / "FDDB-folds" / file
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    with pytest.raises(error, match=message):
        read_folds(tmp_path)


def test_the_command_writes_both_curves(tmp_path: Path) -> None:
    write_fddb(tmp_path / "fddb")
    graph, out = constant_graph(tmp_path / "d0.onnx"), tmp_path / "fddb.json"
    app = Typer()
    app.command()(evaluate_fddb_command)
    arguments = [str(graph), "--data", str(tmp_path / "fddb"), "--long-side", "320", "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    boxes, ellipses = json.loads(out.read_text())["rows"]
    assert (boxes["regions"], ellipses["regions"]) == ("boxes", "ellipses")
    # Five faces, each found by a box of IoU pi / 4; two detections a photo, so 15 are false.
    assert (boxes["images"], boxes["faces"], boxes["detections"]) == (10, 5, 20)
    assert boxes["discrete"]["1000"] == 1.0
    assert boxes["continuous"]["1000"] == pytest.approx(np.pi / 4, abs=1e-3)
    # At 0.9 the first box of all ten photos enters, at 0.6 the second.
    assert boxes["curve"]["fp"] == [5, 15]
    assert "    1.0000" in result.output
    limited = CliRunner().invoke(app, [*arguments, "--limit", "1"])
    assert limited.exit_code == 0, limited.output
    assert json.loads(out.read_text())["rows"][0]["images"] == 1
