"""The WIDER protocol: one hand-computed case a rule, the known mistakes of its ports, and a slow literal version to
agree with."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.evaluation.wider import SizeBucket, average_precision, evaluate, iou_matrix, normalise_scores


@dataclass
class Photo:
    name: str
    boxes: np.ndarray
    ignore: np.ndarray


@dataclass
class Found:
    boxes: np.ndarray
    scores: np.ndarray


def photo(name: str, *boxes: tuple[float, ...], ignore: tuple[bool, ...] | None = None) -> Photo:
    flags = np.zeros(len(boxes), dtype=bool) if ignore is None else np.array(ignore, dtype=bool)
    return Photo(name, np.array(boxes, dtype=np.float64).reshape(-1, 4), flags)


def found(*rows: tuple[float, ...]) -> Found:
    """Rows of x1 y1 x2 y2 score."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 5)
    return Found(table[:, :4], table[:, 4])


A, B, C = (0, 0, 99, 99), (200, 0, 299, 99), (400, 0, 499, 99)
NOWHERE = (700, 700, 799, 799)


def literal_ap(detections: dict[str, Found], photos: list[Photo], iou: float) -> float:
    """The official procedure with its loops, as the rules tell it; slow, and free of every shortcut of the module
    under test."""
    everything = [score for one in detections.values() for score in one.scores.tolist()]
    low, high = min(everything), max(everything)
    counts = np.zeros((1000, 2))
    faces = 0
    for one in photos:
        faces += int((~one.ignore).sum())
        mine = detections.get(one.name)
        if len(one.boxes) == 0 or mine is None or len(mine.scores) == 0:
            continue
        order = sorted(range(len(mine.scores)), key=lambda index: -mine.scores[index])
        state = [0] * len(one.boxes)
        proposal, recalled, scores = [], [], []
        for index in order:
            overlaps = [literal_iou(mine.boxes[index], truth) for truth in one.boxes]
            face = overlaps.index(max(overlaps))
            proposal.append(1)
            if overlaps[face] >= iou:
                if one.ignore[face]:
                    proposal[-1] = -1
                elif state[face] == 0:
                    state[face] = 1
            recalled.append(sum(state))
            scores.append(1.0 if high == low else (mine.scores[index] - low) / (high - low))
        for step in range(1, 1001):
            passing = [rank for rank, score in enumerate(scores) if score >= 1 - step / 1000]
            if passing:
                counts[step - 1, 0] += sum(1 for flag in proposal[: passing[-1] + 1] if flag == 1)
                counts[step - 1, 1] += recalled[passing[-1]]
    recall, precision = [0.0], [0.0]
    for proposals, hits in counts:
        precision.append(hits / proposals if proposals else 0.0)
        recall.append(hits / faces if faces else 0.0)
    recall.append(1.0)
    precision.append(0.0)
    for index in range(len(precision) - 2, -1, -1):
        precision[index] = max(precision[index], precision[index + 1])
    return sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall)))


def literal_iou(a: np.ndarray, b: np.ndarray) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    inner = width * height
    return float(inner / ((a[2] - a[0] + 1) * (a[3] - a[1] + 1) + (b[2] - b[0] + 1) * (b[3] - b[1] + 1) - inner))


# --- the rules, by hand ---------------------------------------------------------------------------


def test_a_perfect_detector_has_one_everywhere() -> None:
    report = evaluate(
        {"p": found((*A, 0.9), (*B, 0.8)), "q": found((*C, 0.7))}, [photo("p", A, B), photo("q", C)],
        photo_sizes={"p": (800, 600), "q": (800, 600)},
    )  # fmt: skip
    assert (report.ap50, report.ap, report.recall50, report.ap50_strict) == (1.0, 1.0, 1.0, 1.0)
    assert (report.photos, report.faces, report.ignored, report.detections) == (2, 3, 0, 3)


def test_rule_1_scores_are_normalised_over_all_photos_not_one_by_one() -> None:
    # Over all: hit of p 1.0, false positive of q 0.1, hit of q 0. The false positive comes before the second hit: AP
    # = 1/2 + 1/2 * 2/3. Photo by photo, the false positive of q would be worth 1.0, as much as the hit of p.
    detections = {"p": found((*A, 1.0)), "q": found((*NOWHERE, 0.1), (*B, 0.0))}
    assert evaluate(detections, [photo("p", A), photo("q", B)]).ap50 == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_rule_1_scale_and_shift_of_the_scores_do_not_matter() -> None:
    photos = [photo("p", A, B, C)]
    raw = found((*A, 0.9), (*NOWHERE, 0.7), (*B, 0.4), (*C, 0.1))
    moved = Found(raw.boxes, raw.scores * 37.0 - 12.0)
    assert evaluate({"p": raw}, photos).ap == pytest.approx(evaluate({"p": moved}, photos).ap)


