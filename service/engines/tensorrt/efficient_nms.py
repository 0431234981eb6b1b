"""NMS by TensorRT's plugin EfficientNMS_TRT, instead of the plain operations of the exported graph.

Deprecated since 10.12 and no part of the lean runtime; hence an option, behind a look into the registry. It takes 5000
candidates at most (ours are 2000), and is slow where the score threshold lies below about 0.01 (ours is 0.05), since
then it has to sort nearly everything. Equal scores it may order otherwise than greedy NMS does.
Source of inputs, outputs and fields: plugin/efficientNMSPlugin/README.md of TensorRT's repository.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.engines.base import EngineError
from service.engines.tensorrt import api
from service.engines.tensorrt.contract import BOXES, COUNTS, SCORES
from service.engines.tensorrt.types import (
    ILayer,
    INetworkDefinition,
    IPluginCreator,
    IShuffleLayer,
    ITensor,
    TensorRT,
)
from service.repository.manifest import Thresholds

CANDIDATE_BOXES, CANDIDATE_SCORES = "candidate_boxes", "candidate_scores"
MOST_CANDIDATES = 5000


def attach(trt: TensorRT, network: INetworkDefinition, thresholds: Thresholds, model: Path) -> None:
    """Replace the outputs of a graph that ends in candidates (boxes [N, K, 4], corners; scores [N, K]) by the
    contract's. Raises `EngineError` where the plugin is not registered or does not take them."""
    creator = api.efficient_nms(trt)
    if creator is None:
        raise EngineError(
            f"{model}: TensorRT {trt.__version__} has no plugin {api.EFFICIENT_NMS} here; build with plain NMS, which "
            "needs none: --nms plain"
        )
    if thresholds.pre_nms_top_k > MOST_CANDIDATES:
        raise EngineError(
            f"{model}: {api.EFFICIENT_NMS} takes {MOST_CANDIDATES} candidates, and it has {thresholds.pre_nms_top_k}"
        )
    outputs = {network.get_output(index).name: network.get_output(index) for index in range(network.num_outputs)}
    if set(outputs) != {CANDIDATE_BOXES, CANDIDATE_SCORES}:
        raise EngineError(f"{model} does not end in candidates: its outputs are {', '.join(sorted(outputs))}")
    boxes: ITensor = outputs[CANDIDATE_BOXES]
    scores: ITensor = outputs[CANDIDATE_SCORES]
    for tensor in (boxes, scores):
        network.unmark_output(tensor)
    # The plugin wants a score a class, and there is one: [N, K] -> [N, K, 1].
    by_class: IShuffleLayer = network.add_shuffle(scores)
    by_class.reshape_dims = (0, 0, 1)
    layer = _plugin_layer(trt, network, creator, [boxes, by_class.get_output(0)], thresholds, model)
    count: IShuffleLayer = network.add_shuffle(layer.get_output(0))
    count.reshape_dims = (-1,)  # [N, 1] -> [N]
    for name, tensor in ((COUNTS, count.get_output(0)), (BOXES, layer.get_output(1)), (SCORES, layer.get_output(2))):
        _mark(network, tensor, name)


def _mark(network: INetworkDefinition, tensor: ITensor, name: str) -> None:
    tensor.name = name
    network.mark_output(tensor)


def settings(thresholds: Thresholds) -> dict[str, NDArray[np.generic]]:
    """The plugin's fields: boxes as corners, scores as they are, one class and no background."""
    numbers = {"score_threshold": thresholds.score, "iou_threshold": thresholds.nms_iou}
    whole = {
        "max_output_boxes": thresholds.max_detections, "background_class": -1, "score_activation": 0, "box_coding": 0,
        "class_agnostic": 1,
    }  # fmt: skip
    return {
        **{name: np.array([value], np.float32) for name, value in numbers.items()},
        **{name: np.array([value], np.int32) for name, value in whole.items()},
    }


def _plugin_layer(
    trt: TensorRT,
    network: INetworkDefinition,
    creator: IPluginCreator,
    inputs: list[ITensor],
    thresholds: Thresholds,
    model: Path,
) -> ILayer:
    """The plugin's layer, by whichever interface for plugins this version has it."""
    kinds = {"float32": trt.PluginFieldType.FLOAT32, "int32": trt.PluginFieldType.INT32}
    # The collection only points to the fields, and those to their values: both must stay until the plugin is made.
    values = settings(thresholds)
    fields = [trt.PluginField(name, value, kinds[value.dtype.name]) for name, value in values.items()]
    collection = trt.PluginFieldCollection(fields)
    layer: ILayer = None
    if isinstance(creator, trt.IPluginCreatorV3One):
        plugin = creator.create_plugin("nms", collection, trt.TensorRTPhase.BUILD)
        if plugin is not None:
            layer = network.add_plugin_v3(inputs, [], plugin)
    else:
        plugin = creator.create_plugin("nms", collection)
        if plugin is not None:
            layer = network.add_plugin_v2(inputs, plugin)
    if layer is None:
        raise EngineError(
            f"{model}: TensorRT {trt.__version__} makes no layer of {api.EFFICIENT_NMS}; take --nms plain"
        )
    return layer
