"""The genetic search of section 4.3.2, with the conventions of SPOS (Guo et al., ECCV 2020), and its random base line.

It knows nothing of networks: paths come from a `PathSpace`, AP.50 and latency from two functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from random import Random
from typing import Any

from pydantic import BaseModel, ConfigDict
from tqdm import tqdm

from training.evolution.records import Evaluate, Known, Latency, Origin, Record
from training.supernet.path import PathSpace, SinglePath


@dataclass(frozen=True)
class EvolutionConfig:
    """Section 5.4: populations of 50, 50 iterations, which are counted after the first population here.

    top_k: candidates that breed, the fittest of all that the search has seen. mutations, crossovers: of a generation;
    what they leave of the population is drawn afresh. mutation_probability: of each gene. max_tries: draws for each
    candidate wanted, before its place stays empty; illegal and visited candidates are refused.
    latency_weight: AP.50 that a candidate loses at the whole budget. The paper's fitness takes latency in "directly"
    without a formula; ours is AP.50 - latency_weight * latency / budget, over candidates within the budget. At 0.01 a
    tenth of the budget weighs as much as 0.001 of AP.50, so that latency decides among equals.
    """

    population: int = 50
    iterations: int = 50
    top_k: int = 10
    mutations: int = 25
    crossovers: int = 25
    mutation_probability: float = 0.1
    max_tries: int = 20
    latency_weight: float = 0.01

    def __post_init__(self) -> None:
        if self.population < 1 or self.iterations < 0 or self.top_k < 1 or self.max_tries < 1:
            raise ValueError("a search needs a population, a candidate that breeds and a try, one at least")
        if min(self.mutations, self.crossovers) < 0 or self.mutations + self.crossovers > self.population:
            raise ValueError(
                f"{self.mutations} mutations and {self.crossovers} crossovers do not fit a population of "
                f"{self.population}"
            )
        if not 0 < self.mutation_probability <= 1:
            raise ValueError(f"a mutation has a probability above 0 and up to 1, not {self.mutation_probability}")
        if not 0 <= self.latency_weight < inf:
            raise ValueError(f"latency can only cost, so its weight is not {self.latency_weight}")


class SearchState(BaseModel):
    """Where a search stands after its last whole generation; plain JSON. generations: finished; generator: state of
    the random numbers; ended: why it is over, in words, empty while it is not."""

    model_config = ConfigDict(extra="forbid")

    generations: int = 0
    generator: tuple[int, tuple[int, ...], float | None] | None = None
    records: list[Record] = []
    ended: str = ""


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Problem:
    """What is searched. evaluate: AP.50 in 0..1 of several paths at once; latency: milliseconds of one, which must not
    exceed budget_ms; known: values shared with other searches.

    chunk: paths a call of `evaluate`, 0 for a whole generation. save: called after each such call, when `known` has
    grown, and after each generation, when the state has moved on too; at both times the state is one that a search
    resumes from. progress: whether a bar is shown.
    """

    space: PathSpace
    evaluate: Evaluate
    latency: Latency
    budget_ms: float
    known: Known = field(default_factory=Known)
    chunk: int = 0
    save: Callable[[], None] = _nothing
    progress: bool = False

    def __post_init__(self) -> None:
        if not self.budget_ms > 0:
            raise ValueError(f"a latency budget is above 0 ms, not {self.budget_ms:g}")


def fitness(record: Record, config: EvolutionConfig) -> float:
    """AP.50 less what the record's share of its budget costs. See `EvolutionConfig`."""
    return record.ap50 - config.latency_weight * record.latency_ms / record.budget_ms


def fittest(records: Sequence[Record], config: EvolutionConfig, count: int) -> list[Record]:
    """The `count` fittest, best first; of equal ones, the earlier."""
    return sorted(records, key=lambda record: -fitness(record, config))[:count]


def genetic_search(
    problem: Problem, config: EvolutionConfig, seed: int, state: SearchState | None = None
) -> SearchState:
    """Search to the end, going on from `state`, which is changed in place, and return it.

    The result depends on seed, configuration, budget and the two functions alone; `known` saves their calls and changes
    nothing. A search for which no candidate is left ends early and says so in `ended`.
    """
    run = _Run(problem, config, Random(f"genetic {seed}"), state)
    generations = config.iterations + 1
    run.go(generations * config.population, lambda: _bred(run), generations)
    return run.state


def random_search(
    problem: Problem, config: EvolutionConfig, seed: int, evaluations: int, state: SearchState | None = None
) -> SearchState:
    """The base line: `evaluations` different candidates, drawn as a first population is, under the same budget.

    It counts the candidates it takes, whether `known` has them or not, so that it is compared at equal cost.
    """
    run = _Run(problem, config, Random(f"random {seed}"), state)

    def drawn() -> list[tuple[SinglePath, Origin]]:
        left = min(config.population, evaluations - len(run.state.records))
        return run.take(left, "random", lambda: problem.space.draw(run.random))

    run.go(evaluations, drawn)
    return run.state