def test_rule_2_detections_are_sorted_in_each_photo() -> None:
    # The weaker box of A comes first in the list and fits better; sorted, the stronger takes the face and the weaker
    # is false.
    detections = {"p": found((0, 0, 99, 99, 0.2), (0, 0, 99, 89, 0.9), (*B, 0.6))}
    # 0.9 hit, 0.6 hit, 0.2 false -> AP 1. Unsorted, the hit of A would count only at 0.2.
    assert evaluate(detections, [photo("p", A, B)]).ap50 == 1.0


def test_rule_3_borders_belong_to_the_box() -> None:
    assert iou_matrix([[0, 0, 9, 9]], [[0, 0, 9, 4]])[0, 0] == pytest.approx(0.5)  # 9 * 4 / 81 without the +1
    assert iou_matrix([[0, 0, 9, 9]], [[9, 9, 18, 18]])[0, 0] == pytest.approx(1 / 199)  # one shared pixel
    assert iou_matrix([[0, 0, 9, 9]], [[10, 0, 19, 9]])[0, 0] == 0.0
    assert iou_matrix(np.zeros((0, 4)), [[0, 0, 9, 9]]).shape == (0, 1)


def test_rule_3_an_overlap_of_exactly_one_half_is_enough() -> None:
    assert evaluate({"p": found((0, 0, 9, 4, 0.9))}, [photo("p", (0, 0, 9, 9))]).recall50 == 1.0


def test_rule_4_a_detection_belongs_to_its_best_face_only() -> None:
    # Both detections fit A best, the second B with 0.6 too; B is not found by a box that lies better on A.
    wide, other = (0, 0, 99, 99), (0, 0, 99, 69)
    photos = [photo("p", wide, other)]
    report = evaluate({"p": found((0, 0, 99, 99, 0.9), (0, 0, 99, 89, 0.5))}, photos)
    assert report.recall50 == 0.5
    assert report.ap50 == pytest.approx(0.5)


def test_rule_4_a_hit_on_an_ignored_face_leaves_the_proposals() -> None:
    photos = [photo("p", A, B, ignore=(False, True))]
    assert evaluate({"p": found((*B, 0.9), (*B, 0.8), (*A, 0.5))}, photos).ap50 == 1.0
    # Beside the ignored face, it is a false positive.
    assert evaluate({"p": found((*C, 0.9), (*A, 0.5))}, photos).ap50 == pytest.approx(0.5)


def test_rule_4_the_best_face_is_sought_among_ignored_ones_too() -> None:
    # The ignored box fits better, so the detection leaves, though it would reach the counted face (IoU 0.9) as well.
    photos = [photo("p", (0, 0, 99, 89), (0, 0, 99, 99), ignore=(False, True))]
    report = evaluate({"p": found((*A, 0.9))}, photos)
    assert (report.recall50, report.ap50) == (0.0, 0.0)


def test_rule_4_a_second_hit_on_a_face_is_a_false_positive() -> None:
    # hit A, A again, hit B: precision 1 at recall 1/2, 2/3 at recall 1.
    detections = {"p": found((*A, 1.0), (*A, 0.5), (*B, 0.0))}
    assert evaluate(detections, [photo("p", A, B)]).ap50 == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_rule_5_scores_within_one_thousandth_enter_together() -> None:
    # 0.5002 (false) and 0.5001 (hit) pass the same threshold, 0.5: precision there is 2/3 and the hit of 1.0 stands
    # alone before.
    photos = [photo("p", A, B)]
    report = evaluate({"p": found((*A, 1.0), (*NOWHERE, 0.5002), (*B, 0.5001), (*NOWHERE, 0.0))}, photos)
    assert report.ap50 == pytest.approx(0.5 + 0.5 * 2 / 3)
    # A false positive that ranks right behind a hit but shares its threshold spoils it; the strict AP sees single
    # scores.
    report = evaluate({"p": found((*A, 0.5002), (*NOWHERE, 0.5001), (*NOWHERE, 1.0), (*NOWHERE, 0.0))}, [photo("p", A)])
    assert report.ap50 == pytest.approx(1 / 3)
    assert report.ap50_strict == pytest.approx(1 / 2)


