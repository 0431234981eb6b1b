"""The genetic search on spaces whose best path is known, its state, its front, and the family that is made of it."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from tests.training.conftest import FACE
from training.data.wider import PhotoAnnotation
from training.engine.distributed import World
from training.evolution.command import milliseconds, numbers_of_size
from training.evolution.fitness import SliceFitness
from training.evolution.genetic import (
    EvolutionConfig,
    Problem,
    SearchState,
    fitness,
    fittest,
    genetic_search,
    random_search,
)
from training.evolution.ranks import divided
from training.evolution.records import Known, Record, front
from training.evolution.report import Reference, choose_members, draw, front_csv, history_csv, parameters_of
from training.evolution.store import Store
from training.models.detector import Detector, build_detector
from training.supernet.path import PathSpace, SinglePath

SPACE = PathSpace()  # the paper's: 896 paths
TINY = PathSpace(("resnet18",), 1, 2, (8, 16))  # 8 paths
SMALL = EvolutionConfig(population=12, iterations=6, top_k=4, mutations=6, crossovers=6)
DEPTHS = {"resnet18": 0, "resnet34": 1, "resnet50": 2, "resnet101": 3}


def cost(path: SinglePath) -> float:
    """Milliseconds, 11 for the smallest path of the paper's space and 76 for the largest."""
    return 10.0 + 10 * DEPTHS[path.backbone] + 4 * len(path.modules) + 5 * path.head_convs + path.channels / 16 - 12


def worth(path: SinglePath) -> float:
    """Each gene is worth something on its own, up to 1 for the largest path of all spaces here."""
    parts = (DEPTHS[path.backbone] / 3, sum(path.modules) / 4, (path.head_convs - 1) / 7, path.channels / 512)
    return sum(parts) / 4


class Judge:
    """Counts what it is asked."""

    def __init__(self, fail_at: int = -1) -> None:
        self.evaluated: list[str] = []
        self.timed: list[str] = []
        self.calls: list[int] = []
        self.fail_at = fail_at

    def evaluate(self, paths: Sequence[SinglePath]) -> list[float]:
        if len(self.calls) == self.fail_at:
            raise KeyboardInterrupt
        self.calls.append(len(paths))
        self.evaluated += [str(path) for path in paths]
        return [worth(path) for path in paths]

    def latency(self, path: SinglePath) -> float:
        self.timed.append(str(path))
        return cost(path)

    def problem(self, budget: float, space: PathSpace = SPACE) -> Problem:
        return Problem(space, self.evaluate, self.latency, budget)


def record(latency: float, ap50: float, path: str = "R18-FA-Hx1-64", budget: float = 100.0) -> Record:
    return Record(path=path, latency_ms=latency, ap50=ap50, generation=0, budget_ms=budget, origin="initial")


@pytest.mark.parametrize("budget", [55.0, 65.0])
def test_it_finds_the_best_path_of_the_papers_space(budget: float) -> None:
    config = EvolutionConfig(20, 20, mutations=10, crossovers=10, latency_weight=0.0)
    best = max(worth(path) for path in SPACE if cost(path) <= budget)
    by_chance = 0
    for seed in range(5):  # with 420 of the 668 and 826 legal paths
        found = genetic_search(Judge().problem(budget), config, seed).records
        assert len(found) == 420
        assert max(r.ap50 for r in found) == pytest.approx(best)
        drawn = random_search(Judge().problem(budget), config, seed, 420).records
        by_chance += max(r.ap50 for r in drawn) > best - 1e-9
    assert by_chance < 5


@pytest.mark.parametrize("budget", [40.0, 50.0, 60.0, 70.0, 80.0])
def test_it_comes_closer_than_as_many_random_draws(budget: float) -> None:
    large = PathSpace(max_modules=4, max_head_convs=8, channels=tuple(range(32, 513, 32)))  # 15,360 paths
    config = dataclasses.replace(SMALL, iterations=12, latency_weight=0.0)
    best = max(worth(path) for path in large if cost(path) <= budget)
    missed, missed_by_chance = [], []
    for seed in range(10):
        found = genetic_search(Judge().problem(budget, large), config, seed)
        drawn = random_search(Judge().problem(budget, large), config, seed, len(found.records))
        assert len(found.records) == len(drawn.records) == 13 * 12
        missed.append(best - max(r.ap50 for r in found.records))
        missed_by_chance.append(best - max(r.ap50 for r in drawn.records))
    assert min(missed) >= 0
    assert sum(missed) < 0.7 * sum(missed_by_chance)


