"""The committed surfaces, with answers to the questions that the checker and the fake ask."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from tests.engines.tensorrt.bindings import surface_file


@dataclass(frozen=True)
class Overload:
    """One signature, without `self`. parameters: (name, type, has a default)."""

    parameters: tuple[tuple[str, str, bool], ...]
    returns: str

    def problem(self, positional: int, keywords: tuple[str, ...]) -> str | None:
        """Why a call with so many positional arguments and these keywords does not fit, or None."""
        names = [name for name, _, _ in self.parameters]
        if positional > len(names):
            return f"takes {len(names)} arguments, not {positional}"
        strangers = [word for word in keywords if word not in names[positional:]]
        if strangers:
            return f"has no keyword {', '.join(strangers)}"
        given = {*names[:positional], *keywords}
        missing = [name for name, _, default in self.parameters if not default and name not in given]
        return f"needs {', '.join(missing)}" if missing else None


class Surface:
    """The API of one version."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.version: str = content["version"]
        self.classes: dict[str, dict[str, Any]] = content["classes"]
        self.values: dict[str, str] = content["values"]
        self.functions = {name: _overloads(found) for name, found in content["functions"].items()}

    @property
    def major(self) -> int:
        return int(self.version.partition(".")[0])

    def lineage(self, name: str) -> list[str]:
        """The class and its bases, nearest first."""
        found = [name]
        for base in self.classes[name].get("bases", []):
            if base in self.classes:
                found += self.lineage(base)
        return found

    def methods(self, name: str) -> dict[str, list[Overload]]:
        """Of the class and its bases."""
        found: dict[str, list[Overload]] = {}
        for one in reversed(self.lineage(name)):
            if "__init__" not in self.classes[one].get("methods", {}):
                found.pop("__init__", None)  # no constructor of its own means that nobody can make one
            found.update({key: _overloads(value) for key, value in self.classes[one].get("methods", {}).items()})
        return found

    def properties(self, name: str) -> dict[str, tuple[bool, str]]:
        """name -> (can be set, type where it is documented). Of the class and its bases."""
        found: dict[str, tuple[bool, str]] = {}
        for one in reversed(self.lineage(name)):
            found.update({key: (value[0], value[1]) for key, value in self.classes[one].get("properties", {}).items()})
        return found

    def values_of(self, name: str) -> dict[str, str]:
        """Members of an enum, and other values that a class holds: name -> class of the value."""
        found: dict[str, str] = {}
        for one in reversed(self.lineage(name)):
            found.update(self.classes[one].get("values", {}))
            found.update(dict.fromkeys(self.classes[one].get("members", {}), one))
        return found

    def is_enum(self, name: str) -> bool:
        return "members" in self.classes[name]


def _overloads(found: list[dict[str, Any]]) -> list[Overload]:
    return [Overload(tuple((n, t, d) for n, t, d in one["parameters"]), one["returns"]) for one in found]


@cache
def load_surface(name: str) -> Surface:
    """One of `bindings.CHECKED`."""
    return Surface(json.loads(surface_file(name).read_text(encoding="utf-8")))
