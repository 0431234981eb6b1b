"""What a plan must be to be served: the graph's contract (`service.repository.manifest.ModelFile`), on TensorRT."""

from __future__ import annotations

from service.engines.base import EngineError
from service.engines.tensorrt import api
from service.engines.tensorrt.types import ICudaEngine, TensorRT
from service.repository.manifest import InputSize

INPUT = "images"
COUNTS, BOXES, SCORES = "num_detections", "boxes", "scores"


def check_plan(
    trt: TensorRT, logger: api.Log, plan: bytes, sizes: tuple[InputSize, ...], max_batch: int, most: int, what: str
) -> None:
    """Load a plan that was just built here and compare it with the contract. most: `max_detections`; what: its name in
    messages. Raises `EngineError` with everything that differs."""
    runtime = api.new_runtime(trt, logger)
    # A version-compatible plan carries the code of its lean runtime; this one comes from no further than this process.
    runtime.engine_host_code_allowed = True
    engine: ICudaEngine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(f"the plan of {what} cannot be loaded where it was built: {logger.reasons()}")
    faults = contract_faults(trt, engine, most) or profile_faults(engine, sizes, max_batch)
    if faults:
        raise EngineError(f"the plan of {what} does not keep the contract: {'; '.join(faults)}")


def contract_faults(trt: TensorRT, engine: ICudaEngine, most: int) -> list[str]:
    """How names, directions, types and shapes of an engine's tensors differ from the contract's. most:
    `max_detections`. A dimension that only the run decides is -1 and fits where the contract leaves it open."""
    data, mode = trt.DataType, trt.TensorIOMode
    wanted = {
        INPUT: (mode.INPUT, data.UINT8, (-1, -1, -1, 3)),
        COUNTS: (mode.OUTPUT, data.INT32, (-1,)),
        BOXES: (mode.OUTPUT, data.FLOAT, (-1, most, 4)),
        SCORES: (mode.OUTPUT, data.FLOAT, (-1, most)),
    }
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    if set(names) != set(wanted):
        return [f"its tensors are {', '.join(sorted(names))}, not {', '.join(sorted(wanted))}"]
    faults = []
    for name, (direction, kind, shape) in wanted.items():
        if engine.get_tensor_mode(name) != direction:
            faults.append(f"{name} is not an {'input' if name == INPUT else 'output'}")
        if engine.get_tensor_dtype(name) != kind:
            faults.append(f"{name} is of type {engine.get_tensor_dtype(name)}, not {kind}")
        found = tuple(engine.get_tensor_shape(name))
        if len(found) != len(shape) or any(b not in (-1, a) for a, b in zip(found, shape, strict=True)):
            faults.append(f"{name} is {found}, not {shape}")
    return faults


def profile_faults(engine: ICudaEngine, sizes: tuple[InputSize, ...], max_batch: int) -> list[str]:
    """How an engine's optimisation profiles differ from one for each of `sizes`, in order, of 1 to `max_batch`."""
    if engine.num_optimization_profiles != len(sizes):
        return [f"it has {engine.num_optimization_profiles} profiles for {len(sizes)} input sizes"]
    faults = []
    for index, size in enumerate(sizes):
        low, _, high = (tuple(shape) for shape in engine.get_tensor_profile_shape(INPUT, index))
        if (low, high) != ((1, size.height, size.width, 3), (max_batch, size.height, size.width, 3)):
            faults.append(f"profile {index} takes {low} to {high}, not {size} with 1 to {max_batch} pictures")
    return faults
