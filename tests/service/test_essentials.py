"""Files built to be slow to read are cut down or refused before Pillow sees them, and honest ones lose nothing."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from service.errors import UndecodableImageError
from service.imaging.decode import Limits, decode, inspect
from service.imaging.essentials import MAX_JPEG_SEGMENTS, MAX_PNG_CHUNKS, essentials
from tests.service.test_decode import BLUE, GREEN, RED, WHITE, both, corner_colours, corners, encoded

LIMITS = Limits(max_pixels=64_000_000)


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_segments(jpeg: bytes, extra: bytes) -> bytes:
    return jpeg[:2] + extra + jpeg[2:]


def with_chunks(png: bytes, extra: bytes) -> bytes:
    """Behind the header chunk."""
    return png[:33] + extra + png[33:]


def test_a_plain_file_is_passed_on_as_it_is() -> None:
    for file_format in ("JPEG", "PNG", "WEBP"):
        data = encoded(corners(), file_format)
        assert essentials(data, file_format) is data  # type: ignore[arg-type]


def test_comments_profiles_and_thumbnails_of_a_jpeg_are_left_out() -> None:
    plain = encoded(corners(), "JPEG")
    extra = segment(0xFE, b"a comment") + segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(999)) + segment(0xED, b"Photoshop")
    assert essentials(with_segments(plain, extra), "JPEG") == plain


def test_padding_and_junk_between_segments_are_left_out() -> None:
    plain = encoded(corners(), "JPEG")
    assert essentials(with_segments(plain, b"junk" + b"\xff" * 5000), "JPEG") == plain


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_the_first_exif_is_kept(file_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(corners().transpose(Image.Transpose.ROTATE_90), file_format, exif=exif, comment=b"dropped")
    # Pillow would join a second block to the first.
    again = segment(0xE1, b"Exif\0\0" + exif.tobytes()) if file_format == "JPEG" else chunk(b"eXIf", exif.tobytes())
    data = with_segments(data, again) if file_format == "JPEG" else with_chunks(data, again)
    header, decoded = both(data)
    assert header.orientation == 6
    assert corner_colours(decoded.pixels) == [RED, GREEN, BLUE, WHITE]


def test_orientation_in_a_profile_that_older_programs_write_as_text() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    info = PngImagePlugin.PngInfo()
    body = exif.tobytes()
    info.add_text("Raw profile type exif", f"\nexif\n{len(body)}\n{body.hex()}\n", zip=True)
    info.add_text("Comment", "x" * 5000, zip=True)
    assert inspect(encoded(corners(), "PNG", pnginfo=info), LIMITS).orientation == 3


def test_exif_of_a_size_that_no_camera_writes_is_not_read() -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    small, large = exif.tobytes(), exif.tobytes() + bytes(200_000)
    assert inspect(with_chunks(encoded(corners(), "PNG"), chunk(b"eXIf", small)), LIMITS).orientation == 3
    assert inspect(with_chunks(encoded(corners(), "PNG"), chunk(b"eXIf", large)), LIMITS).orientation == 1


def test_a_film_behind_the_picture_is_no_part_of_it() -> None:
    film = b"\0\0\0\x18ftypmp42" + b"\xff\xda" * 5000
    for file_format in ("JPEG", "PNG"):
        assert corner_colours(both(encoded(corners(), file_format) + film)[1].pixels) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize(
    "extra",
    [
        segment(0xFE, b"") * (MAX_JPEG_SEGMENTS + 1),
        segment(0xE1, b"") * (MAX_JPEG_SEGMENTS + 1),
        segment(0xDB, b"\0" * 65 * 1000),
        b"\xff\xfe\0\1",
    ],
    ids=["comments", "applications", "tables", "no length"],
)
def test_jpegs_that_no_program_writes_are_refused(extra: bytes) -> None:
    with pytest.raises(UndecodableImageError, match="header is damaged"):
        inspect(with_segments(encoded(corners(), "JPEG"), extra), LIMITS)


def test_scans_are_counted_past_an_end_mark_inside_a_segment() -> None:
    data = encoded(corners(), "JPEG", progressive=True)
    start = data.index(b"\xff\xda")
    scan = data[start : start + 2 + struct.unpack(">H", data[start + 2 : start + 4])[0]] + b"\0"
    hidden = segment(0xFE, b"\xff\xd9")
    with pytest.raises(UndecodableImageError, match="scans"):
        inspect(data[:start] + scan + hidden + scan * 100 + data[start:], LIMITS)


def test_a_png_of_countless_chunks_is_refused() -> None:
    with pytest.raises(UndecodableImageError, match="chunks"):
        inspect(with_chunks(encoded(corners(), "PNG"), chunk(b"teSt", b"") * (MAX_PNG_CHUNKS + 1)), LIMITS)


def test_text_that_would_be_inflated_is_left_out_of_a_png() -> None:
    plain = encoded(corners(), "PNG")
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 20)))
    assert essentials(with_chunks(plain, text * 60), "PNG") == plain


@pytest.mark.parametrize("mode", ["P", "1", "I;16", "LA"])
def test_large_pngs_of_every_kind_are_shrunk(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((1200, 2400), 0x8040, np.uint16))
    else:
        image = corners(2400, 1200).convert("L" if mode == "LA" else mode).convert(mode)
    _, decoded = both(encoded(image, "PNG"), 300)
    assert decoded.pixels.shape == (300, 600, 3)


def test_transparent_palette_is_laid_on_white_when_shrunk() -> None:
    palette = Image.new("P", (2400, 1200), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    _, decoded = both(encoded(palette, "PNG", transparency=1), 300)
    assert decoded.pixels.shape == (300, 600, 3)
    assert (decoded.pixels == 255).all()


def test_a_truncated_header_is_passed_on_for_pillow_to_judge() -> None:
    data = encoded(corners(), "JPEG", comment=b"x" * 500)
    for end in (3, 20, 100, 300):
        assert len(essentials(data[:end], "JPEG")) <= end
        with pytest.raises(UndecodableImageError):
            decode(data[:end], inspect(data, LIMITS))