def test_candidates_are_legal_new_and_bred_as_configured() -> None:
    judge = Judge()
    state = genetic_search(judge.problem(40.0), SMALL, 0)
    assert state.generations == 7
    assert all(r.latency_ms == cost(r.single()) <= 40 and r.ap50 == worth(r.single()) for r in state.records)
    assert len({r.path for r in state.records}) == len(state.records)
    assert len(judge.evaluated) == len(set(judge.evaluated)) == len(state.records)
    assert len(judge.timed) == len(set(judge.timed))
    assert {r.origin for r in state.records if r.generation == 0} == {"initial"}
    for generation in range(1, 7):
        children = [r.origin for r in state.records if r.generation == generation]
        assert 0 < children.count("mutation") <= 6
        assert children.count("crossover") <= 6
        assert len(children) <= 12
    # A crossover takes every gene from one of the fittest of all earlier generations.
    for child in (r for r in state.records if r.origin == "crossover"):
        before = [r for r in state.records if r.generation < child.generation]
        parents = [r.single() for r in fittest(before, SMALL, SMALL.top_k)]
        for gene in ("backbone", "modules", "head_convs", "channels"):
            assert getattr(child.single(), gene) in {getattr(parent, gene) for parent in parents}


def test_latency_decides_among_equals() -> None:
    quick, slow, better = record(20.0, 0.5), record(60.0, 0.5), record(60.0, 0.505)
    config = EvolutionConfig(latency_weight=0.01)
    assert fitness(quick, config) == pytest.approx(0.498)
    assert fitness(slow, config) == pytest.approx(0.494)
    assert fittest([slow, quick, better], config, 2) == [better, quick]
    assert fittest([slow, quick, better], EvolutionConfig(latency_weight=0.1), 1) == [quick]
    assert fittest([slow, quick], EvolutionConfig(latency_weight=0.0), 1) == [slow]  # the earlier


def test_a_small_space_is_exhausted_and_says_so() -> None:
    judge = Judge()
    state = genetic_search(judge.problem(1000.0, TINY), SMALL, 0)
    assert sorted(judge.evaluated) == sorted(map(str, TINY))
    assert state.generations < 7
    assert state.ended == "the space is exhausted: 8 of 8 paths are within 1000 ms and evaluated"
    drawn = random_search(judge.problem(1000.0, TINY), SMALL, 0, 20)
    assert len(drawn.records) == 8
    assert drawn.ended.startswith("the space is exhausted")


def test_refusal_is_bounded_where_nothing_is_legal() -> None:
    judge = Judge()
    state = genetic_search(judge.problem(0.5), dataclasses.replace(SMALL, max_tries=3), 0)
    assert state.records == []
    assert judge.evaluated == []
    assert len(judge.timed) <= 12 * 3
    assert "no path within 0.5 ms was found; the fastest seen takes" in state.ended
    assert f"{len(SPACE) - len(judge.timed)} were never drawn" in state.ended


def test_known_values_save_calls_and_change_nothing() -> None:
    alone = genetic_search(Judge().problem(45.0), SMALL, 5)
    judge, known = Judge(), Known()
    for budget in (30.0, 45.0):
        state = genetic_search(dataclasses.replace(judge.problem(budget), known=known), SMALL, 5)
    assert state == alone
    assert len(judge.evaluated) == len(set(judge.evaluated)) < 2 * len(alone.records)
    before = len(judge.evaluated)
    drawn = random_search(dataclasses.replace(judge.problem(45.0), known=known), SMALL, 5, 30)
    assert len(drawn.records) == 30  # known or not
    assert len(judge.evaluated) - before == len({r.path for r in drawn.records} - set(judge.evaluated[:before]))
    assert drawn == random_search(Judge().problem(45.0), SMALL, 5, 30)
    assert genetic_search(Judge().problem(45.0), SMALL, 6).records != alone.records


@pytest.mark.parametrize("fail_at", [0, 5, 11, 19])
@pytest.mark.parametrize("method", ["genetic", "random"])
def test_a_search_that_was_cut_off_ends_as_one_that_was_not(tmp_path: Path, method: str, fail_at: int) -> None:
    def search(judge: Judge, store: Store) -> SearchState:
        problem = Problem(
            SPACE, judge.evaluate, judge.latency, 45.0, store.known, chunk=4, save=store.save
        )  # fmt: skip
        if method == "genetic":
            return genetic_search(problem, SMALL, 1, store.state("genetic", 45))
        return random_search(problem, SMALL, 1, 83, store.state("random", 45))

    whole = search(Judge(), Store.open(tmp_path / "whole.json", {}))
    judge = Judge(fail_at)
    with pytest.raises(KeyboardInterrupt):
        search(judge, Store.open(tmp_path / "state.json", {}))
    rest = Judge()
    resumed = search(rest, Store.open(tmp_path / "state.json", {}))
    assert resumed == whole
    assert not set(judge.evaluated) & set(rest.evaluated)
    assert len(judge.evaluated) + len(rest.evaluated) == len(whole.records)
    assert json.loads((tmp_path / "state.json").read_text()) == json.loads((tmp_path / "whole.json").read_text())
    again = Judge()
    assert search(again, Store.open(tmp_path / "state.json", {})) == whole  # done is done
    assert again.evaluated == again.timed == []


