"""Single paths, their space, and the schedule in which a supernet's training draws them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from typer.testing import CliRunner

from training.__main__ import NECK_HELP, app
from training.family import MEMBERS, member_config, single_path
from training.models.detector import build_detector
from training.models.genotype import GENOTYPES, load_genotype, parse
from training.models.necks import NeckOptions
from training.supernet.config import SupernetConfig, path_at, small_supernet, sorts_before, widths_at
from training.supernet.path import PathSpace, SinglePath

TINY = PathSpace(backbones=("resnet18", "resnet50"), max_modules=2, max_head_convs=2, channels=(8, 16))


def test_paths_print_as_table_7_and_are_read_back() -> None:
    printed = [str(path) for path in MEMBERS.values()]
    assert printed == [
        "R18-FA-Hx1-64", "R18-FA-Hx3-128", "R34-FA-Hx3-192", "R50-FAE-Hx3-192", "R50-FAE-Hx4-256",
        "R101-FAE-Hx4-256", "R101-FAE-FA-FA-Hx4-256",
    ]  # fmt: skip
    assert [SinglePath.parse(text) for text in printed] == list(MEMBERS.values())
    assert SinglePath.parse("R18-FA-H×1-64") == MEMBERS["d0"]


@pytest.mark.parametrize("text", ["", "d0", "R18-Hx1-64", "R18-FA-H1-64", "R19-FA-Hx1-64", "R18-FAX-Hx1-64"])
def test_what_is_no_path_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match=r"no single path|no backbone"):
        SinglePath.parse(text)


@pytest.mark.parametrize("text", ["R18-FA-Hx0-64", "R18-FA-Hx1-0", "R18-FA-Hx999999999-64", "R18-FA-Hx1-5000"])
def test_a_path_of_impossible_numbers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"'{text}' is no single path: one has 1 to 32 head conv"):
        SinglePath.parse(text)


def test_a_path_of_very_many_modules_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 32 modules"):
        SinglePath.parse(f"R18{'-FA' * 33}-Hx1-64")


def test_a_space_lists_each_of_its_paths_once() -> None:
    paths = list(TINY)
    assert len(paths) == len(set(paths)) == len(TINY) == 2 * (2 + 4) * 2 * 2
    assert all(path in TINY for path in paths)
    assert TINY.largest() == SinglePath("resnet50", (True, True), 2, 16)
    assert replace(TINY.largest(), channels=12) not in TINY
    assert replace(TINY.largest(), modules=(True,) * 3) not in TINY
    assert len(PathSpace()) == 4 * 14 * 4 * 4
    assert all(path in PathSpace() for path in MEMBERS.values())


def test_draws_are_uniform_over_each_degree_of_freedom() -> None:
    random = Random(0)
    drawn = [TINY.draw(random) for _ in range(4000)]
    for value in ("backbone", "head_convs", "channels"):
        counts = Counter(getattr(path, value) for path in drawn)
        assert len(counts) == 2
        assert min(counts.values()) > 1800, counts
    depths = Counter(len(path.modules) for path in drawn)
    assert min(depths.values()) > 1800
    assert min(Counter(path.modules for path in drawn if len(path.modules) == 2).values()) > 400


def test_mutation_stays_in_the_space_and_follows_its_probability() -> None:
    random, path = Random(1), TINY.largest()
    assert all(TINY.mutate(path, random, 0.0) == path for _ in range(50))
    children = [TINY.mutate(path, random, 0.5) for _ in range(400)]
    assert all(child in TINY for child in children)
    assert len(set(children)) > 30
    changed = sum(child.channels != path.channels for child in children) / 400
    assert 0.18 < changed < 0.32  # drawn anew half the time, and another half the time of that


def test_crossing_takes_each_gene_from_a_parent() -> None:
    first, second = SinglePath("resnet18", (True,), 1, 8), SinglePath("resnet50", (False, True), 2, 16)
    random = Random(2)
    children = {TINY.cross(first, second, random) for _ in range(300)}
    assert len(children) == 16
    for child in children:
        for gene in ("backbone", "modules", "head_convs", "channels"):
            assert getattr(child, gene) in (getattr(first, gene), getattr(second, gene))


def test_widths_are_added_in_descending_order_after_the_warm_up() -> None:
    config = SupernetConfig(space=PathSpace(channels=(64, 128, 192, 256)), warmup=0.5, shrink=0.3)
    seen = [widths_at(step, 100, config) for step in range(100)]
    assert seen[0] == seen[49] == (256,)
    assert seen[50] == seen[59] == (192, 256)
    assert seen[60] == seen[69] == (128, 192, 256)
    assert seen[70] == seen[99] == (64, 128, 192, 256)
    assert [step for step in range(100) if sorts_before(step, 100, config)] == [50]


def test_without_a_warm_up_all_widths_are_drawn_and_channels_sorted_at_once() -> None:
    config = SupernetConfig(space=PathSpace(channels=(8, 16)), warmup=0.0, shrink=0.0)
    assert widths_at(0, 10, config) == (8, 16)
    assert [step for step in range(10) if sorts_before(step, 10, config)] == [0]
    with pytest.raises(ValueError, match="shares of all steps"):
        SupernetConfig(warmup=0.8, shrink=0.3)


def test_one_width_is_never_sorted_for() -> None:
    config = SupernetConfig(space=PathSpace(channels=(16,)))
    assert not any(sorts_before(step, 10, config) for step in range(10))


def test_the_path_of_a_step_depends_on_seed_and_step_alone() -> None:
    config = small_supernet()
    paths = [path_at(step, 100, config) for step in range(100)]
    assert paths == [path_at(step, 100, config) for step in range(100)]
    assert {path.channels for path in paths[:50]} == {64}
    assert {path.channels for path in paths[75:]} == {16, 32, 48, 64}
    other = replace(config, train=replace(config.train, seed=1))
    assert paths != [path_at(step, 100, other) for step in range(100)]


def test_members_are_named_spelt_out_or_refused() -> None:
    assert single_path("d6").modules == (True, False, False)
    assert single_path("R34-FAE-Hx2-64") == SinglePath("resnet34", (True,), 2, 64)
    with pytest.raises(ValueError, match="no member 'd7'; there are d0, d1"):
        single_path("d7")
    config = member_config("R18-FA-Hx1-8", "autofae")
    assert config.neck_options.modules == (False,)
    assert not any("enhancement" in name for name, _ in build_detector(config).named_parameters())


def test_a_member_takes_any_neck_and_a_genotype_where_one_is_searched() -> None:
    config = member_config("d1", "bifpn")
    assert (config.neck, config.backbone, config.channels, config.head_convs) == ("bifpn", "resnet18", 128, 3)
    assert config.neck_options == NeckOptions()
    searched = member_config("d0", "darts-fa", GENOTYPES / "darts-fa.json")
    assert parse(searched.neck_options.genotype) == load_genotype(GENOTYPES / "darts-fa.json")
    with pytest.raises(ValueError, match=r"no neck 'magic'; there are none, fpn, pafpn, bifpn"):
        member_config("d0", "magic")
    with pytest.raises(ValueError, match="the neck bifpn has no genotype"):
        member_config("d0", "bifpn", GENOTYPES / "darts-fa.json")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("d0", "--genotype", str(GENOTYPES / "darts-fa.json")), "autofae takes a genotype of kind 'autofae'"),
        (("d0", "--genotype", str(GENOTYPES / "autofe.json")), "it is skipped in every module"),
        (("R18-FA-Hx1-0",), "is no single path"),
        (("d0", "--neck", "pair"), "needs its option `pair`"),
    ],
)
def test_what_cannot_be_described_is_refused_in_a_sentence(arguments: tuple[str, ...], said: str) -> None:
    done = CliRunner().invoke(app, ["describe", *arguments])
    assert done.exit_code == 2
    assert said in done.output
    assert isinstance(done.exception, SystemExit)


def test_a_description_names_its_neck_and_the_help_both_defaults() -> None:
    described = CliRunner().invoke(app, ["describe", "R18-FA-Hx1-8"])
    assert json.loads(described.stdout)["neck"] == "autofae"
    assert "by default autofae for `describe`, fpn for `train`" in NECK_HELP
