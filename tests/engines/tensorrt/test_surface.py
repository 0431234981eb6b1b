"""The committed surfaces: small, and what TensorRT's wheels really have, where pip can reach those."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.engines.tensorrt.bindings import (
    CHECKED,
    UnreachableError,
    as_text,
    environment,
    install,
    read_surface,
    surface_file,
)
from tests.engines.tensorrt.surface import load_surface

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module", params=CHECKED)
def installed(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """Name and folder of true bindings; skips where they cannot be had. Downloaded once, 1 MB each."""
    name: str = request.param
    try:
        return name, install(name)
    except UnreachableError as error:
        pytest.skip(str(error))


@pytest.mark.timeout(240)
def test_the_committed_surface_is_that_of_the_wheel(installed: tuple[str, Path]) -> None:
    name, folder = installed
    assert as_text(read_surface(CHECKED[name], folder)) == surface_file(name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CHECKED)
def test_surfaces_are_small_and_of_the_version_that_they_say(name: str) -> None:
    assert surface_file(name).stat().st_size < 150_000
    surface = load_surface(name)
    assert surface.version == CHECKED[name].version
    assert surface.methods("Runtime")["__init__"][0].parameters == (("logger", "ILogger", False),)
    assert ("Builder" in surface.classes) != name.startswith("lean")


def test_the_versions_differ_where_the_code_must_not_rely_on_one() -> None:
    old, new = load_surface("10.16"), load_surface("11.4")
    assert {"FP16", "INT8"} <= set(old.values_of("BuilderFlag")) - set(new.values_of("BuilderFlag"))
    assert "get_plugin_creator" in set(old.methods("IPluginRegistry")) - set(new.methods("IPluginRegistry"))
    for name in ("get_engine_validity", "engine_validity"):  # only TensorRT-RTX can judge a plan without loading it
        assert name not in {**old.methods("Runtime"), **new.methods("Runtime")}


PROBE = """
import gc, importlib, sys
import numpy as np
trt = importlib.import_module(sys.argv[1])
sys.modules["tensorrt" if sys.argv[1] == "tensorrt_bindings" else "tensorrt_lean"] = trt
from pathlib import Path
from service.engines.base import EngineError
from service.engines.tensorrt import api, build, efficient_nms
from service.repository.manifest import Thresholds
found = api.load()
assert found is trt and api.version(found) == tuple(int(n) for n in trt.__version__.split("."))
log = api.new_logger(trt)
log.log(trt.ILogger.Severity.ERROR, "out of tactics")
log.log(trt.ILogger.Severity.WARNING, "never mind")
assert log.reasons() == "out of tactics" and "does not say" in log.reasons()
try:
    api.new_runtime(trt, log)  # takes our logger; the library behind it makes nothing
except EngineError as error:
    assert "nullptr" in str(error), error
if api.has_builder(trt):
    assert api.has_parser(trt) and api.network_flags(trt) == {10: 2, 11: 0}[api.major(trt)]
    try:
        api.new_builder(trt, log)
    except EngineError as error:
        assert "does not start" in str(error), error
    api.register_plugins(trt)
    monitor = build._monitor(trt, None, __import__("threading").Event())
    assert monitor.step_complete("phase", 0) is True
    values = efficient_nms.settings(Thresholds())
    fields = [trt.PluginField(name, value, trt.PluginFieldType.FLOAT32) for name, value in values.items()]
    gc.collect()
    assert [one.name for one in trt.PluginFieldCollection(fields)] == list(values)
else:
    assert not api.has_parser(trt)
    try:
        build.builder_module(Path("d0.onnx"))
    except EngineError as error:
        assert "lean runtime" in str(error), error
print("done")
"""


@pytest.mark.timeout(240)
def test_our_classes_on_the_true_bindings(installed: tuple[str, Path]) -> None:
    name, folder = installed
    command = [sys.executable, "-c", PROBE, CHECKED[name].module]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(folder, ROOT), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout == "done\n", done.stderr
