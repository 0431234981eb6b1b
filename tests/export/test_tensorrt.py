"""`python -m export tensorrt` on a fake GPU, and what it builds from: files with plain NMS, or graphs cut before it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from click.testing import Result
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from export.__main__ import app
from export.candidates import candidate_graph
from export.graph import CandidateGraph
from export.half import compute_in_half
from export.index import index_of, lines
from export.member import describe_file, save_onnx, with_accuracy, with_file, write_manifest
from export.onnx_graph import OPSET, export_onnx
from export.plan_progress import bars
from export.verify import verify_member
from service.repository.manifest import Accuracy, Manifest, Thresholds
from service.repository.store import load_manifest
from tests.engines.gpu_fakes import FakeGpu, install
from tests.engines.tensorrt.fake import TENSORS
from training.models.detector import Detector

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with `tiny` (fp32, ONNX's NMS) and `tiny-fp16` (plain NMS); tests must not change it."""
    folder = tmp_path_factory.mktemp("models")
    for precision in ("fp32", "fp16"):
        command = ["onnx", str(checkpoint), "--member", "tiny", "--repository", str(folder), "--precision", precision]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def repository(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, and a working directory in which the timing cache may lie."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(exported, tmp_path / "models"))


@pytest.fixture
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return install(monkeypatch, getattr(request, "param", "11.4"))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["tensorrt", *arguments])


def manifest_of(repository: Path) -> Manifest:
    return load_manifest(repository / "tiny" / "manifest.json")


@pytest.mark.parametrize("gpu", ["10.16", "11.4"], indirect=True)
def test_a_plan_joins_the_manifest_and_is_kept(gpu: FakeGpu, repository: Path, tmp_path: Path) -> None:
    row = Accuracy(variant="tiny-fp16", dataset="d", split="dev", protocol="p", long_side=640, ap50=0.8765, ap=0.4)
    write_manifest(repository / "tiny", with_accuracy(manifest_of(repository), (row,)))
    result = run("tiny", "--max-batch", "4")
    assert result.exit_code == 0, result.output
    (plan,) = manifest_of(repository).plans
    assert f"tiny-fp16: {plan.path}, " in result.output
    assert "15 input sizes with up to 4 pictures" in result.output
    assert "AP.50 0.8765 at 640 on d (dev), of the ONNX file, not of the plan" in result.output
    assert (plan.variant, plan.precision, plan.max_batch, plan.tensorrt) == (
        "tiny-fp16", "fp16", 4, gpu.trt.module.__version__,
    )  # fmt: skip
    assert plan.input_sizes == manifest_of(repository).input_sizes
    assert gpu.trt.named("IBuilderConfig.clear_flag") == []  # TF32 stays where all that counts is in fp16
    version = gpu.trt.module.__version__
    assert (tmp_path / ".cache/tensorrt" / f"timing.trt{version}.sm90.bin").read_bytes() == b"+timed"

    listed = "\n".join(lines(index_of(repository)))
    assert f"    plan for TensorRT {version} on Drawn GPU, batches to 4" in listed

    again = run("tiny", "--max-batch", "4")
    assert again.exit_code == 0
    assert f"tiny-fp16: {plan.path} is there" in again.output
    assert len(gpu.trt.named("Builder.build_serialized_network")) == 1
    assert run("tiny", "--max-batch", "8", "--sizes", "480x640").exit_code == 0  # more than is there
    assert run("all", "--max-batch", "8", "--sizes", "480x640", "--force").exit_code == 0
    assert len(gpu.trt.named("Builder.build_serialized_network")) == 3
    (plan,) = manifest_of(repository).plans
    assert (plan.max_batch, [str(size) for size in plan.input_sizes]) == (8, ["480x640"])
    (path,) = (repository / "tiny").glob("*.plan")
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert verify_member(repository / "tiny") == [f"{path} is damaged: its sha256 is not the one written down"]


def test_a_new_file_drops_the_plans_of_the_old_one(gpu: FakeGpu, repository: Path) -> None:
    assert run("tiny", "--sizes", "320x320").exit_code == 0
    manifest = manifest_of(repository)
    file = next(one for one in manifest.files if one.variant == "tiny-fp16")
    assert with_file(manifest, file).plans == manifest.plans
    assert with_file(manifest, file.model_copy(update={"sha256": "0" * 64})).plans == ()


