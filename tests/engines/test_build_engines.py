"""`python -m service build-engines` on the fakes: what it builds, where it puts it, and what it says when it cannot."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from service.cli import app
from service.engines.tensorrt.plans import engines_folder, save_in_cache
from service.repository.manifest import Manifest, ModelFile
from service.repository.store import load_manifest
from tests.engines import gpu_fakes

ROOT = Path(__file__).parents[2]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One member with models of both NMS and two precisions; the fake parser takes any bytes."""
    folder = tmp_path / "models" / "d0"
    folder.mkdir(parents=True)
    shipped = load_manifest(ROOT / "models/d0/manifest.json")
    forms = [("d0", "fp32", "onnx"), ("d0-plain", "fp32", "plain"), ("d0-fp16", "fp16", "plain")]
    files = [model_file(folder, shipped.files[0], *form) for form in forms]
    manifest = shipped.model_copy(update={"files": tuple(files), "accuracy": (), "plans": ()})
    checked = Manifest.model_validate(manifest.model_dump())
    (folder / "manifest.json").write_text(checked.model_dump_json(), encoding="utf-8")
    return folder.parent


def model_file(folder: Path, like: ModelFile, name: str, precision: str, nms: str) -> ModelFile:
    data = f"a graph called {name}".encode()
    (folder / f"{name}.onnx").write_bytes(data)
    return like.model_copy(
        update={
            "variant": name, "path": f"{name}.onnx", "sha256": hashlib.sha256(data).hexdigest(),
            "size_bytes": len(data), "precision": precision, "weights_precision": precision, "nms": nms,
        }
    )  # fmt: skip


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> gpu_fakes.FakeGpu:
    return gpu_fakes.install(monkeypatch)


def build(repository: Path, *arguments: str, **variables: str) -> Result:
    environment = {"ASFD_CACHE_DIR": str(repository.parent / "cache"), **variables}
    return CliRunner().invoke(app, ["build-engines", "--repository", str(repository), *arguments], env=environment)


def plans(repository: Path) -> dict[str, Any]:
    return {plan.variant: plan for plan in load_manifest(repository / "d0/manifest.json").plans}


def test_builds_fp16_for_the_lean_runtime(repository: Path, gpu: gpu_fakes.FakeGpu) -> None:
    done = build(repository, ASFD_MAX_BATCH="4")
    assert done.exit_code == 0, done.output
    (plan,) = plans(repository).values()
    assert (plan.variant, plan.max_batch, plan.version_compatible) == ("d0-fp16", 4, True)
    assert plan.input_sizes == load_manifest(repository / "d0/manifest.json").input_sizes
    assert "[1/1] d0-fp16: building, 15 input sizes, batches to 4" in done.output
    assert gpu.trt.named("IBuilderConfig.set_flag")
    assert "batches to 4, 100 %" in done.output


def test_says_what_is_there_and_builds_it_again_only_if_asked(repository: Path, gpu: gpu_fakes.FakeGpu) -> None:
    assert build(repository).exit_code == 0
    built = len(gpu.trt.named("Builder.build_serialized_network"))
    again = build(repository)
    assert "d0-fp16: there already" in again.output
    assert len(gpu.trt.named("Builder.build_serialized_network")) == built
    assert build(repository, "--rebuild").exit_code == 0
    assert len(gpu.trt.named("Builder.build_serialized_network")) == built + 1


def test_plan_for_smaller_batches_is_not_enough(repository: Path, gpu: gpu_fakes.FakeGpu) -> None:
    assert build(repository, "--max-batch", "2").exit_code == 0
    done = build(repository, "--max-batch", "8")
    assert "building" in done.output
    assert plans(repository)["d0-fp16"].max_batch == 8


def test_image_finds_the_plan_in_the_cache(
    repository: Path, gpu: gpu_fakes.FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In the image the repository belongs to root; here the tests may be root, to whom nothing is read-only.
    monkeypatch.setattr(
        "service.engines.tensorrt.make.save", lambda folder, cache, plan, data: save_in_cache(cache, plan, data)
    )
    before = (repository / "d0/manifest.json").read_bytes()
    assert build(repository).exit_code == 0
    assert (repository / "d0/manifest.json").read_bytes() == before
    folder = engines_folder(repository.parent / "cache")
    assert len(list(folder.glob("d0-fp16.*.plan"))) == 1
    assert "there already" in build(repository).output


def test_one_that_fails_does_not_stop_the_others(repository: Path, gpu: gpu_fakes.FakeGpu) -> None:
    with (repository / "d0/d0-plain.onnx").open("r+b") as file:

        def spoil() -> None:  # after it was loaded, while the first one is being built
            file.seek(0)
            file.write(b"!")
            file.flush()

        gpu.trt.on_step = spoil
        done = build(repository, "--variant", "d0-fp16", "--variant", "d0-plain")
    assert done.exit_code == 2
    assert list(plans(repository)) == ["d0-fp16"]
    assert "[2/2] d0-plain: " in done.output
    assert "is damaged" in done.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--variant", "d0"], "no model with plain NMS is called d0; there are d0-fp16, d0-plain"),
        (["--hardware-compatible", "all"], "none, ampere_plus, same_compute_capability, not 'all'"),
    ],
)
def test_bad_arguments_in_a_sentence(repository: Path, arguments: list[str], said: str) -> None:
    done = build(repository, *arguments)
    assert done.exit_code == 2
    assert said in done.output


def test_lean_runtime_cannot_build(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_fakes.install(monkeypatch, "lean-11.4")
    done = build(repository)
    assert done.exit_code == 2
    assert "only TensorRT's lean runtime is installed" in done.output


def test_without_tensorrt_it_says_what_to_install(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "tensorrt_lean"):
        monkeypatch.setitem(sys.modules, name, None)
    done = build(repository)
    assert done.exit_code == 2
    assert "pip install 'tensorrt-cu13" in done.output
    assert "Traceback" not in done.output


def test_repository_without_a_model_to_build_from(repository: Path) -> None:
    manifest = load_manifest(repository / "d0/manifest.json")
    kept = manifest.model_copy(update={"files": manifest.files[:1]})
    (repository / "d0/manifest.json").write_text(kept.model_dump_json(), encoding="utf-8")
    done = build(repository)
    assert done.exit_code == 2
    assert "has no fp16 model with plain NMS" in done.output
