"""Losses that teach the score the box's IoU, the IoU branch, and the head's norms."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import Tensor

from training.models import DetectorConfig, Output, build_detector
from training.models.boxes import encode
from training.models.detector import scores
from training.models.losses import LossConfig, Targets, detection_loss
from training.models.postprocess import PostprocessConfig, postprocess


def boxes(*rows: tuple[float, float, float, float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


ANCHORS = boxes((0, 0, 10, 10), (100, 100, 110, 110))
FACE = boxes((0, 0, 10, 10))


def output(logits: list[float], predicted: Tensor, quality: list[float] | None = None) -> Output:
    deltas = torch.zeros(1, 2, 4)
    deltas[0, 0] = encode(predicted, ANCHORS[:1])[0]
    return Output(
        torch.tensor([logits]), deltas, ANCHORS, (2,), None if quality is None else torch.tensor([quality])
    )  # fmt: skip


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def entropy(p: float, target: float) -> float:
    return -target * math.log(p) - (1 - target) * math.log(1 - p)


def test_quality_focal_by_hand() -> None:
    half = boxes((0, 0, 10, 5))  # IoU one half with the face
    config = LossConfig(cls="quality_focal")
    losses = detection_loss(output([logit(0.8), logit(0.1)], half), [Targets(FACE, boxes())], config)
    expected = 0.3**2 * entropy(0.8, 0.5) + 0.1**2 * entropy(0.1, 0.0)
    assert losses.cls.item() == pytest.approx(expected, rel=1e-4)
    perfect = detection_loss(output([0.0, -30.0], half), [Targets(FACE, boxes())], config)
    assert perfect.cls.item() == pytest.approx(0.0, abs=1e-6)


def test_varifocal_by_hand() -> None:
    half = boxes((0, 0, 10, 5))
    losses = detection_loss(
        output([logit(0.8), logit(0.1)], half), [Targets(FACE, boxes())], LossConfig(cls="varifocal")
    )  # fmt: skip
    expected = 0.5 * entropy(0.8, 0.5) + 0.75 * 0.1**2 * entropy(0.1, 0.0)
    assert losses.cls.item() == pytest.approx(expected, rel=1e-4)


def test_varifocal_has_the_gradient_of_its_weight_too() -> None:
    logits = torch.tensor([[0.0, -3.0]], requires_grad=True)
    deltas = torch.zeros(1, 2, 4)
    found = Output(logits, deltas, ANCHORS, (2,))
    losses = detection_loss(found, [Targets(FACE, boxes())], LossConfig(cls="varifocal"))
    torch.autograd.backward(losses.cls)
    p = torch.tensor(-3.0).sigmoid().item()
    # d/dx of 0.75 p^2 softplus(x)
    expected = 0.75 * (2 * p * p * (1 - p) * math.log1p(math.exp(-3.0)) + p**3)
    assert logits.grad is not None
    assert logits.grad[0, 1].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["giou", "diou"])
def test_overlap_losses_by_hand(kind: Literal["giou", "diou"]) -> None:
    half = boxes((0, 0, 10, 5))
    losses = detection_loss(output([0, 0], half), [Targets(FACE, boxes())], LossConfig(box=kind, box_weight=2.0))
    # The frame of both is the face, so GIoU is IoU; DIoU adds the centres' distance, 2.5, over the diagonal's square.
    expected = 0.5 if kind == "giou" else 0.5 + 2.5**2 / 200
    assert losses.box.item() == pytest.approx(2 * expected, rel=1e-4)


def test_iou_branch_learns_the_iou() -> None:
    half, config = boxes((0, 0, 10, 5)), LossConfig(box="giou", iou_weight=1.0)
    right = detection_loss(output([0, 0], half, [0.0, 9.0]), [Targets(FACE, boxes())], config)
    wrong = detection_loss(output([0, 0], half, [3.0, 9.0]), [Targets(FACE, boxes())], config)
    assert right.box.item() == pytest.approx(0.5 + math.log(2), rel=1e-4)  # the unmatched anchor's 9.0 does not count
    assert wrong.box > right.box


def test_the_score_is_the_geometric_mean() -> None:
    ranked = scores(torch.tensor([[logit(0.9), logit(0.9)]]), torch.tensor([[logit(0.9), logit(0.4)]]))
    assert ranked[0].tolist() == pytest.approx([0.9, 0.6])
    found = output([logit(0.9), logit(0.9)], FACE, [logit(0.1), logit(0.9)])
    _, best = postprocess(found, 200, 200, PostprocessConfig())[0]
    assert best.tolist() == pytest.approx([0.9, 0.3])


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("branch", [False, True])
def test_every_head_gives_the_same_shapes_and_gradients(norm: Literal["batch", "group", "none"], branch: bool) -> None:
    config = DetectorConfig(channels=16, head_norm=norm, iou_branch=branch)
    model = build_detector(config)
    found = model(torch.randn(2, 3, 96, 64))
    assert found.logits.shape == (2, sum(found.levels))
    assert (found.quality is not None) == branch
    losses = detection_loss(found, [Targets(boxes((10, 10, 40, 50)), boxes()), Targets(boxes(), boxes())], LossConfig())
    torch.autograd.backward(losses.cls + losses.box)
    missing = [name for name, p in model.head.named_parameters() if p.grad is None]
    assert not missing


def test_detectors_without_matches_reach_every_parameter() -> None:
    model = build_detector(DetectorConfig(channels=16, iou_branch=True))
    nothing = Targets(boxes(), boxes())
    losses = detection_loss(model(torch.randn(2, 3, 64, 64)), [nothing, nothing], LossConfig(box="giou"))
    torch.autograd.backward(losses.cls + losses.box)
    assert not [name for name, p in model.named_parameters() if p.grad is None]
