"""Names for objects of TensorRT, which is not there to be imported where types are checked.

Each is `Any` to mypy. The tests read them off annotations, and check every attribute and keyword used on such a value
against TensorRT's true Python API.
"""

from __future__ import annotations

from typing import Any, TypeAlias

TensorRT: TypeAlias = Any
"""The module `tensorrt`, or `tensorrt_lean`."""

Builder: TypeAlias = Any
Dims: TypeAlias = Any
IBuilderConfig: TypeAlias = Any
ICudaEngine: TypeAlias = Any
IExecutionContext: TypeAlias = Any
IHostMemory: TypeAlias = Any
ILayer: TypeAlias = Any
INetworkDefinition: TypeAlias = Any
IOptimizationProfile: TypeAlias = Any
IPluginCreator: TypeAlias = Any
IShuffleLayer: TypeAlias = Any
ITensor: TypeAlias = Any
ITimingCache: TypeAlias = Any
OnnxParser: TypeAlias = Any
ParserError: TypeAlias = Any
Runtime: TypeAlias = Any
