"""`python -m export list`: what is there, and what is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from export.__main__ import app
from service.repository.manifest import Accuracy
from service.repository.store import load_manifest
from tests.service.fake_model import write_fake_repository


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """d0 of Table 7 with AP on two data sets, and m0, found for a machine."""
    root = write_fake_repository(tmp_path / "models", ("d0", "m0"))
    path = root / "m0" / "manifest.json"
    found = {"family": "machine", "budget_ms": 30, "found_for": "a machine x2"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **found}))
    path = root / "d0" / "manifest.json"
    manifest = load_manifest(path)
    other = Accuracy(variant="d0", dataset="other", split="val", protocol="wider", long_side=64, ap50=0.9, ap=0.1)
    shape = manifest.architecture.model_copy(update={"single_path": "R18-FA-Hx1-64", "parameters": 12_340_000})
    update = {"accuracy": (*manifest.accuracy, other), "architecture": shape}
    path.write_text(manifest.model_copy(update=update).model_dump_json())
    return root


def test_the_list_has_members_variants_and_what_is_missing(repository: Path) -> None:
    result = CliRunner().invoke(app, ["list", "--repository", str(repository)])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == "d0   R18-FA-Hx1-64; family: Table 7; 12.3 M parameters, 0.1 GMAC"
    assert " ".join(lines[1].split()) == "d0 fp32 0.0 MiB AP.50 on drawn/dev by long side: 64: 0.300, 128: 0.600"
    assert lines[2] == "m0   Fake m0; family: 30 ms on a machine x2; 0.0 M parameters, 0.1 GMAC"
    assert lines[4] == "d1   R18-FA-Hx3-128; not trained"
    assert [line.split()[0] for line in lines[4:]] == ["d1", "d2", "d3", "d4", "d5", "d6"]


def test_the_same_as_json(repository: Path) -> None:
    result = CliRunner().invoke(app, ["list", "--json", "--repository", str(repository)])
    content = json.loads(result.output)
    d0, m0 = content["members"]
    assert (d0["member"], d0["single_path"], d0["parameters"], d0["trained"]) == (
        "d0", "R18-FA-Hx1-64", 12_340_000, True,
    )  # fmt: skip
    assert d0["variants"][0]["ap50"] == {"64": 0.3, "128": 0.6}
    assert d0["variants"][0]["plans"] == []
    assert (m0["family"], m0["budget_ms"], m0["found_for"]) == ("machine", 30, "a machine x2")
    assert content["absent"][-1] == {
        "member": "d6", "single_path": "R101-FAE-FA-FA-Hx4-256", "reason": "not trained",
    }  # fmt: skip


def test_an_empty_repository_is_a_sentence(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["list", "--repository", str(tmp_path)])
    assert result.exit_code == 2
    assert "holds no" in result.output