def test_a_state_of_other_settings_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    store = Store.open(file, {"seed": 0, "space": [1, 2]})
    store.state("genetic", 20.0).records.append(record(1.0, 0.5))
    store.state("random", 3.0).records.append(record(2.0, 0.5))
    store.save()
    same = Store.open(file, {"seed": 0, "space": [1, 2]})
    assert [r.latency_ms for r in same.history()] == [2.0, 1.0]  # by budget
    assert [r.latency_ms for r in same.history("genetic")] == [1.0]
    with pytest.raises(ValueError, match=r"other settings \(seed\); name another --out"):
        Store.open(file, {"seed": 1, "space": [1, 2]})
    file.write_text('{"version": 1, "settings": {}, "ap50": 3}')
    with pytest.raises(ValueError, match="is no state of a search: ap50"):
        Store.open(file, {})


def test_values_that_cannot_be_are_refused() -> None:
    path = next(iter(TINY))
    with pytest.raises(ValueError, match="was measured as nan ms"):
        Known().latency_of(path, lambda _: float("nan"))
    with pytest.raises(ValueError, match="not within 0 and 1"):
        Known().evaluate([path], lambda _: [float("nan")])
    with pytest.raises(ValueError, match="1 candidates were to be evaluated, and 2"):
        Known().evaluate([path], lambda _: [0.1, 0.2])
    for wrong in ({"mutations": 60}, {"top_k": 0}, {"mutation_probability": 0.0}, {"latency_weight": -1.0}):
        with pytest.raises(ValueError, match=r".+"):
            EvolutionConfig(**wrong)
    with pytest.raises(ValueError, match="above 0 ms"):
        Judge().problem(0.0)


def test_the_front_by_hand() -> None:
    a, b, c, d, e = record(10, 0.3), record(20, 0.2), record(20, 0.5), record(30, 0.5), record(5, 0.1)
    assert front([a, b, c, d, e]) == [e, a, c]
    assert front([]) == []
    history = genetic_search(Judge().problem(60.0), SMALL, 2).records
    kept = front(history)
    for one in history:
        beaten = any(
            other.latency_ms <= one.latency_ms and other.ap50 >= one.ap50
            and (other.latency_ms, other.ap50) != (one.latency_ms, one.ap50)
            for other in history
        )  # fmt: skip
        assert beaten != any((k.latency_ms, k.ap50) == (one.latency_ms, one.ap50) for k in kept)


def test_a_family_is_monotone_and_says_what_it_leaves_out() -> None:
    history = [
        record(8, 0.50, "R18-FA-Hx1-64"), record(15, 0.60, "R18-FA-Hx2-64"), record(25, 0.55, "R34-FA-Hx1-64"),
        record(45, 0.70, "R50-FA-Hx1-64"),
    ]  # fmt: skip
    members, notes = choose_members(history, [50, 10, 5, 30, 20], SMALL)
    assert [(m.name, m.path, m.latency_ms) for m in members] == [
        ("ms10", "R18-FA-Hx1-64", 8), ("ms20", "R18-FA-Hx2-64", 15), ("ms50", "R50-FA-Hx1-64", 45),
    ]  # fmt: skip
    assert all(a.ap50 < b.ap50 for a, b in itertools.pairwise(members))
    assert "5 ms: no member, since no candidate is within" in notes[0]
    assert "30 ms: no member, since the best candidate, R18-FA-Hx2-64 with AP.50 0.6000, is not better" in notes[1]
    assert len(notes) == 2


def test_predicted_members_are_measured_before_they_are_believed() -> None:
    history = [record(9, 0.6, "R18-FA-Hx2-64"), record(8, 0.5, "R18-FA-Hx1-64")]
    whole = {"R18-FA-Hx2-64": 12.0, "R18-FA-Hx1-64": 9.5}
    members, notes = choose_members(history, [10], SMALL, lambda path: whole[str(path)])
    assert [(m.path, m.latency_ms) for m in members] == [("R18-FA-Hx1-64", 9.5)]
    assert notes == ["10 ms: R18-FA-Hx2-64 was passed over, predicted 9 ms, measured 12"]


