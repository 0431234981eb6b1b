"""What the conformance suite runs: a small detector in three moods, as every engine's file, and how answers compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from export.half import compute_in_half
from export.member import input_sizes, save_onnx
from export.onnx_graph import export_onnx
from export.quantize import quantize
from export.reference import TorchEngine, open_reference
from service.engines.base import Detections, Engine, EngineError
from service.engines.ort import CPU_KIND, OnnxEngine, bound_run, has_cuda, open_cpu, open_cuda
from service.repository.manifest import InputSize, Thresholds
from tests.export.conftest import detector_checkpoint
from training.models.detector import Detector

Pixels = NDArray[np.uint8]
SIZES: tuple[InputSize, ...] = input_sizes()
"""Those that every member is exported for, as its manifest has them."""
MAX_BATCH = 4

INT8, INT8_FOR_GPUS = "int8", "int8-gpu"

LIVELY, SILENT, CROWDED = "lively", "silent", "crowded"
"""Moods: faces all over the place; none, whatever it sees; so many that the output cannot hold them."""
THRESHOLDS = {
    LIVELY: Thresholds(),
    SILENT: Thresholds(score=0.99999),
    CROWDED: Thresholds(score=1e-4, nms_iou=0.9),
}


@dataclass
class Workshop:
    """Files of the detector, each made once. A graph's name is its mood and its form."""

    folder: Path
    detector: Detector
    photo: Pixels
    _made: dict[str, Path] = field(default_factory=dict)

    def checkpoint(self) -> Path:
        return self._once("detector.pt", lambda path: detector_checkpoint(self.detector, path))

    def graph(self, mood: str, nms: str, precision: str = "fp32") -> Path:
        def write(path: Path) -> None:
            save_onnx(self._model(mood, nms, precision), path)

        return self._once(f"{mood}-{nms}-{precision}.onnx", write)

    def _model(self, mood: str, nms: str, precision: str) -> onnx.ModelProto:
        if precision in (INT8, INT8_FOR_GPUS):
            tiles = [np.ascontiguousarray(self.photo[y : y + 256, :256]) for y in (0, 256)]
            return quantize(self.graph(mood, nms), iter(tiles), len(tiles), 320, gpu=precision == INT8_FOR_GPUS)
        full = export_onnx(self.detector, THRESHOLDS[mood], nms, half=False)
        return compute_in_half(full) if precision == "fp16" else full

    def plan(self, mood: str, precision: str) -> Path:
        """A plan of TensorRT. Raises `EngineError` where it cannot be built here."""
        from service.engines.tensorrt.build import BuildOptions, build_plan

        sizes = SIZES if mood == LIVELY else SIZES[:1]
        # As exact as the file's types say: TF32 would round what is compared with float32.
        options = BuildOptions(input_sizes=sizes, max_batch=MAX_BATCH, tf32=False, level=2)
        model = self.graph(mood, "plain", precision)
        return self._once(f"{mood}-{precision}.plan", lambda path: path.write_bytes(build_plan(model, options)))

    def _once(self, name: str, write: Callable[[Path], object]) -> Path:
        if name not in self._made:
            write(self.folder / name)
            self._made[name] = self.folder / name
        return self._made[name]


@dataclass(frozen=True)
class Tolerance:
    """What may differ from the reference: boxes by pixels, scores, and the share of faces without a partner."""

    box: float
    score: float
    unmatched: float = 0.0


STRICT = Tolerance(box=0.05, score=1e-3)
# float16 has eleven bits, 0.05 % of a value; through some twenty layers that is a few tenths of a pixel. Near-equal
# boxes of random weights are settled the other way here and there.
HALF = Tolerance(box=1.0, score=0.02, unmatched=0.05)


@dataclass(frozen=True)
class Case:
    """One engine to be held to the contract.

    tolerance: against the reference; None for INT8, whose rounding of random weights leaves no face as it was: what it
    costs is measured as AP, on trained ones (`export.quantize`). open: (workshop, mood) -> the engine; load: the same
    kind of engine on any file; suffix: of its files.
    """

    name: str
    tolerance: Tolerance | None
    open: Callable[[Workshop, str], Engine]
    load: Callable[[Path], Engine]
    suffix: str = ".onnx"


def reference(shop: Workshop, mood: str) -> Engine:
    return TorchEngine(mood, shop.detector, THRESHOLDS[mood], Path(f"{mood}.pt"))


