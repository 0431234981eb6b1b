"""What a search says beside its genotype, and what the documentation says of the shipped ones."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from training.models.genotype import AutoFAEGenotype, FusionCell, load_genotype
from training.search.relaxation import kept_by_rule
from training.search.report import both_rules, caveat, last_probabilities
from training.search.space import SpaceConfig, random_genotype

SHIPPED = Path(__file__).parents[2] / "training" / "genotypes"


def cells(genotype: object) -> list[FusionCell]:
    """Those that have candidates, top-down first."""
    assert isinstance(genotype, AutoFAEGenotype)
    return [cell for cell in (*genotype.top_down, *genotype.bottom_up) if cell.candidates]


def test_eq_2_is_counted_by_both_readings() -> None:
    assert kept_by_rule([0.6, 0.35, 0.05]) == (2, 1)
    assert kept_by_rule([0.4, 0.3, 0.3]) == (3, 0)
    assert kept_by_rule([0.5, 0.5]) == (2, 2)


def test_the_line_names_each_cell_once_a_rule() -> None:
    values = {"alpha_top_down_P6": [1.0], "alpha_top_down_P5": [0.4, 0.6], "beta_top_down_P5": [1.0, 1.0],
              "alpha_bottom_up_P3": [1.0], "alpha_bottom_up_P4": [0.8, 0.2]}  # fmt: skip
    assert both_rules(values) == (
        "candidates with alpha >= 0.5 x the largest: top-down P6 1 P5 2, bottom-up P3 1 P4 1; "
        "with alpha >= 0.5, as Eq. 2 is printed: top-down P6 1 P5 1, bottom-up P3 1 P4 1"
    )
    assert both_rules({"alpha_P2_P3": [0.4, 0.6], "kappa_P2_1": [1.0]}) == ""


def test_probabilities_are_those_of_the_last_line(tmp_path: Path) -> None:
    history = tmp_path / "architecture.jsonl"
    assert last_probabilities(history) == {}
    history.write_text('{"step": 1, "values": {"a": [0.5]}}\n{"step": 2, "values": {"a": [0.7]}}\n')
    assert last_probabilities(history) == {"a": [0.7]}


def test_only_pc_darts_has_a_caveat() -> None:
    assert "says nothing" in caveat("pc-darts-fa")
    assert [caveat(space) for space in ("autofae", "darts-fa")] == ["", ""]


@pytest.mark.parametrize(("name", "kept"), [("autofa", 26), ("autofae", 28)])
def test_shipped_genotypes_are_as_the_documentation_says(name: str, kept: int) -> None:
    """Candidates kept, cells with an alpha of 0.5, and where the largest alpha is."""
    found = cells(load_genotype(SHIPPED / f"{name}.json"))
    counts = [kept_by_rule([c.alpha for c in cell.candidates]) for cell in found]
    assert [relative for relative, _ in counts] == [len(cell.candidates) for cell in found]
    assert sum(relative for relative, _ in counts) == kept
    assert [literal for _, literal in counts] == [1, 1, 0, 0, 0, 1, 1, 0, 0, 0]
    largest = [max(cell.candidates, key=lambda c: c.alpha).level for cell in found]
    assert largest == [7, 7, 6, 4, 3, 2, 3, 4, 5, 6]  # of P6 .. P2, then of P3 .. P7


def test_random_genotypes_are_sparser_than_the_shipped_ones() -> None:
    kept = [sum(len(c.candidates) for c in cells(random_genotype(SpaceConfig(part="autofa"), k))) for k in range(30)]
    assert statistics.fmean(kept) == pytest.approx(13.6, abs=0.1)
