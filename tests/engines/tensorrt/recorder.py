"""A module that looks like TensorRT of one version: made from its surface, so that what is not there is missing here.

Every class has the methods, properties and enum members of the true one and no others; arguments are checked against
the true signatures; objects that only the library makes cannot be made. Each call is recorded. What a call does is
given as a function; without one it returns True, 0, "", an empty list or a new object, as its type says.
"""

from __future__ import annotations

import enum
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.engines.tensorrt.surface import Overload, Surface


@dataclass
class Call:
    """name: `Class.method`, `Class.property=` or a function of the module; arguments: by name, defaults left out."""

    name: str
    arguments: dict[str, Any]
    of: Any = None


@dataclass
class Recorder:
    """behaviour: `Class.method` -> function(self, **arguments); for a property, function(self)."""

    surface: Surface
    behaviour: dict[str, Callable[..., Any]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    module: Any = None

    def __post_init__(self) -> None:
        self.module = _module(self)

    def named(self, name: str) -> list[Call]:
        """Calls of one name, in order."""
        return [call for call in self.calls if call.name == name]

    def new(self, kind: str) -> Any:
        """An object that only the library makes."""
        made = getattr(self.module, kind)
        return made.__new__(made)


def bind(name: str, overloads: list[Overload], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name. Raises TypeError, as pybind11 does, where no overload takes them."""
    problems = []
    for one in overloads:
        problem = one.problem(len(args), tuple(kwargs))
        if problem is None:
            names = [parameter for parameter, _, _ in one.parameters]
            return {**dict(zip(names, args, strict=False)), **kwargs}
        problems.append(problem)
    raise TypeError(f"{name}(): incompatible arguments: {'; '.join(problems)}")


def _module(recorder: Recorder) -> Any:
    surface = recorder.surface
    module = types.ModuleType("tensorrt")
    made: dict[str, Any] = {}
    for name in sorted(surface.classes, key=lambda one: len(surface.lineage(one))):
        made[name] = _enum(surface, name) if surface.is_enum(name) else _class(recorder, name, made)
        setattr(module, name, made[name])
    for name, kind in made.items():
        for value, of in surface.classes[name].get("values", {}).items():
            if of in made:
                type.__setattr__(kind, value, made[of] if value == of else made[of][value])
    for name, member in surface.values.items():
        of, _, member = member.partition(".")
        setattr(module, name, made[of][member])
    for name, overloads in surface.functions.items():
        setattr(module, name, _function(recorder, name, overloads))
    delattr(module, "Severity")  # it is `ILogger.Severity`
    module.__version__ = surface.version  # type: ignore[attr-defined]
    return module


def _enum(surface: Surface, name: str) -> Any:
    # IntEnum's members compare with numbers and with other enums, which pybind11's do not; `int()` is what code needs.
    return enum.Enum(  # type: ignore[misc]
        name, surface.classes[name]["members"], type=_Number, module="tensorrt"
    )


class _Number:
    """`int(member)`, as pybind11's enums have it."""

    value: int

    def __int__(self) -> int:
        return self.value

    __index__ = __int__


def _class(recorder: Recorder, name: str, made: dict[str, Any]) -> Any:
    surface = recorder.surface
    bases = tuple(made[base] for base in surface.classes[name].get("bases", [])) or (object,)
    body: dict[str, Any] = {"__module__": "tensorrt"}
    own = {method: surface.methods(name)[method] for method in surface.classes[name].get("methods", {})}
    for method, overloads in own.items():  # what is inherited is recorded as a call of the base
        if method != "__init__":
            body[method] = _method(recorder, name, method, overloads)
    for key in surface.classes[name].get("properties", {}):
        writable, kind = surface.properties(name)[key]
        body[key] = _property(recorder, name, key, writable, kind)
    constructor = surface.methods(name).get("__init__")

    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        if constructor is None:
            raise TypeError(f"{name}: No constructor defined!")
        arguments = bind(name, constructor, args, kwargs)
        recorder.calls.append(Call(name, arguments, self))
        if name in recorder.behaviour and type(self) is made[name]:
            recorder.behaviour[name](self, **arguments)

    def assign(self: Any, key: str, value: Any) -> None:
        # A class written in Python on top of one of these has a dictionary; those of pybind11 have none.
        if type(self).__module__ == "tensorrt" and not key.startswith("fake_") and not hasattr(type(self), key):
            raise AttributeError(f"'{name}' object has no attribute {key!r}")
        object.__setattr__(self, key, value)

    return type(name, bases, {**body, "__init__": construct, "__setattr__": assign})


def _method(recorder: Recorder, owner: str, name: str, overloads: list[Overload]) -> Any:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        arguments = bind(f"{owner}.{name}", overloads, args, kwargs)
        recorder.calls.append(Call(f"{owner}.{name}", arguments, self))
        behaviour = recorder.behaviour.get(f"{owner}.{name}")
        return behaviour(self, **arguments) if behaviour else _answer(recorder, overloads[0].returns)

    call.__name__ = name
    return call


def _function(recorder: Recorder, name: str, overloads: list[Overload]) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        arguments = bind(name, overloads, args, kwargs)
        recorder.calls.append(Call(name, arguments))
        behaviour = recorder.behaviour.get(name)
        return behaviour(**arguments) if behaviour else _answer(recorder, overloads[0].returns)

    call.__name__ = name
    return call


def _property(recorder: Recorder, owner: str, name: str, writable: bool, kind: str) -> property:
    def read(self: Any) -> Any:
        behaviour = recorder.behaviour.get(f"{owner}.{name}")
        if behaviour:
            return behaviour(self)
        if f"fake_{name}" in self.__dict__:
            return self.__dict__[f"fake_{name}"]
        raise AssertionError(f"the fake has no value for {owner}.{name} ({kind or 'type not documented'}); give it one")

    def write(self: Any, value: Any) -> None:
        recorder.calls.append(Call(f"{owner}.{name}=", {"value": value}, self))
        self.__dict__[f"fake_{name}"] = value

    return property(read, write if writable else None)


def _answer(recorder: Recorder, returns: str) -> Any:
    plain: dict[str, Any] = {"None": None, "bool": True, "int": 0, "str": "", "float": 0.0}
    if returns in plain:
        return plain[returns]
    if returns.startswith("list"):
        return []
    if returns in recorder.surface.classes and not recorder.surface.is_enum(returns):
        return recorder.new(returns)
    raise AssertionError(f"the fake cannot make a {returns}; give it a behaviour")
