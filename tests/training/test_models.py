"""Anchors, box coding, matching, losses and the detector."""

from __future__ import annotations

import math

import pytest
import torch

from training.family import count, member_config
from training.models import DetectorConfig, Output, build_detector, matching
from training.models.anchors import AnchorConfig, pyramid_anchors
from training.models.backbone import ResNetPyramid
from training.models.boxes import decode, encode, pairwise_iou
from training.models.losses import LossConfig, Targets, detection_loss
from training.models.matching import IGNORED, NEGATIVE, MatchConfig, match_batch
from training.models.postprocess import PostprocessConfig, postprocess

CPU = torch.device("cpu")


def boxes(*rows: tuple[float, float, float, float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def match(anchors: torch.Tensor, faces: torch.Tensor, ignored: torch.Tensor, config: MatchConfig) -> torch.Tensor:
    """Of one picture."""
    return match_batch(anchors, [faces], [ignored], config)[0]


def test_anchors_have_the_area_and_ratio_of_the_paper() -> None:
    anchors = pyramid_anchors([(2, 3), (1, 1), (1, 1), (1, 1), (1, 1), (1, 1)], AnchorConfig(), CPU)
    assert anchors.shape == (11, 4)
    width, height = (anchors[:, 2:] - anchors[:, :2]).unbind(1)
    assert torch.allclose(height / width, torch.full((11,), 1.5))
    assert torch.allclose((width * height).sqrt(), torch.tensor([16.0] * 6 + [32, 64, 128, 256, 512]))
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert centers[1].tolist() == [6.0, 2.0]  # second cell of the first row at stride 4


def test_anchors_refuse_another_number_of_levels() -> None:
    with pytest.raises(ValueError, match="5 pyramid levels"):
        pyramid_anchors([(1, 1)] * 5, AnchorConfig(), CPU)


def test_coding_uses_the_variances_and_is_undone_by_decode() -> None:
    anchor = boxes((0, 0, 10, 20))
    face = boxes((5, 0, 15, 20))
    assert torch.allclose(encode(face, anchor), torch.tensor([[5.0, 0.0, 0.0, 0.0]]))  # half a width / 0.1
    wide = boxes((-5, 0, 15, 20))
    assert encode(wide, anchor)[0, 2].item() == pytest.approx(math.log(2) / 0.2)
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(50, 2, generator=generator) * 100
    random = torch.cat((corners, corners + 1 + torch.rand(50, 2, generator=generator) * 60), dim=1)
    assert torch.allclose(decode(encode(random, random.roll(1, 0)), random.roll(1, 0)), random, atol=1e-2)


def test_iou_by_hand() -> None:
    iou = pairwise_iou(boxes((0, 0, 2, 2)), boxes((1, 1, 3, 3), (0, 0, 2, 2), (5, 5, 6, 6), (0, 0, 0, 0)))
    assert iou[0].tolist() == pytest.approx([1 / 7, 1.0, 0.0, 0.0])


def test_match_has_no_ignore_zone_and_leaves_no_face_out() -> None:
    anchors = boxes((0, 0, 10, 10), (0, 0, 10, 5), (20, 20, 30, 30), (50, 50, 60, 60))
    faces = boxes((0, 0, 10, 10), (26, 26, 36, 36))
    assert match(anchors, faces, boxes(), MatchConfig()).tolist() == [0, 0, 1, NEGATIVE]


def test_two_faces_that_want_one_anchor_are_settled_by_overlap() -> None:
    anchors = boxes((0, 0, 10, 10), (100, 100, 110, 110))
    faces = boxes((0, 0, 10, 9), (0, 0, 10, 3))
    for order in ([0, 1], [1, 0]):
        assert match(anchors, faces[order], boxes(), MatchConfig())[0] == order.index(0)


def test_anchors_in_ignore_regions_are_left_out_unless_matched() -> None:
    anchors = boxes((0, 0, 10, 10), (100, 100, 110, 110), (200, 200, 210, 210))
    result = match(anchors, boxes((0, 0, 10, 10)), boxes((0, 0, 150, 150)), MatchConfig())
    assert result.tolist() == [0, IGNORED, NEGATIVE]


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_pictures_are_matched_together_as_each_alone(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """Pictures with many faces, few and none, some with ignore regions, one face twice."""
    monkeypatch.setattr(matching, "_at_once", lambda _anchors, _faces: at_once)
    monkeypatch.setattr(matching, "_WORK", 3000)  # so that regions are taken in several parts
    anchors = pyramid_anchors([(16, 16), (8, 8), (4, 4), (2, 2), (1, 1), (1, 1)], AnchorConfig(), CPU)
    generator = torch.Generator().manual_seed(0)

    def some(count: int) -> torch.Tensor:
        corners = torch.rand(count, 2, generator=generator) * 50
        return torch.cat((corners, corners + 4 + torch.rand(count, 2, generator=generator) * 30), dim=1)

    faces = [some(count) for count in (0, 7, 1, 0, 0, 12, 2)]
    faces[1] = torch.cat((faces[1], faces[1][:1]))
    ignored = [some(count) for count in (3, 0, 0, 0, 5, 20, 0)]
    for best in (1, 3):
        config = MatchConfig(best=best)
        together = match_batch(anchors, faces, ignored, config)
        alone = [match(anchors, *pair, config) for pair in zip(faces, ignored, strict=True)]
        assert torch.equal(together, torch.stack(alone))
        assert {int(value) for value in together.unique()} >= {IGNORED, NEGATIVE, 0, 11}


def test_a_face_that_overlaps_no_anchor_takes_none() -> None:
    assert match(boxes((0, 0, 10, 10)), boxes((50, 50, 60, 60)), boxes(), MatchConfig(best=3)).tolist() == [NEGATIVE]


@pytest.mark.parametrize("kind", ["smooth_l1", "giou"])
def test_losses_vanish_for_a_perfect_answer_and_ignore_what_they_should(kind: str) -> None:
    anchors = boxes((0, 0, 10, 10), (100, 100, 110, 110), (200, 200, 210, 210))
    face = boxes((1, 0, 11, 10))
    config = LossConfig(box="giou" if kind == "giou" else "smooth_l1")
    deltas = torch.zeros(1, 3, 4)
    deltas[0, 0] = encode(face, anchors[:1])[0]
    logits = torch.tensor([[20.0, 20.0, -20.0]])  # the second is wrong, but lies in an ignore region
    targets = [Targets(face, boxes((90, 90, 120, 120)))]
    losses = detection_loss(Output(logits, deltas, anchors), targets, config)
    assert losses.cls.item() < 1e-6
    assert losses.box.item() == pytest.approx(0.0, abs=1e-5)
    wrong = detection_loss(Output(logits, torch.zeros(1, 3, 4), anchors), targets, config)
    assert wrong.box.item() > 0.05
    honest = detection_loss(Output(logits, deltas, anchors), [Targets(face, boxes())], config)
    assert honest.cls.item() > 1


def test_focal_term_by_hand() -> None:
    anchors = boxes((0, 0, 10, 10), (100, 100, 110, 110))
    logits = torch.zeros(1, 2)
    output = Output(logits, torch.zeros(1, 2, 4), anchors)
    losses = detection_loss(output, [Targets(anchors[:1], boxes())], LossConfig())
    expected = 0.25 * 0.25 * math.log(2) + 0.75 * 0.25 * math.log(2)
    assert losses.cls.item() == pytest.approx(expected, rel=1e-5)


def test_losses_without_any_face_still_have_a_gradient() -> None:
    logits = torch.zeros(1, 2, requires_grad=True)
    deltas = torch.zeros(1, 2, 4, requires_grad=True)
    output = Output(logits, deltas, boxes((0, 0, 10, 10), (20, 20, 30, 30)))
    losses = detection_loss(output, [Targets(boxes(), boxes())], LossConfig())
    torch.autograd.backward(losses.cls + losses.box)
    assert logits.grad is not None
    assert bool((logits.grad > 0).all())


@pytest.mark.parametrize("size", [(64, 64), (97, 161), (32, 320)])
def test_detector_takes_any_size(size: tuple[int, int]) -> None:
    model = build_detector(DetectorConfig(channels=16)).eval()
    with torch.no_grad():
        output = model(torch.zeros(2, 3, *size))
    cells, (height, width) = 0, size
    for stride in (4, 8, 16, 32, 64, 128):
        cells += -(-height // stride) * -(-width // stride)
    assert output.logits.shape == (2, cells)
    assert output.deltas.shape == (2, cells, 4)
    assert output.anchors.shape == (cells, 4)


@pytest.mark.parametrize("name", ["resnet34", "resnet50"])
def test_backbones_state_their_channels(name: str) -> None:
    body = ResNetPyramid(name).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        maps = body(torch.zeros(1, 3, 64, 64))
    assert tuple(m.shape[1] for m in maps) == body.out_channels


def test_a_fresh_detector_scores_near_the_prior() -> None:
    torch.manual_seed(0)
    model = build_detector(DetectorConfig(channels=16)).eval()
    with torch.no_grad():
        scores = model(torch.zeros(1, 3, 64, 64)).logits.sigmoid()
    assert scores.mean().item() == pytest.approx(0.01, abs=0.01)


def test_another_neck_fits_the_slot() -> None:
    class Narrow(torch.nn.Module):
        def __init__(self, in_channels: tuple[int, ...], out_channels: int) -> None:
            super().__init__()
            self.convs = torch.nn.ModuleList(torch.nn.Conv2d(c, out_channels, 1) for c in in_channels)

        def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
            return [conv(x) for conv, x in zip(self.convs, maps, strict=True)]

    config = DetectorConfig(channels=16)
    model = build_detector(config, neck=Narrow(ResNetPyramid(config.backbone).out_channels, config.channels)).eval()
    assert isinstance(model.neck, Narrow)
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 64, 64)).logits.shape[0] == 1


def test_postprocess_keeps_the_best_of_overlapping_boxes_and_clips() -> None:
    anchors = boxes((-5, -5, 15, 15), (-4, -4, 16, 16), (40, 40, 60, 60))
    output = Output(torch.tensor([[2.0, 3.0, -1.0]]), torch.zeros(1, 3, 4), anchors)
    found, scores = postprocess(output, 50, 50, PostprocessConfig())[0]
    assert found.tolist() == [[0, 0, 16, 16], [40, 40, 50, 50]]
    assert scores.tolist() == pytest.approx([torch.tensor(3.0).sigmoid().item(), torch.tensor(-1.0).sigmoid().item()])


def test_members_grow() -> None:
    counts = [count(member_config(name)) for name in ("d0", "d1", "d2")]
    assert [c.parameters for c in counts] == sorted(c.parameters for c in counts)
    assert [c.gmacs_vga for c in counts] == sorted(c.gmacs_vga for c in counts)
