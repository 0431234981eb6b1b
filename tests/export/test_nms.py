"""Three forms of NMS, one result: greedy in NumPy, Cluster-NMS of plain operations, ONNX NonMaxSuppression."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from export.graph import SuppressionGraph
from export.nms import DEFAULT_ITERATIONS, cluster_nms, greedy_nms, iterations_needed
from export.onnx_graph import OPSET, attach_nms
from service.repository.manifest import Thresholds

LIMITS = Thresholds()
Boxes = NDArray[np.float32]
Outputs = tuple[NDArray[np.int32], Boxes, Boxes]


def crowd_of(seed: int, faces: int, copies: int) -> tuple[Boxes, Boxes]:
    """`faces` places with `copies` jittered boxes each, padded to 2000 with scoreless ones; best first."""
    rng = np.random.default_rng(seed)
    centers = np.repeat(rng.uniform(20, 940, (faces, 2)), copies, axis=0)
    sides = np.repeat(rng.uniform(8, 90, (faces, 1)), copies, axis=0)
    centers = centers + rng.normal(0, 0.15, centers.shape) * sides
    half = sides * rng.uniform(0.8, 1.2, (faces * copies, 2)) / 2
    boxes = np.concatenate((centers - half, centers + half), axis=1).clip(0, 960)
    # Distinct multiples of 2^-12: no ties, exact in float32.
    scores = rng.choice(np.arange(1, 4096), faces * copies, replace=False) / 4096
    return _padded(boxes.astype(np.float32), scores.astype(np.float32))


def _padded(boxes: Boxes, scores: Boxes) -> tuple[Boxes, Boxes]:
    order = np.argsort(-scores, kind="stable")
    full_boxes = np.zeros((LIMITS.pre_nms_top_k, 4), np.float32)
    full_scores = np.zeros(LIMITS.pre_nms_top_k, np.float32)
    full_boxes[: len(order)], full_scores[: len(order)] = boxes[order], scores[order]
    return full_boxes, full_scores


def chain(length: int) -> tuple[Boxes, Boxes]:
    """Each box overlaps the next by IoU 0.54 and the one after by 0.25: suppression must go link by link."""
    x = np.arange(length, dtype=np.float32)[:, None] * 30
    boxes = np.concatenate((x, np.zeros_like(x), x + 100, np.full_like(x, 100)), axis=1)
    return _padded(boxes, np.linspace(0.9, 0.3, length, dtype=np.float32))


def reference(boxes: Boxes, scores: Boxes) -> tuple[Boxes, Boxes]:
    """What the graph must answer for one picture: above the threshold (strictly), NMS, at most 750."""
    above = scores > LIMITS.score
    kept = greedy_nms(boxes[above], scores[above], LIMITS.nms_iou)[: LIMITS.max_detections]
    return boxes[above][kept], scores[above][kept]


def run_plain(boxes: Boxes, scores: Boxes) -> Outputs:
    count, found, values = SuppressionGraph(LIMITS)(torch.from_numpy(boxes), torch.from_numpy(scores))
    return count.numpy(), found.numpy(), values.numpy()


def run_onnx(boxes: Boxes, scores: Boxes) -> Outputs:
    inputs = [
        helper.make_tensor_value_info("candidate_boxes", TensorProto.FLOAT, ["batch", "k", 4]),
        helper.make_tensor_value_info("candidate_scores", TensorProto.FLOAT, ["batch", "k"]),
    ]
    model = helper.make_model(
        helper.make_graph([], "tail", inputs, []), opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8
    )
    attach_nms(model, LIMITS)
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    count, found, values = session.run(
        ["num_detections", "boxes", "scores"], {"candidate_boxes": boxes, "candidate_scores": scores}
    )
    return count, found, values


FORMS = pytest.mark.parametrize("form", [run_plain, run_onnx])


def check(outputs: Outputs, boxes: Boxes, scores: Boxes) -> list[int]:
    """Compare every picture with the reference, bit for bit, padding included. Returns the counts."""
    count, found, values = outputs
    assert count.dtype == np.int32
    assert found.shape == (len(boxes), LIMITS.max_detections, 4)
    assert values.shape == (len(boxes), LIMITS.max_detections)
    for k in range(len(boxes)):
        wanted_boxes, wanted_scores = reference(boxes[k], scores[k])
        n = int(count[k])
        assert n == len(wanted_scores)
        np.testing.assert_array_equal(values[k, :n], wanted_scores)
        np.testing.assert_array_equal(found[k, :n], wanted_boxes)
        assert not values[k, n:].any()
        assert not found[k, n:].any()
    return [int(n) for n in count]


@FORMS
@pytest.mark.parametrize(("faces", "copies"), [(1, 30), (60, 20), (190, 10), (400, 5)])
def test_crowds_equal_greedy(form, faces, copies):  # type: ignore[no-untyped-def]
    boxes, scores = crowd_of(faces, faces, copies)
    check(form(boxes[None], scores[None]), boxes[None], scores[None])


@FORMS
def test_pictures_of_a_batch_do_not_mix(form):  # type: ignore[no-untyped-def]
    parts = [crowd_of(1, 80, 8), _padded(np.zeros((0, 4), np.float32), np.zeros(0, np.float32)), crowd_of(2, 5, 40)]
    boxes, scores = np.stack([p[0] for p in parts]), np.stack([p[1] for p in parts])
    counts = check(form(boxes, scores), boxes, scores)
    assert counts[1] == 0
    assert counts[0] > 0
    assert counts[2] > 0


@FORMS
def test_more_faces_than_the_output_holds(form):  # type: ignore[no-untyped-def]
    x, y = np.meshgrid(np.arange(40) * 20.0, np.arange(30) * 20.0)
    corner = np.stack((x.ravel(), y.ravel()), axis=1)
    boxes = np.concatenate((corner, corner + 15), axis=1).astype(np.float32)
    boxes, scores = _padded(boxes, np.linspace(0.99, 0.1, 1200, dtype=np.float32))
    assert check(form(boxes[None], scores[None]), boxes[None], scores[None]) == [750]


@FORMS
def test_the_score_threshold_itself_is_outside(form):  # type: ignore[no-untyped-def]
    at = np.float32(LIMITS.score)
    boxes = np.array([[0, 0, 9, 9], [50, 50, 60, 60]], np.float32)
    boxes, scores = _padded(boxes, np.array([np.nextafter(at, np.float32(1)), at]))
    assert check(form(boxes[None], scores[None]), boxes[None], scores[None]) == [1]


@FORMS
def test_equal_scores_keep_the_earlier_box(form):  # type: ignore[no-untyped-def]
    boxes = np.array([[0, 0, 100, 100], [5, 0, 105, 100]], np.float32)
    boxes, scores = _padded(boxes, np.array([0.5, 0.5], np.float32))
    _, found, _ = form(boxes[None], scores[None])
    np.testing.assert_array_equal(found[0, 0], [0, 0, 100, 100])
    check(form(boxes[None], scores[None]), boxes[None], scores[None])


@FORMS
def test_a_chain_within_the_iterations_is_exact(form):  # type: ignore[no-untyped-def]
    boxes, scores = chain(DEFAULT_ITERATIONS)
    assert check(form(boxes[None], scores[None]), boxes[None], scores[None]) == [DEFAULT_ITERATIONS // 2]


@pytest.mark.parametrize("length", [3, 12, 40])
def test_depth_of_a_chain_is_what_cluster_nms_needs(length: int) -> None:
    boxes, scores = chain(length)
    batch = torch.from_numpy(boxes[:length])[None]
    wanted = greedy_nms(boxes[:length], scores[:length], LIMITS.nms_iou)
    needed = iterations_needed(batch, LIMITS.nms_iou)
    kept = cluster_nms(batch, LIMITS.nms_iou, needed)[0].nonzero()[:, 0].numpy()
    np.testing.assert_array_equal(kept, wanted)
    assert needed == length - 1
    short = cluster_nms(batch, LIMITS.nms_iou, needed - 1)[0].nonzero()[:, 0].numpy()
    assert len(short) != len(wanted)


@pytest.mark.parametrize("seed", range(5))
def test_crowds_need_fewer_iterations_than_the_graph_has(seed: int) -> None:
    boxes, _ = crowd_of(seed, 100, 20)
    assert 2 <= iterations_needed(torch.from_numpy(boxes)[None], LIMITS.nms_iou) <= DEFAULT_ITERATIONS


def test_greedy_by_hand() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10], [0, 0, 0, 0]], np.float32)
    scores = np.array([0.6, 0.9, 0.7, 0.1], np.float32)
    assert greedy_nms(boxes, scores, 0.4).tolist() == [1, 2, 3]
    assert greedy_nms(boxes[:0], scores[:0], 0.4).tolist() == []


@pytest.mark.parametrize("seed", range(3))
def test_too_few_iterations_err_in_one_direction(seed: int) -> None:
    """Even numbers leave too many boxes, odd ones too few, so that an even number loses no face."""
    crowd, _ = crowd_of(seed, 60, 20)
    for boxes in (crowd[:1200], chain(40)[0][:40]):
        batch = torch.from_numpy(boxes)[None]
        wanted = set(greedy_nms(boxes, np.linspace(1, 0.1, len(boxes), dtype=np.float32), LIMITS.nms_iou).tolist())
        needed = iterations_needed(batch, LIMITS.nms_iou)
        assert needed > 3
        for iterations in range(needed):
            kept = set(cluster_nms(batch, LIMITS.nms_iou, iterations)[0].nonzero()[:, 0].tolist())
            assert kept > wanted if iterations % 2 == 0 else kept <= wanted
    assert DEFAULT_ITERATIONS % 2 == 0


def test_what_is_below_the_threshold_needs_no_iterations() -> None:
    """A chain that goes on below the threshold is cut there: 10 boxes above need 9 iterations, not 199."""
    boxes, scores = chain(200)
    scores = np.where(np.arange(len(boxes)) < 10, scores, LIMITS.score / 2).astype(np.float32)
    count, found, _ = SuppressionGraph(LIMITS, 9)(torch.from_numpy(boxes)[None], torch.from_numpy(scores)[None])
    assert count.tolist() == [5]
    np.testing.assert_array_equal(found[0, :5].numpy(), boxes[0:10:2])
    short, _, _ = SuppressionGraph(LIMITS, 8)(torch.from_numpy(boxes)[None], torch.from_numpy(scores)[None])
    assert short.tolist() == [6]


def test_boxes_without_area_and_out_of_order_corners_harm_nobody() -> None:
    boxes, scores = _padded(
        np.array([[5, 5, 5, 5], [0, 0, 10, 10], [10, 10, 0, 0], [0, 0, 10, 9]], np.float32),
        np.array([0.9, 0.8, 0.7, 0.6], np.float32),
    )
    count, found, _ = run_plain(boxes[None], scores[None])
    assert count.tolist() == [3]
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[0, :3], boxes[:3])
