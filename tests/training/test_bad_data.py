"""Annotations and pictures that are damaged, hostile or not what they say they are: one sentence names the file."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data.cache import build_cache, load_picture
from training.data.wider import read_annotations


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def huge_png() -> bytes:
    """A few hundred bytes that say they are 60,000 pixels a side."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("row", ["nan 2 3 4", "1 2 inf 4", "1 -inf 3 4", "1e308 2 1e308 4"])
def test_a_box_that_is_not_finite_is_refused(tmp_path: Path, row: str) -> None:
    # It would count as a face that nobody can find, and make the loss of a training run NaN.
    file = tmp_path / "bbx.txt"
    file.write_text(f"a.jpg\n1\n{row} 0 0 0 0 0 0\n")
    with pytest.raises(ValueError, match=r"bbx\.txt:3: expected a box .* all finite"):
        read_annotations(file)


def test_a_negative_number_of_boxes_is_named_itself(tmp_path: Path) -> None:
    file = tmp_path / "bbx.txt"
    file.write_text("a.jpg\n-3\n1 2 3 4 0 0 0 0 0 0\n")
    with pytest.raises(ValueError, match=r"bbx\.txt:2: expected the number of boxes of 'a\.jpg'"):
        read_annotations(file)


@pytest.mark.parametrize("name", ["/etc/a.jpg", "../a.jpg", "event/../../a.jpg"])
def test_a_name_does_not_lead_out_of_the_image_folder(tmp_path: Path, name: str) -> None:
    # `--submission` writes a file of each name.
    file = tmp_path / "bbx.txt"
    file.write_text(f"a..b.jpg\n0\n{name}\n0\n")
    with pytest.raises(ValueError, match=r"bbx\.txt:3: .* does not lie below the image folder"):
        read_annotations(file)


def test_annotations_that_are_no_text_are_named(tmp_path: Path) -> None:
    file = tmp_path / "bbx.txt"
    file.write_bytes(b"a.jpg\n\xff\xfe\n")
    with pytest.raises(ValueError, match=r"bbx\.txt is not text in UTF-8"):
        read_annotations(file)


@pytest.mark.parametrize("kind", ["cut.webp", "cut.jpg", "cut.png", "empty.png", "huge.png"])
def test_a_picture_that_cannot_be_decoded_is_named(tmp_path: Path, kind: str) -> None:
    file = tmp_path / kind
    if kind.startswith("cut"):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(file)
        file.write_bytes(file.read_bytes()[:600])
    else:
        file.write_bytes(huge_png() if kind == "huge.png" else b"")
    with pytest.raises(ValueError, match=rf"{kind} (cannot be read as|is not) a picture"):
        load_picture(file)
    with pytest.raises(ValueError, match=rf"{kind} (cannot be read as|is not) a picture"):
        build_cache([file], tmp_path / "cache")


def test_a_picture_that_is_not_there_is_another_matter(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        load_picture(tmp_path / "absent.png")
