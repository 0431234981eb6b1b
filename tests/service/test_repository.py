"""The manifest and the repository: whole ones load, damaged ones are refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from service.engines.base import EngineError
from service.engines.ort import open_cpu
from service.repository import store
from service.repository.manifest import InputSize, ModelFile
from service.repository.store import RepositoryError, load_repository
from tests.service.fake_model import FACES, SCORES, write_fake_repository


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return write_fake_repository(tmp_path / "models")


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_whole_repository_loads(repository: Path) -> None:
    loaded = load_repository(repository)
    assert [v.name for v in loaded.variants] == ["d0", "d1"]
    assert loaded.variants[0].manifest.ap50("d0", 128) == 0.6
    assert loaded.variants[0].manifest.ap50("d0", 640) is None


def test_a_form_that_was_not_measured_counts_as_the_full_one(repository: Path) -> None:
    manifest = load_repository(repository).variants[0].manifest
    half = manifest.files[0].model_copy(update={"variant": "d0-fp16", "precision": "fp16"})
    whole = manifest.model_copy(update={"files": (*manifest.files, half)})
    assert whole.ap50("d0-fp16", 128) == 0.6
    own = manifest.accuracy[0].model_copy(update={"variant": "d0-fp16", "long_side": 128, "ap50": 0.5})
    assert whole.model_copy(update={"accuracy": (*manifest.accuracy, own)}).ap50("d0-fp16", 128) == 0.5
    assert whole.ap50("d0-fp16", 640) is None
    eighth = half.model_copy(update={"precision": "int8"})  # which is not taken to be as good
    assert manifest.model_copy(update={"files": (*manifest.files, eighth)}).ap50("d0-fp16", 128) is None


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda root: (root / "d0/d0.onnx").unlink(), "d0.onnx: the file is missing"),
        (lambda root: (root / "d0/d0.onnx").write_bytes(b"x"), "d0.onnx: 1 bytes, but"),
        (lambda root: edit(root / "d0/manifest.json", schema_version=2), "d0/manifest.json: not a manifest"),
        (lambda root: edit(root / "d0/manifest.json", surprise=1), "surprise"),
        (lambda root: (root / "d0/manifest.json").write_text("{"), "not a manifest"),
        (lambda root: _empty(root), "holds no"),
    ],
)  # fmt: skip
def test_faults_are_named(repository: Path, damage: object, sentence: str) -> None:
    assert callable(damage)
    damage(repository)
    with pytest.raises(RepositoryError, match=sentence):
        load_repository(repository)


def _empty(root: Path) -> None:
    for path in root.glob("*/manifest.json"):
        path.unlink()


def test_a_flipped_byte_is_found(repository: Path) -> None:
    path = repository / "d1" / "d1.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(RepositoryError, match=r"d1\.onnx: its sha256 differs"):
        load_repository(repository)


def test_all_faults_are_told_at_once(repository: Path) -> None:
    (repository / "d0/d0.onnx").unlink()
    (repository / "d1/d1.onnx").unlink()
    with pytest.raises(RepositoryError, match=r"d0\.onnx.*d1\.onnx"):
        load_repository(repository)


def test_a_member_that_lost_its_manifest_is_not_passed_over(repository: Path) -> None:
    (repository / "d1/manifest.json").unlink()
    with pytest.raises(RepositoryError, match=r"d1: model files without manifest\.json"):
        load_repository(repository)


def test_a_file_that_cannot_be_read_is_named(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(store, "sha256_of", refuse)
    with pytest.raises(RepositoryError, match=r"d0\.onnx: cannot be read \(Permission denied\).*d1\.onnx"):
        load_repository(repository)


def test_no_repository_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="ASFD_REPOSITORY"):
        load_repository(tmp_path / "nowhere")


@pytest.mark.parametrize("path", ["/etc/passwd", "../other.onnx", "a/../../b.onnx", ""])
def test_files_stay_inside_the_members_folder(path: str) -> None:
    with pytest.raises(ValidationError, match="relative path"):
        ModelFile(
            variant="d0", path=path, sha256="0" * 64, size_bytes=1, precision="fp32", weights_precision="fp32",
            nms="onnx", opset=18,
        )  # fmt: skip


def test_input_sizes_are_multiples_of_the_stride() -> None:
    with pytest.raises(ValidationError):
        InputSize(height=100, width=64)


def test_the_engine_answers_alone_and_in_batches(repository: Path) -> None:
    engine = open_cpu("d0", repository / "d0/d0.onnx", threads=1)
    engine.warm_up(64, 64)
    found = engine.run(np.zeros((3, 64, 128, 3), np.uint8))
    assert len(found) == 3
    assert np.array_equal(found[2].boxes, FACES)
    assert np.array_equal(found[2].scores, SCORES)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run(np.zeros((1, 64, 64, 3), np.uint8))


def test_engine_errors_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineError, match=r"bad\.onnx cannot be loaded"):
        open_cpu("bad", tmp_path / "bad.onnx")


def test_a_failed_run_names_file_and_input(repository: Path) -> None:
    engine = open_cpu("d0", repository / "d0/d0.onnx", threads=1)
    with pytest.raises(EngineError, match=r"d0\.onnx failed on input \(1, 64\)"):
        engine.run(np.zeros((1, 64), np.uint8))
