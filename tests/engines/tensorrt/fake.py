"""TensorRT for tests: a `recorder` that parses, builds, deserialises and executes as far as the calls around it go.

    fake = FakeTensorRT("11.4")              or "10.16", "lean-10.16", "lean-11.4"
    monkeypatch.setitem(sys.modules, "tensorrt", fake.module)
    plan = fake.plan([(480, 640)], 8)        bytes that its runtime takes
    fake.execute = function(Execution)       what a run does; by default it writes nothing
    fake.named("IExecutionContext.set_tensor_address")

It computes nothing: that an engine finds faces is for a GPU to show. What it refuses, TensorRT refuses as well: shapes
outside the profile, tensors that have no address, a profile that is not there, a plan of another version.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tests.engines.tensorrt.fake_runtime import BEHAVIOUR, Execution, Shape, does, start
from tests.engines.tensorrt.recorder import Call, Recorder
from tests.engines.tensorrt.surface import load_surface

TENSORS: dict[str, tuple[str, str, Shape]] = {
    "images": ("INPUT", "UINT8", (-1, -1, -1, 3)),
    "num_detections": ("OUTPUT", "INT32", (-1,)),
    "boxes": ("OUTPUT", "FLOAT", (-1, 750, 4)),
    "scores": ("OUTPUT", "FLOAT", (-1, 750)),
}
"""The contract of a serving graph: name -> (input or output, type, shape)."""


@dataclass
class FakeTensorRT:
    """name: of a surface. tensors: what a parsed graph has. parse_errors: (node, operator, description).

    builds: false makes the builder return None with `build_error` in its log; `tactic_error` is logged by a build that
    goes well. on_step: called at each step of the build. plugins: names in the registry, with the kind of their
    creator. has_device: false makes constructors raise, as the bindings do where the library makes nothing; husks: they
    log errors and make objects that nobody may touch, as libraries do that find no driver. context_fails,
    execute_fails: None and False from the library, as when memory runs out. timing_mismatch: timing caches are of
    another GPU.
    """

    name: str = "11.4"
    tensors: dict[str, tuple[str, str, Shape]] = field(default_factory=lambda: dict(TENSORS))
    parse_errors: Sequence[tuple[str, str, str]] = ()
    builds: bool = True
    build_error: str = "no tactic fits into the workspace"
    tactic_error: str = ""
    on_step: Callable[[], None] = lambda: None
    plugins: dict[str, str] = field(default_factory=dict)
    has_device: bool = True
    husks: bool = False
    context_fails: bool = False
    execute_fails: bool = False
    timing_mismatch: bool = False
    execute: Callable[[Execution], None] = lambda run: None
    executions: list[Execution] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.recorder = Recorder(load_surface(self.name))
        self.module: Any = self.recorder.module
        behaviour = self.recorder.behaviour
        for name, function in BEHAVIOUR.items():
            behaviour[name] = partial(function, self)
        self.module.IHostMemory.__bytes__ = lambda memory: memory.fake_data  # the true one is a buffer

    def named(self, name: str) -> list[Call]:
        """Recorded calls of one name, in order."""
        return self.recorder.named(name)

    def values(self, name: str) -> list[Any]:
        """What a property was set to, in order."""
        return [call.arguments["value"] for call in self.named(f"{name}=")]

    def plan(self, sizes: Sequence[tuple[int, int]], max_batch: int, **changes: Any) -> bytes:
        """A serialised engine with one profile a size, of batches 1 to `max_batch`."""
        profiles = [{"images": [[1, h, w, 3], [1, h, w, 3], [max_batch, h, w, 3]]} for h, w in sizes]
        content = {"version": self.module.__version__, "version_compatible": False, "tensors": self.tensors}
        return json.dumps({**content, "profiles": profiles, **changes}).encode()

    def new(self, kind: str, **fields: Any) -> Any:
        made = self.recorder.new(kind)
        for name, value in fields.items():
            object.__setattr__(made, f"fake_{name}", value)
        return made

    def tensor(self, name: str, kind: str, shape: Shape) -> Any:
        return self.new("ITensor", name=name, dtype=self.module.DataType[kind], shape=shape)

    def memory(self, data: bytes) -> Any:
        return self.new("IHostMemory", data=data)

    def log(self, logger: Any, text: str) -> None:
        logger.log(self.module.ILogger.Severity.ERROR, text)


@does("Builder")
def builder(fake: FakeTensorRT, builder: Any, logger: Any) -> None:
    start(fake, logger)
    builder.fake_logger = logger


@does("Builder.create_network")
def builder_create_network(fake: FakeTensorRT, builder: Any, flags: int = 0) -> Any:
    assert not fake.husks, "the true library ends the process here"
    return fake.new("INetworkDefinition", flags=flags, inputs=[], outputs=[], layers=[])


@does("Builder.create_builder_config")
def builder_create_builder_config(fake: FakeTensorRT, builder: Any) -> Any:
    return fake.new("IBuilderConfig", profiles=[], progress_monitor=None, timing_cache=None, flag_set=set())


@does("Builder.create_optimization_profile")
def builder_create_optimization_profile(fake: FakeTensorRT, builder: Any) -> Any:
    return fake.new("IOptimizationProfile", shapes={})


@does("IOptimizationProfile.set_shape")
def ioptimizationprofile_set_shape(fake: FakeTensorRT, profile: Any, input: str, min: Any, opt: Any, max: Any) -> None:
    if not all(low <= middle <= high for low, middle, high in zip(min, opt, max, strict=True)):
        raise ValueError(f"{input}: min <= opt <= max does not hold")
    profile.fake_shapes[input] = [list(min), list(opt), list(max)]


@does("IBuilderConfig.add_optimization_profile")
def ibuilderconfig_add_optimization_profile(fake: FakeTensorRT, config: Any, profile: Any) -> int:
    if not profile.fake_shapes:
        return -1
    config.fake_profiles.append(profile.fake_shapes)
    return len(config.fake_profiles) - 1


@does("IBuilderConfig.set_flag")
def ibuilderconfig_set_flag(fake: FakeTensorRT, config: Any, flag: Any) -> None:
    config.fake_flag_set.add(flag.name)


@does("IBuilderConfig.create_timing_cache")
def ibuilderconfig_create_timing_cache(fake: FakeTensorRT, config: Any, serialized_timing_cache: Any) -> Any:
    return fake.new("ITimingCache", data=bytes(serialized_timing_cache))


@does("IBuilderConfig.set_timing_cache")
def ibuilderconfig_set_timing_cache(fake: FakeTensorRT, config: Any, cache: Any, ignore_mismatch: bool) -> bool:
    if fake.timing_mismatch and cache.fake_data and not ignore_mismatch:
        return False
    config.fake_timing_cache = cache
    return True


@does("IBuilderConfig.get_timing_cache")
def ibuilderconfig_get_timing_cache(fake: FakeTensorRT, config: Any) -> Any:
    return config.fake_timing_cache


@does("ITimingCache.serialize")
def itimingcache_serialize(fake: FakeTensorRT, cache: Any) -> Any:
    return fake.memory(cache.fake_data)


@does("OnnxParser")
def onnxparser(fake: FakeTensorRT, parser: Any, network: Any, logger: Any) -> None:
    object.__setattr__(parser, "fake_network", network)


@does("OnnxParser.parse_from_file")
def onnxparser_parse_from_file(fake: FakeTensorRT, parser: Any, model: str) -> bool:
    with open(model, "rb") as file:
        file.read()
    return onnxparser_parse(fake, parser, b"")


@does("OnnxParser.parse")
def onnxparser_parse(fake: FakeTensorRT, parser: Any, model: Any, path: str | None = None) -> bool:
    if fake.parse_errors:
        return False
    for name, (mode, kind, shape) in fake.tensors.items():
        wanted = parser.fake_network.fake_inputs if mode == "INPUT" else parser.fake_network.fake_outputs
        wanted.append(fake.tensor(name, kind, shape))
    return True


@does("OnnxParser.num_errors")
def onnxparser_num_errors(fake: FakeTensorRT, parser: Any) -> int:
    return len(fake.parse_errors)


@does("OnnxParser.get_error")
def onnxparser_get_error(fake: FakeTensorRT, parser: Any, index: int) -> Any:
    node, operator, text = fake.parse_errors[index]
    return fake.new("ParserError", parts=(node, operator, text))


@does("ParserError.node_name")
def parsererror_node_name(fake: FakeTensorRT, error: Any) -> Any:
    return error.fake_parts[0]


@does("ParserError.node_operator")
def parsererror_node_operator(fake: FakeTensorRT, error: Any) -> Any:
    return error.fake_parts[1]


@does("ParserError.desc")
def parsererror_desc(fake: FakeTensorRT, error: Any) -> Any:
    return error.fake_parts[2]


@does("INetworkDefinition.num_inputs")
def inetworkdefinition_num_inputs(fake: FakeTensorRT, network: Any) -> int:
    return len(network.fake_inputs)


@does("INetworkDefinition.num_outputs")
def inetworkdefinition_num_outputs(fake: FakeTensorRT, network: Any) -> int:
    return len(network.fake_outputs)


@does("INetworkDefinition.get_input")
def inetworkdefinition_get_input(fake: FakeTensorRT, network: Any, index: int) -> Any:
    return network.fake_inputs[index]


@does("INetworkDefinition.get_output")
def inetworkdefinition_get_output(fake: FakeTensorRT, network: Any, index: int) -> Any:
    return network.fake_outputs[index]


@does("INetworkDefinition.mark_output")
def inetworkdefinition_mark_output(fake: FakeTensorRT, network: Any, tensor: Any) -> None:
    network.fake_outputs.append(tensor)


@does("INetworkDefinition.unmark_output")
def inetworkdefinition_unmark_output(fake: FakeTensorRT, network: Any, tensor: Any) -> None:
    network.fake_outputs.remove(tensor)


@does("INetworkDefinition.add_shuffle")
def inetworkdefinition_add_shuffle(fake: FakeTensorRT, network: Any, input: Any) -> Any:
    return fake.new("IShuffleLayer", outputs=[fake.tensor("shuffled", input.dtype.name, (-1,))])


def _plugin_layer(fake: FakeTensorRT, kind: str) -> Any:
    found = [("INT32", (-1, 1)), ("FLOAT", (-1, 750, 4)), ("FLOAT", (-1, 750)), ("INT32", (-1, 750))]
    return fake.new(kind, outputs=[fake.tensor(f"{kind}-{at}", *one) for at, one in enumerate(found)])


@does("INetworkDefinition.add_plugin_v2")
def inetworkdefinition_add_plugin_v2(fake: FakeTensorRT, network: Any, inputs: Any, plugin: Any) -> Any:
    return _plugin_layer(fake, "IPluginV2Layer")


@does("INetworkDefinition.add_plugin_v3")
def inetworkdefinition_add_plugin_v3(
    fake: FakeTensorRT, network: Any, inputs: Any, shape_inputs: Any, plugin: Any
) -> Any:
    return _plugin_layer(fake, "IPluginV3Layer")


@does("ILayer.get_output")
def ilayer_get_output(fake: FakeTensorRT, layer: Any, index: int) -> Any:
    return layer.fake_outputs[index]


@does("get_plugin_registry")
def get_plugin_registry(fake: FakeTensorRT) -> Any:
    return fake.new("IPluginRegistry")


@does("Builder.get_plugin_registry")
def builder_get_plugin_registry(fake: FakeTensorRT, builder: Any) -> Any:
    return fake.new("IPluginRegistry")


@does("IPluginRegistry.get_creator")
def ipluginregistry_get_creator(
    fake: FakeTensorRT, registry: Any, type: str, version: str, plugin_namespace: str = ""
) -> Any:
    return fake.new(fake.plugins[type]) if type in fake.plugins else None


@does("Builder.build_serialized_network")
def builder_build_serialized_network(fake: FakeTensorRT, builder: Any, network: Any, config: Any) -> Any:
    monitor = config.fake_progress_monitor
    if monitor is not None and not _steps(fake, monitor):
        return None
    if not fake.builds or not config.fake_profiles:
        fake.log(builder.fake_logger, fake.build_error)
        return None
    if fake.tactic_error:
        fake.log(builder.fake_logger, fake.tactic_error)
    if config.fake_timing_cache is not None:
        config.fake_timing_cache.fake_data += b"+timed"
    tensors = {}
    for mode, found in (("INPUT", network.fake_inputs), ("OUTPUT", network.fake_outputs)):
        tensors.update({one.name: (mode, one.dtype.name, one.shape) for one in found})
    content = {
        "version": fake.module.__version__, "version_compatible": "VERSION_COMPATIBLE" in config.fake_flag_set,
        "tensors": tensors, "profiles": config.fake_profiles,
    }  # fmt: skip
    return fake.memory(json.dumps(content).encode())


def _steps(fake: FakeTensorRT, monitor: Any) -> bool:
    """A phase within another, as builders report them; the inner name comes twice."""
    monitor.phase_start("Building", None, 2)
    for step in range(2):
        monitor.phase_start("Timing", "Building", 3)
        for inner in range(3):
            fake.on_step()
            if not monitor.step_complete("Timing", inner):
                monitor.phase_finish("Timing")
                monitor.phase_finish("Building")
                return False
        monitor.phase_finish("Timing")
        if not monitor.step_complete("Building", step):
            return False
    monitor.phase_finish("Building")
    return True


@does("IHostMemory.nbytes")
def ihostmemory_nbytes(fake: FakeTensorRT, memory: Any) -> int:
    return len(memory.fake_data)