def test_rule_5_a_score_at_a_threshold_passes_it() -> None:
    # 0.5 passes 1 - 500/1000, the false positive at 0.4995 only the next. Were 0.5 kept out of its threshold, both
    # would enter together: 1/2 + 1/2 * 2/3.
    detections = {"p": found((*A, 1.0), (*B, 0.5), (*NOWHERE, 0.4995), (*NOWHERE, 0.0))}
    assert evaluate(detections, [photo("p", A, B)]).ap50 == 1.0


def test_rule_5_the_lowest_score_passes_the_last_threshold() -> None:
    # There is no threshold 1, but one of 0: the best score enters at 0.999, the worst at 0.
    assert evaluate({"p": found((*A, 1.0), (*B, 0.0))}, [photo("p", A, B)]).ap50 == 1.0


def test_rule_5_counts_are_summed_before_dividing() -> None:
    # p: 1 hit. q: 1 hit and 3 false above it. Summed at the end: 2 hits of 5. A mean of per-photo precision would be
    # (1 + 1/4) / 2.
    detections = {"p": found((*A, 0.0)), "q": found(*[(*NOWHERE, 1.0)] * 3, (*B, 0.0))}
    assert evaluate(detections, [photo("p", A), photo("q", B)]).ap50 == pytest.approx(2 / 5)


def test_rule_6_faces_of_photos_without_detections_count() -> None:
    photos = [photo("p", A), photo("empty", B), photo("absent", C)]
    report = evaluate({"p": found((*A, 0.9)), "empty": found()}, photos)
    assert report.faces == 3
    assert report.ap50 == pytest.approx(1 / 3)


def test_rule_6_false_positives_of_photos_without_faces_do_not_count_but_strictly_they_do() -> None:
    photos = [photo("p", A), photo("landscape")]
    report = evaluate({"p": found((*A, 0.5)), "landscape": found((*B, 0.9))}, photos)
    assert report.ap50 == 1.0
    assert report.ap50_strict == pytest.approx(0.5)


def test_rule_6_scores_of_skipped_photos_still_take_part_in_the_normalisation() -> None:
    # Without the landscape's 0.0 and 100.0, the two scores of p would be 1.0 and 0.0; with them both pass the same
    # threshold.
    photos = [photo("p", A, B), photo("landscape")]
    with_it = {"p": found((*NOWHERE, 50.002), (*A, 50.001)), "landscape": found((*C, 0.0), (*C, 100.0))}
    assert evaluate(with_it, photos).ap50 == pytest.approx(0.25)
    lone = {"p": found((*A, 50.002), (*NOWHERE, 50.001))}
    assert evaluate(lone, photos).ap50 == pytest.approx(0.5)
    assert evaluate(lone | {"landscape": with_it["landscape"]}, photos).ap50 == pytest.approx(0.25)


def test_rule_6_a_photo_with_ignored_faces_alone_is_not_skipped() -> None:
    photos = [photo("p", A), photo("q", B, ignore=(True,))]
    report = evaluate({"p": found((*A, 0.5)), "q": found((*C, 0.9))}, photos)
    assert report.faces == 1
    assert report.ap50 == pytest.approx(0.5)


def test_rule_7_the_area_lies_under_the_envelope() -> None:
    # Points (recall, precision): (.25, 1), (.5, .5), (.75, .6). The envelope lifts .5 to .6; nothing beyond recall .75.
    assert average_precision(np.array([0.25, 0.5, 0.75]), np.array([1.0, 0.5, 0.6])) == pytest.approx(0.25 + 0.5 * 0.6)
    assert average_precision(np.zeros(0), np.zeros(0)) == 0.0


# --- mistakes known from ports --------------------------------------------------------------------


def test_the_order_of_detections_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    truth = rng.uniform(0, 500, (20, 2))
    boxes = np.concatenate([truth, truth + 40], axis=1)
    noisy = np.concatenate([boxes + rng.normal(0, 5, boxes.shape), boxes + 300])
    scores = rng.uniform(0, 1, 40)
    shuffle = rng.permutation(40)
    photos = [Photo("p", boxes, np.zeros(20, dtype=bool))]
    one = evaluate({"p": Found(noisy, scores)}, photos)
    assert one == evaluate({"p": Found(noisy[shuffle], scores[shuffle])}, photos)
    assert 0 < one.ap50 < 1


