"""From a checkpoint to a member that can be served: parity, hashes, INT8, manifest, commands."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

from export.__main__ import app
from export.card import render_card
from export.commands import options
from export.member import LONG_SIDES, describe_file, input_sizes, provenance_of, save_onnx, with_accuracy, with_file
from export.onnx_graph import OPSET, export_onnx
from export.quantize import quantize, worth_shipping
from export.verify import compare_with_checkpoint, parity, verify_member
from service.engines.base import Detections
from service.engines.ort import open_cpu
from service.repository.manifest import Accuracy, Thresholds
from service.repository.store import load_manifest
from training.models.detector import Detector, normalize
from training.models.postprocess import PostprocessConfig, postprocess

ROOT = Path(__file__).parents[2]
Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def repository(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that `python -m export onnx` wrote; tests must not change it."""
    folder = tmp_path_factory.mktemp("models")
    result = CliRunner().invoke(app, ["onnx", str(checkpoint), "--member", "tiny", "--repository", str(folder)])
    assert result.exit_code == 0, result.output
    return folder


@pytest.mark.parametrize("kind", ["detector", "quality_detector"])
@pytest.mark.parametrize("nms", ["onnx", "plain"])
def test_parity_at_several_sizes_and_in_a_batch(
    nms: str, kind: str, crowd: Pixels, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    detector: Detector = request.getfixturevalue(kind)
    path = tmp_path / "graph.onnx"
    save_onnx(export_onnx(detector, Thresholds(), nms, half=False), path)
    engine = open_cpu("tiny", path)
    for height, width in [(256, 320), (480, 384), (320, 320)]:
        batch = np.stack([crowd[:height, :width], crowd[200 : 200 + height, 100 : 100 + width]])
        with torch.no_grad():
            output = detector(normalize(torch.from_numpy(batch).permute(0, 3, 1, 2)))
        for ours, (boxes, scores) in zip(
            engine.run(batch), postprocess(output, height, width, PostprocessConfig()), strict=True
        ):
            result = parity(ours, Detections(boxes.numpy(), scores.numpy()))
            assert result.compared > 10
            assert result.unmatched == 0
            assert result.score < 1e-3
            assert result.box < 0.05


def test_half_weights_halve_the_file_and_keep_the_norms(detector: Detector) -> None:
    half, full = (export_onnx(detector, Thresholds(), "onnx", half=h) for h in (True, False))
    assert half.ByteSize() < 0.55 * full.ByteSize()
    for tensor in half.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT16:
            assert np.prod(tensor.dims) >= 1024


def test_unknown_nms_is_refused(detector: Detector) -> None:
    with pytest.raises(ValueError, match="'soft'"):
        export_onnx(detector, Thresholds(), "soft")


def test_member_is_whole_and_agrees_with_its_checkpoint(repository: Path, checkpoint: Path, crowd: Pixels) -> None:
    result = compare_with_checkpoint(repository / "tiny", checkpoint, [crowd, crowd[:700, :512]], long_side=480)["tiny"]
    assert result.compared > 20
    # Random weights pile up near-equal boxes, so half-precision rounding may settle a few ties the other way.
    assert result.unmatched <= 0.05 * result.compared
    manifest = load_manifest(repository / "tiny" / "manifest.json")
    assert manifest.provenance.images_seen == 1234
    assert manifest.provenance.train_hours == 0.1
    assert manifest.architecture.channels == 16


def test_accuracy_can_come_from_a_benchmark(repository: Path, tmp_path: Path) -> None:
    copy = tmp_path / "models"
    shutil.copytree(repository, copy)
    row = {"detector": "tiny", "ours": True, "long_side": 640, "ap50": 0.51234, "ap": 0.2}
    rows = [row, {**row, "long_side": 111}, {**row, "detector": "other"}, {**row, "ours": False, "long_side": 320}]
    table = tmp_path / "table.json"
    table.write_text(json.dumps({"data": "faces", "split": "dev", "protocol": "wider", "rows": rows}))
    command = ["accuracy", "tiny", "--repository", str(copy), "--measured", str(table)]
    assert CliRunner().invoke(app, command).exit_code == 0
    (found,) = load_manifest(copy / "tiny" / "manifest.json").accuracy
    assert (found.variant, found.dataset, found.long_side, found.ap50) == ("tiny", "faces", 640, 0.5123)
    for content, sentence in (({"rows": []}, "no row of tiny"), ([1], "not a table")):
        table.write_text(json.dumps(content))
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 2
        assert sentence in result.output


def test_provenance_counts_every_stage(repository: Path) -> None:
    content = {
        "config": {"recipe": "second", "seed": 3},
        "progress": {"images": 50, "seconds": 7200.0},
        "stages": [{"recipe": "first", "images": 100, "seconds": 1800.0}],
    }
    made = provenance_of(content, "photos", "a machine", "2026-01-02")
    assert (made.recipe, made.images_seen, made.train_hours) == ("second", 150, 2.5)
    assert [(s.recipe, s.images, s.hours) for s in made.stages] == [("first", 100, 0.5), ("second", 50, 2.0)]
    manifest = load_manifest(repository / "tiny" / "manifest.json")
    assert "random weights" in render_card(manifest, {}, ["none"])
    card = render_card(manifest.model_copy(update={"provenance": made}), {}, ["none"])
    assert "`first`: 100 crops, 0.50 hours" in card
    assert "random weights" not in card
    assert provenance_of({**content, "stages": []}, "photos", "a machine", "2026-01-02").stages == ()


def test_verify_passes_then_names_a_damaged_and_a_missing_file(repository: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    for source in (repository / "tiny").iterdir():
        (folder / source.name).write_bytes(source.read_bytes())
    assert verify_member(folder) == []
    path = folder / "tiny.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    damaged = CliRunner().invoke(app, ["verify", "--repository", str(tmp_path)])
    assert damaged.exit_code == 2
    assert "tiny.onnx" in damaged.output
    path.unlink()
    missing = CliRunner().invoke(app, ["verify", "--repository", str(tmp_path)])
    assert missing.exit_code == 2
    assert "tiny.onnx" in missing.output


def test_list_needs_no_torch(repository: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['onnx'] = None\n"
        f"sys.argv = ['export', 'list', '--repository', {str(repository)!r}]\n"
        "from export.__main__ import app; app()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "tiny" in done.stdout


@pytest.mark.parametrize("content", [None, b"not a checkpoint"])
def test_bad_checkpoint_is_a_sentence(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    if content:
        path.write_bytes(content)
    result = CliRunner().invoke(app, ["onnx", str(path), "--repository", str(tmp_path / "models")])
    assert result.exit_code == 2
    assert "x.pt" in result.output
    assert not (tmp_path / "models").exists()


def test_card_has_only_what_the_manifest_says(repository: Path) -> None:
    result = CliRunner().invoke(
        app, ["card", "tiny", "--repository", str(repository), "--failure", "Faces in helmets."]
    )
    assert result.exit_code == 0, result.output
    text = (repository / "tiny" / "CARD.md").read_text()
    assert "Faces in helmets." in text
    assert "1,234 crops in 0.10 hours" in text


def test_int8_keeps_the_contract_and_quantises_the_backbone(repository: Path, crowd: Pixels, tmp_path: Path) -> None:
    source = repository / "tiny" / "tiny.onnx"
    tiles = [np.ascontiguousarray(crowd[y : y + 256, :256]) for y in (0, 256, 512)]
    model = quantize(source, iter(tiles), len(tiles), 320)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("DequantizeLinear") > kinds.count("Conv") / 2
    stem = next(node for node in model.graph.node if node.op_type == "Conv")
    eight = next(node for node in model.graph.node if node.output[0] == stem.input[0])
    assert (eight.op_type, eight.input[0]) == ("DequantizeLinear", "stem/blocks")  # the pixels, as they are
    path = tmp_path / "int8.onnx"
    save_onnx(model, path)
    found, alone = open_cpu("tiny-int8", path).run(np.stack([crowd[:320, :320]] * 2))
    np.testing.assert_allclose(found.scores, alone.scores, atol=1e-6)
    assert len(found.scores) > 0
    assert (np.diff(found.scores) <= 0).all()


def test_the_rule_for_shipping_int8() -> None:
    ap, ms = {320: 0.50, 640: 0.70}, {320: 10.0, 640: 40.0}
    assert worth_shipping(ap, {320: 0.495, 640: 0.695}, ms, {320: 8.0, 640: 30.0})
    assert not worth_shipping(ap, {320: 0.495, 640: 0.685}, ms, {320: 8.0, 640: 30.0})
    assert not worth_shipping(ap, ap, ms, {320: 8.0, 640: 41.0})


def test_input_sizes_are_multiples_of_32_three_a_side() -> None:
    assert options.numbers("--long-sides", options.LONG_SIDES) == LONG_SIDES
    sizes = [str(size) for size in input_sizes()]
    assert sizes[:3] == ["192x256", "256x192", "256x256"]
    assert sizes[3:9] == ["256x320", "320x256", "320x320", "384x480", "480x384", "480x480"]
    assert sizes[9:] == ["480x640", "640x480", "640x640", "736x960", "960x736", "960x960"]


def test_a_new_file_drops_the_old_ones_accuracy(repository: Path) -> None:
    folder = repository / "tiny"
    row = Accuracy(variant="tiny", dataset="d", split="dev", protocol="p", long_side=640, ap50=0.5, ap=0.2)
    manifest = with_accuracy(load_manifest(folder / "manifest.json"), (row,))
    assert manifest.ap50("tiny", 640) == 0.5
    better = with_accuracy(manifest, (row.model_copy(update={"ap50": 0.6}),))
    assert [r.ap50 for r in better.accuracy] == [0.6]
    replaced = with_file(better, describe_file(folder / "tiny.onnx", "tiny", "fp32", "onnx", OPSET))
    assert replaced.accuracy == ()
