"""A larger member grown from a smaller one computes what the smaller does, and its new parts learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from export.member import save_onnx
from export.onnx_graph import export_onnx
from service.repository.manifest import Thresholds
from tests.training.test_warm_start import assert_same_answers, pictures, shaken
from training.__main__ import app
from training.config import OptimConfig, TrainConfig
from training.engine import checkpoint
from training.engine.growth import grow_from
from training.engine.warm_start import load_exported
from training.family import member_config
from training.models import Detector, DetectorConfig, build_detector

SMALL = DetectorConfig(channels=16)


def saved(path: Path, detector: Detector, config: DetectorConfig = SMALL) -> Path:
    content = {"config": checkpoint.as_plain(TrainConfig("r", model=config, optim=OptimConfig())),
               "ema": detector.state_dict(), "progress": {"images": 7, "seconds": 3.0}, "stages": []}  # fmt: skip
    checkpoint.save(path, content)
    return path


@pytest.mark.parametrize(
    "larger",
    [
        {"channels": 40},
        {"head_convs": 3},
        {"backbone": "resnet34"},
        {"channels": 24, "head_convs": 2, "backbone": "resnet34"},
    ],
    ids=str,
)
def test_it_computes_what_the_smaller_does(tmp_path: Path, larger: dict[str, object]) -> None:
    small = shaken(1)
    config = replace(SMALL, **larger)  # type: ignore[arg-type]
    large = build_detector(config)
    stages = grow_from(saved(tmp_path / "small.pt", small), large, config, pictures())
    assert stages == [{"recipe": "r", "images": 7, "seconds": 3.0}]
    assert large.training
    assert_same_answers(small, large)


def test_new_channels_learn(tmp_path: Path) -> None:
    """Silent at first; after two steps the old outputs hear them, and they have changed themselves."""
    config = replace(SMALL, channels=24, head_convs=2)
    large = build_detector(config)
    grow_from(saved(tmp_path / "small.pt", shaken(1)), large, config, pictures())
    heard, told = large.head.cls_logits.weight, large.neck.smooth[2][0].weight  # type: ignore[index, union-attr]
    assert not heard[:, 16:].any()
    before = told.detach().clone()  # type: ignore[operator]
    optimizer = torch.optim.SGD(large.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        large(pictures()[0]).logits.sigmoid().mean().backward()
        optimizer.step()
    assert heard[:, 16:].abs().max() > 0
    assert (told - before)[16:].abs().max() > 0  # type: ignore[operator]


def test_in_training_mode_it_begins_near_the_smaller(tmp_path: Path) -> None:
    """The extra convolutions' norms hold what flows through them, so that batch statistics change little."""
    small, config = shaken(1), replace(SMALL, head_convs=3)
    for module in small.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # statistics of all that is seen
            module.reset_running_stats()
    with torch.no_grad():
        for batch in pictures():
            small.train()(batch)
    large = build_detector(config)
    grow_from(saved(tmp_path / "small.pt", small), large, config, pictures())
    x = torch.cat(pictures())
    with torch.no_grad():
        one, two = small.train()(x).logits, large.train()(x).logits
    assert (one - two).abs().mean() < 0.25 * one.std()


def test_an_exported_file_is_read_by_its_manifest(tmp_path: Path) -> None:
    path = tmp_path / "d.onnx"
    save_onnx(export_onnx(shaken(1), Thresholds(pre_nms_top_k=100, max_detections=50), "onnx", half=False), path)
    with pytest.raises(ValueError, match="needs the manifest"):
        grow_from(path, build_detector(SMALL), SMALL, pictures())


def test_d1_begins_as_the_shipped_d0() -> None:
    """The file that the repository carries, by the manifest beside it."""
    config = member_config("d1", "fpn", None, None)
    large, small = build_detector(config), build_detector(member_config("d0", "fpn", None, None))
    path = Path(__file__).parents[2] / "models" / "d0" / "d0.onnx"
    stages = grow_from(path, large, config, pictures())
    assert sum(stage["images"] for stage in stages) > 0
    load_exported(small, path, None)
    assert_same_answers(small, large)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (replace(SMALL, backbone="resnet50"), "no deeper form"),
        (replace(SMALL, channels=8), "16 channels and 1 head convolutions, more than the 8 and 1"),
        (replace(SMALL, neck="pafpn"), "the neck fpn, not pafpn"),
        (replace(SMALL, head_norm="group"), "batch norm"),
        (replace(SMALL, iou_branch=True), "anchors, branches"),
    ],
    ids=str,
)
def test_what_cannot_be_grown_is_said(tmp_path: Path, config: DetectorConfig, words: str) -> None:
    path = saved(tmp_path / "small.pt", shaken(1))
    with pytest.raises(ValueError, match=words):
        grow_from(path, build_detector(config), config, pictures())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--init a.pt --grow b.pt", "--init and --grow both say what to start from"),
        ("--epochs 2 --minutes 3", "--epochs and --minutes both say when to end"),
    ],
)
def test_a_run_has_one_start_and_one_end(options: str, words: str) -> None:
    done = CliRunner().invoke(app, ["train", *options.split()])
    assert done.exit_code == 2
    assert words in done.output
