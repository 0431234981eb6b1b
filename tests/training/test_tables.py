"""The paper's tables as commands: which rows there are, what is kept, and what a table says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from training.models.genotype import AutoFAEGenotype, save_genotype
from training.models.necks import NECKS
from training.search.space import SpaceConfig, random_genotype
from training.tables.budget import BUDGETS, smoke_budget
from training.tables.command import table_command
from training.tables.generic import run_table
from training.tables.genotypes import cascade
from training.tables.report import Result, Settings, markdown, open_settings, read_results, summarise
from training.tables.rows import TABLES, Row, table_spec
from training.tables.run import config_of, slug

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
SETTINGS = Settings(
    table=3, budget="small", data="faces", split="dev", photos=5, protocol="one pass", training="some crops",
    start=None, hardware="a test",
)  # fmt: skip


@pytest.mark.parametrize(
    ("number", "rows", "first"),
    [(1, 31, "none"), (2, 25, "fpn"), (3, 11, "fpn"), (4, 9, "none"), (5, 3, "fpn"), (6, 4, "fpn"), (7, 7, "d0")],
)
def test_rows_are_those_of_the_paper(number: int, rows: int, first: str) -> None:
    spec = table_spec(number)
    assert sum(row.paper is not None for row in spec.rows) == rows  # others may stand beside them
    assert spec.rows[0].name == first
    assert len({slug(row.name) for row in spec.rows}) == len(spec.rows)
    assert all(row.neck in NECKS for row in spec.rows)


def test_printed_values_stand_at_their_rows() -> None:
    by_name = {n: {row.name: row.paper or {} for row in table_spec(n).rows} for n in TABLES}
    assert by_name[1]["P2 with P4"]["ap50_hard"] == 85.0
    assert by_name[1]["P7 with P2"]["ap50_hard"] == 82.7
    assert by_name[2]["rfe on P3"]["ap50_hard"] == 87.6
    assert by_name[3]["autofa"]["ap_hard"] == 47.4
    assert by_name[4]["autofe"]["ap50_easy"] == 95.2
    assert by_name[6]["middle"] == by_name[5]["joint search"]
    assert by_name[7]["d6"]["ap50_hard"] == 92.5


def test_the_paper_budget_is_that_of_its_text() -> None:
    budget = BUDGETS["paper"]()
    assert budget.train.epochs == 50
    assert [m * 50 for m in budget.train.optim.milestones] == [30, 40]
    assert budget.train.optim.lr == 0.01
    assert budget.seeds == (0, 1, 2)


def test_members_stack_modules_as_table_7_has_them() -> None:
    rows = {row.name: row for row in table_spec(7).rows}
    assert rows["d0"].options.modules == (False,)
    assert rows["d6"].options.modules == (True, False, False)
    budget = BUDGETS["paper"]()
    model = config_of(rows["d3"], "{}", 1, budget, 100).model
    assert (model.backbone, model.head_convs, model.channels, model.neck) == ("resnet50", 3, 192, "autofae")


def test_a_cascade_has_fa_of_the_one_and_fe_of_the_other() -> None:
    fa, fe = (random_genotype(SpaceConfig(part=part), 1) for part in ("autofa", "autofe"))  # type: ignore[arg-type]
    both = cascade(fa, fe, "after")
    assert both.top_down == fa.top_down
    assert both.enhancement == fe.enhancement
    assert both.position == "after"


def results(*scores: tuple[str, int, float]) -> list[Result]:
    return [
        Result(row=row, seed=seed, scores={"ap50": ap50, "ap": ap50 / 2}, images=1, seconds=1.0, parameters=1_000_000)
        for row, seed, ap50 in scores
    ]


def test_gain_is_paired_by_seed_and_spread_is_the_range() -> None:
    runs = results(
        ("fpn", 0, 0.50), ("fpn", 1, 0.60), ("pafpn", 0, 0.55), ("pafpn", 1, 0.61), ("bifpn", 1, 0.59),
        ("bifpn", 7, 0.9),
    )  # fmt: skip
    lines = {line.name: line for line in summarise(table_spec(3), runs)}
    assert lines["fpn"].gain is None
    assert lines["fpn"].spread == pytest.approx(0.10)
    assert lines["pafpn"].gain == pytest.approx(0.03)
    assert lines["bifpn"].gain == pytest.approx(-0.01)  # its other seed has no base line
    assert lines["nas-fpn"].ours is None
    assert lines["nas-fpn"].seeds == 0


def test_markdown_has_both_ours_and_the_papers() -> None:
    spec = table_spec(3)
    text = markdown(spec, SETTINGS, summarise(spec, results(("fpn", 0, 0.5), ("pafpn", 0, 0.512))))
    assert "| pafpn | 1 | 51.2 | 25.6 |  | +1.2 | 1.00 M | 95.3 / 94.1 / 87.3 | 62.1 / 59.4 / 46.8 |" in text
    assert "Budget `small`: some crops. Started from random weights." in text


def test_a_grid_has_levels_against_levels() -> None:
    spec = table_spec(1)
    text = markdown(spec, SETTINGS, summarise(spec, results(("none", 0, 0.4), ("P2 with P4", 0, 0.456))))
    assert "AP.50; base line (none): 40.0" in text
    assert "| P2 |  |  | 45.6 |  |  |  |" in text
    assert "| P3 | 83.0 |  | 85.1 | 84.8 | 84.5 | 83.2 |" in text


def test_results_of_other_settings_are_not_mixed(tmp_path: Path) -> None:
    open_settings(tmp_path / "settings.json", SETTINGS)
    open_settings(tmp_path / "settings.json", SETTINGS)
    with pytest.raises(ValueError, match="another budget, photos"):
        open_settings(tmp_path / "settings.json", SETTINGS.model_copy(update={"budget": "paper", "photos": 6}))
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "fpn-0.json").write_text("{}")
    with pytest.raises(ValueError, match=r"fpn-0\.json is not a result"):
        read_results(tmp_path / "results")


@pytest.mark.parametrize("changed", ["train_split", "start_sha256", "genotypes"])
def test_runs_of_other_origin_are_not_mixed(tmp_path: Path, changed: str) -> None:
    """Settings of earlier versions, which lack these, are read."""
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(SETTINGS.model_dump(exclude={"train_split", "start_sha256", "genotypes"})))
    open_settings(path, SETTINGS)
    with pytest.raises(ValueError, match=f"another {changed}; name another --out"):
        open_settings(path, SETTINGS.model_copy(update={changed: "other"}))


@pytest.mark.parametrize("number", [3, 4, 5])
def test_committed_tables_are_read(number: int) -> None:
    stored = json.loads((ROOT / "benchmarks" / "results" / f"table-{number}.json").read_text())
    assert Settings.model_validate(stored["settings"]).train_split == "train"


def test_table_8_hands_threads_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("train2017", "val2017", "annotations/instances_train2017.json", "annotations/instances_val2017.json"):
        (tmp_path / name).mkdir(parents=True)
    seen = []

    def run_cell(threads: int, **_: object) -> dict[str, object]:
        seen.append(threads)
        return {"AP": 0.1, "AP.50": 0.2, "AP.75": 0.1, "hardware": "a test"}

    monkeypatch.setattr("training.tables.generic.run_cell", run_cell)
    run_table(tmp_path, "smoke", tmp_path / "out", None, None, None, threads=3)
    assert seen == [3] * 6


def test_rows_differ_in_their_neck_alone() -> None:
    budget = smoke_budget()
    a, b = (config_of(Row(n, n), "", 0, budget, 10) for n in ("fpn", "pafpn"))
    assert a.model.neck == "fpn"
    assert b.model.neck == "pafpn"
    assert (a.data, a.loss, a.optim, a.epochs, a.sizes) == (b.data, b.loss, b.optim, b.epochs, b.sizes)


def table(number: int, data: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command: Sequence[str] = [
        sys.executable, "-m", "training", "table", str(number), "--budget", "smoke", "--data", str(data), "--out",
        str(out), "--cache", str(out.parent / "cache"), "--device", "cpu", "--threads", "1", *more,
    ]  # fmt: skip
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=280)


@pytest.mark.slow
def test_a_table_from_photos_to_markdown_and_only_once(tiny_wider: Path, tmp_path: Path) -> None:
    """Two rows, one of them searched, and nothing is run again; then a row with kept genotypes, elsewhere."""
    out = tmp_path / "table"
    first = table(5, tiny_wider, out, "--rows", "joint search")
    assert first.returncode == 0, first.stderr[-2000:]
    done = json.loads((out / "table-5.json").read_text())
    rows = {row["name"]: row for row in done["rows"]}
    assert 0 <= rows["joint search"]["ours"]["ap50"] <= 1
    assert rows["random autofae"]["ours"] is None
    assert [run["genotype"] and run["genotype"]["method"] for run in done["runs"]] == [None, "search"]
    assert not list((out / "runs").iterdir())  # checkpoints of finished runs are not kept
    kept = tmp_path / "kept"
    for name in ("autofa", "autofe"):
        found = random_genotype(SpaceConfig(part=name), 4)  # type: ignore[arg-type]
        assert isinstance(found, AutoFAEGenotype)
        save_genotype(kept / f"{name}.json", found)
    times = {path: path.stat().st_mtime_ns for path in (out / "results").iterdir()}
    again = table(5, tiny_wider, out, "--rows", "joint search")
    assert again.returncode == 0, again.stderr[-2000:]
    assert {path: path.stat().st_mtime_ns for path in times} == times
    mixed = table(5, tiny_wider, out, "--rows", "AutoFA + AutoFE", "--genotypes", str(kept))
    assert mixed.returncode == 2
    assert "another genotypes" in mixed.stderr
    other = tmp_path / "other"
    second = table(5, tiny_wider, other, "--rows", "AutoFA + AutoFE", "--genotypes", str(kept))
    assert second.returncode == 0, second.stderr[-2000:]
    assert "searching" not in second.stderr + second.stdout
    assert "| AutoFA + AutoFE | 1 |" in (other / "table-5.md").read_text()


def test_table_8_lists_its_rows_without_data_and_refuses_what_it_has_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training.tables.command.stop_on_sigterm", lambda: None)
    table_command(8, data=tmp_path / "none", list_rows=True)
    listed = capsys.readouterr().out.splitlines()
    assert listed[:2] == ["retinanet fpn", "retinanet autofae"]
    assert len(listed) == 6
    options: dict[str, Any] = {"rows": "fcos fpn", "seeds": "1", "start": tmp_path / "d0.onnx"}
    for option, value in options.items():
        with pytest.raises(typer.Exit):
            table_command(8, data=tmp_path / "none", **{option: value})
        assert f"table 8 has no --{option}" in capsys.readouterr().err


def test_nonsense_is_refused_in_a_sentence(tiny_wider: Path, tmp_path: Path) -> None:
    for number, more, said in (
        (9, (), "no table 9"),
        (3, ("--rows", "magic"), "no row 'magic'"),
        (8, (), "table 8 takes COCO's own folders"),
    ):
        done = table(number, tiny_wider, tmp_path / "o", *more)
        assert done.returncode == 2
        assert said in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr
