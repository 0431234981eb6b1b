"""Plans on disk: which one may be used, and that a writer who is killed takes nothing away."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from service.engines.base import EngineError
from service.engines.tensorrt import plans
from service.engines.tensorrt.api import numbers
from service.engines.tensorrt.build import BuildOptions
from service.engines.tensorrt.make import default_options, make_plan, serves
from service.engines.tensorrt.plans import StoredPlan, damage, find, save, stored_plans, usable
from service.engines.tensorrt.timing import timing_cache_file
from service.repository.manifest import InputSize, Manifest, ModelFile, Plan, Thresholds
from service.repository.store import load_manifest, load_repository
from tests.engines.gpu_fakes import FakeGpu, install
from tests.service.fake_model import write_fake_repository

DATA = b"a plan"
H100 = "NVIDIA H100 80GB HBM3"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A member's folder with one file of plain NMS."""
    path = write_fake_repository(tmp_path / "models") / "d0"
    content = json.loads((path / "manifest.json").read_text())
    content["files"][0]["nms"] = "plain"
    (path / "manifest.json").write_text(json.dumps(content))
    return path


def manifest_of(folder: Path) -> Manifest:
    return load_manifest(folder / "manifest.json")


def plan_of(file: ModelFile, data: bytes = DATA, **changes: Any) -> Plan:
    fields: dict[str, Any] = {
        "variant": file.variant, "path": "x.plan", "sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data),
        "model_sha256": file.sha256, "tensorrt": "10.16.1.11", "compute_capability": "9.0", "gpu": H100,
        "precision": "fp16", "max_batch": 8, "input_sizes": [{"height": 64, "width": 64}], "built": "2026-11-25",
    }  # fmt: skip
    return Plan.model_validate({**fields, **changes})


@pytest.fixture
def file(folder: Path) -> ModelFile:
    return manifest_of(folder).files[0]


@pytest.mark.parametrize(
    ("changes", "here", "reason"),
    [
        ({}, ("10.16.1.11", "9.0", H100), None),
        ({}, ("10.16.1.11", "9.0", ""), None),
        ({}, ("10.16.1.11", "9.0", "NVIDIA H200"), f"it was built for {H100}, and this is NVIDIA H200"),
        ({}, ("10.16.1.11", "8.0", H100), "built for compute capability 9.0 .*, and this GPU has 8.0"),
        ({}, ("10.16.1.12", "9.0", H100), "built with TensorRT 10.16.1.11, and 10.16.1.12 is here$"),
        ({"version_compatible": True}, ("10.16.1.12", "9.0", H100), None),
        ({"version_compatible": True}, ("10.16.1.11", "9.0", H100), None),
        ({"version_compatible": True}, ("10.9.0.34", "9.0", H100), "run on later versions, not on earlier ones"),
        ({"version_compatible": True}, ("11.4.0.106", "9.0", H100), None),
        ({"version_compatible": True, "tensorrt": "11.4.0.106"}, ("10.16.1.11", "9.0", ""), "no .* of 11 runs on 10"),
        ({"version_compatible": True, "tensorrt": "9.3.0.1"}, ("11.4.0.106", "9.0", H100), "no .* of 9 runs on 11"),
        ({"hardware_compatible": "same_compute_capability"}, ("10.16.1.11", "9.0", "NVIDIA H200"), None),
        ({"hardware_compatible": "same_compute_capability"}, ("10.16.1.11", "8.9", H100), "compute capability 9.0"),
        ({"hardware_compatible": "ampere_plus"}, ("10.16.1.11", "12.0", "NVIDIA RTX PRO 6000"), None),
        ({"hardware_compatible": "ampere_plus"}, ("10.16.1.11", "7.5", "Tesla T4"), "8.0 or later, and .* has 7.5"),
        ({"model_sha256": "0" * 64}, ("10.16.1.11", "9.0", H100), "built from another d0 than d0.onnx is now"),
        ({"variant": "d1"}, ("10.16.1.11", "9.0", H100), "built from another d0"),
    ],
)  # fmt: skip
def test_who_may_use_a_plan(
    file: ModelFile, changes: dict[str, Any], here: tuple[str, str, str], reason: str | None
) -> None:
    found = usable(plan_of(file, **changes), file, *here)
    if reason is None:
        assert found is None
    else:
        assert found is not None
        assert re.search(reason, found), found


def test_versions_are_compared_as_numbers() -> None:
    assert numbers("10.16.1.11") > numbers("10.9.0.34")
    assert numbers("10.16.1.11.post1") == (10, 16, 1, 11)


