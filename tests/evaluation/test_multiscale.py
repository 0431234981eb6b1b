"""Box voting and size rules by hand, passes over one picture, and the command's protocols."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from typer import Typer
from typer.testing import CliRunner

from service.engines.base import Detections
from tests.evaluation.test_sources import constant_graph, write_split
from training.evaluation.command import evaluate_command
from training.evaluation.multiscale import (
    FACTORS,
    MultiPassSource,
    Pass,
    Voting,
    in_range,
    mirror_boxes,
    passes_of,
    vote_boxes,
)
from training.evaluation.protocols import InputProtocol, open_by_protocol

A, B = [0.0, 0.0, 99.0, 99.0], [300.0, 0.0, 399.0, 99.0]


def test_boxes_that_overlap_become_their_weighted_mean() -> None:
    # 0.75 and 0.25 of the weight: corners move a quarter of the way; the score is the larger one.
    boxes, scores = vote_boxes([[0, 0, 99, 99], [8, 4, 107, 103]], [0.6, 0.2], passes=2)
    np.testing.assert_allclose(boxes, [[2, 1, 101, 100]])
    assert scores.tolist() == [0.6]


def test_a_box_without_partner_goes_with_several_passes_and_stays_with_one() -> None:
    boxes, scores = [A, A, B], [0.5, 0.4, 0.9]
    voted, best = vote_boxes(boxes, scores, passes=2)
    assert (voted.tolist(), best.tolist()) == ([A], [0.5])
    voted, best = vote_boxes(boxes, scores, passes=1)
    assert (voted.tolist(), best.tolist()) == ([B, A], [0.9, 0.5])


def test_three_tenths_of_iou_are_enough() -> None:
    # Borders included: 100 x 100 against its left 30 columns is IoU 0.30, against 29 columns 0.29.
    assert len(vote_boxes([A, [0.0, 0.0, 29.0, 99.0]], [0.9, 0.8], passes=2)[0]) == 1
    assert len(vote_boxes([A, [0.0, 0.0, 28.0, 99.0]], [0.9, 0.8], passes=2)[0]) == 0
    assert len(vote_boxes([A, [0.0, 0.0, 28.0, 99.0]], [0.9, 0.8], passes=1)[0]) == 2
    assert len(vote_boxes([A, [0.0, 0.0, 49.0, 99.0]], [0.9, 0.8], passes=2, voting=Voting(iou=0.51))[0]) == 0


def test_the_best_box_gathers_first() -> None:
    # The middle box overlaps both others with IoU 1/3, and they do not touch: whoever is best decides.
    left, middle, right = [0, 0, 99, 99], [50, 0, 149, 99], [100, 0, 199, 99]
    voted, best = vote_boxes([left, middle, right], [0.2, 0.6, 0.2], passes=2)
    np.testing.assert_allclose(voted, [[50, 0, 149, 99]])
    assert best.tolist() == [0.6]
    # The left one is best: it takes the middle one, and the right one is alone.
    voted, best = vote_boxes([left, middle, right], [0.75, 0.25, 0.25], passes=2)
    np.testing.assert_allclose(voted, [[12.5, 0, 111.5, 99]])
    assert best.tolist() == [0.75]


def test_at_most_so_many_best_first() -> None:
    corners = np.arange(900)[:, None] * np.array([20.0, 0, 20, 0]) + np.array([0, 0, 9, 9])
    scores = np.linspace(0.1, 0.9, 900)
    voted, best = vote_boxes(corners, scores, passes=1)
    assert len(voted) == 750
    assert best[0] == 0.9
    assert (np.diff(best) < 0).all()


def test_voting_takes_nothing_zeros_and_boxes_without_area() -> None:
    voted, best = vote_boxes(np.zeros((0, 4)), [], passes=3)
    assert (voted.shape, best.shape) == ((0, 4), (0,))
    voted, best = vote_boxes([A, A], [0.0, 0.0], passes=2)
    assert (voted.tolist(), best.tolist()) == ([A], [0.0])
    assert vote_boxes([[5, 5, 0, 0]], [0.5], passes=1)[0].tolist() == [[5, 5, 0, 0]]  # even turned inside out
    with pytest.raises(ValueError, match="2 boxes"):
        vote_boxes([A, B], [0.5], passes=1)


def test_the_size_rules() -> None:
    # Sides with their borders: 30 is not over 30; 100 is not under 100.
    boxes = [[0, 0, 9, 29], [0, 0, 9, 30], [0, 0, 98, 300], [0, 0, 99, 300]]
    assert in_range(boxes, 0.5).tolist() == [False, True, True, True]
    assert in_range(boxes, 1.0).tolist() == [True, True, True, True]
    assert in_range(boxes, 1.5).tolist() == [True, True, True, False]
    assert in_range(boxes, 2.0).tolist() == [True, True, True, False]
    assert in_range(np.zeros((0, 4)), 0.5).tolist() == []


def test_mirrored_boxes_come_back() -> None:
    boxes = np.array([[10.0, 5, 30, 25]])
    assert mirror_boxes(boxes, 100).tolist() == [[70, 5, 90, 25]]
    assert mirror_boxes(mirror_boxes(boxes, 100), 100).tolist() == boxes.tolist()


def test_the_passes() -> None:
    assert passes_of(FACTORS, flip=True) == (Pass(0.5), Pass(1.0), Pass(1.5), Pass(2.0), Pass(1.0, mirrored=True))
    assert passes_of() == (Pass(1.0),)


class Bright:
    """Finds the bright rectangle; remembers what it was shown."""

    name, long_side, fingerprint = "bright", 0, "f"

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []

    def __call__(self, pixels: NDArray[np.uint8]) -> Detections:
        self.sizes.append((pixels.shape[1], pixels.shape[0]))
        rows, columns = np.nonzero(pixels[..., 0] > 127)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        return Detections(np.array([box], dtype=np.float32), np.array([0.5], dtype=np.float32))


def picture(x: int, y: int, side: int) -> NDArray[np.uint8]:
    pixels = np.zeros((200, 320, 3), dtype=np.uint8)
    pixels[y : y + side, x : x + side] = 255
    return pixels


def test_every_pass_answers_in_pixels_of_the_picture() -> None:
    inner = Bright()
    found = MultiPassSource(inner, passes_of(FACTORS, flip=True))(picture(40, 60, 64))
    assert inner.sizes == [(160, 100), (320, 200), (480, 300), (640, 400), (320, 200)]
    np.testing.assert_allclose(found.boxes, [[40, 60, 104, 124]], atol=0.5)
    assert found.scores.tolist() == [0.5]
    assert found.boxes.dtype == np.float32


def test_one_factor_alone_may_not_answer_for_the_size() -> None:
    small, large = picture(40, 60, 16), picture(40, 60, 120)
    assert len(MultiPassSource(Bright(), [Pass(0.5)])(small).scores) == 0
    assert len(MultiPassSource(Bright(), [Pass(0.5)])(large).scores) == 1
    assert len(MultiPassSource(Bright(), [Pass(2.0)])(small).scores) == 1
    assert len(MultiPassSource(Bright(), [Pass(2.0)])(large).scores) == 0
    # Only the pass at 1 sees it when 0.5 must not tell: no partner, so it is dropped.
    assert len(MultiPassSource(Bright(), [Pass(0.5), Pass(1.0)])(small).scores) == 0


def test_factors_need_a_source_that_keeps_sizes() -> None:
    class Resizing(Bright):
        long_side = 640

    with pytest.raises(ValueError, match="640"):
        MultiPassSource(Resizing(), passes_of(FACTORS))
    with pytest.raises(ValueError, match="no pass"):
        MultiPassSource(Bright(), [])
    one, other = (MultiPassSource(Bright(), passes_of(factors)).fingerprint for factors in ([1.0], FACTORS))
    assert len({one, other, Bright.fingerprint}) == 3


def checkpoint(path: Path) -> Path:
    import torch

    from training.engine.checkpoint import as_plain, save
    from training.models import DetectorConfig, build_detector

    torch.manual_seed(0)
    config = DetectorConfig(channels=16)
    save(path, {"ema": build_detector(config).state_dict(), "config": {"model": as_plain(config)}})
    return path


def test_the_protocols_open_what_they_say(tmp_path: Path) -> None:
    graph = constant_graph(tmp_path / "d0.onnx")
    assert [one.long_side for one in open_by_protocol(graph, InputProtocol.VGA, [320, 480])] == [320, 480]
    assert [one.long_side for one in open_by_protocol(graph, InputProtocol.VGA)] == [640]
    assert [one.long_side for one in open_by_protocol(graph, InputProtocol.ORIGINAL)] == [0]
    scaled = open_by_protocol(graph, InputProtocol.MULTISCALE)[0]
    assert isinstance(scaled, MultiPassSource)
    assert [one.factor for one in scaled.passes] == [0.5, 1.0, 1.5, 2.0]
    mirrored = open_by_protocol(graph, InputProtocol.VGA, flip=True)[0]
    assert isinstance(mirrored, MultiPassSource)
    assert mirrored.passes == (Pass(), Pass(mirrored=True))
    with pytest.raises(ValueError, match="--protocol vga"):
        open_by_protocol(graph, InputProtocol.ORIGINAL, [320])
    with pytest.raises(ValueError, match="at least one pixel"):
        open_by_protocol(graph, InputProtocol.VGA, [0])


def test_a_checkpoint_runs_at_several_sizes(tmp_path: Path) -> None:
    source = open_by_protocol(
        str(checkpoint(tmp_path / "best.pt")), InputProtocol.MULTISCALE, flip=True, threads=1, device="cpu"
    )[0]
    found = source(np.zeros((48, 70, 3), dtype=np.uint8))
    assert found.boxes.shape == (len(found.scores), 4)


def test_reports_name_their_protocol(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "report.json"
    write_split(data, data / "dev" / "images", data / "split" / "dev_bbx_gt.txt")
    graph = constant_graph(tmp_path / "d0.onnx")
    app = Typer()
    app.command()(evaluate_command)
    common = [str(graph), "--data", str(data), "--out", str(out)]
    # The graph always says the same in pixels of its input. At own size that is right for the 320-pixel photo alone.
    result = CliRunner().invoke(app, [*common, "--protocol", "original"])
    assert result.exit_code == 0, result.output
    assert "protocol: original\n" in result.output
    content = json.loads(out.read_text())
    assert (content["input_protocol"], content["flip"], content["rows"][0]["long_side"]) == ("original", False, 0)
    assert content["rows"][0]["input_protocol"] == "original"
    assert content["rows"][0]["protocol"] == "wider"
    assert content["rows"][0]["recall50"] == pytest.approx(1 / 3)
    result = CliRunner().invoke(app, [*common, "--protocol", "multiscale", "--flip"])
    assert result.exit_code == 0, result.output
    assert "protocol: multiscale + flip\n" in result.output
    result = CliRunner().invoke(app, [*common, "--protocol", "original", "--long-side", "320"])
    assert result.exit_code == 2
    assert "--protocol vga" in result.output