def test_a_plan_of_another_gpu_is_built_again(gpu: FakeGpu, repository: Path) -> None:
    assert run("tiny", "--sizes", "320x320").exit_code == 0
    manifest = manifest_of(repository)
    l4 = {"gpu": "NVIDIA L4", "compute_capability": "8.9", "path": "l4.plan"}
    other = manifest.plans[0].model_copy(update=l4)
    write_manifest(repository / "tiny", manifest.model_copy(update={"plans": (other,)}))
    result = run("tiny", "--sizes", "320x320")
    assert "not usable here" in result.output
    assert "built for compute capability 8.9 (NVIDIA L4), and this GPU has 9.0" in result.output
    assert [plan.gpu for plan in manifest_of(repository).plans] == ["NVIDIA L4", "Drawn GPU"]


def test_options_reach_the_builder(gpu: FakeGpu, repository: Path, tmp_path: Path) -> None:
    command = ["tiny", "--sizes", "320x320,480x640", "--opt-batch", "3", "--level", "1", "--workspace-mib", "64",
               "--version-compatible", "--hardware-compatible", "ampere_plus",
               "--timing-cache", str(tmp_path / "t.bin")]  # fmt: skip
    assert run(*command).exit_code == 0
    (plan,) = manifest_of(repository).plans
    assert (plan.version_compatible, plan.hardware_compatible) == (True, "ampere_plus")
    assert [str(size) for size in plan.input_sizes] == ["320x320", "480x640"]
    assert gpu.trt.values("IBuilderConfig.builder_optimization_level") == [1]
    assert gpu.trt.named("IBuilderConfig.set_memory_pool_limit")[0].arguments["pool_size"] == 64 << 20
    assert gpu.trt.named("IOptimizationProfile.set_shape")[0].arguments["opt"] == (3, 320, 320, 3)
    assert (tmp_path / "t.bin").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tiny", "--variant", "tiny"], "no tiny with plain NMS to build from: tiny has tiny (fp32, onnx NMS)"),
        (["tiny", "--variant", "d9"], "python -m export onnx CHECKPOINT --precision fp16 --nms plain"),
        (["tiny", "--sizes", "100x100"], "--sizes: tiny has no 100x100; it has 192x256"),
        (["tiny", "--hardware-compatible", "all"], "none, ampere_plus, same_compute_capability, not 'all'"),
        (["tiny", "--nms", "soft"], "--nms is plain or efficient, not 'soft'"),
        (["tiny", "--opt-batch", "9"], "batches go from 1 to 8; it cannot be tuned for 9"),
        (["d9"], "manifest.json: cannot be read"),
        (["all", "--repository", "empty"], "empty holds no member"),
        (["tiny", "--nms", "efficient"], "has no plugin EfficientNMS_TRT here; build with plain NMS"),
        (["tiny", "--nms", "efficient", "--version-compatible"], "no part of the lean runtime"),
    ],
)  # fmt: skip
def test_wrong_requests_are_sentences(gpu: FakeGpu, repository: Path, arguments: list[str], said: str) -> None:
    before = sorted(path.name for path in (repository / "tiny").iterdir())
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())
    assert sorted(path.name for path in (repository / "tiny").iterdir()) == before
    assert gpu.trt.named("Builder.build_serialized_network") == []


def test_without_tensorrt_it_says_what_to_install(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "tensorrt_lean"):
        monkeypatch.setitem(sys.modules, name, None)
    result = run("tiny")
    assert result.exit_code == 2
    assert "TensorRT is not installed here" in result.output
    assert "pip install" in result.output


def test_a_member_without_half_precision_is_left_out_of_all(gpu: FakeGpu, repository: Path) -> None:
    other = Path(shutil.copytree(repository / "tiny", repository / "other"))
    manifest = manifest_of(repository)
    file = manifest.files[0].model_copy(update={"variant": "other"})
    write_manifest(other, manifest.model_copy(update={"member": "other", "files": (file,), "accuracy": ()}))
    result = run("all", "--sizes", "320x320")
    assert result.exit_code == 0, result.output
    assert "left out: other has other (fp32, onnx NMS)" in result.output
    assert len(manifest_of(repository).plans) == 1


def test_int8_for_cpus_is_refused(gpu: FakeGpu, repository: Path) -> None:
    tensors = [numpy_helper.from_array(np.array(v, t), n) for n, v, t in (("s", 1, np.float32), ("z", 128, np.uint8))]
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])], "int8",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [1])], tensors,
    )  # fmt: skip
    path = repository / "tiny" / "tiny-int8.onnx"
    save_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)]), path)
    entry = describe_file(path, "tiny-int8", "int8", "plain", OPSET)
    write_manifest(repository / "tiny", with_file(manifest_of(repository), entry))
    result = run("tiny", "--variant", "tiny-int8")
    assert result.exit_code == 2
    assert "quantised to uint8, for CPUs, and TensorRT knows symmetric int8 only" in result.output


