"""INT8 in the form that TensorRT takes: symmetric, per channel, before convolutions, with plain NMS behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from PIL import Image
from typer.testing import CliRunner

from export.__main__ import app
from export.member import with_accuracy
from export.quantize import accurate
from export.shipping import _scored
from export.verify import verify_member
from service.engines.ort import open_cpu
from service.repository.manifest import Accuracy
from service.repository.store import RepositoryError, for_cpu, load_manifest, load_repository
from tests.engines.gpu_fakes import install
from tests.export.test_gpu_graph import SUPPORTED

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def repository(checkpoint: Path, crowd: Pixels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A member with its fp32 file and INT8 for GPUs; it does not matter how much that loses."""
    root = tmp_path_factory.mktemp("quantized")
    data, models = root / "data", root / "models"
    (data / "split").mkdir(parents=True)
    for split in ("train", "dev"):
        (data / split / "images").mkdir(parents=True)
        lines = []
        for at in range(2):
            Image.fromarray(crowd[at * 256 : at * 256 + 256, :320]).save(data / split / "images" / f"{at}.png")
            lines += [f"{at}.png", "1", "85 30 52 70 0 0 0 0 0 0"]
        (data / "split" / f"{split}_bbx_gt.txt").write_text("\n".join(lines) + "\n")
    base = ["--repository", str(models)]
    for arguments in (
        ["onnx", str(checkpoint), "--member", "tiny", *base],
        ["quantize", "tiny", *base, "--gpu", "--keep", "--data", str(data), "--pictures", "2", "--long-sides", "320"],
    ):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
    return models


def test_the_variant_joins_the_manifest_and_no_cpu_serves_it(repository: Path) -> None:
    manifest = load_manifest(repository / "tiny" / "manifest.json")
    assert [(file.variant, file.precision, file.nms) for file in manifest.files] == [
        ("tiny", "fp32", "onnx"), ("tiny-int8-gpu", "int8", "plain"),
    ]  # fmt: skip
    kept, left_out = for_cpu(load_repository(repository))
    assert [variant.name for variant in kept.variants] == ["tiny"]
    assert left_out == ("tiny-int8-gpu",)
    rows = tuple(
        Accuracy(variant=name, dataset="d", split="dev", protocol="p", long_side=640, ap50=0.8, ap=0.4)
        for name in ("tiny", "tiny-int8-gpu")
    )
    assert _scored(with_accuracy(manifest, rows), "d", "dev") == [("tiny", 0.8)]  # nor is a CPU timed with it
    assert sorted(path.name for path in (repository / "tiny").glob(".*")) == []
    assert verify_member(repository / "tiny") == []
    with pytest.raises(RepositoryError):
        load_repository(repository / "tiny")


def test_one_variant_alone_is_measured(repository: Path, tmp_path: Path) -> None:
    copy = tmp_path / "models"
    shutil.copytree(repository, copy)
    command = ["accuracy", "tiny", "--repository", str(copy), "--data", str(repository.parent / "data"), "--variants"]
    result = CliRunner().invoke(app, [*command, "tiny-int8-gpu", "--long-sides", "320"])
    assert result.exit_code == 0, result.output
    (row,) = load_manifest(copy / "tiny" / "manifest.json").accuracy
    assert (row.variant, row.long_side) == ("tiny-int8-gpu", 320)
    result = CliRunner().invoke(app, [*command, "tiny,small"])
    assert result.exit_code == 2
    assert "tiny has no variant small; it has tiny, tiny-int8-gpu" in " ".join(result.output.split())


def test_quantisation_is_what_tensorrt_takes(repository: Path) -> None:
    model = onnx.load(repository / "tiny" / "tiny-int8-gpu.onnx")
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) > 60
    for node in pairs:
        zero = constants[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
    quantised = 0
    for node in (node for node in graph.node if node.op_type == "Conv"):
        activation, weight = (producers.get(name) for name in node.input[:2])
        if weight is None or weight.op_type != "DequantizeLinear":
            continue
        quantised += 1
        assert activation is not None
        assert activation.op_type == "DequantizeLinear"
        assert constants[weight.input[0]].dtype == np.int8
        assert constants[weight.input[1]].shape == (constants[weight.input[0]].shape[0],)  # a scale for each channel
        assert next(a.i for a in weight.attribute if a.name == "axis") == 0
        assert constants[node.input[2]].dtype == np.float32  # the bias
        readers = [other.op_type for other in graph.node if node.output[0] in other.input]
        assert "QuantizeLinear" not in readers  # nothing between a convolution and its ReLU
    assert quantised > 40
    assert {node.op_type for node in graph.node} <= {*SUPPORTED, "QuantizeLinear", "DequantizeLinear"}
    assert not [node for node in graph.node if node.domain]
    types = {tensor.data_type for tensor in graph.initializer}
    assert TensorProto.FLOAT16 not in types


def test_it_finds_what_the_full_detector_finds(repository: Path, crowd: Pixels) -> None:
    picture = np.ascontiguousarray(crowd[None, :320, :320])
    ours, full = (
        open_cpu(name, repository / "tiny" / f"{name}.onnx", 1).run(picture)[0] for name in ("tiny-int8-gpu", "tiny")
    )
    assert abs(len(ours.scores) - len(full.scores)) < 0.3 * len(full.scores)
    best = full.scores > 0.5
    distance = np.abs(full.boxes[best][:, None] - ours.boxes[None]).max(axis=2).min(axis=1)
    assert np.median(distance) < 8


def test_its_plan_is_built_where_it_is_named(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    monkeypatch.chdir(tmp_path)  # where the timing cache goes
    models = shutil.copytree(repository, tmp_path / "models")
    named = ["tensorrt", "tiny", "--variant", "tiny-int8-gpu", "--repository", str(models)]
    done = CliRunner().invoke(app, named)
    assert done.exit_code == 0, done.output
    assert "its accuracy was never measured: python -m export accuracy tiny" in done.output
    (plan,) = load_manifest(models / "tiny" / "manifest.json").plans
    assert (plan.variant, plan.precision, plan.nms) == ("tiny-int8-gpu", "int8", "plain")
    assert verify_member(models / "tiny") == []


def test_the_rule_without_times() -> None:
    assert accurate({320: 0.5, 640: 0.7}, {320: 0.495, 640: 0.71})
    assert not accurate({320: 0.5, 640: 0.7}, {320: 0.5, 640: 0.69})
