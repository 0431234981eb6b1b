"""A model repository of tiny graphs that keep the manifest's contract, for tests of everything but accuracy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from service.repository.manifest import Accuracy, Architecture, InputSize, Manifest, ModelFile, Provenance
from service.repository.store import sha256_of

FACES = np.array([[8.0, 16.0, 40.0, 64.0], [48.0, 16.0, 56.0, 24.0]], dtype=np.float32)
SCORES = np.array([0.9, 0.4], dtype=np.float32)


def fake_graph(work: int = 0) -> onnx.ModelProto:
    """Two faces in every picture, at `FACES` of the input. work: matrix products that only take time."""
    boxes, scores = np.zeros((1, 750, 4), np.float32), np.zeros((1, 750), np.float32)
    boxes[0, :2], scores[0, :2] = FACES, SCORES
    weights = [("boxes1", boxes), ("scores1", scores), ("count1", np.array([2], np.int32))]
    weights += [("zero", np.array([0])), ("one", np.array([1])), ("b4", np.array([1, 1])), ("b2", np.array([1]))]
    node = helper.make_node
    nodes = [
        node("Shape", ["images"], ["batch"], start=0, end=1),
        node("Concat", ["batch", "b4"], ["shape3"], axis=0),
        node("Concat", ["batch", "b2"], ["shape2"], axis=0),
        node("Expand", ["boxes1", "shape3"], ["boxes"]),
        node("Expand", ["scores1", "shape2"], ["spread"]),
        node("Expand", ["count1", "batch"], ["num_detections"]),
    ]
    if work:
        weights += [("square", np.full((work, work), 1e-6, np.float32)), ("none", np.array(0.0, np.float32))]
        nodes += [
            node("MatMul", ["square", "square"], ["product"]),
            node("ReduceMax", ["product"], ["largest"], keepdims=0),
            node("Mul", ["largest", "none"], ["nothing"]),
            node("Add", ["spread", "nothing"], ["scores"]),
        ]
    else:
        nodes.append(node("Identity", ["spread"], ["scores"]))
    graph = helper.make_graph(
        nodes, "fake",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", "height", "width", 3])],
        [
            helper.make_tensor_value_info("num_detections", TensorProto.INT32, ["batch"]),
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["batch", 750, 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 750]),
        ],
        [numpy_helper.from_array(value, name) for name, value in weights],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def write_fake_repository(root: Path, members: tuple[str, ...] = ("d0", "d1")) -> Path:
    """Members at long sides 64 and 128; each is a little more accurate than the one before."""
    sizes = tuple(InputSize(height=h, width=w) for h, w in ((64, 64), (64, 128), (128, 64), (128, 128)))
    for rank, member in enumerate(members):
        folder = root / member
        folder.mkdir(parents=True)
        path = folder / f"{member}.onnx"
        onnx.save(fake_graph(), path)
        rows = tuple(
            Accuracy(variant=member, dataset="drawn", split="dev", protocol="wider", long_side=side, ap50=ap, ap=ap / 2)
            for side, ap in ((64, 0.3 + rank / 10), (128, 0.6 + rank / 10))
        )
        file = ModelFile(
            variant=member, path=path.name, sha256=sha256_of(path), size_bytes=path.stat().st_size,
            precision="fp32", weights_precision="fp32", nms="onnx", opset=18,
        )  # fmt: skip
        manifest = Manifest(
            member=member, title=f"Fake {member}", input_sizes=sizes, files=(file,), accuracy=rows,
            architecture=Architecture(
                backbone="none", neck="none", head_convs=0, channels=1, parameters=1, gmacs_vga=0.1
            ),
            provenance=Provenance(
                recipe="none", data="none", images_seen=0, seed=0, hardware="none", train_hours=0, finished="2026-01-01"
            ),
        )  # fmt: skip
        (folder / "manifest.json").write_text(manifest.model_dump_json(indent=1))
    return root
