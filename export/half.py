"""Graphs that compute in float16, for GPUs; boxes, scores and NMS stay in float32."""

from __future__ import annotations

from graphlib import TopologicalSorter
from typing import Any

import onnx
from onnx import TensorProto

HALF_OPERATIONS = frozenset(
    {"Add", "AveragePool", "Concat", "Conv", "GlobalAveragePool", "MaxPool", "Mul", "Relu", "Resize", "Sigmoid"}
)
"""What is computed in half precision where it stands between the first convolutions and the last."""


def compute_in_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a serving graph (all float32) whose network computes in float16, from the first convolution to the
    predictors. Normalisation, anchors, decoding, IoU, scores and NMS keep float32, and so do inputs and outputs.

    The conversion is ONNX Runtime's, which rounds wherever two nodes that keep float32 meet; that is taken back here.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for number, node in enumerate(copy.graph.node):
        node.name = f"{number}/{node.name}"  # unique, since what is left in float32 is told by name
    own = {node.name for node in copy.graph.node}
    network = _network(copy.graph)
    kept = [node.name for node in copy.graph.node if node.name not in network]
    converted: onnx.ModelProto = convert_float_to_float16(copy, keep_io_types=True, node_block_list=kept)
    _drop_round_trips(converted.graph, {node.output[0] for node in converted.graph.node if node.name not in own})
    _sort(converted.graph)
    del converted.graph.value_info[:]  # the converter's types, some of which are not true any more
    onnx.checker.check_model(converted, full_check=True)
    return converted


def _network(graph: Any) -> set[str]:
    """Names of the convolutions and of the `HALF_OPERATIONS` between them."""
    producers = {output: node for node in graph.node for output in node.output}
    before: set[str] = set()
    stack = [node for node in graph.node if node.op_type == "Conv"]
    while stack:
        node = stack.pop()
        if node.name not in before:
            before.add(node.name)
            stack += [producers[name] for name in node.input if name in producers]
    after: set[str] = set()  # convolutions and what follows them; nodes come in topological order
    reached: set[str] = set()
    for node in graph.node:
        if node.op_type == "Conv" or reached.intersection(node.input):
            after.add(node.name)
            reached.update(node.output)
    return {n.name for n in graph.node if n.op_type in HALF_OPERATIONS and n.name in before and n.name in after}


def _drop_round_trips(graph: Any, added: set[str]) -> None:
    """Take out float32 -> float16 -> float32: readers of its end get its beginning, and no rounding. And take out casts
    of which only the shape is asked. added: outputs of the casts that the converter put in."""
    casts = {n.output[0]: (n.input[0], _target(n)) for n in graph.node if n.op_type == "Cast"}
    ends = {}
    for output, (source, target) in casts.items():
        if target == TensorProto.FLOAT and source in casts and casts[source][1] == TensorProto.FLOAT16:
            ends[output] = casts[source][0]
    outputs = {output.name for output in graph.output}
    for node in graph.node:
        for at, name in enumerate(node.input):
            node.input[at] = ends.get(name, name)
            if node.op_type == "Shape" and node.input[at] in added:
                node.input[at] = casts[node.input[at]][0]
        if node.op_type == "Cast" and node.output[0] in ends and node.output[0] in outputs:
            del node.attribute[:]
            node.op_type = "Identity"
            node.input[0] = ends[node.output[0]]
    used = outputs.union(*(node.input for node in graph.node))
    while idle := [node for node in graph.node if not used.intersection(node.output)]:
        for node in idle:
            graph.node.remove(node)
        used = outputs.union(*(node.input for node in graph.node))


def _sort(graph: Any) -> None:
    """Put nodes behind what they need; the converter has its casts at the end."""
    producers = {output: at for at, node in enumerate(graph.node) for output in node.output}
    needs = {
        at: {producers[name] for name in node.input if name in producers} for at, node in enumerate(graph.node)
    }  # fmt: skip
    nodes = [graph.node[at] for at in TopologicalSorter(needs).static_order()]
    ordered = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(ordered)


def _target(cast: Any) -> int:
    return int(next(attribute.i for attribute in cast.attribute if attribute.name == "to"))