def test_a_plan_is_saved_found_and_replaced(folder: Path, file: ModelFile) -> None:
    first = save(folder, None, plan_of(file), DATA)
    named = f"d0.trt10.16.1.11.sm90-nvidia-h100-80gb-hbm3.{file.sha256[:12]}"
    assert first.path.name == f"{named}.{first.plan.sha256[:8]}.plan"
    assert first.path.read_bytes() == DATA
    other = save(folder, None, plan_of(file, b"on 11", tensorrt="11.4.0.106"), b"on 11")
    manifest = manifest_of(folder)
    assert [plan.tensorrt for plan in manifest.plans] == ["10.16.1.11", "11.4.0.106"]
    assert load_repository(folder.parent).variants  # the service still takes it
    stored = stored_plans(folder, manifest, None)
    assert find(stored, file, "10.16.1.11", "9.0") == (first, [])
    assert find(stored, file, "11.4.0.106", "9.0", H100) == (
        other,
        [f"{first.path.name}: {_version(first, '11.4.0.106')}"],
    )
    again = save(folder, None, plan_of(file, b"again"), b"again")
    assert not first.path.exists()
    assert find(stored_plans(folder, manifest_of(folder), None), file, "10.16.1.11", "9.0") == (again, [
        f"{other.path.name}: {_version(other, '10.16.1.11')}"
    ])  # fmt: skip
    assert {path.suffix for path in folder.iterdir()} == {".onnx", ".json", ".plan"}


def _version(stored: StoredPlan, here: str) -> str:
    return f"it was built with TensorRT {stored.plan.tensorrt}, and {here} is here"


def test_plans_of_a_model_that_is_gone_go_too(folder: Path, file: ModelFile) -> None:
    old = save(folder, None, plan_of(file, model_sha256="0" * 64), DATA)
    (folder / ".d0.trt10.16.1.11.sm90.0123.4567.plan.99").write_bytes(b"of a writer that was killed")
    new = save(folder, None, plan_of(file, b"new"), b"new")
    assert sorted(p.name for p in folder.iterdir()) == sorted(["d0.onnx", "manifest.json", new.path.name])
    assert manifest_of(folder).plans == (new.plan,)
    assert not old.path.exists()


def test_damage_is_told(folder: Path, file: ModelFile) -> None:
    stored = save(folder, None, plan_of(file), DATA)
    assert damage(stored) is None
    stored.path.write_bytes(b"a plaM")
    found, reasons = find((stored,), file, "10.16.1.11", "9.0")
    assert found is None
    assert reasons == [f"{stored.path} is damaged: its sha256 is not the one written down"]
    stored.path.write_bytes(b"a pl")
    assert damage(stored) == f"{stored.path} has 4 bytes, not 6"
    stored.path.unlink()
    assert damage(stored) == f"{stored.path} cannot be read (No such file or directory)"


