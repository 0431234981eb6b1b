"""A serving graph up to its candidates: what NMS by TensorRT's plugin is attached to."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import TensorProto, helper

from service.engines.tensorrt.efficient_nms import CANDIDATE_BOXES, CANDIDATE_SCORES

_SCOPE = "/candidates/"  # of `export.graph.PlainGraph`, in the names of the nodes that were traced from it


def candidate_graph(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a serving graph without its NMS, of either form.

    input `images`: as before; output `candidate_boxes`: float32 [N, K, 4], corners, clipped to the input;
    `candidate_scores`: float32 [N, K], descending. Raises ValueError where the graph is not one of `export.onnx_graph`.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    boxes, scores = _named(graph) or _crossing(copy)
    nodes = list(graph.node)
    for old, new in ((boxes, CANDIDATE_BOXES), (scores, CANDIDATE_SCORES)):
        if old != new:
            nodes.append(helper.make_node("Cast", [old], [new], name=new, to=TensorProto.FLOAT))
    kept = _needed(nodes, {CANDIDATE_BOXES, CANDIDATE_SCORES})
    used = {name for node in kept for name in node.input}
    initializers = [tensor for tensor in graph.initializer if tensor.name in used]
    outputs = [
        helper.make_tensor_value_info(CANDIDATE_BOXES, TensorProto.FLOAT, ["batch", None, 4]),
        helper.make_tensor_value_info(CANDIDATE_SCORES, TensorProto.FLOAT, ["batch", None]),
    ]
    cut = helper.make_graph(kept, graph.name, list(graph.input), outputs, initializers)
    copy.graph.CopyFrom(cut)
    onnx.checker.check_model(copy, full_check=True)
    return copy


def _named(graph: Any) -> tuple[str, str] | None:
    """The candidates of a graph with ONNX's NMS, which has them by name."""
    made = {name for node in graph.node for name in node.output}
    return (CANDIDATE_BOXES, CANDIDATE_SCORES) if {CANDIDATE_BOXES, CANDIDATE_SCORES} <= made else None


def _crossing(model: onnx.ModelProto) -> tuple[str, str]:
    """The candidates of a graph with plain NMS: the two tensors, no constants, that leave their part of the graph."""
    graph: Any = model.graph
    inside = {
        name for node in graph.node for name in node.output if _SCOPE in node.name and node.op_type != "Constant"
    }  # fmt: skip
    crossing = {name for node in graph.node if _SCOPE not in node.name for name in node.input} & inside
    inferred: Any = onnx.shape_inference.infer_shapes(model)
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in inferred.graph.value_info}
    boxes = [name for name in crossing if ranks.get(name) == 3]
    scores = [name for name in crossing if ranks.get(name) == 2]
    if len(boxes) != 1 or len(scores) != 1:
        raise ValueError(
            f"the graph's candidates cannot be told: {', '.join(sorted(crossing)) or 'nothing'} leaves its network; "
            "export it again with `python -m export onnx`"
        )
    return boxes[0], scores[0]


def _needed(nodes: list[Any], wanted: set[str]) -> list[Any]:
    """Nodes, in their order, that the tensors `wanted` depend on."""
    producers = {name: node for node in nodes for name in node.output}
    names, stack = set(), [producers[name] for name in wanted]
    while stack:
        node = stack.pop()
        if node.output[0] not in names:
            names.update(node.output)
            stack += [producers[name] for name in node.input if name in producers]
    return [node for node in nodes if node.output[0] in names]
