"""The paper's search space: AutoFA, AutoFE, or both at once (sections 4.1.1 and 4.1.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from training.models.genotype import (
    AutoFAEGenotype,
    Candidate,
    EnhancementCell,
    FusionCell,
    Node,
    Position,
    Provenance,
)
from training.models.necks.autofae import POST_KERNEL, PRE_KERNEL, AutoFAE, AutoFAEModule, Enhancement, Fusion
from training.models.necks.base import LEVELS, ConvNorm, Laterals, resize_like
from training.models.operations import OPERATIONS, ConvOperation
from training.search.base import SearchableNeck, initial
from training.search.relaxation import (
    AlphaRule,
    GumbelFormula,
    fuse,
    gumbel_noise,
    keep_candidates,
    leaves,
    mix,
    mixed_operation,
    straight_through,
)

Evaluate = Literal["all", "sampled"]
TOP_DOWN, BOTTOM_UP = "top_down", "bottom_up"


@dataclass(frozen=True)
class SpaceConfig:
    """part: AutoFA, AutoFE, or both. nodes: of an AutoFE cell, its input counted (Fig. 4 has four).

    operations: candidates of an edge; position: of AutoFE (Table 6); alpha_rule, alpha_threshold: of Eq. 2, see
    `relaxation.keep_candidates`; gumbel: where the temperature stands in Eq. 6, see `relaxation.straight_through`;
    evaluate: `all` edges of a node, as Eq. 5 is written, or the `sampled` one alone, which costs half and leaves the
    other edges' part of kappa's gradient out.
    """

    part: Literal["autofa", "autofe", "autofae"] = "autofae"
    levels: tuple[int, ...] = LEVELS
    nodes: int = 4
    operations: tuple[str, ...] = OPERATIONS
    position: Position = "middle"
    alpha_rule: AlphaRule = "relative"
    alpha_threshold: float = 0.5
    gumbel: GumbelFormula = "sum"
    evaluate: Evaluate = "all"


class FusionSearch(nn.Module):
    """A step of AutoFA before it is discrete: Eq. 1, with the softmax of alpha over all earlier steps."""

    def __init__(self, channels: int, earlier: Sequence[int]) -> None:
        super().__init__()
        self.earlier = tuple(earlier)
        if self.earlier:
            self.pre = ConvNorm(channels, channels, PRE_KERNEL)
        self.post = ConvNorm(channels, channels, POST_KERNEL)

    def forward(self, feature: Tensor, pool: Mapping[int, Tensor], alpha: Tensor | None, beta: Tensor | None) -> Tensor:
        """alpha: logits [len(earlier)], beta: [2]; both None for the first step of a path."""
        if alpha is None or beta is None:
            first: Tensor = self.post(feature)
            return first
        mixed = mix([resize_like(pool[level], feature) for level in self.earlier], alpha.softmax(dim=0))
        return fuse(feature, mixed, beta, self.pre, self.post)


class EnhancementSearch(nn.Module):
    """An AutoFE cell before it is discrete: every operation on every edge (Eq. 3 to 5)."""

    def __init__(self, channels: int, nodes: int, operations: Sequence[str]) -> None:
        super().__init__()
        self.count = nodes
        self.edges = nn.ModuleDict(
            {
                f"{j}_{i}": nn.ModuleList(ConvOperation(channels, name) for name in operations)
                for i in range(1, nodes)
                for j in range(i)
            }
        )

    def forward(self, x: Tensor, chosen: Sequence[Tensor], gamma: Mapping[str, Tensor], sampled_only: bool) -> Tensor:
        """chosen[i - 1]: h of node i, [i], one-hot; gamma: logits of each edge by `j_i`."""
        features, inputs = [x], []
        for node, choice in enumerate(chosen, start=1):
            taken = int(choice.argmax())
            inputs.append(taken)
            total: Tensor | None = None
            for j in [taken] if sampled_only else range(node):
                edge = f"{j}_{node}"
                operations = self.edges[edge]
                assert isinstance(operations, nn.ModuleList)
                term = choice[j] * mixed_operation(features[j], list(operations), gamma[edge].softmax(dim=0))
                total = term if total is None else total + term
            assert total is not None
            features.append(total)
        ends = leaves(inputs)
        out = features[ends[0]]
        for leaf in ends[1:]:
            out = out + features[leaf]
        return out


class AutoFAESearch(SearchableNeck):
    """All of the space at once: forward is the weighted mixture, arg-max edges being sampled by the Gumbel trick."""

    def __init__(self, in_channels: Sequence[int], channels: int, config: SpaceConfig) -> None:
        super().__init__()
        if config.nodes < 2:
            raise ValueError(f"an AutoFE cell has its input and at least one more node, not {config.nodes} in all")
        if len(in_channels) != len(config.levels):
            raise ValueError(f"{len(in_channels)} maps for the levels {config.levels}")
        self.config, self.channels = config, channels
        self.in_channels = tuple(in_channels)
        self.lateral = Laterals(in_channels, channels)
        self.paths = nn.ModuleDict()
        self.enhancement = nn.ModuleDict()
        if config.part != "autofe":
            self._add_path(TOP_DOWN, tuple(reversed(config.levels)))
            self._add_path(BOTTOM_UP, config.levels)
        if config.part != "autofa":
            for level in config.levels:
                self._add_enhancement(level)
        self._noise: dict[str, Tensor] = {}
        self._temperature = 1.0

    def _add_path(self, path: str, order: Sequence[int]) -> None:
        cells = nn.ModuleDict()
        for step, level in enumerate(order):
            cells[f"P{level}"] = FusionSearch(self.channels, order[:step])
            if step:
                self.arch[f"alpha_{path}_P{level}"] = initial(step)
                self.arch[f"beta_{path}_P{level}"] = nn.Parameter(torch.ones(2))
        self.paths[path] = cells

    def _add_enhancement(self, level: int) -> None:
        config = self.config
        self.enhancement[f"P{level}"] = EnhancementSearch(self.channels, config.nodes, config.operations)
        for node in range(1, config.nodes):
            self.arch[f"kappa_P{level}_{node}"] = initial(node)
            for j in range(node):
                self.arch[f"gamma_P{level}_{j}_{node}"] = initial(len(config.operations))

    def sample(self, temperature: float, generator: torch.Generator) -> None:
        """Draw the Gumbel noise of every node, in a fixed order, so that one seed means one architecture."""
        self._temperature = temperature
        self._noise = {n: gumbel_noise(len(p), generator) for n, p in self.arch.items() if n.startswith("kappa_")}

    def _choice(self, name: str) -> Tensor:
        """h of Eq. 5 in training mode, the arg max of Eq. 3 in eval mode."""
        kappa: Tensor = self.arch[name]
        noise = self._noise.get(name) if self.training else None
        noise = torch.zeros_like(kappa) if noise is None else noise.to(kappa.device)
        return straight_through(kappa, noise, self._temperature, self.config.gumbel)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        maps = dict(zip(self.config.levels, self.lateral(features), strict=True))
        for stage in self._order():
            maps = self._enhance(maps) if stage == "enhance" else self._run_path(stage, maps)
        return [maps[level] for level in self.config.levels]

    def _order(self) -> tuple[str, ...]:
        if self.config.part == "autofe":
            return ("enhance",)
        if self.config.part == "autofa":
            return (TOP_DOWN, BOTTOM_UP)
        at = {"before": 0, "middle": 1, "after": 2}[self.config.position]
        order = [TOP_DOWN, BOTTOM_UP]
        order.insert(at, "enhance")
        return tuple(order)

    def _run_path(self, path: str, maps: Mapping[int, Tensor]) -> dict[int, Tensor]:
        pool: dict[int, Tensor] = {}
        cells = self.paths[path]
        assert isinstance(cells, nn.ModuleDict)
        for name, cell in cells.items():
            level = int(name[1:])
            alpha, beta = (self._get(f"{kind}_{path}_{name}") for kind in ("alpha", "beta"))
            pool[level] = cell(maps[level], pool, alpha, beta)
        return pool

    def _get(self, name: str) -> Tensor | None:
        found: Tensor | None = self.arch.get(name, None)
        return found

    def _enhance(self, maps: Mapping[int, Tensor]) -> dict[int, Tensor]:
        out = {}
        for level, x in maps.items():
            cell = self.enhancement[f"P{level}"]
            assert isinstance(cell, EnhancementSearch)
            chosen = [self._choice(f"kappa_P{level}_{node}") for node in range(1, self.config.nodes)]
            gamma = {edge: self.arch[f"gamma_P{level}_{edge}"] for edge in cell.edges}
            out[level] = cell(x, chosen, gamma, not self.training or self.config.evaluate == "sampled")
        return out

    def probabilities(self) -> Mapping[str, Tensor]:
        """Softmax of alpha, kappa and gamma; beta as it is."""
        return {
            name: (value if name.startswith("beta_") else value.softmax(dim=0)).detach().cpu()
            for name, value in self.arch.items()
        }

    def genotype(self, provenance: Provenance) -> AutoFAEGenotype:
        """Eq. 2 for AutoFA, the largest kappa and gamma for AutoFE."""
        values = {name: p.tolist() for name, p in self.probabilities().items()}
        config = self.config
        return AutoFAEGenotype(
            levels=config.levels,
            top_down=self._cells(TOP_DOWN, values),
            bottom_up=self._cells(BOTTOM_UP, values),
            enhancement=tuple(self._cell(level, values) for level in config.levels) if len(self.enhancement) else (),
            position=config.position,
            provenance=provenance,
        )

    def _cells(self, path: str, values: Mapping[str, list[float]]) -> tuple[FusionCell, ...]:
        if path not in self.paths:
            return ()
        made = []
        cells = self.paths[path]
        assert isinstance(cells, nn.ModuleDict)
        for name, cell in cells.items():
            assert isinstance(cell, FusionSearch)
            level = int(name[1:])
            if not cell.earlier:
                made.append(FusionCell(level=level))
                continue
            alpha, beta = values[f"alpha_{path}_{name}"], values[f"beta_{path}_{name}"]
            kept = keep_candidates(alpha, self.config.alpha_rule, self.config.alpha_threshold)
            taken = tuple(Candidate(level=cell.earlier[j], alpha=min(alpha[j], 1.0)) for j in kept)
            made.append(FusionCell(level=level, candidates=taken, beta=(beta[0], beta[1])))
        return tuple(made)

    def _cell(self, level: int, values: Mapping[str, list[float]]) -> EnhancementCell:
        nodes = []
        for node in range(1, self.config.nodes):
            source = _arg_max(values[f"kappa_P{level}_{node}"])
            operation = self.config.operations[_arg_max(values[f"gamma_P{level}_{source}_{node}"])]
            nodes.append(Node(node=node, input=source, operation=operation))
        return EnhancementCell(level=level, nodes=tuple(nodes))

    @torch.no_grad()
    def derive(self) -> AutoFAE:
        """The discrete neck with the weights of the operations that it keeps."""
        genotype = self.genotype(Provenance(method="search"))
        neck = AutoFAE(self.in_channels, self.channels, genotype).to(next(self.parameters()).device)
        neck.lateral.load_state_dict(self.lateral.state_dict())
        module = neck.stacked[0]
        assert isinstance(module, AutoFAEModule)
        for path, made in ((TOP_DOWN, module.top_down), (BOTTOM_UP, module.bottom_up)):
            if made is None:
                continue
            cells = self.paths[path]
            assert isinstance(cells, nn.ModuleDict)
            for name, step in cells.items():
                fusion = made.cells[name]
                assert isinstance(fusion, Fusion)
                assert isinstance(step, FusionSearch)
                fusion.post.load_state_dict(step.post.state_dict())
                if fusion.candidates:
                    fusion.pre.load_state_dict(step.pre.state_dict())
        for cell in genotype.enhancement:
            discrete, search = module.enhancement[f"P{cell.level}"], self.enhancement[f"P{cell.level}"]
            assert isinstance(discrete, Enhancement)
            assert isinstance(search, EnhancementSearch)
            for node, operation in zip(cell.nodes, discrete.nodes, strict=True):
                edge = search.edges[f"{node.input}_{node.node}"]
                assert isinstance(edge, nn.ModuleList)
                operation.load_state_dict(edge[self.config.operations.index(node.operation)].state_dict())
        return neck


def random_genotype(config: SpaceConfig, seed: int) -> AutoFAEGenotype:
    """An architecture of the same space drawn at random: the base line that a search must beat.

    Its parameters are drawn from a normal distribution of deviation 1.5 and made discrete as a search's are. It is
    sparser than what short searches find: 14 of 30 candidates on average, where the shipped `autofa` has 26.
    """
    generator = torch.Generator().manual_seed(seed)
    neck = AutoFAESearch([1] * len(config.levels), 1, config)
    with torch.no_grad():
        for name, value in neck.arch.items():
            if not name.startswith("beta_"):
                value.copy_(1.5 * torch.randn(value.shape, generator=generator))
    return neck.genotype(Provenance(method="random", seed=seed))


def _arg_max(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda k: values[k])
