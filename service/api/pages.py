"""The HTML pages: single files without outside resources, served with a policy that allows just their own code."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from dataclasses import dataclass
from importlib import resources

_INLINE = re.compile(rb"<(script|style)>(.*?)</\1>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Page:
    html: bytes
    policy: str


@functools.cache
def page(name: str) -> Page:
    """`service/static/<name>` with its Content-Security-Policy."""
    html = resources.files("service").joinpath("static", name).read_bytes()
    return Page(html, _policy(html))


def _policy(html: bytes) -> str:
    """Inline scripts and styles are allowed by their hash, so an injected one would not run."""
    hashes: dict[bytes, list[str]] = {b"script": [], b"style": []}
    for kind, content in _INLINE.findall(html):
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
    return (
        "default-src 'none'; connect-src 'self'; img-src 'self' blob: data:; "
        f"script-src {' '.join(hashes[b'script']) or repr('none')}; "
        f"style-src {' '.join(hashes[b'style']) or repr('none')}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
