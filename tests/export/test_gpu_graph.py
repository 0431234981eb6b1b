"""The graph for GPUs, as TensorRT would meet it: operators, types, shapes. TensorRT itself is not needed, nor run."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

from export.half import compute_in_half
from export.onnx_graph import export_onnx
from service.repository.manifest import Thresholds
from training.models.detector import Detector

# What TensorRT's ONNX parser takes, of the types that serving graphs have. Source: "Supported ONNX Operators" of
# onnx/onnx-tensorrt, docs/operators.md, for TensorRT 10.15 (opsets 9 to 24).
FLOATS = frozenset({"FLOAT", "FLOAT16"})
NUMBERS = FLOATS | {"INT32", "INT64"}
ALL = NUMBERS | {"BOOL"}
SUPPORTED = {
    "And": frozenset({"BOOL"}), "Cast": ALL | {"UINT8"}, "Constant": ALL,
    **dict.fromkeys(("Clip", "Conv", "Exp", "MatMul", "MaxPool", "Resize", "Sigmoid", "Sqrt"), FLOATS),
    **dict.fromkeys(("Add", "Div", "Greater", "Max", "Min", "Mul"), NUMBERS),
    **dict.fromkeys(("Range", "ReduceSum", "Relu", "Sub", "TopK"), NUMBERS),
    **dict.fromkeys(
        ("Concat", "ConstantOfShape", "Expand", "Flatten", "Gather", "GatherElements", "Identity", "Reshape", "Shape",
         "Slice", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where"),
        ALL,
    ),
}  # fmt: skip
# Inputs that say how large a result is, or where something is cut out, by position.
SHAPE_INPUTS = {
    "ConstantOfShape": (0,), "Expand": (1,), "Range": (0, 1, 2), "Reshape": (1,), "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4), "Tile": (1,), "TopK": (1,), "Trilu": (1,), "Unsqueeze": (1,), "ReduceSum": (1,),
}  # fmt: skip
MOST_OF_TOP_K = 3840
RESIZE_TRANSFORMATIONS = {"half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners"}


@pytest.fixture(scope="module", params=["fp32", "fp16", "fp16-quality"])
def graph(request: pytest.FixtureRequest) -> onnx.ModelProto:
    detector: Detector = request.getfixturevalue("quality_detector" if "quality" in request.param else "detector")
    model = export_onnx(detector, Thresholds(), "plain", half=False)
    return model if request.param == "fp32" else compute_in_half(model)


def types_of(model: onnx.ModelProto) -> dict[str, str]:
    """Element type of every tensor, by name."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    values |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {name: TensorProto.DataType.Name(kind) for name, kind in values.items()}


def test_tensorrt_parses_every_operator_with_the_types_that_it_has_here(graph: onnx.ModelProto) -> None:
    types = types_of(graph)
    for node in graph.graph.node:
        assert node.op_type in SUPPORTED, node.name
        used = {types[name] for name in (*node.input, *node.output) if name}
        allowed = SUPPORTED[node.op_type]
        if node.op_type in ("Resize", "Greater", "TopK"):  # sizes are INT64, comparisons BOOL
            allowed = allowed | {"INT64", "BOOL"}
        elif node.op_type in ("Where", "Clip", "ReduceSum"):
            allowed = allowed | {"BOOL", "INT64"}
        assert used <= allowed, (node.name, node.op_type, used)
    assert [o.version for o in graph.opset_import if not o.domain] == [18]


def test_what_a_strongly_typed_network_computes_on_is_of_one_type(graph: onnx.ModelProto) -> None:
    types = types_of(graph)
    for node in graph.graph.node:
        floats = {types[name] for name in (*node.input, *node.output) if name} & FLOATS
        if node.op_type != "Cast":
            assert len(floats) <= 1, (node.name, node.op_type, floats)
        if node.op_type in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Greater", "MatMul", "Concat", "And", "Range"):
            assert len({types[name] for name in node.input}) == 1, (node.name, node.op_type)


