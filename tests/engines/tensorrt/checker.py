"""Does source code use TensorRT as its versions have it? Every attribute, method, keyword and enum member is looked up.

The checker follows types from annotations with the names of `service.engines.tensorrt.types`, from constructors, from
what methods return in the true API, from `self`, from loops, unpacking and `isinstance`. Code below a comparison of
`major(...)` with a number is held to the versions that it is for. Where it cannot tell the type of a value on which a
name of TensorRT is used, that is a fault as well: such code is to be given an annotation.

Not followed: values put into containers of unknown type, `getattr`. Types of arguments are not compared.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

from tests.engines.tensorrt.kinds import MODULE, Kind, OwnClass, Report
from tests.engines.tensorrt.surface import Surface
from tests.engines.tensorrt.walk import Walk


class Checker:
    """Checks one file at a time against all `surfaces`; what other files define is read beforehand from `sources`."""

    def __init__(self, surfaces: Iterable[Surface], sources: Iterable[str], aliases: set[str]) -> None:
        """aliases: names that stand for TensorRT's classes in annotations, `TensorRT` for the module."""
        self.surfaces = tuple(surfaces)
        self.aliases = aliases
        self.returns: dict[str, Kind | None] = {}
        self.own: dict[str, OwnClass] = {}
        trees = [ast.parse(source) for source in sources]
        self.defined = {n.name for tree in trees for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
        for tree in trees:
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    self.own[node.name] = OwnClass()
        for tree in trees:
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef):
                    self.returns[node.name] = self.annotation(node.returns)
                elif isinstance(node, ast.ClassDef):
                    for part in node.body:
                        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                            self.own[node.name].fields[part.target.id] = self.annotation(part.annotation)
        self.distinctive = {
            name
            for surface in self.surfaces
            for kind in surface.classes
            for name in (*surface.methods(kind), *surface.properties(kind))
            if "_" in name.strip("_")
        } - self.defined

    def check(self, source: str, only: set[str] | None = None) -> Report:
        """only: names of functions and classes at the top of the file; by default all."""
        tree = ast.parse(source)
        body = [n for n in tree.body if only is None or getattr(n, "name", "") in only]
        for _ in range(2):  # the first pass learns what `self` holds
            report = Report()
            Walk(self, report, source.splitlines()).block(body, {}, self.surfaces, None)
        return report

    def annotation(self, node: ast.expr | None) -> Kind | None:
        if isinstance(node, ast.BinOp):
            return self.annotation(node.left) or self.annotation(node.right)
        if isinstance(node, ast.Attribute):
            return self._named(node.attr)
        if isinstance(node, ast.Name):
            return self._named(node.id)
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            found = tuple(self.annotation(part) for part in parts)
            if node.value.id == "tuple":
                return Kind("tuple", parts=found)
            if node.value.id in ("list", "Sequence") and found[0] and found[0].how == "object":
                return Kind("list", found[0].of)
        return None

    def _named(self, name: str) -> Kind | None:
        if name in self.aliases:
            return MODULE if name == "TensorRT" else Kind("object", name)
        return Kind("own", name) if name in self.own else None


def mutations(source: str, report: Report) -> Iterator[tuple[str, str]]:
    """(what was used, source with that identifier misspelt), for every use."""
    lines = source.splitlines(keepends=True)
    for use in sorted(report.uses, key=lambda one: (one.start, one.text)):
        line, column = use.start[0] - 1, use.start[1]
        raw = lines[line].encode()
        end = column
        while end < len(raw) and (raw[end : end + 1].isalnum() or raw[end : end + 1] == b"_"):
            end += 1
        word = raw[column:end].decode()
        changed = raw[:column] + _misspelt(word).encode() + raw[end:]
        yield f"{use.text} at {line + 1}", "".join([*lines[:line], changed.decode(), *lines[line + 1 :]])


def _misspelt(word: str) -> str:
    """Two neighbouring letters swapped, or one doubled where that changes nothing."""
    swapped = word[:-2] + word[-1] + word[-2]
    return swapped if swapped != word else word + word[-1]
