"""What a repository may hold that the service does not serve: fresh weights, and graphs for GPUs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from service.repository.manifest import Manifest
from service.repository.store import RepositoryError, for_cpu, load_manifest, load_repository
from tests.service.fake_model import write_fake_repository


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return write_fake_repository(tmp_path / "models")


def content_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def set_precision(path: Path, precision: str) -> None:
    content = content_of(path)
    content["files"][0]["precision"] = precision
    path.write_text(json.dumps(content))


def test_fresh_weights_are_refused_by_name(repository: Path) -> None:
    path = repository / "d1" / "manifest.json"
    path.write_text(json.dumps({**content_of(path), "trained": False}))
    with pytest.raises(RepositoryError, match=r"d1/manifest\.json: d1 has fresh weights, for timing only; train it"):
        load_repository(repository)
    assert len(load_repository(repository, untrained=True).variants) == 2


def test_what_computes_in_half_precision_is_left_out_on_a_cpu(repository: Path) -> None:
    set_precision(repository / "d1" / "manifest.json", "fp16")
    kept, left_out = for_cpu(load_repository(repository))
    assert ([variant.name for variant in kept.variants], left_out) == (["d0"], ("d1",))
    set_precision(repository / "d0" / "manifest.json", "fp16")
    with pytest.raises(RepositoryError, match="only fp16 variants"):
        for_cpu(load_repository(repository))


def test_hidden_folders_are_no_members(repository: Path) -> None:
    (repository / "d1").rename(repository / ".d1")
    assert [variant.name for variant in load_repository(repository).variants] == ["d0"]
    (repository / ".d1" / "manifest.json").unlink()  # nor are they members that lost their manifest
    load_repository(repository)


def test_older_manifests_are_of_the_papers_family_and_trained(repository: Path) -> None:
    content = content_of(repository / "d0" / "manifest.json")
    for field in ("family", "budget_ms", "found_for", "trained"):
        del content[field]
    del content["architecture"]["single_path"], content["provenance"]["checkpoint_sha256"]
    manifest = Manifest.model_validate(content)
    assert (manifest.family, manifest.trained, manifest.architecture.single_path) == ("paper", True, "")
    assert manifest == load_manifest(repository / "d0" / "manifest.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"family": "machine"},
        {"family": "machine", "budget_ms": 30},
        {"family": "machine", "found_for": "a machine"},
        {"budget_ms": 30, "found_for": "a machine"},
        {"found_for": "a machine"},
        {"family": "machine", "budget_ms": 0, "found_for": "a machine"},
    ],
)
def test_budget_and_hardware_belong_to_machine_families(repository: Path, changes: dict[str, Any]) -> None:
    content = content_of(repository / "d0" / "manifest.json")
    whole = {"family": "machine", "budget_ms": 30, "found_for": "a machine"}
    assert Manifest.model_validate({**content, **whole}).budget_ms == 30
    with pytest.raises(ValidationError, match="budget_ms"):
        Manifest.model_validate({**content, **changes})
