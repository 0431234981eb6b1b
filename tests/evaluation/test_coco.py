"""AP on COCO: values by hand, and what is wrong with files named."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pycocotools")

from training.evaluation.coco import coco_ap


def truth(*boxes: tuple[int, int, list[float]]) -> dict[str, Any]:
    """image, category, box -> the content of an annotation file with two images and two categories."""
    return {
        "images": [{"id": number, "width": 640, "height": 480} for number in (7, 9)],
        "categories": [{"id": 1, "name": "face"}, {"id": 3, "name": "mask"}],
        "annotations": [
            {"id": at, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for at, (image, category, box) in enumerate(boxes)  # ids from 0, which the library alone would miss
        ],
    }


def row(image: int, box: list[float], score: float, category: int = 1) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


LARGE, SMALL = [100.0, 100, 200, 200], [10.0, 10, 20, 20]


def test_everything_found_is_one() -> None:
    scores = coco_ap(truth((7, 1, LARGE), (9, 1, SMALL)), [row(7, LARGE, 0.9), row(9, SMALL, 0.8)])
    for value in (scores.ap, scores.ap50, scores.ap75, scores.ap_small, scores.ap_large):
        assert value == pytest.approx(1)
    assert scores.ap_medium is None  # no such object
    assert (scores.ar1, scores.ar100, scores.images, scores.detections) == (1, 1, 2, 2)


def test_the_iou_decides_at_which_thresholds_a_box_counts() -> None:
    # 200 x 150 inside 200 x 200: IoU 0.75, a hit at 0.50, 0.55, ... 0.75, six thresholds of ten.
    scores = coco_ap(truth((7, 1, LARGE)), [row(7, [100, 100, 200, 150], 0.9)])
    assert scores.ap == pytest.approx(0.6)
    assert [scores.ap50, scores.ap75] == pytest.approx([1, 1])
    # 200 x 140: 0.70, five thresholds.
    scores = coco_ap(truth((7, 1, LARGE)), [row(7, [100, 100, 200, 140], 0.9)])
    assert scores.ap == pytest.approx(0.5)
    assert [scores.ap50, scores.ap75] == pytest.approx([1, 0])


def test_ap_is_read_at_101_recalls() -> None:
    # Two objects; hit, miss, hit by score: precision 1 up to recall 0.5 (51 points of 101), 2/3 after (50 points).
    rows = [row(7, LARGE, 0.9), row(7, [400, 300, 50, 50], 0.8), row(9, LARGE, 0.7)]
    scores = coco_ap(truth((7, 1, LARGE), (9, 1, LARGE)), rows)
    assert scores.ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_categories_are_averaged() -> None:
    both = truth((7, 1, LARGE), (7, 3, LARGE))
    assert coco_ap(both, [row(7, LARGE, 0.9, category=3)]).ap == pytest.approx(0.5)
    assert coco_ap(both, [row(7, LARGE, 0.9), row(7, LARGE, 0.9, category=3)]).ap == pytest.approx(1)


def test_crowds_are_neither_found_nor_missed() -> None:
    content = truth((7, 1, LARGE), (7, 1, [400, 100, 200, 200]))
    content["annotations"][1]["iscrowd"] = 1
    scores = coco_ap(content, [row(7, [410, 110, 50, 50], 0.95), row(7, LARGE, 0.9)])
    assert scores.ap == pytest.approx(1)


def test_nothing_found_is_zero_and_nothing_annotated_is_none() -> None:
    assert coco_ap(truth((7, 1, LARGE)), []).ap == 0.0
    assert coco_ap(truth(), [row(7, LARGE, 0.9)]).ap is None


def test_some_of_the_images(tmp_path: Path) -> None:
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(truth((7, 1, LARGE), (9, 1, LARGE))))
    rows = [row(7, LARGE, 0.9)]
    assert coco_ap(file, rows).ap50 == pytest.approx(51 / 101)
    one = coco_ap(file, [*rows, row(9, SMALL, 0.95)], images=[7])
    assert [one.ap, one.images, one.detections] == pytest.approx([1, 1, 1])
    with pytest.raises(ValueError, match="image 8"):
        coco_ap(file, rows, images=[7, 8])


def test_the_input_is_left_alone_and_may_be_bare() -> None:
    content = truth((7, 1, LARGE))
    del content["annotations"][0]["area"], content["annotations"][0]["iscrowd"]
    rows = [row(7, LARGE, 0.9)]
    before = copy.deepcopy((content, rows))
    assert coco_ap(content, rows).ap == pytest.approx(1)
    assert (content, rows) == before


def test_an_area_that_is_no_number_is_that_of_the_box() -> None:
    content = truth((7, 1, LARGE))
    content["annotations"][0]["area"] = "large"
    assert coco_ap(content, [row(7, LARGE, 0.9)]).ap_large == pytest.approx(1)


def test_mistakes_are_named(tmp_path: Path) -> None:
    content = truth((7, 1, LARGE))
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        coco_ap(tmp_path / "none.json", [])
    (tmp_path / "text.json").write_text("no json")
    with pytest.raises(ValueError, match=r"text\.json"):
        coco_ap(tmp_path / "text.json", [])
    with pytest.raises(ValueError, match="no categories"):
        coco_ap({"images": [], "annotations": []}, [])
    with pytest.raises(ValueError, match="annotation 0"):
        coco_ap({**content, "annotations": [{"image_id": 7}]}, [])
    with pytest.raises(ValueError, match="detection 0 has no score"):
        coco_ap(content, [{"image_id": 7, "category_id": 1, "bbox": LARGE}])
    with pytest.raises(ValueError, match="detection 1 is of image 8"):
        coco_ap(content, [row(7, LARGE, 0.9), row(8, LARGE, 0.9)])
    with pytest.raises(ValueError, match="category 2"):
        coco_ap(content, [row(7, LARGE, 0.9, category=2)])
    with pytest.raises(ValueError, match="finite"):
        coco_ap(content, [row(7, [0, 0, float("nan"), 4], 0.9)])
