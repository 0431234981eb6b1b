"""Figure 7: precision and recall by hand and against the evaluator's AP, kept curves, and FDDB's ROC."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service.engines.base import Detections
from tests.evaluation.test_figures import Constant, done, read, run, size_of, write
from tests.evaluation.test_sources import constant_graph, write_split
from training.data.wider import PhotoAnnotation
from training.evaluation.detections import read_split
from training.evaluation.fddb import FddbCurves
from training.evaluation.wider import average_precision, evaluate, precision_recall
from training.figures import precision, roc

# Figure 7, WIDER


def random_case(seed: int) -> tuple[dict[str, Detections], list[PhotoAnnotation]]:
    """Photos with faces found well and badly, twice and not at all, ignored ones, and photos without any."""
    rng = np.random.default_rng(seed)
    found: dict[str, Detections] = {}
    photos = []
    for number in range(12):
        corners = rng.uniform(0, 400, (int(rng.integers(0, 6)), 2))
        faces = np.hstack([corners, corners + rng.uniform(20, 90, corners.shape)])
        photos.append(PhotoAnnotation(f"{number}.jpg", faces, rng.random(len(faces)) < 0.25))
        loose = np.vstack([faces + rng.normal(0, 6, faces.shape), faces + rng.normal(0, 3, faces.shape)])
        stray = rng.uniform(0, 400, (3, 2))
        boxes = np.vstack([loose, np.hstack([stray, stray + 40])])
        if number % 5:
            # Two decimals, so that scores and thresholds are equal now and then.
            found[f"{number}.jpg"] = Detections(
                boxes.astype(np.float32), rng.random(len(boxes)).round(2).astype(np.float32)
            )
    return found, photos


@pytest.mark.parametrize("seed", range(6))
def test_the_area_under_the_curve_is_the_ap_that_is_reported(seed: int) -> None:
    found, photos = random_case(seed)
    recall, precision_ = precision_recall(found, photos)
    report = evaluate(found, photos)
    assert 0.1 < report.ap50 < 1
    assert average_precision(recall, precision_) == pytest.approx(report.ap50, abs=1e-12)
    assert recall[-1] == pytest.approx(report.recall50)
    assert (np.diff(recall) >= 0).all()


def test_precision_and_recall_by_hand() -> None:
    """Two faces; a hit at 1.0, a false positive at 0.5, a hit at 0: scores are their own normalised ones."""
    truth = np.array([[0, 0, 50, 50], [100, 0, 150, 50]], dtype=np.float64)
    boxes = np.array([[0, 0, 50, 50], [300, 300, 350, 350], [100, 0, 150, 50]], dtype=np.float32)
    found = {"a": Detections(boxes, np.array([1.0, 0.5, 0.0], dtype=np.float32))}
    recall, exact = precision_recall(found, [PhotoAnnotation("a", truth, np.zeros(2, dtype=bool))])
    # Threshold number t is 1 - (t + 1) / 1000.
    assert (recall[0], exact[0]) == (0.5, 1.0)
    assert (recall[498], exact[498]) == (0.5, 1.0)  # 0.501
    assert (recall[499], exact[499]) == (0.5, 0.5)  # 0.500
    assert (recall[999], exact[999]) == (1.0, pytest.approx(2 / 3))
    nothing = precision_recall({}, [PhotoAnnotation("a", truth, np.zeros(2, dtype=bool))])
    assert not nothing[0].any()
    assert not nothing[1].any()
    first = precision.drawn_part(np.array([0, 0, 0.5]), np.array([0, 0, 1.0]))
    assert first[0].tolist() == [0.5]


def test_curves_are_kept_and_measured_again_only_when_something_changed(tmp_path: Path) -> None:
    write_split(tmp_path, tmp_path / "dev" / "images", tmp_path / "split" / "dev_bbx_gt.txt")
    photos, images = read_split(tmp_path, "dev")
    head = precision.Curves(data="d", split="dev", photos=2, protocol="vga")
    source, saved = Constant(), tmp_path / "fig.json"

    def measure(subsets: dict[str, list[PhotoAnnotation]], fresh: bool = False) -> precision.Curves:
        return precision.measure_curves([source], photos, images, subsets, head, saved, fresh=fresh)

    first = measure({})
    assert (source.calls, first.rows[0].faces) == (2, 3)
    assert first.rows[0].ap == pytest.approx(1.0)
    assert measure({}) == first
    assert source.calls == 2
    measure({}, fresh=True)
    assert source.calls == 4
    # A subset in which one of the two faces of the first photo does not count, and a photo that was not run.
    easy = [
        PhotoAnnotation(photos[0].name, photos[0].boxes, np.array([False, True])),
        PhotoAnnotation("event/three.jpg", photos[0].boxes, photos[0].ignore),
    ]
    curves = measure({"easy": easy})
    assert [(row.subset, row.faces) for row in curves.rows] == [("easy", 1)]
    assert source.calls == 6
    assert [row.subset for row in precision.Curves.model_validate_json(saved.read_bytes()).rows] == ["easy"]
    with pytest.raises(ValueError, match="subset easy lists none of the photos of d dev"):
        measure({"easy": easy[1:]})


def test_an_interrupted_run_keeps_what_was_measured_before(tmp_path: Path) -> None:
    write_split(tmp_path, tmp_path / "dev" / "images", tmp_path / "split" / "dev_bbx_gt.txt")
    photos, images = read_split(tmp_path, "dev")
    head = precision.Curves(data="d", split="dev", photos=2, protocol="vga")
    first, second, third = Constant(), Constant("two"), Constant("three")

    class Interrupted(Constant):
        def __call__(self, pixels: NDArray[np.uint8]) -> Detections:
            raise KeyboardInterrupt

    def measure(*sources: Constant) -> precision.Curves:
        return precision.measure_curves(sources, photos, images, {}, head, tmp_path / "fig.json")

    measure(first)
    with pytest.raises(KeyboardInterrupt):
        measure(second, Interrupted("four"), first)
    measure(second, third, first)
    assert (first.calls, second.calls, third.calls) == (2, 2, 2)


def test_precision_recall_command(tmp_path: Path) -> None:
    write_split(tmp_path, tmp_path / "dev" / "images", tmp_path / "split" / "dev_bbx_gt.txt")
    graph, out = constant_graph(tmp_path / "d0.onnx"), tmp_path / "fig7.png"
    common = ("--data", tmp_path, "--long-side", 320, "--out", out)
    said = done("precision-recall", graph, *common).output
    assert "d0 at 320, all: AP.50 1.0000" in said
    assert size_of(out)[0] > 800
    assert read(out.with_suffix(".json"))["protocol"] == "vga"
    assert run("precision-recall", tmp_path / "none.onnx", *common).exit_code == 2
    assert "no split 'val'" in run("precision-recall", graph, *common, "--split", "val").output


# Figure 7, FDDB


def test_roc_reads_what_the_fddb_evaluation_writes(tmp_path: Path) -> None:
    curves = FddbCurves(
        images=3, faces=4, detections=5, scores=np.array([0.9, 0.8, 0.7, 0.6]),
        false_positives=np.array([0, 1, 1, 1500]), discrete=np.array([0.25, 0.25, 0.5, 0.75]),
        continuous=np.array([0.2, 0.2, 0.4, 0.6]),
    )  # fmt: skip
    rows = [
        {"source": "d0", "long_side": 640, "regions": regions, **curves.to_dict()} for regions in ("boxes", "ellipses")
    ]
    file = write(tmp_path / "fddb.json", {"data": "FDDB", "rows": rows})
    out = tmp_path / "roc.png"
    done("roc", file, "--out", out)
    assert size_of(out)[0] > 1000
    numbers = read(out.with_suffix(".json"))["rows"]
    assert [row["source"] for row in numbers] == ["d0 at 640, boxes", "d0 at 640, ellipses"]
    assert numbers[0]["discrete_at"] == {"1000": 0.5, "2000": 0.75}
    assert numbers[0]["discrete_at"] == rows[0]["discrete"]
    assert numbers[0]["continuous_at"] == rows[0]["continuous"] == {"1000": 0.4, "2000": 0.6}


def test_roc_takes_plain_lists_and_tells_equal_names_apart(tmp_path: Path) -> None:
    row = {"source": "peer", "false_positives": [5, 20], "discrete": [0.5, 0.9], "continuous": [0.3, 0.7]}
    files = [write(tmp_path / f"{name}.json", {"rows": [row]}) for name in ("one", "two")]
    rows = roc.read_rocs(files)
    assert [one.source for one in rows] == ["peer (one)", "peer (two)"]
    assert [roc.rate_at(rows[0], "discrete", at) for at in (4, 5, 19, 20, 1e6)] == [0, 0.5, 0.5, 0.9, 0.9]
    done("roc", *files, "--out", tmp_path / "roc.png", "--most", 10)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"discrete": [0.5]}, "must be of one length"),
        ({"false_positives": [20, 5]}, "must not fall"),
        ({"discrete": [50, 90]}, "must lie in 0..1"),
        ({"false_positives": []}, "at least 1 item"),
    ],
)
def test_roc_refuses_broken_curves(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    row = {"source": "peer", "false_positives": [5, 20], "discrete": [0.5, 0.9], "continuous": [0.3, 0.7]}
    with pytest.raises(ValueError, match=words):
        roc.read_rocs([write(tmp_path / "a.json", {"rows": [row | change]})])
