"""One pass of the checker over one file: statements, then expressions, looking up what it meets."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.engines.tensorrt.kinds import MODULE, Kind, OwnClass, Report, Use, element, kind_of, member, overloads_of
from tests.engines.tensorrt.surface import Surface

if TYPE_CHECKING:
    from tests.engines.tensorrt.checker import Checker

Names = dict[str, Kind | None]
_RELATIONS: dict[type[ast.cmpop], Callable[[int, int], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}  # fmt: skip


class Walk:
    """One pass over one file."""

    def __init__(self, checker: Checker, report: Report, lines: list[str]) -> None:
        self.checker, self.report, self.lines = checker, report, lines

    # ---- statements

    def block(self, body: list[ast.stmt], names: Names, active: tuple[Surface, ...], owner: str | None) -> None:
        for at, node in enumerate(body):
            if isinstance(node, ast.If) and (split := self._versions(node.test, names, active)) is not None:
                yes, no = split
                self.block(node.body, names, yes, owner)
                self.block(node.orelse, names, no, owner)
                if isinstance(node.body[-1], ast.Return | ast.Raise) and not node.orelse:
                    self.block(body[at + 1 :], names, no, owner)
                    return
            else:
                self.statement(node, names, active, owner)

    def statement(self, node: ast.stmt, names: Names, active: tuple[Surface, ...], owner: str | None) -> None:
        if isinstance(node, ast.FunctionDef):
            self._function(node, dict(names), active, owner)
        elif isinstance(node, ast.ClassDef):
            self._class(node, names, active)
        elif isinstance(node, ast.Assign):
            kind = self.infer(node.value, names, active)
            for target in node.targets:
                self._bind(target, kind, names, active)
        elif isinstance(node, ast.AnnAssign):
            kind = self.infer(node.value, names, active) if node.value else None
            self._bind(node.target, self.checker.annotation(node.annotation) or kind, names, active)
        elif isinstance(node, ast.For):
            self._bind(node.target, element(self.infer(node.iter, names, active)), names, active)
            self.block([*node.body, *node.orelse], names, active, owner)
        elif isinstance(node, ast.If):
            self.infer(node.test, names, active)
            self.block(node.body, {**names, **self._narrowed(node.test, names)}, active, owner)
            self.block(node.orelse, names, active, owner)
        else:
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.expr):
                    self.infer(child, names, active)
                elif isinstance(child, ast.stmt):
                    self.statement(child, names, active, owner)
                else:  # handlers, items of `with`, cases
                    self._others(child, names, active, owner)

    def _others(self, node: ast.AST, names: Names, active: tuple[Surface, ...], owner: str | None) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self.infer(child, names, active)
            elif isinstance(child, ast.stmt):
                self.statement(child, names, active, owner)

    def _function(self, node: ast.FunctionDef, names: Names, active: tuple[Surface, ...], owner: str | None) -> None:
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        for argument in arguments:
            names[argument.arg] = self.checker.annotation(argument.annotation)
        if owner and arguments:
            names[arguments[0].arg] = Kind("own", owner)
        for default in (*node.args.defaults, *(d for d in node.args.kw_defaults if d)):
            self.infer(default, names, active)
        self.block(node.body, names, active, owner)

    def _class(self, node: ast.ClassDef, names: Names, active: tuple[Surface, ...]) -> None:
        own = self.checker.own.setdefault(node.name, OwnClass())
        for base in node.bases:
            kind = self.infer(base, names, active)
            if kind and kind.how == "class":
                own.base = kind.of
                self._overrides(node, kind.of, active)
        self.block(node.body, dict(names), active, node.name)

    def _overrides(self, node: ast.ClassDef, base: str, active: tuple[Surface, ...]) -> None:
        """A class on top of one of TensorRT's has all methods of it, with as many parameters."""
        methods = {part.name: part for part in node.body if isinstance(part, ast.FunctionDef)}
        for surface in active:
            for name, overloads in surface.methods(base).items():
                if name == "__init__":
                    continue
                if name not in methods:
                    self._fault(node, f"{node.name} lacks {base}.{name}", surface)
                    continue
                found = [argument.arg for argument in methods[name].args.args[1:]]
                wanted = [parameter for parameter, _, _ in overloads[0].parameters]
                if found != wanted:
                    self._fault(methods[name], f"{base}.{name} takes {wanted}, not {found}", surface)
                self._use(f"{base}.{name}", methods[name].lineno, "def ", name)

    def _bind(self, target: ast.expr, kind: Kind | None, names: Names, active: tuple[Surface, ...]) -> None:
        if isinstance(target, ast.Name):
            names[target.id] = kind
        elif isinstance(target, ast.Tuple | ast.List):
            parts = kind.parts if kind and kind.how == "tuple" else ()
            for at, part in enumerate(target.elts):
                self._bind(part, parts[at] if at < len(parts) else element(kind), names, active)
        elif isinstance(target, ast.Attribute):
            base = self.infer(target.value, names, active)
            if base and base.how == "own" and base.of in self.checker.own:
                known = self.checker.own[base.of].fields
                known[target.attr] = kind or known.get(target.attr)
            elif base:
                self._assigned(target, base, active)
            else:
                self._unknown(target)
        else:
            self.infer(target, names, active)

    def _assigned(self, node: ast.Attribute, base: Kind, active: tuple[Surface, ...]) -> None:
        if base.how != "object":
            return
        self._use_attribute(f"{base.of}.{node.attr}", node)
        for surface in active:
            found = surface.properties(base.of).get(node.attr) if base.of in surface.classes else None
            if found is None:
                self._fault(node, f"{base.of} has no property {node.attr}", surface)
            elif not found[0]:
                self._fault(node, f"{base.of}.{node.attr} cannot be set", surface)

    def _versions(
        self, test: ast.expr, names: Names, active: tuple[Surface, ...]
    ) -> tuple[tuple[Surface, ...], tuple[Surface, ...]] | None:
        """Surfaces for which `major(...) < 11` or `hasattr(trt, "x")` holds, and the rest; None for any other test."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            found = self._versions(test.operand, names, active)
            return (found[1], found[0]) if found else None
        match test:
            case ast.Call(func=ast.Name(id="hasattr"), args=[owner, ast.Constant(value=str(name))]):
                base = self.infer(owner, names, active)
                if base is None:
                    return None
                self._probe(test, base)
                yes = tuple(surface for surface in active if member(surface, base, name))
            case ast.Compare(
                left=ast.Call(func=ast.Attribute(attr="major") | ast.Name(id="major")), ops=[relation],
                comparators=[ast.Constant(value=int(number))],
            ):  # fmt: skip
                holds = _RELATIONS[type(relation)]
                yes = tuple(surface for surface in active if holds(surface.major, number))
            case _:
                return None
        return yes, tuple(surface for surface in active if surface not in yes)

    def _narrowed(self, test: ast.expr, names: Names) -> Names:
        """What `isinstance(x, trt.X)` tells of x."""
        match test:
            case ast.Call(
                func=ast.Name(id="isinstance"),
                args=[ast.Name(id=subject), ast.Attribute(value=ast.Name(id=module), attr=kind)],
            ) if names.get(module) == MODULE:
                return {subject: Kind("object", kind)}
        return {}

    # ---- expressions

    def infer(self, node: ast.expr, names: Names, active: tuple[Surface, ...]) -> Kind | None:
        """The kind of a value; on the way everything in it is looked up."""
        if isinstance(node, ast.Name):
            return names[node.id] if node.id in names else self._own_name(node.id)
        if isinstance(node, ast.Attribute):
            return self._attribute(node, self.infer(node.value, names, active), active)
        if isinstance(node, ast.Call):
            return self._call(node, names, active)
        if isinstance(node, ast.NamedExpr):
            kind = self.infer(node.value, names, active)
            names[node.target.id] = kind
            return kind
        if isinstance(node, ast.Tuple):
            return Kind("tuple", parts=tuple(self.infer(part, names, active) for part in node.elts))
        if isinstance(node, ast.IfExp):
            split = self._versions(node.test, names, active)
            if split is None:
                self.infer(node.test, names, active)
            yes, no = split or (active, active)
            return self.infer(node.body, names, yes) or self.infer(node.orelse, names, no)
        if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            return self._comprehension(node, dict(names), active)
        if isinstance(node, ast.Lambda):
            self.infer(node.body, {**names, **{one.arg: None for one in node.args.args}}, active)
            return None
        if isinstance(node, ast.Subscript):
            self.infer(node.slice, names, active)
            return element(self.infer(node.value, names, active))
        found = [
            self.infer(child, names, active) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr)
        ]
        return next((kind for kind in found if kind), None) if isinstance(node, ast.BoolOp) else None

    def _own_name(self, name: str) -> Kind | None:
        if name in self.checker.own:
            return Kind("own class", name)
        return Kind("own method", name=name) if name in self.checker.returns else None

    def _comprehension(
        self,
        node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp,
        names: Names,
        active: tuple[Surface, ...],
    ) -> Kind | None:
        for part in node.generators:
            self._bind(part.target, element(self.infer(part.iter, names, active)), names, active)
            for test in part.ifs:
                self.infer(test, names, active)
        if isinstance(node, ast.DictComp):
            self.infer(node.key, names, active)
            self.infer(node.value, names, active)
            return None
        kind = self.infer(node.elt, names, active)
        return Kind("list", kind.of) if kind and kind.how == "object" else None

    def _attribute(self, node: ast.Attribute, base: Kind | None, active: tuple[Surface, ...]) -> Kind | None:
        if base is None:
            self._unknown(node)
            return Kind("own method", name=node.attr) if node.attr in self.checker.returns else None
        if base.how == "own":
            own = self.checker.own[base.of]
            if own.fields.get(node.attr):
                return own.fields[node.attr]
            return Kind("own method", name=node.attr) if node.attr in self.checker.returns else None
        if base.how not in ("module", "class", "object"):
            return None
        self._use_attribute(f"{base.of or 'trt'}.{node.attr}", node)
        found = None
        for surface in active:
            kind = member(surface, base, node.attr)
            if kind is None:
                self._fault(node, f"{base.of or 'the module'} has no {node.attr}", surface)
            found = kind or found
        return None if found and found.how == "plain" else found

    def _call(self, node: ast.Call, names: Names, active: tuple[Surface, ...]) -> Kind | None:
        called = self.infer(node.func, names, active)
        arguments = [self.infer(argument, names, active) for argument in node.args]
        for word in node.keywords:
            self.infer(word.value, names, active)
        if isinstance(node.func, ast.Name) and node.func.id == "hasattr" and arguments[0]:
            self._probe(node, arguments[0])
        if called is None:
            return None
        if called.how == "own method":
            return self.checker.returns.get(called.name)
        if called.how == "own class":
            return Kind("own", called.of)
        if called.how not in ("class", "method", "function"):
            return None
        return self._signature(node, called, active)

    def _signature(self, node: ast.Call, called: Kind, active: tuple[Surface, ...]) -> Kind | None:
        returned: Kind | None = None
        title = f"{called.of}{'.' if called.of and called.name else ''}{called.name}"
        keywords = tuple(word.arg for word in node.keywords if word.arg)
        for word in node.keywords:
            if word.arg:
                self.report.uses.add(Use(f"{title}({word.arg}=)", (word.lineno, word.col_offset)))
        bound = isinstance(node.func, ast.Attribute) and called.how == "method" and called.name == "__init__"
        for surface in active:
            overloads = overloads_of(surface, called)
            if overloads is None:
                continue  # `_attribute` has said so
            given = len(node.args) - (1 if bound else 0)
            problems = [one.problem(given, keywords) for one in overloads]
            if all(problems):
                self._fault(node, f"{title} {'; '.join(filter(None, problems)) or 'cannot be made'}", surface)
            elif called.how == "class":
                returned = Kind("object", called.of)
            else:
                fitting = next(one for one, problem in zip(overloads, problems, strict=True) if problem is None)
                returned = kind_of(surface, fitting.returns)
        return returned

    def _probe(self, node: ast.Call, base: Kind) -> None:
        name = node.args[1]
        assert isinstance(name, ast.Constant)
        self.report.uses.add(Use(f"hasattr {name.value}", (name.lineno, name.col_offset + 1)))
        if not any(member(surface, base, str(name.value)) for surface in self.checker.surfaces):
            self.report.faults.append(f"line {node.lineno}: no version has {name.value}")

    # ---- notes

    def _unknown(self, node: ast.Attribute) -> None:
        if node.attr in self.checker.distinctive:
            self.report.faults.append(
                f"line {node.lineno}: {ast.unparse(node)}: is it TensorRT's? Annotate {ast.unparse(node.value)}"
            )

    def _use_attribute(self, text: str, node: ast.Attribute) -> None:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        self.report.uses.add(Use(text, (node.end_lineno, node.end_col_offset - len(node.attr))))

    def _use(self, text: str, line: int, before: str, name: str) -> None:
        self.report.uses.add(Use(text, (line, self.lines[line - 1].index(before + name) + len(before))))

    def _fault(self, node: ast.AST, sentence: str, surface: Surface) -> None:
        fault = f"line {getattr(node, 'lineno', '?')}: {sentence} in {surface.version}"
        if fault not in self.report.faults:
            self.report.faults.append(fault)
