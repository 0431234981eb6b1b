"""The genotypes that searched rows need: kept ones, or a search of their own; and random ones for base lines."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from training.data.dataset import CropDataset, DataConfig, load_training_set
from training.engine.distributed import World
from training.models.genotype import AnyGenotype, AutoFAEGenotype, Position, Provenance, load_genotype
from training.search.config import BUDGETS
from training.search.loop import Search, SearchOptions
from training.search.spaces import random_genotype_of
from training.tables.rows import Wanted


@dataclass(frozen=True)
class Searches:
    """Where genotypes come from. kept: a folder of files named after their space (`autofae.json`, and
    `autofae-before.json` for another position), searched where it lacks one; out: folder of these searches;
    budget, seeds: what each gets; data, split, cache: photos; start: a trained backbone."""

    kept: Path | None
    out: Path
    budget: str
    seeds: tuple[int, ...]
    data: Path
    split: str
    cache: Path
    hardware: str
    start: Path | None

    def get(self, wanted: Wanted, seed: int, world: World) -> AnyGenotype:
        """The genotype of a row. seed: of a random one; a search is shared by all runs of its row.

        Raises ValueError where a kept file is of another kind or position.
        """
        if wanted.random:
            return random_genotype_of(wanted.spaces[0], BUDGETS[self.budget]().options, seed)
        if len(wanted.spaces) == 2:
            first, second = (self._one(space, "middle", world) for space in wanted.spaces)
            return cascade(first, second, wanted.position)
        return self._one(wanted.spaces[0], wanted.position, world)

    def _one(self, space: str, position: Position, world: World) -> AnyGenotype:
        name = space if position == "middle" else f"{space}-{position}"
        file = self.kept / f"{name}.json" if self.kept else None
        if file is not None and file.is_file():
            kept = load_genotype(file)
            if isinstance(kept, AutoFAEGenotype) and space == "autofae" and kept.position != position:
                raise ValueError(f"{file} has AutoFE {kept.position}, not {position}")
            return kept
        found = [self._search(name, space, position, seed, world) for seed in self.seeds]
        return max(found, key=lambda genotype: genotype.provenance.mini_validation_ap50 or 0.0)

    def _search(self, name: str, space: str, position: Position, seed: int, world: World) -> AnyGenotype:
        config = BUDGETS[self.budget]()
        options = replace(config.options, position=position)
        config = replace(config, space=space, options=options, train=replace(config.train, seed=seed))
        if world.main:
            tqdm.write(f"searching {name}, seed {seed}")
        where = SearchOptions(self.out / name / f"seed-{seed}", self.data.name, self.hardware, self.start)
        return Search(config, self._photos(config.train.data), where, world).run()

    def _photos(self, config: DataConfig) -> CropDataset:
        return load_training_set(self.data, self.split, self.cache, config)


def cascade(first: AnyGenotype, second: AnyGenotype, position: Position) -> AutoFAEGenotype:
    """AutoFA of the one and AutoFE of the other in one module (Table 5). Raises ValueError on other kinds."""
    if not isinstance(first, AutoFAEGenotype) or not isinstance(second, AutoFAEGenotype):
        raise ValueError("only genotypes of AutoFA and AutoFE can be put one behind the other")
    return AutoFAEGenotype(
        levels=first.levels, top_down=first.top_down, bottom_up=first.bottom_up, enhancement=second.enhancement,
        position=position,
        provenance=Provenance(method=first.provenance.method, note="AutoFA and AutoFE searched apart",
                              data=first.provenance.data, hardware=first.provenance.hardware),
    )  # fmt: skip
