"""Genotypes: what a search found, as data. A neck is built from its genotype alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError, model_validator

from training.files import write_bytes

GENOTYPES = Path(__file__).parents[1] / "genotypes"

Position = Literal["before", "middle", "after"]
Level = Annotated[int, Field(ge=1, le=9)]
# `conv3x5d2`: a convolution with a kernel 3 high and 5 wide, dilation 2; dilation 1 is left out, even sides are none.
OperationName = Annotated[str, Field(pattern=r"^conv[13579]x[13579](d[2-9])?$")]


class Part(BaseModel):
    """Immutable, and strict about names, so that a typing error in a file is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Provenance(Part):
    """Where a genotype comes from. method: `search`, `random` (a base line) or `hand`; data: name of the data set;
    photos: how many of it; epochs: of the whole search; mini_validation_*: of the derived detector, 0..1, on the
    photos kept for that; settings: the search's own, as JSON."""

    method: Literal["search", "random", "hand"]
    data: str = ""
    photos: int = 0
    seed: int = 0
    seeds_tried: tuple[int, ...] = ()
    epochs: float = 0.0
    mini_validation_ap50: float | None = None
    mini_validation_ap: float | None = None
    hardware: str = ""
    date: str = ""
    settings: dict[str, Any] = {}
    note: str = ""


class Candidate(Part):
    """An aggregated feature of an earlier step that a cell takes; alpha: its probability at the end of the search."""

    level: Level
    alpha: Annotated[float, Field(ge=0.0, le=1.0)]


class FusionCell(Part):
    """One step of AutoFA (Fig. 3, Eq. 2): level `level` meets the sum of its candidates, weighted by beta at the start.

    The first step of a path has no candidate.
    """

    level: Level
    candidates: tuple[Candidate, ...] = ()
    beta: tuple[FiniteFloat, FiniteFloat] = (1.0, 1.0)


class Node(Part):
    """Node of an AutoFE cell (Fig. 4): node `node` is `operation` of node `input`; the input of the cell is node 0."""

    node: Annotated[int, Field(ge=1)]
    input: Annotated[int, Field(ge=0)]
    operation: OperationName


