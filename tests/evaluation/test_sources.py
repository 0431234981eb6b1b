"""Running detectors over a split: layouts, the letterbox and its way back, exported files, checkpoints, the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from typer import Typer
from typer.testing import CliRunner

from service.engines.base import Detections, EngineError
from service.letterbox import fitting_size
from service.repository.manifest import InputSize, Manifest
from training.evaluation.command import evaluate_command
from training.evaluation.detections import read_split, run_source
from training.evaluation.sources import EngineSource, OnnxSource, default_sizes, open_sources

# In pixels of the network's input: what the graph below says, whatever it is shown.
BOXES = np.array([[32, 32, 96, 96], [160, 64, 224, 128], [0, 0, 0, 0]], dtype=np.float32)
SCORES = np.array([0.9, 0.6, 0.0], dtype=np.float32)


def constant_graph(path: Path, names: tuple[str, str, str] = ("num_detections", "boxes", "scores")) -> Path:
    """An ONNX file that keeps the graph contract and always answers two faces."""
    values = (np.array([2], dtype=np.int32), BOXES[None], SCORES[None])
    nodes = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))
        for name, value in zip(names, values, strict=True)
    ]
    outputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in zip(names, values, strict=True)
    ]
    image = helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", "h", "w", 3])
    model = helper.make_model(
        helper.make_graph(nodes, "constant", [image], outputs), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 10
    onnx.save(model, path)
    return path


def write_split(root: Path, images: Path, annotations: Path) -> None:
    """Two photos: one of 640x480 with the two faces of `BOXES` at twice the size, one of 320x320 with one of them."""
    (images / "event").mkdir(parents=True)
    annotations.parent.mkdir(parents=True)
    Image.fromarray(np.full((480, 640, 3), 90, dtype=np.uint8)).save(images / "event" / "one.jpg")
    Image.fromarray(np.full((320, 320, 3), 90, dtype=np.uint8)).save(images / "event" / "two.png")
    annotations.write_text(
        "event/one.jpg\n2\n64 64 128 128 0 0 0 0 0 0\n320 128 128 128 0 0 0 0 0 0\n"
        "event/two.png\n2\n32 32 64 64 0 0 0 0 0 0\n160 64 64 64 0 0 0 1 0 0\n"
    )


@pytest.fixture(params=["short", "wider"])
def split(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    if request.param == "short":
        write_split(tmp_path, tmp_path / "dev" / "images", tmp_path / "split" / "dev_bbx_gt.txt")
        return tmp_path, "dev"
    write_split(
        tmp_path, tmp_path / "WIDER_val" / "images", tmp_path / "wider_face_split" / "wider_face_val_bbx_gt.txt"
    )
    return tmp_path, "val"


@given(width=st.integers(1, 2000), height=st.integers(1, 2000), long_side=st.sampled_from([320, 480, 640, 960]))
def test_the_default_sizes_hold_every_picture(width: int, height: int, long_side: int) -> None:
    sizes = default_sizes(long_side)
    assert {size.long_side for size in sizes} == {long_side}
    assert fitting_size(width, height, sizes) is not None


def test_a_picture_that_no_size_holds_is_refused(tmp_path: Path) -> None:
    source = OnnxSource(constant_graph(tmp_path / "d0.onnx"), "d0", (InputSize(height=96, width=320),), threads=1)
    assert len(source(np.zeros((90, 320, 3), dtype=np.uint8)).scores) == 2
    with pytest.raises(ValueError, match="96x320 holds a picture of 320x400"):
        source(np.zeros((400, 320, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match="no input size"):
        OnnxSource(tmp_path / "d0.onnx", "d0", ())


def test_boxes_come_back_in_pixels_of_the_picture(tmp_path: Path) -> None:
    source = open_sources(constant_graph(tmp_path / "d0.onnx"), 320, threads=1)[0]
    found = source(np.zeros((480, 640, 3), dtype=np.uint8))
    assert (source.name, source.long_side) == ("d0", 320)
    np.testing.assert_allclose(found.boxes, [[64, 64, 192, 192], [320, 128, 448, 256]])
    np.testing.assert_allclose(found.scores, [0.9, 0.6])


def test_a_split_is_run_and_scored_in_either_layout(split: tuple[Path, str], tmp_path: Path) -> None:
    data, name = split
    graph = constant_graph(tmp_path / "d0.onnx")
    out = tmp_path / "reports" / "d0.json"
    app = Typer()
    app.command()(evaluate_command)
    arguments = [str(graph), "--data", str(data), "--split", name, "--long-side", "320", "--out", str(out)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    row = json.loads(out.read_text())["rows"][0]
    # Three counted faces, all found exactly; the fourth is marked invalid and its detection leaves.
    assert (row["faces"], row["ignored"], row["ap50"], row["ap"]) == (3, 1, 1.0, 1.0)
    assert row["by_size"]["large"]["faces"] == 3
    assert " 1.0000 " in result.output


def test_the_manifest_names_variants_and_sizes(tmp_path: Path) -> None:
    member = tmp_path / "d0"
    member.mkdir()
    constant_graph(member / "d0.onnx")
    constant_graph(member / "d0-int8.onnx")
    constant_graph(member / "d0-fp16.onnx")
    manifest = {
        "member": "d0",
        "title": "t",
        "architecture": {"backbone": "r18", "neck": "fpn", "head_convs": 1, "channels": 64, "parameters": 1,
                         "gmacs_vga": 1},
        "input_sizes": [{"height": 320, "width": 320}, {"height": 640, "width": 640}],
        "files": [
            {"variant": name, "path": f"{name}.onnx", "sha256": "0" * 64, "size_bytes": 1, "precision": precision,
             "weights_precision": "fp32", "nms": "plain", "opset": 17}
            for name, precision in (("d0", "fp32"), ("d0-int8", "fp32"), ("d0-fp16", "fp16"))
        ],
        "provenance": {"recipe": "r", "data": "d", "images_seen": 1, "seed": 0, "hardware": "h", "train_hours": 1,
                       "finished": "2026-01-01"},
    }  # fmt: skip
    (member / "manifest.json").write_text(Manifest.model_validate(manifest).model_dump_json())
    assert [source.name for source in open_sources(member, 320)] == ["d0", "d0-int8"]
    assert [source.name for source in open_sources(tmp_path, 640)] == ["d0", "d0-int8"]
    assert [source.name for source in open_sources(member / "d0-int8.onnx", 640)] == ["d0-int8"]
    assert [source.name for source in open_sources(member / "d0-fp16.onnx", 640)] == ["d0-fp16"]  # for GPUs, but named
    with pytest.raises(ValueError, match=r"long side 480.*\[320, 640\]"):
        open_sources(member, 480)
    (member / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="not a manifest of version 1"):
        open_sources(member, 320)


def test_a_checkpoint_is_a_source(tmp_path: Path) -> None:
    import torch

    from training.engine.checkpoint import as_plain, save
    from training.models import DetectorConfig, build_detector

    torch.manual_seed(0)
    config = DetectorConfig(channels=16)
    save(tmp_path / "best.pt", {"ema": build_detector(config).state_dict(), "config": {"model": as_plain(config)}})
    source = open_sources(tmp_path / "best.pt", 64, threads=1, device="cpu")[0]
    found = source(np.zeros((48, 96, 3), dtype=np.uint8))
    assert found.boxes.dtype == np.float32
    assert found.boxes.shape == (len(found.scores), 4)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.onnx", None, "neither"),
        ("broken.onnx", b"not a graph", r"broken\.onnx"),
        ("broken.pt", b"not a checkpoint", r"broken\.pt"),
        ("photo.jpg", b"", "expected a checkpoint"),
    ],
)
def test_what_is_no_detector_is_refused_by_name(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_sources(tmp_path / name, 320)


def test_a_foreign_graph_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    foreign = constant_graph(tmp_path / "foreign.onnx", names=("count", "boxes", "scores"))
    with pytest.raises(ValueError, match="num_detections"):
        open_sources(foreign, 320)
    with pytest.raises(FileNotFoundError, match=r"manifest\.json"):
        open_sources(tmp_path, 320)


def test_mistakes_end_in_one_sentence(tmp_path: Path) -> None:
    app = Typer()
    app.command()(evaluate_command)
    result = CliRunner().invoke(app, [str(tmp_path / "none.pt"), "--data", str(tmp_path)])
    assert result.exit_code == 2
    assert "error: no split 'dev'" in result.output
    assert "Traceback" not in result.output


def test_missing_photos_stop_a_run_before_it_starts(tmp_path: Path) -> None:
    write_split(tmp_path, tmp_path / "dev" / "images", tmp_path / "split" / "dev_bbx_gt.txt")
    (tmp_path / "dev" / "images" / "event" / "two.png").unlink()
    photos, images = read_split(tmp_path, "dev")
    calls = []

    class Counting:
        name, long_side, fingerprint = "counting", 320, ""

        def __call__(self, pixels: NDArray[np.uint8]) -> Detections:
            calls.append(pixels.shape)
            return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))

    with pytest.raises(FileNotFoundError, match=r"1 of 2 .*two\.png"):
        run_source(Counting(), photos, images, progress=False)
    assert not calls
    run = run_source(Counting(), photos[:1], images, warm_up=2, progress=False)
    assert len(calls) == 3  # two to warm up, one timed
    assert len(run.wall_seconds) == len(run.cpu_seconds) == 1
    assert run.sizes == {"event/one.jpg": (640, 480)}


def test_limits_take_evenly_spaced_photos(tmp_path: Path) -> None:
    write_split(tmp_path, tmp_path / "dev" / "images", tmp_path / "split" / "dev_bbx_gt.txt")
    assert len(read_split(tmp_path, "dev", limit=1)[0]) == 1
    assert len(read_split(tmp_path, "dev", limit=9)[0]) == 2
    (tmp_path / "split" / "dev_bbx_gt.txt").write_text("")
    with pytest.raises(ValueError, match="lists no photo"):
        read_split(tmp_path, "dev")


# --- pictures at their own size -------------------------------------------------------------------


def test_an_exported_file_takes_pictures_at_their_own_size(tmp_path: Path) -> None:
    seen: list[tuple[int, ...]] = []

    class Recording:
        def run(self, images: NDArray[np.uint8]) -> list[Detections]:
            seen.append(images.shape)
            assert images[0, 199, 69].tolist() == [7, 7, 7]
            assert not images[0, 200:].any()
            assert not images[0, :, 70:].any()
            return [Detections(np.array([[10, 20, 90, 220]], dtype=np.float32), np.array([0.5], dtype=np.float32))]

    source = EngineSource(Recording(), "d0", "f", None)
    found = source(np.full((200, 70, 3), 7, dtype=np.uint8))
    assert (seen, source.long_side) == ([(1, 224, 192, 3)], 0)
    assert found.boxes.tolist() == [[10, 20, 70, 200]]  # clipped to the picture
    own = open_sources(constant_graph(tmp_path / "d0.onnx"), None, threads=1)[0]
    np.testing.assert_array_equal(own(np.zeros((300, 400, 3), dtype=np.uint8)).boxes, BOXES[:2])


def test_a_failing_engine_ends_in_a_sentence() -> None:
    class Failing:
        def run(self, images: NDArray[np.uint8]) -> list[Detections]:
            raise EngineError(f"no input {images.shape}")

    with pytest.raises(ValueError, match=r"no input \(1, 192, 192, 3\)"):
        EngineSource(Failing(), "d0", "f", None)(np.zeros((20, 40, 3), dtype=np.uint8))