def test_tables_and_picture() -> None:
    history = [record(8, 0.5, "R18-FAE-Hx1-8"), record(9, 0.4, "R18-FA-Hx1-8")]
    rows = list(csv.DictReader(io.StringIO(front_csv(history, lambda path: parameters_of(path, "")))))
    real = build_detector(SinglePath.parse("R18-FAE-Hx1-8").config())
    expected = {"path": "R18-FAE-Hx1-8", "latency_ms": "8.000", "ap50": "0.5000"}
    assert rows == [expected | {"params": str(sum(p.numel() for p in real.parameters()))}]
    every = list(csv.DictReader(io.StringIO(history_csv(history))))
    assert [(r["path"], r["origin"], r["budget_ms"]) for r in every] == [
        ("R18-FAE-Hx1-8", "initial", "100"), ("R18-FA-Hx1-8", "initial", "100"),
    ]  # fmt: skip
    pytest.importorskip("matplotlib")
    members, _ = choose_members(history, [100], SMALL)
    figure = draw(history, history[1:], members, [Reference("d0", "R18-FA-Hx1-64", 20, 0.45)], [100], "here")
    names = [text.get_text() for text in figure.axes[0].texts]
    assert sorted(names) == ["d0", "ms100"]
    lines = {line.get_label(): np.asarray(line.get_xdata()).tolist() for line in figure.axes[0].lines}
    assert lines["genetic (2 evaluations)"] == [8]
    assert lines["Table 7's paths"] == [20]


def test_fitness_cuts_recalibrates_and_scores_each_path(astronaut: NDArray[np.uint8]) -> None:
    cut: list[str] = []
    measured: list[tuple[int, ...]] = []

    class Slices:
        def cut(self, path: SinglePath) -> Detector:
            cut.append(str(path))
            detector = build_detector(path.config())
            # Every anchor a face, or none: AP.50 is then 0 without a detection, and above 0 with all of them.
            assert detector.head.cls_logits.bias is not None
            nn.init.zeros_(detector.head.cls_logits.weight)
            nn.init.constant_(detector.head.cls_logits.bias, 4.0 if path.channels == 16 else -9.0)
            nn.init.zeros_(detector.head.box_deltas.weight)
            return detector

    def recalibrate(detector: Detector, pictures: Iterable[Tensor]) -> None:
        measured.extend(tuple(x.shape) for x in pictures)
        detector.train()  # the fitness must evaluate in eval mode all the same

    pixels = np.asarray(Image.fromarray(astronaut).resize((128, 128)))
    # The face is 24.5 x 33 pixels, an anchor of stride 8 is 26 x 39: some of these meet it.
    photo = PhotoAnnotation("a", np.array(FACE, dtype=np.float64)[None] / 4, np.array([False]))
    world = World(0, 1, torch.device("cpu"))
    crops = [torch.zeros(2, 3, 64, 64), torch.zeros(1, 3, 64, 64)]
    judge = SliceFitness(Slices(), [(photo, pixels)], crops, 128, world, recalibrate)
    paths = [SinglePath("resnet18", (False,), 1, 8), SinglePath("resnet18", (False,), 1, 16)]
    none, some = judge(paths)
    assert none == 0
    assert 0 < some <= 1
    assert cut == list(map(str, paths))
    assert measured == [(2, 3, 64, 64), (1, 3, 64, 64)] * 2
    with pytest.raises(ValueError, match="no photo"):
        SliceFitness(Slices(), [], crops, 128, world, recalibrate)


def test_processes_divide_the_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = list(TINY)[:5]
    parts = {rank: {k: float(k) for k in range(rank, 5, 3)} for rank in range(3)}
    asked: list[str] = []

    def gather(out: list[dict[int, float]], mine: dict[int, float]) -> None:
        assert mine == parts[1]
        out[:] = [parts[0], mine, parts[2]]

    def score(path: SinglePath) -> float:
        asked.append(str(path))
        return float(paths.index(path))

    monkeypatch.setattr("training.evolution.ranks.dist.all_gather_object", gather)
    assert divided(World(1, 3, torch.device("cpu")), paths, score) == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert asked == [str(paths[1]), str(paths[4])]


def test_options_are_read_or_named() -> None:
    assert milliseconds("--budgets", "50, 12.5,50") == (12.5, 50.0)
    assert numbers_of_size("480x640") == (480, 640)
    for text in ("", "a", "0", "-3,5", "inf", "nan"):
        with pytest.raises(ValueError, match="--budgets takes milliseconds"):
            milliseconds("--budgets", text)
    for text in ("480", "480x", "axb", "1x2x3"):
        with pytest.raises(ValueError, match="--size takes"):
            numbers_of_size(text)
