"""The graph of a genotype, and the history of a search, as pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from training.figures.architecture import draw_genotype, read_history
from training.figures.command import figure_app
from training.models.genotype import (
    CellEdge,
    CellGenotype,
    FusionEdge,
    FusionGenotype,
    Provenance,
    save_genotype,
)
from training.search.space import SpaceConfig, random_genotype

HAND = Provenance(method="hand")


@pytest.mark.parametrize(("part", "panels"), [("autofa", 1), ("autofe", 1), ("autofae", 2)])
def test_every_candidate_and_operation_is_written_at_its_arrow(part: str, panels: int) -> None:
    genotype = random_genotype(SpaceConfig(part=part), 2)  # type: ignore[arg-type]
    figure = draw_genotype(genotype)
    assert len(figure.axes) == panels
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    for cell in (*genotype.top_down, *genotype.bottom_up):
        for candidate in cell.candidates:
            assert f"{candidate.alpha:.2f}" in texts
    for enhancement in genotype.enhancement:
        for node in enhancement.nodes:
            assert node.operation.removeprefix("conv") in texts


def test_other_kinds_are_drawn_too() -> None:
    fusion = FusionGenotype(
        method="darts", levels=(2, 3), provenance=HAND,
        edges=((FusionEdge(source=3, operation="sep_conv_3x3", strength=0.3),),
               (FusionEdge(source=2, operation="skip_connect", strength=0.4),)),
    )  # fmt: skip
    cell = CellGenotype(
        method="darts", levels=(2, 3), provenance=HAND,
        nodes=((CellEdge(input=0, operation="max_pool_3x3", strength=0.3),
                CellEdge(input=1, operation="dil_conv_5x5", strength=0.2)),),
    )  # fmt: skip
    assert {"sep conv 3x3", "skip connect"} <= {t.get_text() for t in draw_genotype(fusion).axes[0].texts}
    assert {"max pool 3x3", "dil conv 5x5"} <= {t.get_text() for t in draw_genotype(cell).axes[0].texts}


def test_commands_write_a_picture_with_its_numbers(tmp_path: Path) -> None:
    genotype = random_genotype(SpaceConfig(), 3)
    save_genotype(tmp_path / "g.json", genotype)
    done = CliRunner().invoke(figure_app, ["genotype", str(tmp_path / "g.json"), "--out", str(tmp_path / "six.png")])
    assert done.exit_code == 0, done.output
    assert np.asarray(Image.open(tmp_path / "six.png")).std() > 5
    assert json.loads((tmp_path / "six.json").read_text())["kind"] == "autofae"
    history = tmp_path / "architecture.jsonl"
    lines = [
        {"step": s, "values": {"alpha_top_down_P4": [0.5 + s / 100, 0.5 - s / 100], "beta_top_down_P4": [1.0, 1.2]}}
        for s in (1, 5, 9)
    ]
    history.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = CliRunner().invoke(figure_app, ["search", str(history), "--out", str(tmp_path / "history.png")])
    assert done.exit_code == 0, done.output
    assert np.asarray(Image.open(tmp_path / "history.png")).std() > 5


def test_what_is_no_history_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="a search writes it"):
        read_history(tmp_path / "none.jsonl")
    (tmp_path / "x.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match=r"x\.jsonl is not the history"):
        read_history(tmp_path / "x.jsonl")


@pytest.mark.parametrize(
    "lines",
    [
        [{"step": 0, "values": {"alpha_P5": [0.5, 0.5]}}, {"step": 1, "values": {}}],
        [{"step": 0, "values": {"alpha_P5": 3}}],
        [{"step": 0, "values": {"alpha_P5": ["x"]}}],
        [{"step": 0, "values": {"alpha_P5": []}}],
        [{"step": 0, "values": {"alpha_P5": [float("nan")]}}],
        [{"step": 0, "values": {"other": [1.0]}}],
    ],
)
def test_a_damaged_history_is_named(tmp_path: Path, lines: list[dict[str, object]]) -> None:
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match=r"x\.jsonl is not the history of a search: [^\n]+$"):
        read_history(tmp_path / "x.jsonl")
