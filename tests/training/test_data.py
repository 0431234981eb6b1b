"""Annotations, layouts, the picture cache, crops and samples."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.data.cache import build_cache, load_picture
from training.data.crops import CropConfig, Window, boxes_in_window, choose_window
from training.data.dataset import DataConfig, SampleKey, StreamSampler, cut, load_training_set
from training.data.layout import resolve_split
from training.data.photometric import PhotometricConfig, augment
from training.data.wider import read_annotations


def test_annotations_of_every_kind(tmp_path: Path) -> None:
    file = tmp_path / "bbx.txt"
    file.write_text(
        "0--Parade/a b.jpg\n3\n1 2 3 4 0 0 0 0 0 0 \n5 6 0 8 0 0 0 0 0 0\n9 9 2 2 0 0 0 1 0 0\n"
        "0--Parade/none.jpg\n0\n0 0 0 0 0 0 0 0 0 0\n1--Other/c.jpg\n1\n1 1 1 1 0 0 0 0 0 0\n"
    )
    first, none, last = read_annotations(file)
    assert first.name == "0--Parade/a b.jpg"
    assert first.boxes[0].tolist() == [1, 2, 4, 6]
    assert first.ignore.tolist() == [False, True, True]
    assert none.boxes.shape == (0, 4)
    assert last.name == "1--Other/c.jpg"


@pytest.mark.parametrize(("text", "line"), [("a.jpg\nx\n", 2), ("a.jpg\n2\n1 2 3 4\n", 4), ("a.jpg\n1\n1 2 q 4\n", 3)])
def test_broken_annotations_name_file_and_line(tmp_path: Path, text: str, line: int) -> None:
    file = tmp_path / "bbx.txt"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"bbx.txt:{line}: expected"):
        read_annotations(file)


def test_both_layouts_are_found(tmp_path: Path, tiny_wider: Path) -> None:
    assert resolve_split(tiny_wider, "dev").annotations.name == "dev_bbx_gt.txt"
    (tmp_path / "WIDER_val" / "images").mkdir(parents=True)
    (tmp_path / "wider_face_split").mkdir()
    (tmp_path / "wider_face_split" / "wider_face_val_bbx_gt.txt").write_text("")
    assert resolve_split(tmp_path, "val").images == tmp_path / "WIDER_val" / "images"
    with pytest.raises(FileNotFoundError, match="no split 'test'"):
        resolve_split(tmp_path, "test")


def test_cache_gives_back_the_pixels_and_survives_pickling(tiny_wider: Path, tmp_path: Path) -> None:
    files = sorted((tiny_wider / "train" / "images").rglob("*.png"))
    cache = build_cache(files, tmp_path)
    again = pickle.loads(pickle.dumps(build_cache(files, tmp_path)))
    for k, file in enumerate(files):
        assert np.array_equal(cache[k], load_picture(file))
        assert np.array_equal(again[k], cache[k])
    assert len(list(tmp_path.glob("*.rgb"))) == 1


def test_boxes_follow_the_window() -> None:
    moved, inside = boxes_in_window(np.array([[10.0, 10, 30, 30], [90, 90, 99, 99]]), Window(0, 0, 50, 2.0), 100)
    assert moved[0].tolist() == [20, 20, 60, 60]
    assert inside.tolist() == [True, False]


def test_cut_pastes_where_the_boxes_say() -> None:
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[40:60, 20:40] = 255
    window = Window(-30.0, 10.0, 128.0, 1.0)
    out = cut(pixels, window, 128)
    boxes, _ = boxes_in_window(np.array([[20.0, 40, 40, 60]]), window, 128)
    x1, y1, x2, y2 = boxes[0].astype(int)
    assert out[y1:y2, x1:x2].min() == 255
    assert (out == 255).all(axis=2).sum() == 400
    assert (out[:, 0] == 110).all()


@given(
    width=st.integers(1, 3000), height=st.integers(1, 3000), seed=st.integers(0, 10**6),
    kind=st.sampled_from([(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)]),
)  # fmt: skip
def test_windows_are_sane_for_any_photo(width: int, height: int, seed: int, kind: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.random(2) * [width, height]
    face = np.concatenate((corner, corner + 1 + rng.random(2) * [width, height]))[None]
    config = CropConfig(face=kind[0], anchor=kind[1], ssd=kind[2])
    window = choose_window(width, height, face, 64, config, rng)
    assert window.side > 0
    assert window.scale * window.side == pytest.approx(64)
    if kind[0]:
        center = (face[0, :2] + face[0, 2:]) / 2
        assert window.x - 1e-6 <= center[0] <= window.x + window.side + 1e-6
        assert window.y - 1e-6 <= center[1] <= window.y + window.side + 1e-6


def test_samples_depend_on_their_key_alone(tiny_wider: Path, tmp_path: Path) -> None:
    data = load_training_set(tiny_wider, "train", tmp_path, DataConfig())
    assert len(data) == 7
    key = SampleKey(0, 64, (1, 2, 3))
    first, second, other = data[key], data[key], data[SampleKey(0, 64, (1, 2, 4))]
    assert torch.equal(first.image, second.image)
    assert not torch.equal(first.image, other.image)
    assert data[SampleKey(6, 64, (0, 0, 0))].targets.faces.shape == (0, 4)


def test_every_face_is_learned_or_ignored(tiny_wider: Path, tmp_path: Path) -> None:
    data = load_training_set(tiny_wider, "train", tmp_path, DataConfig(max_faces=0))
    sample = data[SampleKey(5, 128, (0, 0, 1))]
    assert len(sample.targets.faces) == 0
    assert len(sample.targets.ignored) == 1


def test_missing_pictures_are_named(tiny_wider: Path, tmp_path: Path) -> None:
    (tmp_path / "train" / "images").mkdir(parents=True)
    (tmp_path / "split").mkdir()
    (tmp_path / "split" / "train_bbx_gt.txt").write_text("gone.jpg\n1\n1 1 5 5 0 0 0 0 0 0\n")
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        load_training_set(tmp_path, "train", tmp_path, DataConfig())


def test_the_stream_resumes_exactly_and_ranks_differ() -> None:
    weights = np.ones(10)
    sizes = [(64, 4, 0.5), (96, 2, 0.5)]
    whole = list(StreamSampler(weights, sizes, 7, 0, 6))
    assert list(StreamSampler(weights, sizes, 7, 3, 6)) == whole[3:]
    other = list(StreamSampler(weights, sizes, 7, 0, 6, rank=1))
    assert [b[0].size for b in other] == [b[0].size for b in whole]
    assert other != whole
    assert {b[0].size: len(b) for b in whole} == {64: 4, 96: 2}


def test_weights_leave_out_what_weighs_nothing() -> None:
    sampler = StreamSampler(np.array([0.0, 1.0, 0.0]), [(64, 50, 1.0)], 0, 0, 1)
    assert {key.photo for batch in sampler for key in batch} == {1}


def test_photometric_is_reproducible_and_grey_is_grey() -> None:
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    config = PhotometricConfig(gray=1.0, tint=0.0, noise=0.0, blur=1.0)
    one, two = (augment(images, config, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.allclose(one[:, 0], one[:, 1], atol=1e-3)
    assert one.min() >= 0
    assert one.max() <= 255
