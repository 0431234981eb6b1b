"""The code uses TensorRT as 10.16 and 11.4 have it, and the check of that would notice if it did not."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from tests.engines.tensorrt.checker import Checker, mutations
from tests.engines.tensorrt.surface import load_surface

FOLDER = Path(__file__).parents[3] / "service" / "engines" / "tensorrt"
FILES = {path.name: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.py"))}
ALIASES = set(re.findall(r"^(\w+): TypeAlias", FILES["types.py"], re.MULTILINE))
WHOLE = [load_surface(name) for name in ("10.16", "11.4")]
LEAN = [load_surface(name) for name in ("lean-10.16", "lean-11.4")]
ON_LEAN: dict[str, set[str] | None] = {
    "engine.py": None,
    "contract.py": {"contract_faults", "profile_faults"},
    "api.py": {"load", "version", "numbers", "major", "has_builder", "has_parser", "new_logger"},
}
"""What runs on the lean runtime too: all of a file, or these functions."""

CHECKER = Checker(WHOLE, FILES.values(), ALIASES)


@pytest.mark.parametrize("name", FILES)
def test_every_use_is_in_both_versions(name: str) -> None:
    assert CHECKER.check(FILES[name]).faults == []


@pytest.mark.parametrize("name", ON_LEAN)
def test_what_runs_on_the_lean_runtime_uses_what_that_has(name: str) -> None:
    checker = Checker([*WHOLE, *LEAN], FILES.values(), ALIASES)
    report = checker.check(FILES[name], ON_LEAN[name])
    assert report.faults == []
    assert len(report.uses) > 5


@pytest.mark.parametrize("name", FILES)
def test_any_identifier_misspelt_is_noticed(name: str) -> None:
    report = CHECKER.check(FILES[name])
    missed = [what for what, source in mutations(FILES[name], report) if not CHECKER.check(source).faults]
    assert missed == []


def test_the_check_sees_what_the_code_uses() -> None:
    """A checker that looked at nothing would find nothing."""
    seen = {use.text for source in FILES.values() for use in CHECKER.check(source).uses}
    assert {
        "Builder.build_serialized_network", "IBuilderConfig.progress_monitor", "IOptimizationProfile.set_shape(opt=)",
        "OnnxParser.parse", "IProgressMonitor.step_complete", "ILogger.log", "BuilderFlag.VERSION_COMPATIBLE",
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED", "HardwareCompatibilityLevel.AMPERE_PLUS",
        "ITimingCache.serialize", "IPluginCreatorV3One.create_plugin", "INetworkDefinition.add_plugin_v2",
        "Runtime.deserialize_cuda_engine", "ICudaEngine.get_tensor_profile_shape", "IExecutionContext.execute_async_v3",
        "IExecutionContext.set_tensor_address", "IExecutionContext.set_input_shape",
    } <= seen  # fmt: skip
    assert len(seen) > 100


def test_every_alias_is_a_class_of_both_versions() -> None:
    assert ALIASES - {"TensorRT"} <= set(WHOLE[0].classes) & set(WHOLE[1].classes)


def test_only_one_file_tells_versions_apart() -> None:
    telling = [name for name, source in FILES.items() if re.search(r"\bmajor\(\w+\) *[<>=!]", source)]
    assert telling == ["api.py"]


SOURCE = """
def build(trt: TensorRT, network: INetworkDefinition, data: bytes):
    builder = trt.Builder(trt.Logger(trt.Logger.WARNING))
    config = builder.create_builder_config()
    config.builder_optimization_level = 3
    config.set_flag(trt.BuilderFlag.TF32)
    if api.major(trt) < 11:
        config.set_flag(trt.BuilderFlag.FP16)
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    for tensor in outputs:
        tensor.name = tensor.name.lower()
    profile = builder.create_optimization_profile()
    profile.set_shape("images", min=(1,), opt=(1,), max=(1,))
    class Monitor(trt.IProgressMonitor):
        def phase_start(self, phase_name, parent_phase, num_steps): ...
        def step_complete(self, phase_name, step): ...
        def phase_finish(self, phase_name): ...
    layer = network.add_shuffle(outputs[0])
    layer.reshape_dims = (1,)
    return layer.get_output(0), builder.build_serialized_network(network, config)