@pytest.mark.parametrize("variant", ["tiny-fp16", "tiny"])
def test_efficient_nms_is_built_from_the_graph_before_nms(gpu: FakeGpu, repository: Path, variant: str) -> None:
    gpu.trt.plugins = {"EfficientNMS_TRT": "IPluginCreator"}
    gpu.trt.tensors = {
        "images": TENSORS["images"], "candidate_boxes": ("OUTPUT", "FLOAT", (-1, 2000, 4)),
        "candidate_scores": ("OUTPUT", "FLOAT", (-1, 2000)),
    }  # fmt: skip
    result = run("tiny", "--variant", variant, "--nms", "efficient", "--sizes", "320x320")
    assert result.exit_code == 0, result.output
    (plan,) = manifest_of(repository).plans
    assert (plan.variant, plan.nms) == (variant, "efficient")
    assert plan.path.startswith(f"{variant}.efficient.trt")
    (parse,) = gpu.trt.named("OnnxParser.parse")
    parsed = onnx.load_from_string(parse.arguments["model"])
    assert [output.name for output in parsed.graph.output] == ["candidate_boxes", "candidate_scores"]


@pytest.mark.parametrize(("nms", "half"), [("plain", False), ("plain", True), ("onnx", False)])
def test_the_cut_graph_finds_the_candidates(
    detector: Detector, crowd: Pixels, nms: str, half: bool, tmp_path: Path
) -> None:
    whole = export_onnx(detector, Thresholds(), nms, half=False)
    cut = candidate_graph(compute_in_half(whole) if half else whole)
    kinds = {node.op_type for node in cut.graph.node}
    assert not kinds & {"NonMaxSuppression", "Trilu", "ScatterND"}
    assert {node.op_type for node in whole.graph.node} & {"NonMaxSuppression", "Trilu"}
    names = {name for node in cut.graph.node for name in node.input}
    assert {tensor.name for tensor in cut.graph.initializer} <= names
    images = np.stack([crowd[:320, :256], crowd[300:620, 200:456]])
    session = ort.InferenceSession(cut.SerializeToString(), providers=["CPUExecutionProvider"])
    boxes, scores = session.run(["candidate_boxes", "candidate_scores"], {"images": images})
    with torch.no_grad():
        wanted_boxes, wanted_scores = CandidateGraph(detector, Thresholds())(torch.from_numpy(images))
    assert boxes.dtype == scores.dtype == np.float32
    assert boxes.shape == (2, 2000, 4)
    np.testing.assert_allclose(scores, wanted_scores.numpy(), atol=0.02 if half else 1e-4)
    if not half:
        first = wanted_scores.numpy()[:, :50] > 0.05
        assert first.sum() > 20
        np.testing.assert_allclose(boxes[:, :50][first], wanted_boxes.numpy()[:, :50][first], atol=0.05)


def test_a_graph_that_is_none_of_ours_is_refused() -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "other",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )  # fmt: skip
    with pytest.raises(ValueError, match="the graph's candidates cannot be told: nothing leaves its network"):
        candidate_graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)]))


def test_bars_follow_phases_and_leave_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with bars() as shown:
        shown.start("Building", None, 2)
        shown.start("Timing", "Building", 5)
        shown.step("Timing", 3)
        assert shown._bars["Timing"].n == 4
        shown.finish("Timing")
        shown.start("Timing", "Building", 3)  # names come again
        shown.step("unheard of", 1)
        shown.step("Building", 0)
        assert [bar.n for bar in shown._bars.values()] == [1, 0]
    assert shown._bars == {}
    assert "Timing" in capsys.readouterr().err


@pytest.mark.gpu
def test_a_true_plan_is_built_and_kept(repository: Path) -> None:
    """With TensorRT, cuda-bindings and a GPU: parsed, built, loaded again and held against the contract."""
    pytest.importorskip("tensorrt")
    command = ["tiny", "--sizes", "320x320,256x320", "--max-batch", "2", "--level", "0"]
    result = run(*command)
    assert result.exit_code == 0, result.output
    (plan,) = manifest_of(repository).plans
    assert [str(size) for size in plan.input_sizes] == ["320x320", "256x320"]
    assert f"{plan.path} is there" in run(*command).output
    efficient = run(*command, "--nms", "efficient")
    assert efficient.exit_code == 0 or "has no plugin EfficientNMS_TRT here" in efficient.output