def _bound(path: Path) -> Engine:
    """What the CUDA session does with its inputs and outputs, on the CPU."""
    engine = open_cpu("bound", path)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    bound = OnnxEngine("bound", path, CPU_KIND, session, engine.memory_bytes())
    bound._run = bound_run(session, "cpu")
    return bound


def _tensorrt(path: Path) -> Engine:
    from service.engines.tensorrt.engine import TensorRtEngine

    return TensorRtEngine("plan", path)


def _or_skip(make: Callable[[], Path]) -> Path:
    """Skip where TensorRT is not installed, on a machine that may well have a GPU."""
    from service.engines.tensorrt import api

    try:
        if not api.has_builder(api.load()):
            pytest.skip("only the lean runtime of TensorRT is installed, which builds nothing")
    except EngineError as error:
        pytest.skip(str(error))
    return make()


def _onnx_case(
    name: str, nms: str, precision: str, tolerance: Tolerance | None, load: Callable[[Path], Engine]
) -> Case:
    return Case(name, tolerance, lambda shop, mood: load(shop.graph(mood, nms, precision)), load)


def _tensorrt_case(name: str, precision: str, tolerance: Tolerance | None) -> Case:
    def open_plan(shop: Workshop, mood: str) -> Engine:
        return _tensorrt(_or_skip(lambda: shop.plan(mood, precision)))

    return Case(name, tolerance, open_plan, _tensorrt, ".plan")


def _cpu(path: Path) -> Engine:
    return open_cpu("graph", path, threads=1)


def _cuda(path: Path) -> Engine:
    if not has_cuda():
        pytest.skip("the installed onnxruntime is built without CUDA: pip install onnxruntime-gpu")
    return open_cuda("graph", path)


CASES = [
    Case(
        "pytorch", STRICT, lambda shop, mood: open_reference(mood, shop.checkpoint(), THRESHOLDS[mood]),
        lambda path: open_reference("checkpoint", path), ".pt",
    ),
    _onnx_case("onnxruntime-cpu, ONNX NMS", "onnx", "fp32", STRICT, _cpu),
    _onnx_case("onnxruntime-cpu, plain NMS", "plain", "fp32", STRICT, _cpu),
    _onnx_case("onnxruntime-cpu, bound as for CUDA", "onnx", "fp32", STRICT, _bound),
    _onnx_case("onnxruntime-cpu, INT8", "onnx", INT8, None, _cpu),
]  # fmt: skip
GPU_CASES = [
    _onnx_case("onnxruntime-cuda, fp32", "plain", "fp32", STRICT, _cuda),
    _onnx_case("onnxruntime-cuda, fp16", "plain", "fp16", HALF, _cuda),
    _tensorrt_case("tensorrt, fp32", "fp32", STRICT),
    _tensorrt_case("tensorrt, fp16", "fp16", HALF),
    _tensorrt_case("tensorrt, INT8", INT8_FOR_GPUS, None),
]


def cases() -> Iterator[object]:
    """For `pytest.mark.parametrize`, those that need a GPU marked so."""
    yield from (pytest.param(case, id=case.name) for case in CASES)
    yield from (pytest.param(case, id=case.name, marks=pytest.mark.gpu) for case in GPU_CASES)


def differences(found: Detections, wanted: Detections, threshold: float, allowed: Tolerance) -> list[str]:
    """How two answers differ beyond `allowed`, as sentences. Each face is to have its nearest box in the other answer
    within the tolerances, both ways, but for those so near the threshold that rounding decides whether they exist."""
    said = []
    for name, one, other in (("missed", wanted, found), ("invented", found, wanted)):
        sure = one.scores > threshold + allowed.score
        alone = [k for k in np.flatnonzero(sure) if not _has_partner(one, int(k), other, allowed)]
        if len(alone) > allowed.unmatched * sure.sum():
            first = alone[0]
            box = np.round(one.boxes[first], 2).tolist()
            said.append(f"{name} {len(alone)} of {sure.sum()} faces, such as {box} with {one.scores[first]:.4f}")
    return said


def _has_partner(one: Detections, k: int, other: Detections, allowed: Tolerance) -> bool:
    near = np.abs(other.boxes - one.boxes[k]).max(axis=1, initial=0.0) <= allowed.box
    return bool((near & (np.abs(other.scores - one.scores[k]) <= allowed.score)).any())


def stranger(path: Path) -> Path:
    """A valid ONNX file that is no serving graph."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["images"], ["faces"])], "stranger",
        [value("images", TensorProto.UINT8, ["n", "h", "w", 3])],
        [value("faces", TensorProto.UINT8, ["n", "h", "w", 3])],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path
