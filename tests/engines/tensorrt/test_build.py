"""Building a plan, on the fake: what is asked of TensorRT, and what is said when it does not answer."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.engines.base import EngineError
from service.engines.tensorrt import api
from service.engines.tensorrt.build import BuildOptions, BuildStoppedError, build_plan
from service.repository.manifest import InputSize, Thresholds
from tests.engines.fake_cuda import Error
from tests.engines.gpu_fakes import FakeGpu, install
from tests.engines.tensorrt.fake import TENSORS

SIZES = (InputSize(height=480, width=640), InputSize(height=320, width=320))
OPTIONS = BuildOptions(input_sizes=SIZES, max_batch=8)


@pytest.fixture(params=["11.4", "10.16"])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return install(monkeypatch, request.param)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "d0-fp16.onnx"
    path.write_bytes(b"an ONNX file")
    return path


class Heard:
    """A `Progress` that notes."""

    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        self.events.append(("start", phase, parent, steps))

    def step(self, phase: str, step: int) -> None:
        self.events.append(("step", phase, step))

    def finish(self, phase: str) -> None:
        self.events.append(("finish", phase))


def test_a_plan_is_built_and_looked_at(gpu: FakeGpu, model: Path) -> None:
    heard, trt = Heard(), gpu.trt
    plan = build_plan(model, OPTIONS, heard)
    assert trt.module.Runtime(trt.module.Logger()).deserialize_cuda_engine(plan) is not None
    (network,) = trt.named("Builder.create_network")
    assert network.arguments == {"flags": 2 if trt.name == "10.16" else 0}  # strongly typed, either way
    (parse,) = trt.named("OnnxParser.parse")
    assert parse.arguments == {"model": b"an ONNX file", "path": str(model)}
    shapes = [call.arguments for call in trt.named("IOptimizationProfile.set_shape")]
    assert shapes == [
        {"input": "images", "min": (1, h, w, 3), "opt": (4, h, w, 3), "max": (8, h, w, 3)}
        for h, w in ((480, 640), (320, 320))
    ]
    assert len(trt.named("IBuilderConfig.add_optimization_profile")) == 2
    assert trt.values("IBuilderConfig.builder_optimization_level") == [3]
    for untouched in ("set_memory_pool_limit", "set_flag", "clear_flag", "create_timing_cache"):
        assert trt.named(f"IBuilderConfig.{untouched}") == []
    assert trt.values("IBuilderConfig.hardware_compatibility_level") == []
    assert heard.events[0] == ("start", "Building", None, 2)
    assert heard.events.count(("start", "Timing", "Building", 3)) == 2
    assert heard.events[-1] == ("finish", "Building")
    (loaded, *_) = trt.named("Runtime.deserialize_cuda_engine")
    assert loaded.arguments["serialized_engine"] == plan


def test_options_reach_the_builder(gpu: FakeGpu, model: Path) -> None:
    options = replace(
        OPTIONS, opt_batch=2, level=5, workspace_bytes=1 << 30, tf32=False, version_compatible=True,
        hardware_compatible="ampere_plus",
    )  # fmt: skip
    build_plan(model, options)
    trt, module = gpu.trt, gpu.trt.module
    assert trt.values("IBuilderConfig.builder_optimization_level") == [5]
    (pool,) = trt.named("IBuilderConfig.set_memory_pool_limit")
    assert pool.arguments == {"pool": module.MemoryPoolType.WORKSPACE, "pool_size": 1 << 30}
    assert [call.arguments["flag"].name for call in trt.named("IBuilderConfig.set_flag")] == ["VERSION_COMPATIBLE"]
    assert [call.arguments["flag"].name for call in trt.named("IBuilderConfig.clear_flag")] == ["TF32"]
    level = module.HardwareCompatibilityLevel
    assert trt.values("IBuilderConfig.hardware_compatibility_level") == [level.AMPERE_PLUS]
    assert trt.values("Runtime.engine_host_code_allowed") == [True]
    assert trt.named("IOptimizationProfile.set_shape")[0].arguments["opt"] == (2, 480, 640, 3)
    build_plan(model, replace(OPTIONS, hardware_compatible="same_compute_capability"))
    assert trt.values("IBuilderConfig.hardware_compatibility_level")[1:] == [level.SAME_COMPUTE_CAPABILITY]


def test_wrong_options_are_refused() -> None:
    for changes, said in (
        ({"input_sizes": ()}, "at least one input size"),
        ({"opt_batch": 9}, "batches go from 1 to 8; it cannot be tuned for 9"),
        ({"max_batch": 0}, "batches go from 1 to 0"),
        ({"level": 6}, "levels are 0 to 5"),
        ({"efficient_nms": Thresholds(), "version_compatible": True}, "no part of the lean runtime"),
    ):
        with pytest.raises(ValueError, match=said):
            replace(OPTIONS, **changes)
    assert replace(OPTIONS, max_batch=1).tuned_batch == 1


def test_all_that_the_parser_dislikes_is_one_sentence(gpu: FakeGpu, model: Path) -> None:
    gpu.trt.parse_errors = [
        ("nms/selected", "NonMaxSuppression", "no\n  such operator"),
        ("", "", "Assertion failed"),
        *((f"n{at}", "Foo", "bad") for at in range(5)),
    ]
    with pytest.raises(EngineError) as caught:
        build_plan(model, OPTIONS)
    assert str(caught.value) == (
        f"{model} is not a graph that TensorRT {gpu.trt.module.__version__} reads: NonMaxSuppression 'nms/selected': "
        "no such operator; Assertion failed; Foo 'n0': bad; Foo 'n1': bad; Foo 'n2': bad; and 2 more"
    )
    assert gpu.trt.named("Builder.build_serialized_network") == []


def test_a_builder_that_gives_up_says_why(gpu: FakeGpu, model: Path, caplog: pytest.LogCaptureFixture) -> None:
    gpu.trt.builds = False
    with caplog.at_level(logging.WARNING), pytest.raises(EngineError) as caught:
        build_plan(model, OPTIONS)
    version = gpu.trt.module.__version__
    assert str(caught.value) == f"{model} cannot be built by TensorRT {version}: no tactic fits into the workspace"
    assert "TensorRT: no tactic fits" in caplog.text


def test_errors_of_kernels_that_were_tried_in_vain_do_not_matter(gpu: FakeGpu, model: Path) -> None:
    gpu.trt.tactic_error = "Skipping tactic 0x3 due to insufficient memory"
    assert build_plan(model, OPTIONS)


def test_what_is_missing_is_told(gpu: FakeGpu, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match=r"gone.onnx cannot be read \(No such file"):
        build_plan(model.with_name("gone.onnx"), OPTIONS)
    gpu.trt.has_device = False
    with pytest.raises(EngineError, match=r"TensorRT \S+ does not start: .*nullptr"):
        build_plan(model, OPTIONS)
    gpu.trt.has_device, gpu.trt.husks = True, True
    with pytest.raises(EngineError, match=r"does not start: CUDA initialization .* is the driver new enough"):
        build_plan(model, OPTIONS)
    with pytest.raises(EngineError, match=r"does not start: CUDA initialization .* is the driver new enough"):
        api.new_runtime(gpu.trt.module, api.new_logger(gpu.trt.module))
    gpu.cuda.fail["cudaGetDeviceCount"] = Error.cudaErrorNoDevice
    with pytest.raises(EngineError, match="no NVIDIA GPU"):
        build_plan(model, OPTIONS)
    install(monkeypatch, f"lean-{gpu.trt.name}")
    with pytest.raises(EngineError, match=r"only TensorRT's lean runtime .*pip install 'tensorrt-cu13=="):
        build_plan(model, OPTIONS)
    monkeypatch.setitem(sys.modules, "tensorrt_lean", None)
    with pytest.raises(EngineError, match=r"TensorRT is not installed here .*pip install 'tensorrt-cu13"):
        build_plan(model, OPTIONS)


def test_a_version_nobody_knows_is_refused(gpu: FakeGpu, model: Path) -> None:
    gpu.trt.module.__version__ = "12.0.1.2"
    with pytest.raises(EngineError, match=r"TensorRT 12.0.1.2 is installed, whose API this code does not know"):
        build_plan(model, OPTIONS)


@pytest.mark.parametrize(
    ("tensor", "change", "said"),
    [
        ("images", ("INPUT", "FLOAT", (-1, -1, -1, 3)), "images is of type DataType.FLOAT, not DataType.UINT8"),
        ("boxes", ("OUTPUT", "HALF", (-1, 750, 4)), "boxes is of type DataType.HALF"),
        ("scores", ("OUTPUT", "FLOAT", (-1, 100)), r"scores is \(-1, 100\), not \(-1, 750\)"),
        ("num_detections", ("OUTPUT", "INT32", (-1, 1)), r"num_detections is \(-1, 1\), not \(-1,\)"),
        ("boxes", ("OUTPUT", "FLOAT", (-1, -1, 4)), r"boxes is \(-1, -1, 4\)"),
        ("more", ("OUTPUT", "INT32", (-1,)), "its tensors are boxes, images, more, num_detections, scores, not"),
    ],
)
def test_a_plan_that_is_no_serving_graph_is_refused(
    gpu: FakeGpu, model: Path, tensor: str, change: tuple[str, str, tuple[int, ...]], said: str
) -> None:
    gpu.trt.tensors = {**TENSORS, tensor: change}
    with pytest.raises(EngineError, match=said):
        build_plan(model, OPTIONS)


def test_the_timing_cache_is_kept_and_used(gpu: FakeGpu, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "cache" / "timing.bin"
    options = replace(OPTIONS, timing_cache=path)
    said: list[str] = []
    build_plan(model, options, say=said.append)
    build_plan(model, options, say=said.append)
    given = [call.arguments["serialized_timing_cache"] for call in gpu.trt.named("IBuilderConfig.create_timing_cache")]
    assert given == [b"", b"+timed"]
    assert path.read_bytes() == b"+timed+timed"
    assert [p.name for p in path.parent.iterdir()] == ["timing.bin"]
    assert all(not call.arguments["ignore_mismatch"] for call in gpu.trt.named("IBuilderConfig.set_timing_cache"))
    assert said == []


def test_a_timing_cache_of_another_gpu_begins_anew(gpu: FakeGpu, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "timing.bin"
    path.write_bytes(b"of an A100")
    gpu.trt.timing_mismatch = True
    said: list[str] = []
    build_plan(model, replace(OPTIONS, timing_cache=path), say=said.append)
    assert path.read_bytes() == b"+timed"
    assert said == [f"the timing cache {path} is of another GPU or version, or damaged; it begins anew"]


def test_a_timing_cache_that_cannot_be_kept_costs_no_plan(gpu: FakeGpu, model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    said: list[str] = []
    assert build_plan(model, replace(OPTIONS, timing_cache=tmp_path / "file" / "timing.bin"), say=said.append)
    assert any("cannot be written" in sentence for sentence in said)


def test_a_build_can_be_stopped(gpu: FakeGpu, model: Path, tmp_path: Path) -> None:
    stop, heard = threading.Event(), Heard()
    gpu.trt.on_step = lambda: stop.set() if ("step", "Timing", 1) in heard.events else None
    options = replace(OPTIONS, timing_cache=tmp_path / "timing.bin")
    with pytest.raises(BuildStoppedError, match="the build was stopped"):
        build_plan(model, options, heard, stop=stop)
    assert heard.events[-1] == ("finish", "Building")
    assert ("step", "Building", 0) not in heard.events
    assert options.timing_cache
    assert options.timing_cache.exists()  # what was timed until then makes the next build shorter


def test_ctrl_c_stops_the_build_and_reaches_the_caller(gpu: FakeGpu, model: Path) -> None:
    stop, pressed = threading.Event(), threading.Event()
    said: list[str] = []

    def press() -> None:
        if not pressed.is_set():
            pressed.set()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            assert stop.wait(20)

    gpu.trt.on_step = press
    with pytest.raises(KeyboardInterrupt):
        build_plan(model, OPTIONS, Heard(), said.append, stop)
    assert said == ["stopping after the step that TensorRT is at; Ctrl-C again leaves at once"]
    assert not any(thread.name == "tensorrt-build" for thread in threading.enumerate())


def test_progress_that_fails_does_not_reach_tensorrt(gpu: FakeGpu, model: Path) -> None:
    class Broken(Heard):
        def step(self, phase: str, step: int) -> None:
            raise OSError("the terminal is gone")

    assert build_plan(model, OPTIONS, Broken())


@pytest.mark.parametrize("kind", ["IPluginCreator", "IPluginCreatorV3One"])
def test_efficient_nms_is_attached_behind_the_candidates(gpu: FakeGpu, model: Path, kind: str) -> None:
    trt = gpu.trt
    trt.tensors = {
        "images": TENSORS["images"], "candidate_boxes": ("OUTPUT", "FLOAT", (-1, 2000, 4)),
        "candidate_scores": ("OUTPUT", "FLOAT", (-1, 2000)),
    }  # fmt: skip
    trt.plugins = {"EfficientNMS_TRT": kind}
    build_plan(model, replace(OPTIONS, efficient_nms=Thresholds()))
    (asked,) = trt.named("IPluginRegistry.get_creator")
    assert asked.arguments == {"type": "EfficientNMS_TRT", "version": "1", "plugin_namespace": ""}
    fields = {call.arguments["name"]: call.arguments for call in trt.named("PluginField")}
    assert {name: field["data"].item() for name, field in fields.items()} == {
        "score_threshold": pytest.approx(0.05), "iou_threshold": pytest.approx(0.4), "max_output_boxes": 750,
        "background_class": -1, "score_activation": 0, "box_coding": 0, "class_agnostic": 1,
    }  # fmt: skip
    for field in fields.values():
        wanted = trt.module.PluginFieldType.FLOAT32 if field["data"].dtype == np.float32 else None
        assert field["type"] == (wanted or trt.module.PluginFieldType.INT32)
    old = kind == "IPluginCreator"
    (layer,) = trt.named(f"INetworkDefinition.add_plugin_{'v2' if old else 'v3'}")
    assert [tensor.name for tensor in layer.arguments["inputs"]] == ["candidate_boxes", "shuffled"]
    assert trt.named(f"INetworkDefinition.add_plugin_{'v3' if old else 'v2'}") == []
    assert trt.values("IShuffleLayer.reshape_dims") == [(0, 0, 1), (-1,)]
    marked = [call.arguments["tensor"].name for call in trt.named("INetworkDefinition.mark_output")]
    assert marked == ["num_detections", "boxes", "scores"]


def test_efficient_nms_that_is_not_registered_names_the_plain_form(gpu: FakeGpu, model: Path) -> None:
    options = replace(OPTIONS, efficient_nms=Thresholds())
    with pytest.raises(EngineError, match=r"has no plugin EfficientNMS_TRT here; build with plain NMS.*--nms plain"):
        build_plan(model, options)
    gpu.trt.plugins = {"EfficientNMS_TRT": "IPluginCreator"}
    with pytest.raises(EngineError, match="does not end in candidates: its outputs are boxes, num_detections, scores"):
        build_plan(model, options)
    with pytest.raises(EngineError, match="takes 5000 candidates, and it has 6000"):
        build_plan(model, replace(options, efficient_nms=Thresholds(pre_nms_top_k=6000)))
