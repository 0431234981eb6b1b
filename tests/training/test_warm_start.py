"""Weights from elsewhere: exported files give back the detector that was exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from export.member import save_onnx
from export.onnx_graph import export_onnx
from export.verify import parity
from service.engines.base import Detections
from service.engines.ort import open_cpu
from service.repository.manifest import Thresholds
from service.repository.store import load_manifest
from training.engine import checkpoint
from training.engine.warm_start import load_exported, stage, start_from
from training.models import Detector, DetectorConfig, build_detector
from training.models.detector import normalize
from training.models.postprocess import PostprocessConfig, postprocess

CONFIG = DetectorConfig(channels=16)
ROOT = Path(__file__).parents[2]


def shaken(seed: int) -> Detector:
    """A detector whose norms have gone through something."""
    torch.manual_seed(seed)
    detector = build_detector(CONFIG)
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.6, 1.4)
            nn.init.normal_(module.bias, 0, 0.2)
    return detector.eval()


@pytest.fixture(scope="module")
def source() -> Detector:
    return shaken(1)


@pytest.fixture(scope="module")
def exported(source: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "d.onnx"
    save_onnx(export_onnx(source, Thresholds(pre_nms_top_k=100, max_detections=50), "onnx", half=False), path)
    return path


def pictures() -> list[torch.Tensor]:
    torch.manual_seed(5)
    return [torch.randn(6, 3, 64, 64) for _ in range(2)]


def assert_same_answers(one: Detector, two: Detector) -> None:
    """In eval mode, on a picture of its own."""
    x = torch.randn(2, 3, 160, 96)
    with torch.no_grad():
        wanted, found = one.eval()(x), two.eval()(x)
    torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.deltas, wanted.deltas, rtol=1e-3, atol=1e-3)


def test_an_exported_file_gives_back_the_detector(source: Detector, exported: Path) -> None:
    model = build_detector(CONFIG)
    load_exported(model, exported, pictures())
    assert model.training
    assert_same_answers(source, model)


def test_its_filters_are_as_long_as_at_the_start_of_training(source: Detector, exported: Path) -> None:
    """Or Adam, whose steps are as long for short filters, would overwrite the deep ones."""
    fresh = build_detector(CONFIG)
    at_start = {name: module.weight.detach().clone() for name, module in _normed_convolutions(fresh)}
    load_exported(fresh, exported, pictures())
    for name, module in _normed_convolutions(fresh):
        length, wanted = module.weight.flatten(1).norm(dim=1), at_start[name].flatten(1).norm(dim=1).mean()
        torch.testing.assert_close(length, wanted.expand_as(length), rtol=0.1, atol=0.0)
    as_it_is = build_detector(CONFIG)
    load_exported(as_it_is, exported, None)
    shorter = [
        module.weight.flatten(1).norm(dim=1).mean() < 0.9 * at_start[name].flatten(1).norm(dim=1).mean()
        for name, module in _normed_convolutions(as_it_is)
    ]
    assert any(shorter)
    x = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(as_it_is.eval()(x).logits, source(x).logits, rtol=1e-3, atol=1e-3)


def _normed_convolutions(detector: Detector) -> list[tuple[str, nn.Conv2d]]:
    bare = ("head.cls_logits", "head.box_deltas")
    return [(n, m) for n, m in detector.named_modules() if isinstance(m, nn.Conv2d) and not n.startswith(bare)]


def test_its_norms_fit_the_pictures(exported: Path) -> None:
    """In training mode, with the pictures that it was measured on, it computes nearly what it does in eval mode."""
    model = build_detector(CONFIG)
    load_exported(model, exported, pictures())
    batch = torch.cat(pictures())
    with torch.no_grad():
        trained = model.train()(batch).logits
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                assert norm.running_var is not None
                assert bool((norm.running_var > 0).all())
    fresh = build_detector(CONFIG)
    load_exported(fresh, exported, pictures())
    with torch.no_grad():
        evaluated = fresh.eval()(batch).logits
    assert (trained - evaluated).abs().mean() < 0.05 * evaluated.std()


def test_another_architecture_is_refused_by_name(exported: Path, tmp_path: Path) -> None:
    for config in (DetectorConfig(channels=24), DetectorConfig(channels=16, head_convs=2)):
        with pytest.raises(ValueError, match=r"d\.onnx.*another architecture"):
            load_exported(build_detector(config), exported, pictures())
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    with pytest.raises(ValueError, match=r"broken\.onnx"):
        load_exported(build_detector(CONFIG), broken, pictures())
    with pytest.raises(FileNotFoundError, match="absent"):
        load_exported(build_detector(CONFIG), tmp_path / "absent.onnx", pictures())


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
    nodes = [helper.make_node("Conv", ["x", "w_dequantised", "b"], ["y"])]
    graph = helper.make_graph(nodes, "g", [x], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    path = tmp_path / "q.onnx"
    save_onnx(helper.make_model(graph), path)
    with pytest.raises(ValueError, match="full-precision"):
        load_exported(build_detector(CONFIG), path, pictures())


def test_a_start_without_the_head_leaves_the_head(source: Detector, exported: Path, tmp_path: Path) -> None:
    config = DetectorConfig(channels=16, head_norm="group", iou_branch=True)
    saved = tmp_path / "c.pt"
    stored = checkpoint.as_plain(CONFIG)
    earlier = [stage("first", 10, 2.0)]
    content = {
        "config": {"model": stored, "recipe": "second"},
        "ema": source.state_dict(),
        "stages": earlier,
        "progress": {"images": 20, "seconds": 3.0},
    }
    checkpoint.save(saved, content)
    for path in (exported, saved):
        model = build_detector(config)
        before = {k: v.clone() for k, v in model.head.state_dict().items()}
        past = start_from(path, model, config, pictures(), keep="body")
        assert past == ([stage("unknown", 0, 0.0)] if path == exported else [*earlier, stage("second", 20, 3.0)])
        assert all(torch.equal(before[k], v) for k, v in model.head.state_dict().items())
        other = build_detector(config).backbone.conv1.weight
        assert not torch.allclose(model.backbone.conv1.weight, other)
        x = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            ours, theirs = (d.eval().neck(d.eval().backbone(x)) for d in (model, source))
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-3, atol=1e-3)
    for other in (config, DetectorConfig(channels=16, head_convs=2), DetectorConfig(channels=16, iou_branch=True)):
        with pytest.raises(ValueError, match=r"c\.pt holds another architecture"):
            start_from(saved, build_detector(other), other, pictures())


def test_a_shipped_member_goes_on_from_where_it_was(astronaut: np.ndarray) -> None:
    model = build_detector(DetectorConfig())
    past = start_from(ROOT / "models" / "d0" / "d0.onnx", model, DetectorConfig(), pictures())
    manifest = load_manifest(ROOT / "models" / "d0" / "manifest.json").provenance
    assert sum(one["images"] for one in past) == manifest.images_seen
    picture = np.ascontiguousarray(astronaut[:320, :320])
    with torch.no_grad():
        output = model.eval()(normalize(torch.from_numpy(picture).permute(2, 0, 1)[None]))
    boxes, scores = postprocess(output, 320, 320, PostprocessConfig())[0]
    served = open_cpu("d0", ROOT / "models" / "d0" / "d0.onnx").run(picture[None])[0]
    result = parity(served, Detections(boxes.numpy(), scores.numpy()))
    assert result.compared >= 1
    assert result.unmatched == 0
