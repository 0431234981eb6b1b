"""ATSS and SimOTA on a few anchors, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training.models.anchors import AnchorConfig, pyramid_anchors
from training.models.assignment import Prediction, assign
from training.models.boxes import pairwise_iou
from training.models.matching import IGNORED, NEGATIVE, MatchConfig

ATSS, SIMOTA = MatchConfig(kind="atss"), MatchConfig(kind="simota")


def boxes(*rows: tuple[float, float, float, float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def pyramid(size: int) -> tuple[Tensor, tuple[int, ...]]:
    sizes = [(-(-size // s), -(-size // s)) for s in (4, 8, 16, 32, 64, 128)]
    return pyramid_anchors(sizes, AnchorConfig(), torch.device("cpu")), tuple(h * w for h, w in sizes)


def test_atss_takes_candidates_above_mean_and_deviation() -> None:
    anchors = boxes(*[(0, 0, 10, 10), (1, 0, 11, 10)], *[(x, 0, x + 10, 10) for x in range(20, 40, 2)])
    face = boxes((0, 0, 11, 10))
    iou = pairwise_iou(anchors, face)[:, 0]
    assert iou[:2].tolist() == pytest.approx([10 / 11, 10 / 11])
    assert (iou.mean() + iou.std()).item() < 10 / 11
    every = MatchConfig(kind="atss", candidates=len(anchors))
    assert assign(anchors, (len(anchors),), face, boxes(), every).tolist() == [0, 0, *[NEGATIVE] * 10]
    # With the two nearest alone the threshold is their own IoU, which both reach.
    two = MatchConfig(kind="atss", candidates=2)
    assert assign(anchors, (len(anchors),), face, boxes(), two).tolist() == [0, 0, *[NEGATIVE] * 10]


def test_a_contested_anchor_goes_to_the_face_it_overlaps_more() -> None:
    anchors = boxes((0, 0, 10, 10), (100, 0, 110, 10))
    for faces, owner in ((boxes((0, 0, 10, 10), (0, 0, 10, 14)), 0), (boxes((0, 0, 10, 14), (0, 0, 10, 10)), 1)):
        assert assign(anchors, (2,), faces, boxes(), MatchConfig(kind="atss", candidates=1))[0] == owner


def test_atss_wants_the_centre_inside_but_leaves_no_face_alone() -> None:
    anchors, levels = pyramid(128)
    tiny = boxes((63.2, 63.2, 63.9, 64.1))  # no centre of any cell lies in it
    result = assign(anchors, levels, tiny, boxes(), ATSS)
    assert (result == 0).sum() == 1
    iou = pairwise_iou(anchors, tiny)[:, 0]
    assert iou[result == 0].item() == pytest.approx(iou.max().item())


def test_atss_picks_the_level_of_the_faces_size() -> None:
    anchors, levels = pyramid(256)
    for side, level in ((16, 0), (32, 1), (64, 2), (128, 3)):
        face = boxes((128 - side / 2.4, 128 - side / 1.6, 128 + side / 2.4, 128 + side / 1.6))
        chosen = (assign(anchors, levels, face, boxes(), ATSS) == 0).nonzero().flatten()
        assert len(chosen) > 3
        bounds = torch.tensor(levels).cumsum(0)
        assert set(torch.bucketize(chosen, bounds, right=True).tolist()) == {level}


def test_atss_needs_the_levels() -> None:
    with pytest.raises(ValueError, match="level"):
        assign(boxes((0, 0, 1, 1)), (), boxes((0, 0, 1, 1)), boxes(), ATSS)


def test_simota_follows_the_prediction() -> None:
    anchors, levels = pyramid(64)
    face = boxes((20, 18, 44, 46))
    logits = torch.zeros(len(anchors))
    predicted = anchors.clone()
    far, near = 0, int(pairwise_iou(anchors, face).argmax())
    predicted[far] = face[0]  # perfect, but its cell is nowhere near
    predicted[near] = face[0]
    result = assign(anchors, levels, face, boxes(), SIMOTA, Prediction(logits, predicted))
    assert result[near] == 0
    assert result[far] == NEGATIVE
    # Ten best overlaps of the anchors that may compete; `far` is none of them.
    predicted[far] = anchors[far]
    assert (result == 0).sum() == int(pairwise_iou(predicted, face)[:, 0].topk(10).values.sum())


def test_simota_prefers_the_confident_of_equal_boxes() -> None:
    anchors = boxes((0, 0, 10, 10), (1, 0, 11, 10))
    face = boxes((0, 0, 11, 10))
    same = torch.cat((face, face)) * torch.tensor([1.0, 1.0, 0.5, 1.0])  # IoU one half each: one anchor in all
    for confident in (0, 1):
        logits = torch.tensor([-2.0, -2.0])
        logits[confident] = 2.0
        result = assign(anchors, (2,), face, boxes(), SIMOTA, Prediction(logits, same))
        assert result.tolist() == [0 if k == confident else NEGATIVE for k in (0, 1)]


def test_simota_needs_a_prediction() -> None:
    with pytest.raises(ValueError, match="prediction"):
        assign(boxes((0, 0, 1, 1)), (1,), boxes((0, 0, 1, 1)), boxes(), SIMOTA)


@pytest.mark.parametrize("config", [ATSS, SIMOTA])
def test_ignored_anchors_and_empty_pictures(config: MatchConfig) -> None:
    anchors, levels = pyramid(64)
    prediction = Prediction(torch.zeros(len(anchors)), anchors)
    empty = assign(anchors, levels, boxes(), boxes((0, 0, 32, 32)), config, prediction)
    assert set(empty.tolist()) == {NEGATIVE, IGNORED}
    face = boxes((8, 6, 22, 26))
    result = assign(anchors, levels, face, boxes((0, 0, 32, 32)), config, prediction)
    assert (result == 0).any()  # a face in an ignore region is still learnt
    assert (result == IGNORED).any()


@pytest.mark.parametrize("config", [ATSS, SIMOTA])
def test_an_anchor_goes_to_one_face_and_every_face_gets_some(config: MatchConfig) -> None:
    anchors, levels = pyramid(128)
    faces = boxes((10, 10, 30, 40), (34, 10, 54, 40), (70, 60, 120, 125))
    result = assign(anchors, levels, faces, boxes(), config, Prediction(torch.zeros(len(anchors)), anchors))
    assert {0, 1, 2} <= set(result.tolist())