def test_no_proposal_at_the_top_thresholds_is_not_nan() -> None:
    # The best detection lies on an ignored face: no proposal above 0.5, so precision starts as 0/0.
    photos = [photo("p", A, B, ignore=(True, False))]
    with np.errstate(all="raise"):
        report = evaluate({"p": found((*A, 1.0), (*B, 0.5), (*C, 0.0))}, photos)
    assert report.ap50 == 1.0
    assert not math.isnan(report.ap)
    # Only ignored ones are hit: 0/0 at every threshold.
    assert evaluate({"p": found((*A, 1.0), (*A, 0.5))}, photos).ap50 == 0.0


@pytest.mark.parametrize("name", ["party/7_jpg.jpg", "a/gig.jpg", "b/jpg", "c/pppp.jpg", "source/photo.webp"])
def test_names_are_taken_as_they_are(name: str) -> None:
    # "gig.jpg".rstrip(".jpg") is "gi": names cut that way meet no annotation, or a stranger's.
    assert evaluate({name: found((*A, 0.5))}, [photo(name, A)]).ap50 == 1.0
    with pytest.raises(ValueError, match="no annotation"):
        evaluate({name.rstrip(".jpg") + "?": found((*A, 0.5))}, [photo(name, A)])


def test_equal_scores_divide_nothing_by_zero() -> None:
    detections = {"p": found((*A, 0.7), (*NOWHERE, 0.7)), "q": found((*B, 0.7))}
    with np.errstate(all="raise"):
        report = evaluate(detections, [photo("p", A), photo("q", B)])
    assert report.ap50 == pytest.approx(2 / 3)
    assert normalise_scores(np.array([0.7])).tolist() == [1.0]


def test_boxes_are_not_rounded() -> None:
    # A face 9.5 pixels wide: rounded to integers the detection would fall from IoU 1 to under 0.95.
    box = (10.4, 10.4, 18.9, 18.9)
    report = evaluate({"p": found((*box, 0.9))}, [photo("p", box)])
    assert report.ap_by_iou["0.95"] == 1.0
    rounded = tuple(float(round(value)) for value in box)
    assert evaluate({"p": found((*rounded, 0.9))}, [photo("p", box)]).ap_by_iou["0.95"] == 0.0
    as_float32 = Found(np.array([box], dtype=np.float32), np.array([0.9], dtype=np.float32))
    assert evaluate({"p": as_float32}, [photo("p", box)]).ap == 1.0


# --- AP over IoU, sizes, extremes -----------------------------------------------------------------


def test_ap_is_the_mean_over_ten_ious() -> None:
    # IoU of the detection is 0.72: a hit at 0.50, 0.55, 0.60, 0.65, 0.70.
    report = evaluate({"p": found((0, 0, 99, 71, 0.9))}, [photo("p", A)])
    assert list(report.ap_by_iou) == [f"{0.5 + 0.05 * k:.2f}" for k in range(10)]
    assert report.ap == pytest.approx(0.5)
    assert report.ap50 == 1.0


def test_sizes_are_relative_to_the_photo() -> None:
    # The same 40-pixel face is medium in a photo of 640 and small in one of 1000.
    box = (100, 100, 140, 140)
    for width, name in ((640, "medium"), (1000, "small")):
        report = evaluate({"p": found((*box, 0.9))}, [photo("p", box)], photo_sizes={"p": (width, 300)})
        assert {key: score.faces for key, score in report.by_size.items() if score.faces} == {name: 1}
        assert report.by_size[name].ap == 1.0


def test_faces_and_misses_of_another_size_leave_a_bucket() -> None:
    small, large = (0, 0, 20, 20), (200, 200, 500, 500)
    lost_small, lost_large = (900, 900, 920, 920), (600, 0, 900, 300)
    detections = {"p": found((*lost_large, 1.0), (*large, 0.9), (*small, 0.8), (*lost_small, 0.0))}
    report = evaluate(detections, [photo("p", small, large)], photo_sizes={"p": (1000, 1000)})
    assert report.by_size["small"].ap50 == 1.0  # the large miss ranks first, and belongs to another bucket
    assert report.by_size["large"].ap50 == pytest.approx(0.5)
    assert report.by_size["medium"].faces == 0
    assert report.by_size["medium"].ap50 is None
    assert report.ap50 == pytest.approx(2 / 3)


