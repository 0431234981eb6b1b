"""INT8: static quantisation by QDQ nodes, calibrated on training pictures, for CPUs or for GPUs, and the rule for
shipping it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from tqdm import tqdm

from export.stem import drop_rounding, overrides, take_pixels
from service.letterbox import fitting_size, letterbox
from service.repository.manifest import InputSize

MAX_AP50_DROP = 0.01
"""INT8 ships only if AP.50 falls by less than this at every long side, and it is faster at every one."""


class _Pictures(CalibrationDataReader):  # type: ignore[misc]
    """Letterboxed pictures, one batch of one each."""

    def __init__(self, pictures: Iterator[NDArray[np.uint8]], count: int, sizes: tuple[InputSize, ...]) -> None:
        self._pictures = iter(tqdm(pictures, total=count, desc="calibrating", unit="photo"))
        self._sizes = sizes

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        pixels = next(self._pictures, None)
        if pixels is None:
            return None
        height, width = pixels.shape[:2]
        size = fitting_size(width, height, self._sizes)
        assert size is not None, "a square size holds every picture"
        return {"images": letterbox(pixels, size, width, height).canvas[None]}


# TensorRT's explicit quantisation knows int8 with zero points of 0, wants QDQ pairs before a convolution rather than
# behind it, where they would stand between it and its ReLU, and has no INT32 to dequantise biases from.
_FOR_GPUS = {"ActivationSymmetric": True, "QuantizeBias": False, "OpTypesToExcludeOutputQuantization": ["Conv"]}


def quantize(
    source: Path, pictures: Iterator[NDArray[np.uint8]], count: int, long_side: int, gpu: bool = False
) -> onnx.ModelProto:
    """Quantise the convolutions of a serving graph; decoding and NMS stay in float32, and so do the two predictors.

    The predictors are the last convolutions before scores and boxes, where eight bits cost most accuracy.
    pictures: `count` uint8 [h, w, 3] arrays, each letterboxed to `long_side` by `long_side`. gpu: in the form that
    TensorRT takes, from a graph with plain NMS; what lies between convolutions then keeps float32.

    Weights have seven bits for CPUs: those without VNNI add two products of eight bits in sixteen, which overflows. The
    first convolution takes the pixels as they are there (`export.stem`).
    """
    sizes = (InputSize(height=long_side, width=long_side),)
    with tempfile.TemporaryDirectory() as folder:
        prepared, out = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        model = onnx.load(prepared)
        offset = None if gpu else take_pixels(model)
        if offset is not None:
            onnx.save(model, prepared)
        quantize_static(
            str(prepared), str(out), _Pictures(pictures, count, sizes), quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"] if gpu else ["Conv", "Add", "Relu", "MaxPool"], per_channel=True,
            activation_type=QuantType.QInt8 if gpu else QuantType.QUInt8,
            weight_type=QuantType.QInt8, reduce_range=not gpu, calibrate_method=CalibrationMethod.MinMax,
            nodes_to_exclude=_tail(model.graph),
            extra_options={
                "CalibMovingAverage": True, "CalibMovingAverageConstant": 0.05, **(_FOR_GPUS if gpu else {}),
                **({} if offset is None else {"TensorQuantOverrides": overrides(offset)}),
            },
        )  # fmt: skip
        quantised = onnx.load(out)
        if offset is not None:
            drop_rounding(quantised)
        return quantised


def _tail(graph: Any) -> list[str]:
    """Names of the predictors (convolutions with 1 or 4 outputs) and of every node that no convolution follows."""
    producers = {output: node for node in graph.node for output in node.output}
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    before: set[str] = set()
    stack = [node for node in graph.node if node.op_type == "Conv"]
    predictors = [node.name for node in stack if weights.get(node.input[1], (0,))[0] in (1, 4)]
    while stack:
        node = stack.pop()
        if node.name not in before:
            before.add(node.name)
            stack += [producers[name] for name in node.input if name in producers]
    return predictors + [node.name for node in graph.node if node.name not in before]


def worth_shipping(
    ap50: dict[int, float], ap50_int8: dict[int, float], ms: dict[int, float], ms_int8: dict[int, float]
) -> bool:
    """The rule. All by long side: AP.50 of the full and the quantised variant, and milliseconds of each."""
    return accurate(ap50, ap50_int8) and all(ms_int8[side] < ms[side] for side in ms)


def accurate(ap50: dict[int, float], ap50_int8: dict[int, float]) -> bool:
    """The rule for what is made for another machine than this one, where time cannot be compared."""
    return all(ap50[side] - ap50_int8[side] < MAX_AP50_DROP for side in ap50)
