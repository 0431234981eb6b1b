"""A model repository as a GPU's owner has it, of float32, float16 with plain NMS and INT8; and plans for it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx

from service.engines.tensorrt.plans import StoredPlan, save_in_repository
from service.repository.manifest import ModelFile, Plan
from service.repository.store import load_manifest, sha256_of
from tests.engines.gpu_fakes import FakeGpu
from tests.service.fake_model import fake_graph, write_fake_repository

MEMBERS = ("d0", "d1")


def write_gpu_repository(root: Path, half: bool = True) -> Path:
    """half: whether there are float16 files; they and INT8's compute what the float32 ones do, by another name."""
    write_fake_repository(root, MEMBERS)
    for member in MEMBERS:
        path = root / member / "manifest.json"
        manifest = load_manifest(path)
        files = list(manifest.files)
        for precision, nms in (("fp16", "plain"), ("int8", "onnx")) if half else (("int8", "onnx"),):
            file = root / member / f"{member}-{precision}.onnx"
            model = fake_graph()
            model.doc_string = precision  # so that each has a hash of its own
            onnx.save(model, file)
            files.append(
                ModelFile.model_validate({
                    "variant": file.stem, "path": file.name, "sha256": sha256_of(file),
                    "size_bytes": file.stat().st_size, "precision": precision, "weights_precision": precision,
                    "nms": nms, "opset": 18,
                })
            )  # fmt: skip
        path.write_text(manifest.model_copy(update={"files": tuple(files)}).model_dump_json())
    return root


def store_plan(fake: FakeGpu, repository: Path, variant: str, **changes: object) -> StoredPlan:
    """A plan of `variant` for the fake GPU, in the repository. changes: fields of the plan's description."""
    folder = repository / variant.partition("-")[0]
    manifest = load_manifest(folder / "manifest.json")
    (file,) = [one for one in manifest.files if one.variant == variant]
    sizes = manifest.input_sizes
    data = fake.trt.plan([(size.height, size.width) for size in sizes], 4)
    described = {
        "variant": variant, "path": "x.plan", "sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data),
        "model_sha256": file.sha256, "tensorrt": fake.trt.module.__version__, "compute_capability": "9.0",
        "gpu": "Drawn GPU", "precision": file.precision, "max_batch": 4, "input_sizes": sizes, "built": "2026-01-01",
    }  # fmt: skip
    return save_in_repository(folder, Plan.model_validate({**described, **changes}), data)
