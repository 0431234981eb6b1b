"""TensorRT's Python module: finding it, what it can do, its log. The only place that tells its versions apart.

Written against the bindings of 10.16 and 11.4, by which the tests check each name and keyword.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import re
from collections.abc import Callable
from typing import Any, Protocol

from service.engines.base import EngineError
from service.engines.tensorrt.types import Builder, IPluginCreator, Runtime, TensorRT

MODULES = ("tensorrt", "tensorrt_lean")
MAJORS = (10, 11)
"""Major versions whose API the code knows."""

EFFICIENT_NMS = "EfficientNMS_TRT"
_KEPT = 20  # lines of errors

_log = logging.getLogger(__name__)


def load() -> TensorRT:
    """The module `tensorrt`, else `tensorrt_lean`, which only runs version-compatible plans.

    Raises `EngineError` that says what to install.
    """
    reasons = []
    for name in MODULES:
        try:
            trt = importlib.import_module(name)
        except (ImportError, OSError, RuntimeError) as error:  # OSError: a library that it needs is not there
            reasons.append(f"{name}: {error}")
            continue
        if major(trt) not in MAJORS:
            raise EngineError(
                f"TensorRT {trt.__version__} is installed, whose API this code does not know; it takes 10.16 and 11: "
                "pip install 'tensorrt-cu13>=11,<12'"
            )
        return trt
    raise EngineError(
        f"TensorRT is not installed here ({'; '.join(reasons)}): pip install 'tensorrt-cu13>=11,<12' builds and runs "
        "plans; 'tensorrt-lean-cu13>=11,<12', far smaller, runs those that were built with --version-compatible "
        "(-cu12 for a driver of CUDA 12)"
    )


def version(trt: TensorRT) -> tuple[int, ...]:
    """Such as (11, 4, 0, 106)."""
    return numbers(trt.__version__)


def numbers(text: str) -> tuple[int, ...]:
    """`10.16.1.11` -> (10, 16, 1, 11); what follows the numbers, such as `.post1`, is left out."""
    return tuple(int(part) for part in re.findall(r"\d+(?=\.|$)", re.split(r"[^\d.]", text)[0]))


def major(trt: TensorRT) -> int:
    return version(trt)[0]


def has_builder(trt: TensorRT) -> bool:
    """Whether it builds plans; the lean runtime only runs them."""
    return hasattr(trt, "Builder")


def has_parser(trt: TensorRT) -> bool:
    """Whether it reads ONNX."""
    return hasattr(trt, "OnnxParser")


def network_flags(trt: TensorRT) -> int:
    """Flags of a strongly typed network, the only kind since 11.0: there the flag is deprecated and does nothing."""
    if major(trt) < 11:
        return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return 0


class Log(Protocol):
    """TensorRT's `ILogger`, which also tells what went wrong."""

    def failed(self) -> bool:
        """Whether errors came since `reasons` was asked."""
        ...

    def reasons(self) -> str:
        """The last errors in a line, which are then forgotten; for the message of an `EngineError`."""
        ...


def register_plugins(trt: TensorRT) -> None:
    """Make TensorRT's own plugins known, which has to be before a plan that needs one is loaded. Not on the lean
    runtime, which has none."""
    # No logger: the library would keep a bare pointer to it for as long as the process lives.
    trt.init_libnvinfer_plugins(None, "")


def efficient_nms(trt: TensorRT) -> IPluginCreator | None:
    """Creator of the plugin `EFFICIENT_NMS`, or None where it is not registered: it is deprecated since 10.12."""
    register_plugins(trt)
    return trt.get_plugin_registry().get_creator(EFFICIENT_NMS, "1", "")


def new_logger(trt: TensorRT) -> Log:
    """A logger that passes what TensorRT says on to `logging`, and keeps the last errors. It must outlive every object
    that was made with it."""
    levels = {
        trt.ILogger.Severity.INTERNAL_ERROR: logging.ERROR,
        trt.ILogger.Severity.ERROR: logging.ERROR,
        trt.ILogger.Severity.WARNING: logging.WARNING,
        trt.ILogger.Severity.INFO: logging.DEBUG,
        trt.ILogger.Severity.VERBOSE: logging.DEBUG,
    }

    class PythonLogger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            level = levels.get(severity, logging.WARNING)
            if level >= logging.ERROR:
                self.errors = [*self.errors, msg.strip()][-_KEPT:]
            # Errors reach people as the message of an exception; here they are for whoever looks for more.
            _log.log(min(level, logging.WARNING), "TensorRT: %s", msg.strip())

        def failed(self) -> bool:
            return bool(self.errors)

        def reasons(self) -> str:
            found, self.errors = list(dict.fromkeys(self.errors)), []
            return "; ".join(found) or "TensorRT does not say why"

    return PythonLogger()


def new_builder(trt: TensorRT, log: Log) -> Builder:
    """Raises `EngineError` where TensorRT does not start."""
    return _started(trt, lambda: trt.Builder(log), log)


def new_runtime(trt: TensorRT, log: Log) -> Runtime:
    """Raises `EngineError` where TensorRT does not start."""
    return _started(trt, lambda: trt.Runtime(log), log)


def _started(trt: TensorRT, make: Callable[[], Any], log: Log) -> Any:
    """What `make` makes. Where there is no driver, TensorRT logs errors and makes an object all the same, whose every
    use ends the process, its destruction included (seen with the lean runtimes of 10.16 and 11.4); hence the look into
    the log, and the reference that is never given back."""
    log.reasons()  # a build that went well may have left errors there, of kernels that it tried in vain
    try:
        made = make()
    except (TypeError, RuntimeError) as error:  # pybind11's, where the library makes nothing
        raise EngineError(f"TensorRT {trt.__version__} does not start: {log.reasons()} ({error})") from None
    if log.failed():
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(made))
        raise EngineError(
            f"TensorRT {trt.__version__} does not start: {log.reasons()}; is the driver new enough for its CUDA?"
        )
    return made