class EnhancementCell(Part):
    """AutoFE of one level: its nodes in order, number 1 first. The output is the sum of those that feed no other."""

    level: Level
    nodes: Annotated[tuple[Node, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _numbered(self) -> EnhancementCell:
        for expected, node in enumerate(self.nodes, start=1):
            if node.node != expected:
                raise ValueError(f"P{self.level}: node {node.node} stands where node {expected} belongs")
            if node.input >= node.node:
                raise ValueError(f"P{self.level}: node {node.node} has node {node.input}, no earlier one, as its input")
        return self

    @property
    def leaves(self) -> tuple[int, ...]:
        """Nodes that are input to no other (Eq. 4)."""
        used = {node.input for node in self.nodes}
        return tuple(node.node for node in self.nodes if node.node not in used)


class AutoFAEGenotype(Part):
    """AutoFA and AutoFE (paper, section 4.1), or one of them.

    levels: pyramid levels, finest first; top_down, bottom_up: one cell a level in the order of their execution, both
    empty for AutoFE alone; enhancement: one cell a level, empty for AutoFA alone; position: of AutoFE, before the
    top-down path, between the paths, or after them (Table 6); modules: one entry a stacked module, whether its AutoFE
    is kept.
    """

    version: Literal[1] = 1
    kind: Literal["autofae"] = "autofae"
    levels: tuple[Level, ...]
    top_down: tuple[FusionCell, ...] = ()
    bottom_up: tuple[FusionCell, ...] = ()
    enhancement: tuple[EnhancementCell, ...] = ()
    position: Position = "middle"
    modules: Annotated[tuple[bool, ...], Field(min_length=1)] = (True,)
    provenance: Provenance

    @model_validator(mode="after")
    def _consistent(self) -> AutoFAEGenotype:
        if not self.levels or list(self.levels) != list(range(self.levels[0], self.levels[0] + len(self.levels))):
            raise ValueError(f"levels must follow one another, finest first, not {self.levels}")
        _check_path("top-down", self.top_down, tuple(reversed(self.levels)))
        _check_path("bottom-up", self.bottom_up, self.levels)
        if bool(self.top_down) != bool(self.bottom_up):
            raise ValueError("AutoFA has both paths or none")
        if self.enhancement and tuple(cell.level for cell in self.enhancement) != self.levels:
            raise ValueError("AutoFE has one cell a level, finest first, or none")
        if not self.top_down and not self.enhancement:
            raise ValueError("a genotype has AutoFA, AutoFE or both")
        return self

    def restrict(self, levels: Sequence[int]) -> AutoFAEGenotype:
        """The same on some of the levels, for another pyramid. A cell left without candidates takes the nearest level.

        Raises ValueError where a level is not among the genotype's, or they do not follow one another.
        """
        wanted = tuple(levels)
        if unknown := [level for level in wanted if level not in self.levels]:
            raise ValueError(f"the genotype has the levels {self.levels}, not {unknown[0]}")
        return self.model_copy(
            update={
                "levels": wanted,
                "top_down": _restrict(self.top_down, wanted),
                "bottom_up": _restrict(self.bottom_up, wanted),
                "enhancement": tuple(cell for cell in self.enhancement if cell.level in wanted),
            }
        ).revalidated()

    def revalidated(self) -> AutoFAEGenotype:
        """Itself, checked again. Raises ValueError."""
        return AutoFAEGenotype.model_validate(self.model_dump())


def _check_path(name: str, cells: Sequence[FusionCell], order: tuple[int, ...]) -> None:
    if not cells:
        return
    if tuple(cell.level for cell in cells) != order:
        raise ValueError(f"the {name} path must run through the levels {order}")
    for step, cell in enumerate(cells):
        earlier = order[:step]
        chosen = [candidate.level for candidate in cell.candidates]
        if len(set(chosen)) != len(chosen) or any(level not in earlier for level in chosen):
            raise ValueError(f"{name} path, P{cell.level}: candidates {chosen} are not different ones of {earlier}")
        if step and not chosen:
            raise ValueError(f"{name} path, P{cell.level}: only the first step has no candidate")


def _restrict(cells: Sequence[FusionCell], levels: tuple[int, ...]) -> tuple[FusionCell, ...]:
    kept: list[FusionCell] = []
    for cell in cells:
        if cell.level not in levels:
            continue
        candidates = tuple(c for c in cell.candidates if c.level in levels)
        if kept and not candidates:
            candidates = (Candidate(level=kept[-1].level, alpha=0.0),)
        kept.append(cell.model_copy(update={"candidates": candidates}))
    return tuple(kept)


class FusionEdge(Part):
    """`operation` of level `source`, resized to the level it goes to; operations are DARTS's primitives."""

    source: Level
    operation: str
    strength: float


class FusionGenotype(Part):
    """What a search of the fully-connected space found: the edges that each level keeps, those of `edges[i]` for
    `levels[i]`. method: the search's."""

    version: Literal[1] = 1
    kind: Literal["fusion"] = "fusion"
    method: Literal["darts", "pc-darts", "auto-fpn"]
    levels: tuple[Level, ...]
    edges: tuple[tuple[FusionEdge, ...], ...]
    provenance: Provenance

    @model_validator(mode="after")
    def _one_list_a_level(self) -> FusionGenotype:
        if len(self.edges) != len(self.levels) or not all(self.edges):
            raise ValueError("every level keeps at least one edge")
        if any(edge.source not in self.levels for edges in self.edges for edge in edges):
            raise ValueError("an edge comes from a level that the genotype does not have")
        return self


class CellEdge(Part):
    """`operation` of state `input`: 0 and 1 are the cell's two inputs, 2 its first node."""

    input: Annotated[int, Field(ge=0)]
    operation: str
    strength: float


class CellGenotype(Part):
    """A DARTS cell (two inputs, nodes of two edges each, the nodes concatenated), the same for every level."""

    version: Literal[1] = 1
    kind: Literal["cell"] = "cell"
    method: Literal["darts", "pc-darts"]
    levels: tuple[Level, ...]
    nodes: tuple[tuple[CellEdge, ...], ...]
    provenance: Provenance

    @model_validator(mode="after")
    def _acyclic(self) -> CellGenotype:
        if not self.nodes:
            raise ValueError("a cell has at least one node")
        for number, edges in enumerate(self.nodes, start=2):
            if not edges or any(edge.input >= number for edge in edges):
                raise ValueError(f"node {number} must have edges, all from earlier states")
        return self


AnyGenotype = AutoFAEGenotype | FusionGenotype | CellGenotype
_ADAPTER: TypeAdapter[AnyGenotype] = TypeAdapter(Annotated[AnyGenotype, Field(discriminator="kind")])
_Kind = TypeVar("_Kind", AutoFAEGenotype, FusionGenotype, CellGenotype)


def parse(text: str | bytes, where: str = "genotype") -> AnyGenotype:
    """Read a genotype from JSON. Raises ValueError that names `where` and the first fault."""
    try:
        return _ADAPTER.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ValueError(f"{where} is no genotype: {place}: {first['msg']}") from None


def load_genotype(path: Path) -> AnyGenotype:
    """Read a genotype file. Raises FileNotFoundError or ValueError that names it."""
    return parse(path.read_bytes(), str(path))


def save_genotype(path: Path, genotype: AnyGenotype) -> None:
    """Write a genotype, atomically, as indented JSON."""
    write_bytes(path, (genotype.model_dump_json(indent=1) + "\n").encode())


def default_genotype(name: str) -> AnyGenotype:
    """The project's own genotype of a searched neck. Raises ValueError where none was kept."""
    path = GENOTYPES / f"{name}.json"
    if not path.is_file():
        raise ValueError(f"{name} has no genotype of its own yet; name one, such as `python -m training search` writes")
    return load_genotype(path)


def genotype_of_kind(name: str, text: str, kind: type[_Kind]) -> _Kind:
    """What the neck `name` is built from: the genotype in `text`, JSON, or the project's own where it is empty.

    Raises ValueError where it is none, or of another kind.
    """
    genotype = parse(text) if text else default_genotype(name)
    if not isinstance(genotype, kind):
        wanted = kind.model_fields["kind"].default
        raise ValueError(f"{name} takes a genotype of kind {wanted!r}, not one of kind {genotype.kind!r}")
    return genotype


def describe(genotype: AnyGenotype) -> str:
    """A few lines for people."""
    lines = [f"{genotype.kind} genotype over P{genotype.levels[0]}..P{genotype.levels[-1]}"]
    if isinstance(genotype, AutoFAEGenotype):
        for name, cells in (("top-down", genotype.top_down), ("bottom-up", genotype.bottom_up)):
            for cell in cells:
                taken = " + ".join(f"P{c.level} ({c.alpha:.2f})" for c in cell.candidates) or "nothing"
                lines.append(f"  {name} P{cell.level}: {cell.beta[0]:.2f} x itself, {cell.beta[1]:.2f} x [{taken}]")
        for enhancement in genotype.enhancement:
            steps = ", ".join(f"{n.node} = {n.operation}({n.input})" for n in enhancement.nodes)
            lines.append(f"  AutoFE P{enhancement.level}: {steps}; out = sum of {enhancement.leaves}")
        if genotype.enhancement and genotype.top_down:
            lines.append(f"  AutoFE stands {genotype.position}")
    elif isinstance(genotype, FusionGenotype):
        for level, edges in zip(genotype.levels, genotype.edges, strict=True):
            lines.append(f"  P{level}: " + ", ".join(f"{e.operation}(P{e.source}) {e.strength:.2f}" for e in edges))
    else:
        for number, incoming in enumerate(genotype.nodes, start=2):
            taken = ", ".join(f"{e.operation}({e.input}) {e.strength:.2f}" for e in incoming)
            lines.append(f"  node {number}: {taken}")
    made = genotype.provenance
    lines.append(f"  {made.method}, seed {made.seed}, data {made.data or '-'}, mini-validation AP.50 "
                 f"{'-' if made.mini_validation_ap50 is None else f'{made.mini_validation_ap50:.4f}'}")  # fmt: skip
    return "\n".join(lines)
