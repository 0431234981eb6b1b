"""The stem of a quantised graph: pixels are eight-bit numbers already, and its convolution takes them as they are.

A 7x7 convolution of stride 2 over three channels is, pixel for pixel, a 4x4 one of stride 1 over the twelve channels of
2x2 blocks. ONNX Runtime gathers a convolution's input by one copy a tap and place, of as many bytes as there are
channels: a third of the copies, each of twelve bytes. Scale and offset of the normalisation go into weights and
biases, so that nothing is left to be computed, or rounded, before it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

PIXELS = "stem/pixels"
"""The tensor of pixels less an offset, in blocks; scale 1 and the offset as zero point quantise it exactly."""

_BLOCKS, _WEIGHT, _BIAS = "stem/blocks", "stem/weight", "stem/bias"


def take_pixels(model: onnx.ModelProto) -> int | None:
    """Rewrite `images -> Transpose and Cast -> Sub -> Div -> Conv` in place, in float32.

    Returns the offset, 0 to 255: the pixel value that padding has, the mean of the channels' means, which are each
    within a few values of it; only what padding touches differs from the network, by that little. None, and nothing
    changed, where the graph does not begin so or the convolution is no 7x7 one of stride 2 and padding 3. The
    rewritten graph takes pictures of even sides.
    """
    found = _match(model.graph)
    if found is None:
        return None
    conv, mean, std, weight, bias = found
    offset = round(float(mean.mean()))
    scaled = weight / std[None, :, None, None]
    shifted = bias + (scaled.sum(axis=(2, 3)) * (offset - mean)).sum(axis=1)
    _replace(model.graph, conv, offset, blocked(scaled), shifted)
    onnx.checker.check_model(model)
    return offset


def overrides(offset: int) -> dict[str, list[dict[str, NDArray[Any]]]]:
    """ONNX Runtime's `TensorQuantOverrides`: how the pixels are quantised, whatever calibration sees."""
    return {PIXELS: [{"scale": np.array(1.0, np.float32), "zero_point": np.array(offset, np.uint8)}]}


def drop_rounding(model: onnx.ModelProto) -> None:
    """Of a quantised graph: dequantise the blocks themselves, not what Cast, Sub and QuantizeLinear make of them, which
    are the same numbers. Raises ValueError where they are quantised otherwise."""
    graph = model.graph
    quantise = next(node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == PIXELS)
    scale, zero = (_value(graph, name) for name in quantise.input[1:])
    offset = _value(graph, "stem/offset")
    if scale is None or zero is None or offset is None or float(scale) != 1.0 or float(zero) != float(offset):
        raise ValueError(f"{PIXELS} is quantised with scale {scale} and zero point {zero}, expected 1 and {offset}")
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] == quantise.output[0]:
            node.input[0] = _BLOCKS
    _prune(graph, list(graph.node))
    onnx.checker.check_model(model)


def blocked(weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights [out, C, 7, 7] of stride 2 and padding 3 -> [out, 4 C, 4, 4] over SpaceToDepth's blocks of 2x2, of stride
    1 and padding 2 above and left, 1 below and right. Channels come as SpaceToDepth has them: row, column, channel."""
    out, channels = weight.shape[:2]
    even = np.zeros((out, channels, 8, 8))
    even[:, :, 1:, 1:] = weight  # from 4 pixels before the place instead of 3, so that taps begin with a block
    parts = [even[:, :, row::2, column::2] for row in range(2) for column in range(2)]
    return np.concatenate(parts, axis=1)


_Found = tuple[onnx.NodeProto, NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def _match(graph: onnx.GraphProto) -> _Found | None:
    """(convolution, mean [C], deviation [C], weight, bias) of the stem."""
    producers = {output: node for node in graph.node for output in node.output}
    for conv in graph.node:
        if conv.op_type != "Conv" or len(conv.input) != 3:
            continue
        chain, name = [], conv.input[0]
        for kinds in (("Div",), ("Sub",), ("Cast", "Transpose"), ("Cast", "Transpose")):
            node = producers.get(name)
            if node is None or node.op_type not in kinds:
                break
            chain.append(node)
            name = node.input[0]
        weight, bias = _value(graph, conv.input[1]), _value(graph, conv.input[2])
        if len(chain) < 4 or name != graph.input[0].name or weight is None or bias is None:
            continue
        std, mean = _value(graph, chain[0].input[1]), _value(graph, chain[1].input[1])
        shape = {one.name: list(helper.get_attribute_value(one)) for one in conv.attribute if one.ints}
        usual = (shape.get("strides"), shape.get("pads")) == ([2, 2], [3, 3, 3, 3]) and weight.shape[2:] == (7, 7)
        if usual and mean is not None and std is not None and mean.size == std.size == weight.shape[1]:
            wide = [array.astype(np.float64) for array in (mean.ravel(), std.ravel(), weight, bias)]
            return conv, wide[0], wide[1], wide[2], wide[3]
    return None


def _replace(
    graph: onnx.GraphProto, conv: onnx.NodeProto, offset: int, weight: NDArray[np.float64], bias: NDArray[np.float64]
) -> None:  # fmt: skip
    for name, array in ((_WEIGHT, weight), (_BIAS, bias), ("stem/offset", np.array(offset))):
        graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), name))
    new = [
        helper.make_node("Transpose", [graph.input[0].name], ["stem/planes"], "stem/planes", perm=[0, 3, 1, 2]),
        helper.make_node("SpaceToDepth", ["stem/planes"], [_BLOCKS], "stem/blocks", blocksize=2),
        helper.make_node("Cast", [_BLOCKS], ["stem/float"], "stem/cast", to=TensorProto.FLOAT),
        helper.make_node("Sub", ["stem/float", "stem/offset"], [PIXELS], "stem/sub"),
        helper.make_node(
            "Conv", [PIXELS, _WEIGHT, _BIAS], list(conv.output), conv.name,
            kernel_shape=[4, 4], pads=[2, 2, 1, 1], strides=[1, 1],
        ),
    ]  # fmt: skip
    nodes = [*new, *(node for node in graph.node if node is not conv)]
    _prune(graph, nodes)


def _prune(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Leave those of `nodes`, which are in order, that the outputs need, and the constants that these need."""
    wanted = {output.name for output in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    constants = [tensor for tensor in graph.initializer if tensor.name in wanted]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(kept[::-1])
    graph.initializer.extend(constants)


def _value(graph: onnx.GraphProto, name: str) -> NDArray[Any] | None:
    """The constant of that name, an initialiser or a node's; None where it is computed."""
    for tensor in graph.initializer:
        if tensor.name == name:
            return numpy_helper.to_array(tensor)
    for node in graph.node:
        if node.op_type == "Constant" and node.output[0] == name:
            return numpy_helper.to_array(node.attribute[0].t)
    return None
