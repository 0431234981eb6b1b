"""The half of the fake that loads and runs: `Runtime`, `ICudaEngine`, `IExecutionContext`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.engines.tensorrt.fake import FakeTensorRT

Shape = tuple[int, ...]
BEHAVIOUR: dict[str, Callable[..., Any]] = {}
"""`Class.method` -> function(fake, self, ...), for the recorder; a class's own name is its constructor."""


def does(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: the function is what the fake does when `name` is called."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        BEHAVIOUR[name] = function
        return function

    return register


@dataclass
class Execution:
    """One call of `execute_async_v3`. addresses: as set; shapes: of this run, all known; stream: its handle."""

    profile: int
    shapes: dict[str, Shape]
    addresses: dict[str, int]
    stream: int


def start(fake: FakeTensorRT, logger: Any) -> None:
    """What a constructor does first."""
    if not fake.has_device:
        raise TypeError("pybind11::init(): factory function returned nullptr")
    if fake.husks:
        fake.log(logger, "CUDA initialization failure with error: 35")


@does("Runtime")
def runtime(fake: FakeTensorRT, runtime: Any, logger: Any) -> None:
    start(fake, logger)
    runtime.fake_logger, runtime.fake_engine_host_code_allowed = logger, False


@does("Runtime.deserialize_cuda_engine")
def runtime_deserialize_cuda_engine(fake: FakeTensorRT, runtime: Any, serialized_engine: Any) -> Any:
    assert not fake.husks, "the true library ends the process here"
    try:
        content = json.loads(bytes(serialized_engine))
    except ValueError:
        return fake.log(runtime.fake_logger, "Serialization assertion stdVersionRead failed: magic tag does not match")
    here, built = _numbers(fake.module.__version__), _numbers(content["version"])
    refused = None
    if not content["version_compatible"]:
        if fake.name.startswith("lean"):
            refused = "Cannot deserialize an engine that is not version compatible with the lean runtime"
        elif built != here:
            refused = f"The engine plan file is not compatible, expecting {fake.module.__version__}, please rebuild"
    elif built > here:
        refused = "The engine plan file is of a newer version"
    elif not runtime.fake_engine_host_code_allowed:
        refused = "The engine holds host code, which engine_host_code_allowed does not allow"
    if refused:
        return fake.log(runtime.fake_logger, refused)
    return fake.new("ICudaEngine", content=content, name="", device_memory_size_v2=1 << 20)


@does("ICudaEngine.num_io_tensors")
def icudaengine_num_io_tensors(fake: FakeTensorRT, engine: Any) -> int:
    return len(engine.fake_content["tensors"])


@does("ICudaEngine.num_optimization_profiles")
def icudaengine_num_optimization_profiles(fake: FakeTensorRT, engine: Any) -> int:
    return len(engine.fake_content["profiles"])


@does("ICudaEngine.get_tensor_name")
def icudaengine_get_tensor_name(fake: FakeTensorRT, engine: Any, index: int) -> str:
    return str(list(engine.fake_content["tensors"])[index])


@does("ICudaEngine.get_tensor_mode")
def icudaengine_get_tensor_mode(fake: FakeTensorRT, engine: Any, name: str) -> Any:
    found = engine.fake_content["tensors"].get(name)
    return fake.module.TensorIOMode[found[0] if found else "NONE"]


@does("ICudaEngine.get_tensor_dtype")
def icudaengine_get_tensor_dtype(fake: FakeTensorRT, engine: Any, name: str) -> Any:
    return fake.module.DataType[engine.fake_content["tensors"][name][1]]


@does("ICudaEngine.get_tensor_location")
def icudaengine_get_tensor_location(fake: FakeTensorRT, engine: Any, name: str) -> Any:
    return fake.module.TensorLocation.DEVICE


@does("ICudaEngine.get_tensor_format")
def icudaengine_get_tensor_format(fake: FakeTensorRT, engine: Any, name: str, profile_index: int = 0) -> Any:
    return fake.module.TensorFormat.LINEAR


@does("ICudaEngine.get_tensor_shape")
def icudaengine_get_tensor_shape(fake: FakeTensorRT, engine: Any, name: str) -> Shape:
    return tuple(engine.fake_content["tensors"][name][2])


@does("ICudaEngine.get_tensor_profile_shape")
def icudaengine_get_tensor_profile_shape(fake: FakeTensorRT, engine: Any, name: str, profile_index: int) -> Any:
    return [tuple(shape) for shape in engine.fake_content["profiles"][profile_index][name]]


@does("ICudaEngine.create_execution_context")
def icudaengine_create_execution_context(fake: FakeTensorRT, engine: Any, **_: Any) -> Any:
    if fake.context_fails:
        return None
    return fake.new("IExecutionContext", engine=engine, profile=0, shapes={}, addresses={})


@does("IExecutionContext.active_optimization_profile")
def iexecutioncontext_active_optimization_profile(fake: FakeTensorRT, context: Any) -> int:
    return int(context.fake_profile)


@does("IExecutionContext.set_optimization_profile_async")
def iexecutioncontext_set_optimization_profile_async(
    fake: FakeTensorRT, context: Any, profile_index: int, stream_handle: int
) -> bool:
    if not 0 <= profile_index < len(context.fake_engine.fake_content["profiles"]):
        return False
    if profile_index != context.fake_profile:
        context.fake_profile, context.fake_shapes = profile_index, {}
    return True


@does("IExecutionContext.set_input_shape")
def iexecutioncontext_set_input_shape(fake: FakeTensorRT, context: Any, name: str, shape: Any) -> bool:
    low, _, high = context.fake_engine.fake_content["profiles"][context.fake_profile][name]
    fits = len(shape) == len(low) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
    if fits:
        context.fake_shapes[name] = tuple(shape)
    return fits


@does("IExecutionContext.infer_shapes")
def iexecutioncontext_infer_shapes(fake: FakeTensorRT, context: Any) -> list[str]:
    tensors = context.fake_engine.fake_content["tensors"]
    return [name for name, (mode, _, _) in tensors.items() if mode == "INPUT" and name not in context.fake_shapes]


@does("IExecutionContext.get_tensor_shape")
def iexecutioncontext_get_tensor_shape(fake: FakeTensorRT, context: Any, name: str) -> Shape:
    known = context.fake_shapes.get("images")
    shape = context.fake_shapes.get(name) or tuple(context.fake_engine.fake_content["tensors"][name][2])
    return (known[0], *shape[1:]) if known and shape[0] == -1 else shape


@does("IExecutionContext.set_tensor_address")
def iexecutioncontext_set_tensor_address(fake: FakeTensorRT, context: Any, name: str, memory: int) -> bool:
    if name not in context.fake_engine.fake_content["tensors"]:
        return False
    context.fake_addresses[name] = memory
    return True


@does("IExecutionContext.get_tensor_address")
def iexecutioncontext_get_tensor_address(fake: FakeTensorRT, context: Any, name: str) -> int:
    return int(context.fake_addresses.get(name, 0))


@does("IExecutionContext.execute_async_v3")
def iexecutioncontext_execute_async_v3(fake: FakeTensorRT, context: Any, stream_handle: int) -> bool:
    names = context.fake_engine.fake_content["tensors"]
    shapes = {name: iexecutioncontext_get_tensor_shape(fake, context, name) for name in names}
    if fake.execute_fails or any(-1 in shape for shape in shapes.values()):
        return False
    if any(not context.fake_addresses.get(name) for name in names):
        return False
    run = Execution(context.fake_profile, shapes, dict(context.fake_addresses), stream_handle)
    fake.executions.append(run)
    fake.execute(run)
    return True


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
