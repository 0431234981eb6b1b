"""Decoding: every orientation and mode ends as upright RGB, and hostile bytes end as an error with a sentence."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.errors import AsfdError, TooLargeError, UndecodableImageError, UnsupportedTypeError
from service.imaging.decode import Decoded, ImageHeader, Limits, decode, inspect
from tests.service.stub_detector import picture

LIMITS = Limits(max_pixels=64_000_000)
Pixels = npt.NDArray[np.uint8]

# Four corners of different colours tell any mirroring or rotation apart.
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def corners(width: int = 64, height: int = 32) -> Image.Image:
    """Red top left, green top right, blue bottom left, white bottom right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = RED
    pixels[: height // 2, width // 2 :] = GREEN
    pixels[height // 2 :, : width // 2] = BLUE
    pixels[height // 2 :, width // 2 :] = WHITE
    return Image.fromarray(pixels)


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def both(data: bytes, long_side: int | None = None) -> tuple[ImageHeader, Decoded]:
    header = inspect(data, LIMITS)
    return header, decode(data, header, long_side)


def corner_colours(pixels: Pixels) -> list[tuple[int, ...]]:
    """Nearest of the four colours at each corner: top left, top right, bottom left, bottom right."""
    height, width = pixels.shape[:2]
    y, x = max(1, height // 8), max(1, width // 8)
    samples = [pixels[y, x], pixels[y, -1 - x], pixels[-1 - y, x], pixels[-1 - y, -1 - x]]
    return [
        min((RED, GREEN, BLUE, WHITE), key=lambda c: int(np.abs(sample.astype(int) - c).sum())) for sample in samples
    ]


# EXIF 2.32, tag 274: where row 0 and column 0 of the stored picture lie when it is shown.
STORED_AS = {
    1: lambda image: image,
    2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
    4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
}


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_comes_out_upright(orientation: int, file_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    header, decoded = both(encoded(STORED_AS[orientation](corners()), file_format, exif=exif))
    assert (header.width, header.height) == (64, 32)
    assert header.orientation == orientation
    assert decoded.pixels.shape == (32, 64, 3)
    assert corner_colours(decoded.pixels) == [RED, GREEN, BLUE, WHITE]


def test_rotated_picture_is_upright_at_a_fraction_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    header, decoded = both(encoded(STORED_AS[6](corners(640, 320)), "JPEG", exif=exif), long_side=160)
    assert (header.width, header.height) == (640, 320)
    assert decoded.pixels.shape == (80, 160, 3)
    assert (decoded.original_width, decoded.original_height) == (640, 320)
    assert corner_colours(decoded.pixels) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("orientation", [0, 9, 255, 65535])
def test_orientations_out_of_range_are_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    header, decoded = both(encoded(corners(), "JPEG", exif=exif))
    assert header.orientation == 1
    assert decoded.pixels.shape == (32, 64, 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("exif", [b"", b"MM", b"MM\0*\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\x09\x01\x12", b"\xff" * 99])
def test_corrupt_exif_does_not_cost_the_picture(exif: bytes) -> None:
    header, decoded = both(encoded(corners(), "JPEG", exif=b"Exif\0\0" + exif))
    assert header.orientation == 1
    assert decoded.pixels.shape == (32, 64, 3)


@pytest.mark.parametrize("long_side", [1, 100, 319, 320, 321, 480, 639, 640, 641, 1280, 2559, 2560, 9999])
def test_jpeg_fraction_is_never_smaller_than_asked(long_side: int) -> None:
    data = picture("JPEG", (2560, 1439))
    _, decoded = both(data, long_side)
    assert min(long_side, 2560) <= max(decoded.pixels.shape[:2]) <= 2560
    assert (decoded.original_width, decoded.original_height) == (2560, 1439)


def test_jpeg_fraction_saves_pixels_where_it_can() -> None:
    data = picture("JPEG", (4032, 3024))
    assert both(data, 640)[1].pixels.shape == (756, 1008, 3)
    assert both(data, 500)[1].pixels.shape == (378, 504, 3)
    assert both(data, None)[1].pixels.shape == (3024, 4032, 3)


def test_large_png_is_shrunk_but_stays_twice_as_large_as_asked() -> None:
    image = corners(2400, 1200)
    _, decoded = both(encoded(image, "PNG"), 300)
    assert decoded.pixels.shape == (300, 600, 3)
    assert (decoded.original_width, decoded.original_height) == (2400, 1200)
    assert corner_colours(decoded.pixels) == [RED, GREEN, BLUE, WHITE]


def test_greyscale_and_palette() -> None:
    assert both(encoded(corners().convert("L"), "JPEG"))[1].pixels.shape == (32, 64, 3)
    assert both(encoded(corners().convert("1"), "PNG"))[1].pixels.shape == (32, 64, 3)
    assert corner_colours(both(encoded(corners().convert("P"), "PNG"))[1].pixels) == [RED, GREEN, BLUE, WHITE]


def test_16_bit_greyscale_keeps_its_brightness() -> None:
    grey = Image.fromarray(np.full((8, 16), 0x8040, np.uint16))
    _, decoded = both(encoded(grey, "PNG"))
    assert decoded.pixels.shape == (8, 16, 3)
    assert (decoded.pixels == 0x80).all()


def test_cmyk_jpeg_has_the_right_colours() -> None:
    # Adobe's convention stores CMYK inverted; getting it wrong turns the picture into its negative.
    _, decoded = both(encoded(corners().convert("CMYK"), "JPEG", quality=95))
    assert corner_colours(decoded.pixels) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_transparency_is_laid_on_white(file_format: str) -> None:
    options: dict[str, Any] = {"exact": True} if file_format == "WEBP" else {}
    data = picture(file_format, mode="RGBA", color=(255, 0, 0, 0), **options)
    assert (both(data)[1].pixels == 255).all()


def test_half_transparent_and_grey_with_alpha() -> None:
    assert np.abs(both(picture("PNG", mode="RGBA", color=(0, 0, 0, 128)))[1].pixels.astype(int) - 127).max() <= 1
    assert (both(picture("PNG", mode="LA", color=(9, 0)))[1].pixels == 255).all()


def test_transparent_colour_of_palette_and_rgb() -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert (both(encoded(palette, "PNG", transparency=1))[1].pixels == 255).all()
    assert (both(encoded(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG", transparency=(1, 2, 3)))[1].pixels == 255).all()


@pytest.mark.parametrize("file_format", ["WEBP", "PNG"])
def test_first_frame_of_an_animation(file_format: str) -> None:
    second = Image.new("RGB", (64, 32), (9, 9, 9))
    data = encoded(corners(), file_format, save_all=True, append_images=[second], duration=40)
    assert corner_colours(both(data)[1].pixels) == [RED, GREEN, BLUE, WHITE]


def test_first_picture_of_a_phones_multi_picture_jpeg() -> None:
    data = encoded(corners(640, 320), "MPO", save_all=True, append_images=[Image.new("RGB", (64, 32))])
    header, decoded = both(data, 320)
    assert header.format == "JPEG"
    assert decoded.pixels.shape == (160, 320, 3)
    assert corner_colours(decoded.pixels) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("size", [(1, 1), (3, 1), (1, 500)])
def test_tiny_pictures(file_format: str, size: tuple[int, int]) -> None:
    _, decoded = both(picture(file_format, size), 320)
    assert decoded.pixels.shape == (size[1], size[0], 3)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(30000, 2), (2, 30000)])
def test_very_long_pictures(file_format: str, size: tuple[int, int]) -> None:
    header, decoded = both(picture(file_format, size), 640)
    assert (header.width, header.height) == size
    assert max(decoded.pixels.shape[:2]) >= 640
    assert min(decoded.pixels.shape[:2]) >= 1


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_truncated_anywhere_is_an_error_with_a_sentence(file_format: str, astronaut: Pixels) -> None:
    data = encoded(Image.fromarray(astronaut[:128, :128]), file_format)
    # A PNG ends with checksums and an end mark; without those alone all pixels are there.
    end = len(data) - 24
    for cut in (*range(1, 64, 7), *range(64, end, end // 40), end):
        for long_side in (None, 32):
            with pytest.raises((UndecodableImageError, UnsupportedTypeError)) as caught:
                both(data[:cut], long_side)
            assert caught.value.detail.endswith(".")


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header promises a size and whose data is missing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    ihdr = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(8001, 8000), (30000, 30000), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_refused_by_the_header_alone(size: tuple[int, int]) -> None:
    with pytest.raises(TooLargeError, match="megapixels"):
        inspect(png_header(*size), LIMITS)


def test_size_at_the_limit_is_taken() -> None:
    limits = Limits(max_pixels=64 * 48)
    assert inspect(picture(), limits).pixels == 64 * 48
    with pytest.raises(TooLargeError) as caught:
        inspect(picture(size=(65, 48)), limits)
    assert caught.value.extra == {"max_pixels": 64 * 48}


def test_jpeg_with_thousands_of_scans_is_refused() -> None:
    data = encoded(corners(), "JPEG", progressive=True)
    assert both(data)[1].pixels.shape == (32, 64, 3)
    start = data.index(b"\xff\xda")
    scan = data[start : start + 2 + struct.unpack(">H", data[start + 2 : start + 4])[0]] + b"\0"
    with pytest.raises(UndecodableImageError, match="scans"):
        inspect(data[:start] + scan * 3000 + data[start:], LIMITS)


FOREIGN = {
    "GIF": picture("GIF"),
    "BMP": picture("BMP"),
    "TIFF": picture("TIFF"),
    "ICO": picture("ICO", (32, 32)),
    "PDF": b"%PDF-1.7\n%\xe2\xe3",
    "SVG": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "AVIF": b"\0\0\0\x1cftypavif\0\0\0\0",
    "MP4 video": b"\0\0\0\x18ftypisom\0\0\2\0",
    "HTML": b"<!DOCTYPE html><html>",
    "ZIP": b"PK\x03\x04rest",
    "gzip": b"\x1f\x8b\x08\0",
    "JSON": b'{"image": "..."}',
    "URL": b"https://example.org/photo.jpg",
    "Base64 text": b"data:image/png;base64,iVBORw0KGgo",
    "JPEG XL": b"\xff\x0a\xfa\x7f",
    "WAV audio": b"RIFF\x24\0\0\0WAVEfmt ",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_known_foreign_types_are_named(name: str) -> None:
    with pytest.raises(UnsupportedTypeError, match="JPEG, PNG or WebP") as caught:
        inspect(FOREIGN[name], LIMITS)
    assert caught.value.extra["found"] == name


def test_empty_and_unknown_bytes() -> None:
    with pytest.raises(UndecodableImageError, match="empty"):
        inspect(b"", LIMITS)
    with pytest.raises(UndecodableImageError, match="not a picture"):
        inspect(b"hello, world", LIMITS)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(["JPEG", "PNG", "WEBP"]))
def test_flipped_bytes_never_raise_anything_else(data: st.DataObject, file_format: str) -> None:
    good = bytearray(picture(file_format, (40, 24), color=(90, 120, 30)))
    for position in data.draw(st.lists(st.integers(0, len(good) - 1), min_size=1, max_size=8)):
        good[position] = data.draw(st.integers(0, 255))
    try:
        _, decoded = both(bytes(good), data.draw(st.sampled_from([None, 16, 320])))
    except AsfdError as error:
        status = error.status
    else:
        status = 200
        assert decoded.pixels.dtype == np.uint8
        assert decoded.pixels.ndim == 3
    assert status in (200, 400, 413, 415)
    assert status in (200, 400, 413, 415)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_what_waits_for_the_engine_keeps_no_decoder(file_format: str) -> None:
    assert type(both(encoded(corners(), file_format))[1].picture) is Image.Image


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_profiles_stay_out_of_pictures_made_of_it(file_format: str) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a title"
    data = encoded(corners(), file_format, icc_profile=b"\0" * 200, exif=exif)
    assert Image.open(io.BytesIO(data)).info["icc_profile"]
    again = Image.open(io.BytesIO(encoded(both(data)[1].picture, "PNG")))
    again.load()
    assert not again.info
