"""What the checker knows of values, and what it finds."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.engines.tensorrt.surface import Overload, Surface


@dataclass(frozen=True)
class Kind:
    """What a value is. how: `module`, `class` (the class itself), `object`, `method`, `function`, `own` (a class of the
    checked code), `own method`, `list`, `tuple`. of: name of the class; name: of the method; parts: of a tuple."""

    how: str
    of: str = ""
    name: str = ""
    parts: tuple[Kind | None, ...] = ()


MODULE = Kind("module")


@dataclass(frozen=True)
class Use:
    """One place where TensorRT is used. start: (line, column) of the identifier; column as in `ast`."""

    text: str
    start: tuple[int, int]


@dataclass
class Report:
    """What was found. uses: every identifier that was looked up; faults: sentences with their lines."""

    uses: set[Use] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)


@dataclass
class OwnClass:
    """A class of the checked code."""

    base: str = ""
    fields: dict[str, Kind | None] = field(default_factory=dict)


def element(kind: Kind | None) -> Kind | None:
    return Kind("object", kind.of) if kind and kind.how == "list" else None


def overloads_of(surface: Surface, called: Kind) -> list[Overload] | None:
    if called.how == "function":
        return surface.functions.get(called.name)
    if called.of not in surface.classes:
        return None
    methods = surface.methods(called.of)
    return methods.get("__init__", []) if called.how == "class" else methods.get(called.name)


def member(surface: Surface, base: Kind, name: str) -> Kind | None:
    """What `name` of `base` is in a version, None where it is not there; `plain` stands for a value of Python's."""
    if base.how == "module":
        if name in surface.classes:
            return Kind("class", name)
        if name in surface.functions:
            return Kind("function", name=name)
        if name in surface.values:
            return Kind("object", surface.values[name].partition(".")[0])
        return Kind("plain") if name == "__version__" else None
    if base.of not in surface.classes:
        return None
    if name in surface.methods(base.of):
        return Kind("method", base.of, name)
    if name in surface.properties(base.of):
        return kind_of(surface, surface.properties(base.of)[name][1]) or Kind("plain")
    of = surface.values_of(base.of).get(name)
    if of is None:
        return None
    return Kind("class", of) if of == name and of in surface.classes else Kind("object", of)


def kind_of(surface: Surface, written: str) -> Kind | None:
    """The kind of a type as signatures write it."""
    if written.startswith("list[") and written[5:-1] in surface.classes:
        return Kind("list", written[5:-1])
    return Kind("object", written) if written in surface.classes else None
