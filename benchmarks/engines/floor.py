"""What a detector's convolutions take at least on a device: arithmetic at its peak rate, bytes at its bandwidth.

A floor, not a forecast: every other operation, launch overhead and the copy of the pictures over the bus are left out.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from service.repository.manifest import Precision
from training.models.detector import Detector

ITEM_BYTES: dict[Precision, int] = {"fp32": 4, "fp16": 2, "int8": 1}
_GEMM_SIDE, _COPY_BYTES, _REPEATS = 1024, 256 * 2**20, 7


class Device(BaseModel):
    """Peak rates. tflops: by precision, dense, 1e12 operations a second; gb_per_s: of its memory, 1e9 bytes a second.
    source: where the figures come from."""

    name: str
    tflops: dict[Precision, float]
    gb_per_s: float
    source: str


class Work(BaseModel):
    """A detector's convolutions on one picture. activations: numbers read and written by them, where each is fused with
    what follows; weights: numbers; input_bytes: of the uint8 picture."""

    operations: float
    activations: float
    weights: float
    input_bytes: float


class Floor(BaseModel):
    """Milliseconds of one batch. arithmetic_ms: None where the device's rate for the precision is not known."""

    arithmetic_ms: float | None
    memory_ms: float

    @property
    def ms(self) -> float:
        return max(self.arithmetic_ms or 0.0, self.memory_ms)


def _card(name: str, fp32: float, fp16: float, int8: float, gb_per_s: float) -> Device:
    rates: dict[Precision, float] = {"fp32": fp32, "fp16": fp16, "int8": int8}
    return Device(name=name, tflops=rates, gb_per_s=gb_per_s, source=f"NVIDIA's data sheet of {name}, from memory")


# Dense rates, without structured sparsity: half of what data sheets print where they print "with sparsity". FP32 is
# that of the CUDA cores: what rounds its factors to TF32 can be faster, as TensorRT may, and as the sessions of ONNX
# Runtime here do not. FP16 and INT8 are those of the tensor cores. By the driver's name; the first that fits.
CARDS: tuple[tuple[str, Device], ...] = (
    (r"H200 NVL", _card("H200 NVL", 60, 835.5, 1670.5, 4800)),
    (r"H200", _card("H200 SXM", 67, 989.5, 1979, 4800)),
    (r"H100 NVL", _card("H100 NVL", 60, 835.5, 1670.5, 3900)),
    (r"H100 PCIe", _card("H100 PCIe", 51, 756.5, 1513, 2000)),
    (r"H100", _card("H100 SXM", 67, 989.5, 1979, 3350)),
    (r"A100.*SXM4.*80GB", _card("A100 80GB SXM", 19.5, 312, 624, 2039)),
    (r"A100 80GB PCIe", _card("A100 80GB PCIe", 19.5, 312, 624, 1935)),
    (r"A100", _card("A100 40GB", 19.5, 312, 624, 1555)),
    (r"L40S", _card("L40S", 91.6, 362, 733, 864)),
    (r"L4\b", _card("L4", 30.3, 121, 242.5, 300)),
    (r"A10\b", _card("A10", 31.2, 125, 250, 600)),
    (r"T4\b", _card("T4", 8.1, 65, 130, 320)),
)


def known_card(name: str) -> Device | None:
    """The card of that name, as the driver gives it (`NVIDIA H100 80GB HBM3`), or None."""
    return next((card for pattern, card in CARDS if re.search(pattern, name)), None)


def overridden(device: Device, tflops: float | None, gb_per_s: float | None) -> Device:
    """The device with figures of the user's own. tflops: for every precision."""
    changes: dict[str, object] = {}
    if tflops is not None:
        changes["tflops"] = {precision: tflops for precision in ITEM_BYTES}
    if gb_per_s is not None:
        changes["gb_per_s"] = gb_per_s
    if changes:
        changes["source"] = f"{device.source}; given: {', '.join(key for key in changes)}"
    return device.model_copy(update=changes)


def measured_cpu(name: str, threads: int) -> Device:
    """This processor, by what ONNX Runtime's own matrix products reach (float32, and uint8 by int8) and by copying.

    threads: 0 takes all. Rates are the best of a few tries: a busy machine makes them lower, and the floor higher than
    it is.
    """
    rates: dict[Precision, float] = {
        "fp32": _gemm_tflops("MatMul", threads),
        "int8": _gemm_tflops("MatMulInteger", threads),
    }
    source = "measured here: matrix products of side 1024 by ONNX Runtime, a copy of 256 MiB by PyTorch"
    return Device(name=name, tflops=rates, gb_per_s=_copy_gb_per_s(threads), source=source)


def _gemm_tflops(kind: str, threads: int) -> float:
    from onnx import TensorProto, helper, numpy_helper

    side = _GEMM_SIDE
    noise = np.random.default_rng(0)
    if kind == "MatMul":
        left, right = (noise.standard_normal((side, side)).astype(np.float32) for _ in range(2))
        types = (TensorProto.FLOAT, TensorProto.FLOAT)
    else:
        left = noise.integers(0, 256, (side, side)).astype(np.uint8)
        right = noise.integers(-127, 128, (side, side)).astype(np.int8)
        types = (TensorProto.UINT8, TensorProto.INT32)
    graph = helper.make_graph(
        [helper.make_node(kind, ["left", "right"], ["product"])], "product",
        [helper.make_tensor_value_info("left", types[0], [side, side])],
        [helper.make_tensor_value_info("product", types[1], [side, side])],
        [numpy_helper.from_array(right, "right")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return 2 * side**3 / _best_seconds(lambda: session.run(None, {"left": left})) / 1e12


def _copy_gb_per_s(threads: int) -> float:
    before = torch.get_num_threads()
    source = torch.ones(_COPY_BYTES, dtype=torch.uint8)
    target = torch.empty_like(source)
    try:
        torch.set_num_threads(threads or before)
        return 2 * _COPY_BYTES / _best_seconds(lambda: target.copy_(source)) / 1e9
    finally:
        torch.set_num_threads(before)


def _best_seconds(work: Callable[[], object]) -> float:
    samples = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        work()
        samples.append(time.perf_counter() - began)
    return min(samples)


def work_of(detector: Detector, height: int, width: int) -> Work:
    """Count by running the network once on a blank picture. A head that several levels share is counted for each."""
    operations = activations = 0.0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal operations, activations
        assert isinstance(module, nn.Conv2d)
        each = module.weight[0].numel()  # products for one number of the output
        operations += 2.0 * output.numel() * each
        activations += inputs[0].numel() + output.numel()

    convolutions = [module for module in detector.modules() if isinstance(module, nn.Conv2d)]
    hooks: list[Any] = [module.register_forward_hook(count) for module in convolutions]
    parameter = next(detector.parameters())
    try:
        with torch.no_grad():
            detector.eval()(torch.zeros(1, 3, height, width, device=parameter.device, dtype=parameter.dtype))
    finally:
        for hook in hooks:
            hook.remove()
    weights = sum(module.weight.numel() for module in convolutions)
    return Work(operations=operations, activations=activations, weights=weights, input_bytes=height * width * 3)


def floor_of(work: Work, device: Device, precision: Precision, batch: int) -> Floor:
    """Of one batch: the weights are read once, everything else for each picture."""
    item = ITEM_BYTES[precision]
    size = work.weights * item + batch * (work.activations * item + work.input_bytes)
    rate = device.tflops.get(precision)
    return Floor(
        arithmetic_ms=None if rate is None else batch * work.operations / rate / 1e9,
        memory_ms=size / device.gb_per_s / 1e6,
    )
