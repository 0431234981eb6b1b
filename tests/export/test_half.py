"""Graphs that compute in float16: what does and what does not, and how near they stay to float32."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from typer.testing import CliRunner

from export.__main__ import app
from export.half import compute_in_half
from export.member import save_onnx
from export.onnx_graph import export_onnx
from export.verify import parity, verify_member
from service.engines.ort import open_cpu
from service.repository.manifest import Thresholds
from service.repository.store import load_manifest
from training.models.detector import Detector

Pixels = NDArray[np.uint8]
SHIPPED = Path(__file__).parents[2] / "models" / "d0" / "d0.onnx"


@pytest.fixture(scope="module")
def full(detector: Detector) -> onnx.ModelProto:
    return export_onnx(detector, Thresholds(), "plain", half=False)


def test_the_network_is_half_and_everything_around_it_is_not(full: onnx.ModelProto) -> None:
    half = compute_in_half(full)
    inferred = onnx.shape_inference.infer_shapes(half)
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    made = {
        kind: {types.get(node.output[0]) for node in half.graph.node if node.op_type == kind}
        for kind in ("Conv", "Relu", "MaxPool", "Exp", "Sigmoid", "TopK", "Div", "Sub", "Min", "Max")
    }
    for kind in ("Conv", "MaxPool"):
        assert made[kind] == {TensorProto.FLOAT16}, kind
    assert made["Relu"] == {TensorProto.FLOAT16, TensorProto.FLOAT}  # those of NMS
    for kind in ("Exp", "Sigmoid"):  # decoding and scores
        assert made[kind] == {TensorProto.FLOAT}, kind
    for kind in ("TopK", "Div", "Sub", "Min", "Max"):
        assert TensorProto.FLOAT16 not in made[kind], kind
    # No map is cast for its shape alone.
    readers: dict[str, set[str]] = {}
    for node in half.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    casts = [n for n in half.graph.node if n.op_type == "Cast" and types.get(n.input[0]) == TensorProto.FLOAT16]
    assert casts
    assert not any(readers[node.output[0]] == {"Shape"} for node in casts)
    # Down to half precision once, behind normalisation, and never again: all else would be lost accuracy.
    down = [
        node for node in half.graph.node
        if node.op_type == "Cast" and any(a.name == "to" and a.i == TensorProto.FLOAT16 for a in node.attribute)
    ]  # fmt: skip
    assert len(down) == 1
    assert [(o.name, o.type.tensor_type.elem_type) for o in half.graph.output] == [
        ("num_detections", TensorProto.INT32), ("boxes", TensorProto.FLOAT), ("scores", TensorProto.FLOAT),
    ]  # fmt: skip
    assert half.ByteSize() < 0.55 * full.ByteSize()
    assert not any(node.name.startswith("0/") for node in full.graph.node)  # the argument is left as it was


def test_half_precision_finds_what_full_precision_finds(full: onnx.ModelProto, crowd: Pixels, tmp_path: Path) -> None:
    engines = {}
    for name, model in (("full", full), ("half", compute_in_half(full))):
        save_onnx(model, tmp_path / f"{name}.onnx")
        engines[name] = open_cpu(name, tmp_path / f"{name}.onnx", threads=1)
    for height, width in ((256, 320), (320, 256)):
        batch = np.ascontiguousarray(crowd[None, :height, :width])
        ours, reference = (engines[name].run(batch)[0] for name in ("half", "full"))
        result = parity(ours, reference)
        assert result.compared > 50
        # Random weights pile up near-equal boxes, and rounding settles some ties the other way.
        assert result.unmatched <= 0.05 * result.compared
        assert 1e-6 < result.score < 0.02  # it does round


def test_the_command_adds_a_variant_to_the_same_checkpoints_manifest(checkpoint: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    run = CliRunner()
    base = ["--member", "tiny", "--repository", str(models)]
    for precision in ("fp32", "fp16"):
        result = run.invoke(app, ["onnx", str(checkpoint), *base, "--precision", precision])
        assert result.exit_code == 0, result.output
    manifest = load_manifest(models / "tiny" / "manifest.json")
    assert [(file.variant, file.precision, file.nms) for file in manifest.files] == [
        ("tiny", "fp32", "onnx"), ("tiny-fp16", "fp16", "plain"),
    ]  # fmt: skip
    assert manifest.architecture.single_path == ""  # FPN is no single path

    content = torch.load(checkpoint, weights_only=True)
    content["progress"]["images"] += 1
    other = tmp_path / "other.pt"
    torch.save(content, other)
    refused = run.invoke(app, ["onnx", str(other), *base, "--precision", "fp16"])
    assert refused.exit_code == 2
    assert "does not say that it was made from" in refused.output
    shutil.rmtree(models)
    for arguments, sentence in ((["--precision", "fp16", "--nms", "onnx"], "plain"), (["--precision", "int4"], "int4")):
        refused = run.invoke(app, ["onnx", str(checkpoint), *base, *arguments])
        assert refused.exit_code == 2
        assert sentence in refused.output
    assert not models.exists()


def test_a_shipped_file_makes_the_same_half_form_as_its_checkpoint(
    checkpoint: Path, crowd: Pixels, tmp_path: Path
) -> None:
    models, run = tmp_path / "models", CliRunner()
    folder = models / "tiny"
    base = ["--member", "tiny", "--repository", str(models)]
    for precision in ("fp32", "fp16"):
        assert run.invoke(app, ["onnx", str(checkpoint), *base, "--precision", precision]).exit_code == 0
    (folder / "tiny-fp16.onnx").rename(folder / "before.onnx")
    result = run.invoke(app, ["onnx", str(folder / "tiny.onnx"), *base, "--precision", "fp16"])
    assert result.exit_code == 0, result.output
    assert verify_member(folder) == []
    batch = np.ascontiguousarray(crowd[None, :256, :320])
    ours, theirs = (open_cpu(n, folder / f"{n}.onnx", threads=1).run(batch)[0] for n in ("tiny-fp16", "before"))
    found = parity(ours, theirs)
    assert found.compared > 50
    assert found.unmatched == 0
    for path, more in ((folder / "tiny.onnx", ["--precision", "fp32"]), (folder / "before.onnx", [])):
        refused = run.invoke(app, ["onnx", str(path), *base, "--precision", "fp16", *more])
        assert refused.exit_code == 2
        assert "fp16 form of the member that ships it" in refused.output


def test_a_half_graph_keeps_the_contract(full: onnx.ModelProto, tmp_path: Path) -> None:
    from export.member import describe_file
    from export.onnx_graph import OPSET
    from export.verify import contract_faults
    from tests.service.fake_model import write_fake_repository

    path = tmp_path / "half.onnx"
    save_onnx(compute_in_half(full), path)
    manifest = load_manifest(write_fake_repository(tmp_path / "models", ("d0",)) / "d0" / "manifest.json")
    sizes = tuple(size.model_copy(update={"height": 192, "width": 192}) for size in manifest.input_sizes[:1])
    manifest = manifest.model_copy(update={"input_sizes": sizes})
    assert contract_faults(path, describe_file(path, "half", "fp16", "plain", OPSET), manifest) == []
    assert verify_member(tmp_path / "models" / "d0") == []


@pytest.fixture(scope="module")
def shipped(crowd: Pixels) -> Detector:
    """D0 with the weights that are shipped."""
    from training.engine.warm_start import load_exported
    from training.models.detector import DetectorConfig, build_detector, normalize

    detector = build_detector(DetectorConfig())
    pixels = torch.from_numpy(np.ascontiguousarray(crowd[:256, :320])).permute(2, 0, 1)[None]
    load_exported(detector, SHIPPED, [normalize(pixels)])
    return detector.eval()


def test_the_shipped_weights_stay_far_from_half_precisions_limit(crowd: Pixels) -> None:
    """Every map of the network, in float32 on a crowd, is at most a sixteenth of what float16 holds."""
    model = onnx.load(SHIPPED)
    names = [node.output[0] for node in model.graph.node if node.op_type in ("Conv", "Add", "Relu", "Resize")]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    maps = session.run(names, {"images": crowd[None, :480, :640]})
    assert len(maps) > 60
    largest = max(float(np.abs(one).max()) for one in maps)
    assert 10 < largest < np.finfo(np.float16).max / 16


def test_the_shipped_weights_find_the_same_faces_in_half_precision(
    shipped: Detector, crowd: Pixels, tmp_path: Path
) -> None:
    save_onnx(compute_in_half(export_onnx(shipped, Thresholds(), "plain", half=False)), tmp_path / "half.onnx")
    picture = np.ascontiguousarray(crowd[None, :480, :640])
    found = open_cpu("half", tmp_path / "half.onnx", threads=1).run(picture)[0]
    reference = open_cpu("d0", SHIPPED, threads=1).run(picture)[0]
    result = parity(found, reference)
    assert result.compared >= 4
    assert result.unmatched == 0
    assert 0 < result.score < 0.01
    assert result.box < 0.5
    assert np.isfinite(found.boxes).all()
    assert np.isfinite(found.scores).all()
