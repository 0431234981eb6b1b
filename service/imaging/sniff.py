"""Tell a file's type from its first bytes. Content decides; what the client declares is only a hint."""

from __future__ import annotations

from typing import Literal

Format = Literal["JPEG", "PNG", "WEBP"]

ACCEPTED = "JPEG, PNG or WebP"

_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "BigTIFF"),
    (b"MM\x00+", "BigTIFF"),
    (b"%PDF-", "PDF"),
    (b"8BPS", "Photoshop"),
    (b"\x00\x00\x01\x00", "ICO"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"qoif", "QOI"),
    (b"PK\x03\x04", "ZIP"),
    (b"\x1f\x8b", "gzip"),
    (b"\x1aE\xdf\xa3", "Matroska or WebM video"),
)
_HEIF_BRANDS = frozenset((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"))


def accepted_format(data: bytes) -> Format | None:
    """The format of `data` if it is one that the service decodes."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return None


def known_foreign_type(data: bytes) -> str | None:
    """Name of a well-known type that the service does not take, or None where the bytes mean nothing to it."""
    for start, name in _STARTS:
        if data.startswith(start):
            return name
    if data[:2] == b"BM" and data[6:10] == b"\x00\x00\x00\x00":
        return "BMP"
    if data[4:8] == b"ftyp":
        brand = data[8:12]
        if brand in _HEIF_BRANDS:
            return "HEIC"
        return "AVIF" if brand in (b"avif", b"avis") else "MP4 video"
    if data[:4] == b"RIFF":
        return "AVI video" if data[8:12] == b"AVI " else "WAV audio" if data[8:12] == b"WAVE" else None
    return _text_type(data)


def _text_type(data: bytes) -> str | None:
    head = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if head.startswith(b"<svg") or (head.startswith((b"<?xml", b"<!doctype svg")) and b"<svg" in head):
        return "SVG"
    if head.startswith((b"<!doctype html", b"<html")):
        return "HTML"
    if head.startswith((b"{", b"[")):
        return "JSON"
    if head.startswith((b"http://", b"https://")):
        return "URL"
    if head.startswith(b"data:image/") or head.startswith((b"/9j/", b"ivborw0kggo", b"uklgr")):
        return "Base64 text"
    return None
