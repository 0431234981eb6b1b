"""A whole run of `evolve`: for each budget the genetic search and the random one, then the family."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

from training.data.dataset import load_training_set
from training.engine.distributed import World
from training.engine.loop import some_crops
from training.evolution.additive import AdditiveTable, error_report, measure
from training.evolution.fitness import SliceFitness
from training.evolution.genetic import EvolutionConfig, Problem, genetic_search, random_search
from training.evolution.latency import Clock, LatencyCache, MeasuredLatency, Setup, hardware_of
from training.evolution.ranks import from_main, shared_latency
from training.evolution.records import Latency, Record
from training.evolution.report import Reference, choose_members, draw, numbers, write_tables
from training.evolution.store import Content, Store
from training.family import MEMBERS, Family, FoundMember
from training.figures.drawing import save
from training.files import write_bytes, write_json
from training.supernet.calibration import recalibrate
from training.supernet.checkpoint import load_supernet, supernet_config
from training.supernet.loop import divide, held_out_photos
from training.supernet.path import SinglePath

STATE, FAMILY, TABLE = "state.json", "family.json", "additive.json"
MODES = ("measured", "additive")
_CHECKED = 5  # paths measured whole, besides members, to see how far off a table of parts is


@dataclass(frozen=True)
class RunOptions:
    """supernet: checkpoint; data, split: of its training; budgets: ms, ascending; additive: latency from a table of
    parts; latencies: file of measured ones; long_side, photos: of the mini-validation, 0 for the supernet's own;
    cache: of decoded pictures."""

    supernet: Path
    data: Path
    out: Path
    budgets: tuple[float, ...]
    seed: int
    additive: bool
    latencies: Path
    long_side: int
    photos: int
    split: str
    cache: Path


class Run:
    """One run. Every process does the same searches; the main one measures latency and writes; all evaluate."""

    def __init__(
        self, config: EvolutionConfig, setup: Setup, options: RunOptions, world: World, say: Callable[[str], None]
    ) -> None:
        """Raises OSError and ValueError where supernet, photos or a former state are not what they should be."""
        self.config, self.options, self.world, self.say = config, options, world, say
        supernet, content = load_supernet(options.supernet)
        trained = supernet_config(content)
        self.space = supernet.space
        self.setup = replace(setup, genotype=trained.genotype)
        self.clock = Clock(self.setup, LatencyCache(options.latencies))
        data = load_training_set(options.data, options.split, options.cache, trained.train.data)
        kept = held_out_photos(data, trained, options.photos)
        long_side = options.long_side or trained.long_side
        crops = list(some_crops(trained.train, divide(data, trained)[0], world.device))
        self.evaluate = SliceFitness(
            supernet.to(world.device), [(data.photos[k], data.cache[k]) for k in kept], crops, long_side, world,
            recalibrate, trained.train.precision,
        )  # fmt: skip
        with options.supernet.open("rb") as file:
            self.digest = hashlib.file_digest(file, "sha256").hexdigest()
        names = "\n".join(data.photos[k].name for k in kept)
        photos = f"{len(kept)}, sha256 {hashlib.sha256(names.encode()).hexdigest()[:12]}"
        settings = {
            "evolution": asdict(config), "seed": options.seed, "supernet": self.digest, "data": options.data.name,
            "split": options.split, "photos": photos, "long side": long_side,
            "latency": MODES[options.additive], "machine": self.setup.describe(),
        }  # fmt: skip
        self.store = self._open(json.loads(json.dumps(settings)))
        say(
            f"{len(self.space)} paths, {len(kept)} photos at {long_side}, {len(self.store.known.ap50)} paths evaluated "
            f"before; {self.setup.describe()}"
        )

    def _open(self, settings: dict[str, Any]) -> Store:
        """Every process goes on from what the main one has read."""
        opened: Store | None = None

        def read() -> str:
            nonlocal opened
            opened = Store.open(self.options.out / STATE, settings)
            return opened.content.model_dump_json()

        text = from_main(self.world, read)
        return opened or Store(Content.model_validate_json(text))

    def go(self) -> Family:
        """Search all budgets, and write what was found."""
        latency, table = self._latency()
        for budget in self.options.budgets:
            self._search(budget, latency)
        measured: dict[SinglePath, float] = {}
        whole = shared_latency(self.world, MeasuredLatency(self.clock))

        def confirm(path: SinglePath) -> float:
            if path not in measured:
                measured[path] = whole(path)
            return measured[path]

        genetic = self.store.history("genetic")
        members, notes = choose_members(
            genetic, self.options.budgets, self.config, confirm if table is not None else None
        )  # fmt: skip
        printed = self._printed(latency)
        if table is not None:
            chance = Random(self.options.seed)
            drawn = [self.space.draw(chance) for _ in range(_CHECKED)]
            for path in [*(SinglePath.parse(one.path) for one in printed), *drawn]:
                confirm(path)
        family = self._family(members)
        if self.world.main:
            self._write(family, printed, genetic)
            if table is not None:
                self._write_table(table, measured)
        for note in notes:
            self.say(note)
        for member in family.members:
            self.say(f"{member.name}: {member.path}, {member.latency_ms:.3g} ms, AP.50 {member.ap50:.4f}")
        return family

    def _latency(self) -> tuple[Latency, AdditiveTable | None]:
        if not self.options.additive:
            return shared_latency(self.world, MeasuredLatency(self.clock)), None
        table = AdditiveTable(from_main(self.world, lambda: dict(measure(self.space, self.clock, True).parts)))
        return table.predict, table

    def _search(self, budget: float, latency: Latency) -> None:
        store, config, options = self.store, self.config, self.options
        several = self.world.size > 1
        problem = Problem(
            self.space, self.evaluate, latency, budget, store.known, chunk=4 * self.world.size if several else 1,
            save=store.save, progress=self.world.main,
        )  # fmt: skip
        found = genetic_search(problem, config, options.seed, store.state("genetic", budget))
        other = random_search(problem, config, options.seed, len(found.records), store.state("random", budget))
        for name, state in (("genetic", found), ("random", other)):
            best = max((record.ap50 for record in state.records), default=None)
            value = "" if best is None else f"; best AP.50 {best:.4f}"
            self.say(f"{budget:g} ms, {name}: {state.ended}{value}")

    def _printed(self, latency: Latency) -> list[Reference]:
        """Table 7's members, where the space has them, as the searches would see them."""
        inside = {name: path for name, path in MEMBERS.items() if path in self.space}
        known = self.store.known
        known.evaluate(list(inside.values()), self.evaluate)
        listed = [
            Reference(name, str(path), known.latency_of(path, latency), known.ap50[str(path)])
            for name, path in inside.items()
        ]
        self.store.save()
        return listed

    def _family(self, members: list[FoundMember]) -> Family:
        threads = f"{self.setup.threads or 'all'} threads"
        source = self.options.supernet
        return Family(
            target=self.setup.target, hardware=f"{hardware_of(self.setup.target)}, {threads}", size=self.setup.size,
            supernet=f"{source.parent.name}/{source.name} (sha256 {self.digest[:12]})", seed=self.options.seed,
            members=tuple(members),
        )  # fmt: skip

    def _write(self, family: Family, printed: list[Reference], genetic: list[Record]) -> None:
        out, random = self.options.out, self.store.history("random")
        write_bytes(out / FAMILY, (family.model_dump_json(indent=2) + "\n").encode())
        write_tables(out, genetic, self.store.history(), self.setup.genotype)
        if find_spec("matplotlib") is None:
            self.say("no front.png: figures need matplotlib, which comes with the `bench` extra")
        elif genetic:
            figure = draw(genetic, random, family.members, printed, self.options.budgets, self.setup.target)
            save(figure, numbers(genetic, random, family.members, printed), out / "front.png")

    def _write_table(self, table: AdditiveTable, measured: dict[SinglePath, float]) -> None:
        report = error_report(table, measured) if measured else None
        write_json(
            self.options.out / TABLE,
            {"parts": dict(table.parts), "error": asdict(report) if report else None,
             "measured": {str(path): value for path, value in measured.items()}},
        )  # fmt: skip
        if report:
            self.say(f"the table of parts is {report}")