@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("in_cache", [False, True])
def test_a_writer_that_is_killed_takes_nothing_away(
    folder: Path, file: ModelFile, tmp_path: Path, at: int, in_cache: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed at each of the renames and removals in turn: what could be used before can be used, and then the new."""
    cache = tmp_path / "cache"

    def put(data: bytes) -> StoredPlan:
        plan = plan_of(file, data)
        return plans.save_in_cache(cache, plan, data) if in_cache else plans.save_in_repository(folder, plan, data)

    def found() -> StoredPlan | None:
        return find(stored_plans(folder, manifest_of(folder), cache), file, "10.16.1.11", "9.0")[0]

    old = put(DATA)
    steps = iter(range(100))

    def dying(original: Any) -> Any:
        def step(self: Path, *args: Any, **kwargs: Any) -> Any:
            if next(steps) == at:
                raise KeyboardInterrupt
            return original(self, *args, **kwargs)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dying(Path.replace))
        patch.setattr(Path, "unlink", dying(Path.unlink))
        try:
            put(b"another")
            assert at >= 3
        except KeyboardInterrupt:
            pass
    now = found()
    assert now is not None
    assert now.plan.sha256 in (old.plan.sha256, plan_of(file, b"another").sha256)
    new = put(b"another")
    assert found() == new
    assert len(list((cache / "engines" if in_cache else folder).glob("*.plan"))) == 1


def test_a_repository_that_cannot_be_written_leaves_it_to_the_cache(
    folder: Path, file: ModelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, before = tmp_path / "cache", (folder / "manifest.json").read_bytes()

    def read_only(path: Path, data: bytes) -> None:
        if folder in path.parents:
            raise OSError(30, "Read-only file system")
        write(path, data)

    write = plans._write
    monkeypatch.setattr(plans, "_write", read_only)
    with pytest.raises(OSError, match="Read-only"):
        save(folder, None, plan_of(file), DATA)
    stored = save(folder, cache, plan_of(file), DATA)
    assert stored.path.parent == cache / "engines"
    assert (folder / "manifest.json").read_bytes() == before
    assert find(stored_plans(folder, manifest_of(folder), cache), file, "10.16.1.11", "9.0") == (stored, [])
    (description,) = (cache / "engines").glob("*.json")
    assert description.name == f"d0.trt10.16.1.11.sm90-nvidia-h100-80gb-hbm3.{file.sha256[:12]}.json"
    description.write_text('{"half')
    assert stored_plans(folder, manifest_of(folder), cache) == ()


def test_gpus_of_one_capability_keep_a_plan_each_unless_one_serves_both(folder: Path, file: ModelFile) -> None:
    """Or machines that share a repository would replace each other's for ever."""
    for gpu, level in (("NVIDIA L4", "none"), ("NVIDIA RTX 4090", "none"), ("NVIDIA L4", "same_compute_capability"),
                       ("NVIDIA RTX 4090", "same_compute_capability")):  # fmt: skip
        data = f"{gpu} {level}".encode()
        save(folder, None, plan_of(file, data, gpu=gpu, compute_capability="8.9", hardware_compatible=level), data)
    assert [(plan.gpu, plan.hardware_compatible) for plan in manifest_of(folder).plans] == [
        ("NVIDIA L4", "none"), ("NVIDIA RTX 4090", "none"), ("NVIDIA RTX 4090", "same_compute_capability"),
    ]  # fmt: skip
    assert len(list(folder.glob("*.plan"))) == 3


def test_the_cache_of_other_members_is_left_alone(folder: Path, file: ModelFile, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    plans.save_in_cache(cache, plan_of(file, variant="d1"), DATA)
    assert stored_plans(folder, manifest_of(folder), cache) == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"path": "../x.plan"}, "relative path inside"),
        ({"path": "/x.plan"}, "relative path inside"),
        ({"tensorrt": "ten"}, "tensorrt"),
        ({"compute_capability": "sm_90"}, "compute_capability"),
        ({"hardware_compatible": "all"}, "hardware_compatible"),
        ({"input_sizes": [{"height": 64, "width": 64}] * 2}, "input_sizes must differ, got 64x64, 64x64"),
        ({"input_sizes": []}, "input_sizes"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(file: ModelFile, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        plan_of(file, **changes)


def test_a_manifest_names_plans_of_its_own_variants_once(folder: Path, file: ModelFile) -> None:
    content = manifest_of(folder).model_dump()
    plan = plan_of(file).model_dump()
    for found, said in (
        ([plan, plan], "paths of plans must differ"),
        ([{**plan, "variant": "d9"}], r"no file has: \['d9'\]"),
    ):
        with pytest.raises(ValidationError, match=said):
            Manifest.model_validate({**content, "plans": found})
    assert Manifest.model_validate({**content, "plans": [plan]}).plans[0].nms == "plain"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return install(monkeypatch, "10.16")


def test_a_plan_is_made_from_a_whole_file_with_plain_nms(gpu: FakeGpu, folder: Path, file: ModelFile) -> None:
    manifest = manifest_of(folder)
    made = make_plan(folder, file, default_options(file, manifest))
    assert made.plan.input_sizes == manifest.input_sizes
    assert (made.plan.tensorrt, made.plan.compute_capability, made.plan.gpu) == ("10.16.1.11", "9.0", "Drawn GPU")
    assert (made.plan.precision, made.plan.max_batch, made.plan.nms) == (file.precision, 8, "plain")
    assert damage(made) is None
    assert find(stored_plans(folder, manifest_of(folder), None), file, "10.16.1.11", "9.0", "Drawn GPU") == (made, [])
    assert [call.arguments["flag"].name for call in gpu.trt.named("IBuilderConfig.clear_flag")] == [
        "TF32"
    ]  # it is fp32
    with pytest.raises(EngineError, match=r"ends in ONNX's NonMaxSuppression.*--precision fp16 --nms plain"):
        make_plan(folder, file.model_copy(update={"nms": "onnx"}), default_options(file, manifest))
    (folder / file.path).write_bytes(b"damaged")
    with pytest.raises(EngineError, match="7 bytes, but the manifest says"):
        make_plan(folder, file, default_options(file, manifest))
    assert damage(made) is None


def test_what_serves_and_what_is_built_again(file: ModelFile) -> None:
    sizes = (InputSize(height=64, width=64), InputSize(height=64, width=128))
    plan = plan_of(file, input_sizes=[size.model_dump() for size in sizes], version_compatible=True)
    wanted = BuildOptions(input_sizes=sizes[:1], max_batch=4)
    assert serves(plan, wanted)
    assert not serves(plan, BuildOptions(input_sizes=sizes, max_batch=9))
    assert not serves(plan, BuildOptions(input_sizes=(InputSize(height=32, width=32),)))
    assert not serves(plan, BuildOptions(input_sizes=sizes, hardware_compatible="ampere_plus"))
    assert not serves(plan, BuildOptions(input_sizes=sizes, efficient_nms=Thresholds()))
    assert not serves(plan_of(file), BuildOptions(input_sizes=sizes[:1], version_compatible=True))


def test_timing_caches_are_named_after_version_and_gpu() -> None:
    assert timing_cache_file(Path("c"), "11.4.0.106", "12.0") == Path("c/timing.trt11.4.0.106.sm120.bin")


def test_no_write_is_left_half_done(folder: Path, file: ModelFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(folder, None, plan_of(file), DATA)
    assert not [path for path in folder.iterdir() if path.name.startswith(".") or path.suffix == ".plan"]