class _Run:
    """What both searches share: which candidates are refused, and what happens to a generation."""

    def __init__(self, problem: Problem, config: EvolutionConfig, random: Random, state: SearchState | None) -> None:
        self.problem, self.config, self.random = problem, config, random
        self.state = state or SearchState()
        if self.state.generator is not None:
            random.setstate(self.state.generator)
        self.visited = {record.path for record in self.state.records}
        self.bar: Any = None  # while `go` runs

    def take(self, count: int, origin: Origin, propose: Callable[[], SinglePath]) -> list[tuple[SinglePath, Origin]]:
        """Up to `count` proposals that are legal and new; fewer where `max_tries` draws each did not bring them."""
        taken: list[tuple[SinglePath, Origin]] = []
        for _ in range(count * self.config.max_tries):
            if len(taken) == count:
                break
            path = propose()
            if str(path) in self.visited or path not in self.problem.space:
                continue
            if self._latency(path) > self.problem.budget_ms:
                continue
            self.visited.add(str(path))
            taken.append((path, origin))
        return taken

    def _latency(self, path: SinglePath) -> float:
        problem, known = self.problem, self.problem.known
        new = str(path) not in known.latency
        if new:
            self.bar.set_description(f"{problem.budget_ms:g} ms: timing {path}")
        value = known.latency_of(path, problem.latency)
        if new:
            self.bar.set_description(f"{problem.budget_ms:g} ms")
        return value

    def go(
        self, evaluations: int, propose: Callable[[], list[tuple[SinglePath, Origin]]], generations: int | None = None
    ) -> None:
        """Generation after generation, until so many candidates are evaluated, so many generations are done where
        their number is limited, or there are no more candidates."""
        state, problem = self.state, self.problem
        with tqdm(
            total=evaluations, initial=len(state.records), unit="path", desc=f"{problem.budget_ms:g} ms",
            disable=not problem.progress,
        ) as self.bar:  # fmt: skip
            while not state.ended:
                self.bar.set_postfix(self._standing())
                candidates = propose()
                if candidates:
                    self._finish(candidates)
                else:
                    state.ended = self._why()
                if not state.ended and (state.generations == generations or len(state.records) >= evaluations):
                    state.ended = f"done: {len(state.records)} candidates in {state.generations} generations"
                state.generator = _generator(self.random)
                problem.save()

    def _finish(self, candidates: Sequence[tuple[SinglePath, Origin]]) -> None:
        problem, state = self.problem, self.state
        paths = [path for path, _ in candidates]
        step = problem.chunk or len(paths)
        for start in range(0, len(paths), step):
            part = paths[start : start + step]
            problem.known.evaluate(part, problem.evaluate)
            problem.save()
            self.bar.update(len(part))
        known = problem.known
        state.records += [
            Record(
                path=str(path), latency_ms=known.latency[str(path)], ap50=known.ap50[str(path)],
                generation=state.generations, budget_ms=problem.budget_ms, origin=origin,
            )
            for path, origin in candidates
        ]  # fmt: skip
        state.generations += 1

    def _standing(self) -> dict[str, str]:
        best = fittest(self.state.records, self.config, 1)
        return {"generation": str(self.state.generations)} | {r.path: f"{r.ap50:.4f}" for r in best}

    def _why(self) -> str:
        """Why there is no further candidate. No path is asked for its latency here: that may take long."""
        space, known, budget = self.problem.space, self.problem.known, self.problem.budget_ms
        over = {name for name, value in known.latency.items() if value > budget}
        unknown = sum(str(path) not in self.visited and str(path) not in over for path in space)
        found = f"{len(self.visited)} of {len(space)} paths are within {budget:g} ms and evaluated"
        if not self.visited:
            fastest = f"; the fastest seen takes {min(known.latency.values()):.3g} ms" if known.latency else ""
            found = f"no path within {budget:g} ms was found{fastest}"
        if not unknown:
            return f"the space is exhausted: {found}"
        return f"no new candidate in {self.config.max_tries} draws for each: {found}, {unknown} were never drawn"


def _bred(run: _Run) -> list[tuple[SinglePath, Origin]]:
    """The first population, or the next one from the fittest."""
    space, config, random = run.problem.space, run.config, run.random
    if not run.state.generations:
        return run.take(config.population, "initial", lambda: space.draw(random))
    parents = [record.single() for record in fittest(run.state.records, config, config.top_k)]

    def crossed() -> SinglePath:
        first, second = random.sample(parents, 2)
        return space.cross(first, second, random)

    taken = run.take(
        config.mutations, "mutation",
        lambda: space.mutate(random.choice(parents), random, config.mutation_probability),
    )  # fmt: skip
    if len(parents) > 1:
        taken += run.take(config.crossovers, "crossover", crossed)
    return taken + run.take(config.population - len(taken), "fresh", lambda: space.draw(random))


def _generator(random: Random) -> tuple[int, tuple[int, ...], float | None]:
    version, internal, gauss = random.getstate()
    return version, tuple(internal), gauss