"""


def faults(source: str) -> list[str]:
    return Checker(WHOLE, [source], ALIASES).check(source).faults


def test_right_source_passes() -> None:
    assert faults(SOURCE) == []


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("trt.Builder(", "trt.Bulider(", "the module has no Bulider in 10.16.1.11"),
        ("Logger.WARNING", "Logger.WARN", "Logger has no WARN"),
        ("BuilderFlag.TF32", "BuilderFlag.TF23", "BuilderFlag has no TF23"),
        ("BuilderFlag.TF32", "BuilderFlag.FP16", "BuilderFlag has no FP16 in 11.4.0.106"),
        ("if api.major(trt) < 11", "if api.major(trt) <= 11", "BuilderFlag has no FP16 in 11.4.0.106"),
        ("if api.major(trt) < 11", "if data", "BuilderFlag has no FP16 in 11.4.0.106"),
        ("config.set_flag(trt.BuilderFlag.TF32)", "config.set_flags(trt.BuilderFlag.TF32)", "has no set_flags"),
        ("builder_optimization_level = 3", "builder_optimisation_level = 3", "no property builder_optimisation_level"),
        ("range(network.num_outputs)", "range(network.nb_outputs)", "INetworkDefinition has no nb_outputs"),
        ("network.get_output(index)", "network.get_output(idx=index)", "get_output has no keyword idx"),
        ("network.get_output(index)", "network.get_output(index, 0)", "takes 1 arguments, not 2"),
        ("network.get_output(index)", "network.get_output()", "needs index"),
        ("tensor.name.lower()", "tensor.nmae.lower()", "ITensor has no nmae"),
        ("tensor.name = ", "tensor.is_shape_tensor = ", "ITensor.is_shape_tensor cannot be set"),
        ("opt=(1,)", "optimum=(1,)", "set_shape has no keyword optimum"),
        ("def phase_finish", "def phase_end", "Monitor lacks IProgressMonitor.phase_finish"),
        ("step_complete(self, phase_name, step)", "step_complete(self, phase_name)", "step_complete takes"),
        ("layer.reshape_dims", "layer.reshape", "IShuffleLayer has no property reshape"),
        ("outputs[0]", "0, 1", "add_shuffle takes 1 arguments, not 2"),
        ("network: INetworkDefinition", "network", "is it TensorRT's? Annotate network"),
        ("trt.IProgressMonitor", "trt.IProgresMonitor", "the module has no IProgresMonitor"),
    ],
)  # fmt: skip
def test_mistakes_are_told(right: str, wrong: str, said: str) -> None:
    assert SOURCE.count(right) >= 1
    found = faults(SOURCE.replace(right, wrong, 1))
    assert any(said in fault for fault in found), found


def test_code_behind_a_look_for_a_name_is_held_to_the_versions_that_have_it() -> None:
    source = """
        def register(trt: TensorRT) -> None:
            if not hasattr(trt, "init_libnvinfer_plugins"):
                trt.Builder
                raise ValueError
            trt.init_libnvinfer_plugins(None, "")
            trt.init_plugins()

        def ask(trt: TensorRT) -> None:
            if hasattr(trt, "Bulider"):
                trt.Builder
    """
    found = Checker([*WHOLE, *LEAN], [textwrap.dedent(source)], ALIASES).check(textwrap.dedent(source)).faults
    assert found == [
        "line 4: the module has no Builder in 10.16.1.11",
        "line 4: the module has no Builder in 11.4.0.106",
        "line 7: the module has no init_plugins in 10.16.1.11",
        "line 7: the module has no init_plugins in 11.4.0.106",
        "line 10: no version has Bulider",
    ]


def test_isinstance_and_returns_are_followed() -> None:
    source = textwrap.dedent("""
        def first(trt: TensorRT, creator: IPluginCreator) -> ITensor:
            if isinstance(creator, trt.IPluginCreatorV3One):
                creator.create_plugin("x", 1, trt.TensorRTPhase.BUILD)
            else:
                creator.create_plugin("x", 1, trt.TensorRTPhase.BUILD)

        class Keeper:
            def __init__(self, trt: TensorRT) -> None:
                self._pair, self._trt = self._make(), trt

            def _make(self) -> tuple[Runtime, ICudaEngine]: ...

            def use(self) -> None:
                runtime, engine = self._make()
                engine.deserialize_cuda_engine(b"")
                first(self._trt, None).nmae
        """)
    assert [fault.partition(": ")[2] for fault in faults(source)] == [
        "IPluginCreator.create_plugin takes 2 arguments, not 3 in 10.16.1.11",
        "IPluginCreator.create_plugin takes 2 arguments, not 3 in 11.4.0.106",
        "ICudaEngine has no deserialize_cuda_engine in 10.16.1.11",
        "ICudaEngine has no deserialize_cuda_engine in 11.4.0.106",
        "ITensor has no nmae in 10.16.1.11",
        "ITensor has no nmae in 11.4.0.106",
    ]
