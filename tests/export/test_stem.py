"""The stem over blocks of pixels: the same numbers as the network's own, away from the padding exactly."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.stem import PIXELS, blocked, drop_rounding, overrides, take_pixels

IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


def network(mean: tuple[float, ...], std: tuple[float, ...], stride: int = 2) -> onnx.ModelProto:
    """images -> normalised -> a 7x7 convolution of 5 filters, as the exporter writes it."""
    rng = np.random.default_rng(3)
    arrays = {
        "mean": np.array(mean, np.float32).reshape(1, -1, 1, 1),
        "std": np.array(std, np.float32).reshape(1, -1, 1, 1),
        "weight": rng.normal(0, 0.1, (5, len(mean), 7, 7)).astype(np.float32),
        "bias": rng.normal(0, 1, 5).astype(np.float32),
    }
    nodes = [
        helper.make_node("Transpose", ["images"], ["planes"], "transpose", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["planes"], ["float"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Sub", ["float", "mean"], ["centred"], "sub"),
        helper.make_node("Div", ["centred", "std"], ["normal"], "div"),
        helper.make_node(
            "Conv", ["normal", "weight", "bias"], ["out"], "conv",
            kernel_shape=[7, 7], pads=[3] * 4, strides=[stride] * 2,
        ),
    ]  # fmt: skip
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", "h", "w", len(mean)])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 5, "a", "b"])
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "stem", [images], [out], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def run(model: onnx.ModelProto, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {"images": pixels})
    return np.asarray(out, dtype=np.float32)


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(4).integers(0, 256, (2, 32, 64, 3), dtype=np.uint8)


def test_equal_everywhere_where_padding_is_the_mean(pixels: NDArray[np.uint8]) -> None:
    model = network((120.0, 120.0, 120.0), IMAGENET[1])
    before = run(model, pixels)
    assert take_pixels(model) == 120
    assert [node.op_type for node in model.graph.node] == ["Transpose", "SpaceToDepth", "Cast", "Sub", "Conv"]
    np.testing.assert_allclose(run(model, pixels), before, atol=1e-4)


def test_only_what_padding_touches_differs_from_the_network(pixels: NDArray[np.uint8]) -> None:
    model = network(*IMAGENET)
    before = run(model, pixels)
    assert take_pixels(model) is not None
    after = run(model, pixels)
    assert after.shape == before.shape == (2, 5, 16, 32)
    np.testing.assert_allclose(after[:, :, 2:-1, 2:-1], before[:, :, 2:-1, 2:-1], atol=1e-4)
    assert 1e-3 < np.abs(after - before).max() < 0.25 * before.std()


def test_another_beginning_is_left_alone() -> None:
    model = network(*IMAGENET, stride=1)
    before = model.SerializeToString()
    assert take_pixels(model) is None
    assert model.SerializeToString() == before


def test_blocks_hold_every_weight_once() -> None:
    weight = np.arange(2 * 3 * 49, dtype=np.float64).reshape(2, 3, 7, 7) + 1
    blocks = blocked(weight)
    assert blocks.shape == (2, 12, 4, 4)
    assert (blocks == 0).sum() == 2 * 3 * (64 - 49)
    assert sorted(blocks[blocks > 0]) == sorted(weight.ravel())


def test_pixels_that_are_quantised_otherwise_are_refused() -> None:
    model = network(*IMAGENET)
    offset = take_pixels(model)
    assert offset is not None
    ((wanted,),) = overrides(offset).values()
    assert (float(wanted["scale"]), int(wanted["zero_point"])) == (1.0, 114)
    graph = model.graph
    graph.initializer.extend(
        [numpy_helper.from_array(np.array(0.5, np.float32), "s"), numpy_helper.from_array(np.array(114, np.uint8), "z")]
    )
    graph.node[4].input[0] = "again"
    graph.node.insert(4, helper.make_node("QuantizeLinear", [PIXELS, "s", "z"], ["eight"], "q"))
    graph.node.insert(5, helper.make_node("DequantizeLinear", ["eight", "s", "z"], ["again"], "dq"))
    with pytest.raises(ValueError, match=r"scale 0\.5 and zero point 114, expected 1 and 114"):
        drop_rounding(model)
    next(tensor for tensor in graph.initializer if tensor.name == "s").CopyFrom(
        numpy_helper.from_array(np.array(1.0, np.float32), "s")
    )
    pixels = np.random.default_rng(5).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    before = run(model, pixels)
    drop_rounding(model)
    assert [node.op_type for node in graph.node] == ["Transpose", "SpaceToDepth", "DequantizeLinear", "Conv"]
    assert {tensor.name for tensor in graph.initializer} == {"s", "z", "stem/weight", "stem/bias"}
    np.testing.assert_array_equal(run(model, pixels), before)