def test_buckets_are_half_open_and_can_be_chosen() -> None:
    buckets = (SizeBucket("low", 0.0, 0.5), SizeBucket("high", 0.5, 2.0))
    report = evaluate(
        {"p": found((0, 0, 50, 10, 0.9))}, [photo("p", (0, 0, 50, 10))], photo_sizes={"p": (100, 100)}, buckets=buckets
    )
    assert (report.by_size["low"].faces, report.by_size["high"].faces) == (0, 1)


def test_a_silent_detector_and_an_empty_set_have_zero() -> None:
    report = evaluate({}, [photo("p", A)], photo_sizes={"p": (100, 100)})
    assert (report.ap50, report.ap, report.recall50, report.ap50_strict) == (0, 0, 0, 0)
    assert report.by_size["large"].ap50 == 0
    assert evaluate({}, []).ap == 0.0
    assert evaluate({"p": found((*A, 0.9))}, [photo("p")]).ap50_strict == 0.0


def test_mistakes_in_the_input_are_named() -> None:
    with pytest.raises(ValueError, match=r"q\.jpg"):
        evaluate({"q.jpg": found()}, [photo("p", A)])
    with pytest.raises(ValueError, match="twice"):
        evaluate({}, [photo("p", A), photo("p", B)])
    with pytest.raises(ValueError, match="finite"):
        evaluate({"p": found((*A, float("nan")))}, [photo("p", A)])
    with pytest.raises(ValueError, match=r"\[k, 4\]"):
        evaluate({"p": Found(np.zeros((2, 4)), np.zeros(3))}, [photo("p", A)])
    with pytest.raises(ValueError, match="ignore flags"):
        evaluate({}, [photo("p", A, ignore=(True, False))])
    with pytest.raises(ValueError, match="photo_sizes"):
        evaluate({}, [photo("p", A)], photo_sizes={})
    with pytest.raises(ValueError, match=r"0\.5"):
        evaluate({}, [photo("p", A)], ious=(0.75,))


def test_the_report_is_json() -> None:
    report = evaluate({"p": found((*A, 0.9))}, [photo("p", A)], photo_sizes={"p": (640, 480)})
    read = json.loads(report.to_json())
    assert read["protocol"] == "wider"
    assert read["by_size"]["large"] == {"faces": 1, "ap50": 1.0, "ap": 1.0, "recall50": 1.0}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), photos=st.integers(1, 6), decimals=st.integers(1, 6))
def test_it_agrees_with_the_literal_procedure(seed: int, photos: int, decimals: int) -> None:
    rng = np.random.default_rng(seed)
    annotations, detections = [], {}
    for index in range(photos):
        count = int(rng.integers(0, 7))
        corners = rng.uniform(0, 120, (count, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(10, 60, (count, 2))], axis=1)
        annotations.append(Photo(str(index), boxes, rng.random(count) < 0.3))
        copies = boxes[rng.integers(0, count, int(rng.integers(0, 12)))] if count else np.zeros((0, 4))
        strays = rng.uniform(0, 50, (2, 4)) + np.array([0, 0, 50, 50])
        guesses = np.concatenate([copies + rng.normal(0, 4, copies.shape), strays])
        detections[str(index)] = Found(guesses, rng.random(len(guesses)).round(decimals))
    report = evaluate(detections, annotations)
    for iou in (0.5, 0.75, 0.95):
        assert report.ap_by_iou[f"{iou:.2f}"] == pytest.approx(literal_ap(detections, annotations, iou), abs=1e-12)


def test_the_best_threshold_has_the_highest_f1() -> None:
    photos = [photo("a", A, B, C), photo("none")]
    detections = {"a": found((*A, 0.9), (*B, 0.6), (*NOWHERE, 0.5), (*C, 0.4)), "none": found((*A, 0.3))}
    best = evaluate(detections, photos).best
    assert best is not None
    # At 0.6: two of two right, two of three found. At 0.4: three of four right, all found, which is better.
    assert (best.score, best.precision, best.recall) == (0.4, 0.75, 1.0)
    assert best.f1 == pytest.approx(6 / 7)
    assert evaluate({}, photos).best is None
    assert evaluate({"a": found((*NOWHERE, 0.9))}, photos).best is None
