"""Runs in a Python that can import the module named on its command line; prints that module's API as JSON.

{"version": ..., "functions": {name: overloads}, "values": {name: "Enum.MEMBER"},
 "classes": {name: {"bases": [...], "methods": {name: overloads}, "properties": {name: [writable, type]},
                    "values": {name: class}, "members": {enum's name: int}}}}

An overload is {"parameters": [[name, type, has a default], ...], "returns": type}, without `self`. What pybind11 prints
as `tensorrt_bindings.tensorrt.X`, or in C++ as `nvinfer1::X`, is written X.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from typing import Any

trt = importlib.import_module(sys.argv[1])

# Plugins written in Python, safety, quantisation by calibration and the like: what a serving engine has no use for.
_LEFT_OUT = re.compile(
    r"^(IPluginV2(Ext|Dynamic.*)|IPluginV3(One|Quick).*|IPluginCreatorV3Quick|IPluginResource.*|IPluginCapability"
    r"|IInt8.*|IAlgorithm.*|IExprBuilder|IDimensionExpr|ISymExprs?|DimsExprs|KernelLaunchParams|IStream.*|IDebugListener"
    r"|.*PluginTensorDesc|.*Refitter|I(?!Shuffle|Plugin|Constant|Elementwise|Cast|Squeeze|Select)\w+Layer|ILoop|IMoE.*"
    r"|IIfConditional|IAttention|NodeIndices|SubGraphCollection|FallbackString|I?TimingCacheKey|TimingCacheValue)$"
)


def split(text: str, by: str) -> list[str]:
    """Split where no bracket is open."""
    parts, depth, start = [], 0, 0
    for at, char in enumerate(text):
        depth += (char in "([{<") - (char in ")]}>")
        if char == by and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [part.strip() for part in (*parts, text[start:]) if part.strip()]


def plain(kind: str) -> str:
    """A type as it is written here."""
    if "accessor<" in kind:  # how `get_plugin_registry` calls what it returns
        return "IPluginRegistry"
    kind = (
        re.sub(r"tensorrt\w*_bindings\.tensorrt\w*\.", "", kind).replace("collections.abc.", "").replace("typing.", "")
    )
    kind = kind.replace("typing_extensions.", "").replace("SupportsInt", "int").replace("SupportsFloat", "float")
    kind = re.sub(r"\b\w+::(\w+)", r"\1", kind).strip()
    return kind[1:] if not hasattr(trt, kind) and hasattr(trt, kind[1:]) else kind


def overloads(name: str, text: str) -> list[dict[str, Any]]:
    """Read the signatures that pybind11 puts into docstrings."""
    found = []
    for line in text.splitlines():
        match = re.match(rf"(?:\d+\. )?{re.escape(name)}\((.*)\)(?: -> (.*))?$", line.strip())
        if not match or match[1] == "*args, **kwargs":
            continue
        parameters = []
        for part in split(match[1], ","):
            declared, *default = split(part, "=")
            parameter, _, kind = declared.partition(":")
            if parameter != "self":
                parameters.append([parameter, plain(kind), bool(default)])
        found.append({"parameters": parameters, "returns": plain(match[2] or "None")})
    return found


def documented(text: str, name: str) -> str:
    """The type that a class's docstring gives a property, or nothing."""
    match = re.search(rf":ivar {re.escape(name)}:\s*:class:`(?:tensorrt\.)?(\w+)", text)
    return match[1] if match else ""


def describe(kind: type) -> dict[str, Any]:
    """One class."""
    methods: dict[str, Any] = {}
    properties: dict[str, Any] = {}
    values: dict[str, str] = {}
    members = getattr(kind, "__members__", None)
    for name, value in sorted(vars(kind).items()):
        if name.startswith("_") and name != "__init__":
            continue
        if isinstance(value, property):
            properties[name] = [value.fset is not None, documented(kind.__doc__ or "", name)]
        elif members:
            continue
        elif inspect.isclass(value) or not callable(value):
            values[name] = value.__name__ if inspect.isclass(value) else type(value).__name__
        else:
            methods[name] = overloads(name, value.__doc__ or "")
    if not methods.get("__init__", True):
        del methods["__init__"]  # pybind11 made none: nobody but the library can make such an object
    found: dict[str, Any] = {"bases": [base.__name__ for base in kind.__bases__ if base.__name__ in vars(trt)]}
    found.update(methods=methods, properties=properties, values=values)
    if members:
        found["members"] = {name: int(value) for name, value in members.items()}
    return {key: value for key, value in found.items() if value}


def main() -> None:
    classes, functions, values = {}, {}, {}
    for name, value in sorted(vars(trt).items()):
        if name.startswith("_") or inspect.ismodule(value) or _LEFT_OUT.match(name):
            continue
        if inspect.isclass(value):
            classes[name] = describe(value)
        elif inspect.isbuiltin(value):
            functions[name] = overloads(name, value.__doc__ or "")
        elif inspect.isfunction(value) and name in ("nptype", "volume"):  # of Python, all others are helpers
            functions[name] = [{"parameters": [[one, "", False] for one in inspect.signature(value).parameters],
                                "returns": ""}]  # fmt: skip
        elif type(value).__name__ in vars(trt):
            values[name] = f"{type(value).__name__}.{value.name}"
    classes["Severity"] = describe(trt.ILogger.Severity)
    content = {"version": trt.__version__, "functions": functions, "values": values, "classes": classes}
    print(json.dumps(content))


if __name__ == "__main__":
    main()