def test_pictures_are_cast_before_all_else(graph: onnx.ModelProto) -> None:
    """TensorRT has uint8 at a network's inputs and outputs only."""
    types = types_of(graph)
    readers = [node.op_type for node in graph.graph.node if "images" in node.input]
    assert readers == ["Cast"]
    assert [name for name, kind in types.items() if kind == "UINT8"] == ["images"]


def test_attributes_stay_within_tensorrts_limits(graph: onnx.ModelProto) -> None:
    constants = {
        node.output[0]: onnx.numpy_helper.to_array(node.attribute[0].t)
        for node in graph.graph.node
        if node.op_type == "Constant"
    }
    constants |= {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    seen = set()
    for node in graph.graph.node:
        named = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "TopK":
            assert constants[node.input[1]] <= MOST_OF_TOP_K
            assert named.get("sorted", 1) == 1
        elif node.op_type == "Resize":
            assert named["mode"] in (b"nearest", b"linear")
            assert named["coordinate_transformation_mode"].decode() in RESIZE_TRANSFORMATIONS
            assert not named.get("antialias", 0)
        elif node.op_type == "MaxPool":
            assert len(node.output) == 1  # no indices
        elif node.op_type in ("Unsqueeze", "ReduceSum"):
            assert node.input[1] in constants  # axes must be known when the engine is built
        elif node.op_type == "Conv":
            assert node.input[1] in constants
        seen.add(node.op_type)
    assert {"TopK", "Resize", "MaxPool", "Conv", "Unsqueeze"} <= seen


def test_no_size_depends_on_what_a_picture_shows(graph: onnx.ModelProto) -> None:
    """Every size comes from constants and sizes alone, so that a run can be captured as a CUDA graph."""
    producers = {output: node for node in graph.graph.node for output in node.output}
    for node in graph.graph.node:
        stack = [node.input[at] for at in SHAPE_INPUTS.get(node.op_type, ()) if at < len(node.input)]
        while stack:
            name = stack.pop()
            assert name != "images", (node.name, node.op_type)
            if name in producers and producers[name].op_type != "Shape":
                stack += list(producers[name].input)


def test_everything_but_the_batch_is_fixed_once_the_input_size_is(graph: onnx.ModelProto) -> None:
    copy = onnx.ModelProto()
    copy.CopyFrom(graph)
    dims = copy.graph.input[0].type.tensor_type.shape.dim
    dims[1].dim_value, dims[2].dim_value = 480, 640
    inferred = SymbolicShapeInference.infer_shapes(copy).graph
    values = {value.name: value.type.tensor_type.shape.dim for value in (*inferred.value_info, *inferred.output)}
    for node in inferred.node:
        for name in filter(None, node.output):
            assert all(d.HasField("dim_value") or d.dim_param == "batch" for d in values[name]), (node.op_type, name)
    limits = Thresholds()
    most = limits.max_detections
    for name, rest in (("num_detections", []), ("boxes", [most, 4]), ("scores", [most])):
        assert values[name][0].dim_param == "batch"
        assert [d.dim_value for d in values[name]][1:] == rest


def test_scores_and_boxes_are_float32_before_anything_is_chosen(graph: onnx.ModelProto) -> None:
    """From TopK, Sigmoid and Exp on, and in all that NMS does, nothing is computed in half precision."""
    types = types_of(graph)
    behind: set[str] = set()
    kinds = set()
    for node in graph.graph.node:
        if node.op_type in ("TopK", "Sigmoid", "Exp", "GatherElements") or behind.intersection(node.input):
            behind.update(node.output)
            kinds.add(node.op_type)
            assert "FLOAT16" not in {types[name] for name in (*node.input, *node.output) if name}, node.name
    assert {"TopK", "Sigmoid", "Exp", "MatMul", "Trilu", "Min", "Max", "Div", "Greater"} <= kinds
