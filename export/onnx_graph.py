"""Write ONNX: trace the network, attach NMS, keep the weights in half precision."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from export.graph import CandidateGraph, PlainGraph
from service.repository.manifest import Thresholds
from training.models.detector import Detector

OPSET = 18
_HALF_FROM = 1024  # initialisers of at least so many numbers are stored as float16: convolutions, not norms or biases


def export_onnx(detector: Detector, thresholds: Thresholds, nms: str, half: bool = True) -> onnx.ModelProto:
    """The serving graph of `detector` (contract: `service.repository.manifest.ModelFile`).

    nms: `onnx` attaches NonMaxSuppression, the faster form on CPUs; `plain` keeps to fixed-shape operations.
    half: store large initialisers as float16 behind a Cast, which runtimes fold at load: half the file, full speed.
    """
    if nms == "plain":
        names = ["num_detections", "boxes", "scores"]
        model = _trace(PlainGraph(detector.eval(), thresholds), names)
    elif nms == "onnx":
        model = _trace(CandidateGraph(detector.eval(), thresholds), ["candidate_boxes", "candidate_scores"])
        attach_nms(model, thresholds)
    else:
        raise ValueError(f"nms must be 'plain' or 'onnx', got {nms!r}")
    if half:
        store_half(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def _trace(graph: torch.nn.Module, outputs: list[str]) -> onnx.ModelProto:
    graph.eval()  # as a whole, since the exporter restores the outermost module's mode on every part
    example = torch.zeros(2, 256, 320, 3, dtype=torch.uint8)
    dynamic = {"images": {0: "batch", 1: "height", 2: "width"}}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "graph.onnx"
        torch.onnx.export(
            graph, (example,), path, input_names=["images"], output_names=outputs,
            dynamic_axes=dynamic, opset_version=OPSET, dynamo=False,
        )  # fmt: skip
        return onnx.load(path)


def attach_nms(model: onnx.ModelProto, thresholds: Thresholds) -> None:
    """Candidates -> survivors, by ONNX's NonMaxSuppression, in place. The mask of survivors keeps the candidates'
    order, whatever order the operator emits."""
    graph, most = model.graph, thresholds.max_detections

    def constant(name: str, value: np.ndarray) -> str:
        graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def node(kind: str, inputs: list[str], outputs: list[str], **attributes: int) -> None:
        graph.node.append(helper.make_node(kind, inputs, outputs, f"nms/{outputs[0]}", None, None, None, **attributes))

    axis1, axis2 = constant("nms/axis1", np.array([1])), constant("nms/axis2", np.array([2]))
    limit = constant("nms/limit", np.array([most]))
    iou = constant("nms/iou", np.array([thresholds.nms_iou], np.float32))
    score = constant("nms/score", np.array([thresholds.score], np.float32))
    zero = constant("nms/zero", np.array(0.0, np.float32))
    node("Unsqueeze", ["candidate_scores", axis1], ["nms/class_scores"])
    node("NonMaxSuppression", ["candidate_boxes", "nms/class_scores", limit, iou, score], ["nms/selected"])
    columns = constant("nms/columns", np.array([0, 2]))
    node("Gather", ["nms/selected", columns], ["nms/where"], axis=1)
    node("Mul", ["candidate_scores", zero], ["nms/none"])
    node("GatherND", ["candidate_scores", "nms/where"], ["nms/values"])
    node("ScatterND", ["nms/none", "nms/where", "nms/values"], ["nms/masked"])
    node("TopK", ["nms/masked", limit], ["scores", "nms/index"], axis=1, largest=1, sorted=1)
    node("Greater", ["scores", zero], ["nms/found"])
    node("Cast", ["nms/found"], ["nms/found_int"], to=TensorProto.INT32)
    node("ReduceSum", ["nms/found_int", axis1], ["num_detections"], keepdims=0)
    node("Unsqueeze", ["nms/index", axis2], ["nms/index3"])
    four = constant("nms/four", np.array([1, 1, 4]))
    node("Tile", ["nms/index3", four], ["nms/index4"])
    node("GatherElements", ["candidate_boxes", "nms/index4"], ["nms/chosen"], axis=1)
    node("Cast", ["nms/found"], ["nms/found_float"], to=TensorProto.FLOAT)
    node("Unsqueeze", ["nms/found_float", axis2], ["nms/found3"])
    node("Mul", ["nms/chosen", "nms/found3"], ["boxes"])
    del graph.output[:]
    graph.output.extend(
        [
            helper.make_tensor_value_info("num_detections", TensorProto.INT32, ["batch"]),
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["batch", most, 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", most]),
        ]
    )


def store_half(model: onnx.ModelProto) -> None:
    """Store large float32 initialisers as float16 behind a Cast, in place. Raises ValueError where one overflows."""
    graph, casts = model.graph, []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < _HALF_FROM:
            continue
        if np.abs(values).max() > np.finfo(np.float16).max:
            raise ValueError(f"initialiser {tensor.name} holds values beyond float16")
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}/half"))
        casts.append(helper.make_node("Cast", [f"{name}/half"], [name], name=f"{name}/cast", to=TensorProto.FLOAT))
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts, *nodes])
