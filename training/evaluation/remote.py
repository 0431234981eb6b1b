"""A running service as a source of detections: what clients get is what is measured, rounding of the answers included
(boxes to 0.1 pixel, scores to four digits)."""

from __future__ import annotations

import hashlib
import io
import json
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlencode, urlsplit

import numpy as np
from PIL import Image

from service.api.schemas import MAX_BUDGET_MS
from service.engines.base import Detections
from training.evaluation.detections import Pixels

# A queue that is full for a moment must not end a run over thousands of photos.
ATTEMPTS = 5
# Beyond the largest budget, since the answer travels too.
TIMEOUT_SECONDS = MAX_BUDGET_MS / 1000 + 30


class ServiceSource:
    """One variant of a running service, pinned, at one long side, with the largest budget the API takes."""

    def __init__(self, url: str, variant: str, long_side: int, score: float, fingerprint: str) -> None:
        """url: of the service, without a path; score: the threshold that the variant was built with, below which the
        service takes no request."""
        self.name, self.long_side, self.fingerprint = variant, long_side, fingerprint
        query = {"variant": variant, "long_side": long_side, "latency_ms": MAX_BUDGET_MS, "min_score": score}
        self._address = f"{url}/detect?{urlencode(query)}"

    def __call__(self, pixels: Pixels) -> Detections:
        """Posts the picture as PNG. Raises ConnectionError or ValueError with the service's own words."""
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)  # Lossless: nothing is measured but the detector.
        answer = _call(self._address, buffer.getvalue())
        faces = answer["faces"]
        boxes = np.array([face["box"] for face in faces], dtype=np.float32).reshape(-1, 4)
        return Detections(boxes, np.array([face["score"] for face in faces], dtype=np.float32))


def open_service(address: str, long_side: int | None) -> list[ServiceSource]:
    """Every variant that a service has loaded, at one long side; with `#name` at the end of the address, that one.

    The fingerprint covers what the service tells of a variant. Two models of one name, size and accuracy look alike.
    Raises ConnectionError where it does not answer, ValueError where it has no such variant or size.
    """
    parts = urlsplit(address)
    if long_side is None:
        raise ValueError(f"{address}: a service resizes to fixed sizes; give a long side, the protocol `vga`")
    url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
    try:
        listed = {row["variant"]: row for row in _call(f"{url}/models")["variants"]}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{url}/models does not list variants: is this the service?") from error
    if parts.fragment and parts.fragment not in listed:
        raise ValueError(f"{url} has no variant {parts.fragment!r}; it has {', '.join(listed) or 'none'}")
    if not listed:
        raise ConnectionError(f"{url} has loaded no variant yet; GET {url}/health/ready tells when it has")
    chosen = [parts.fragment] if parts.fragment else list(listed)
    return [_source(url, listed[name], long_side) for name in chosen]


def _source(url: str, row: dict[str, Any], long_side: int) -> ServiceSource:
    sides = sorted({max(size["height"], size["width"]) for size in row["inputs"]})
    if long_side not in sides:
        raise ValueError(f"{url}: {row['variant']} has no input size of long side {long_side}; it has {sides}")
    # Without what changes from run to run, which is its latencies and its memory.
    fixed = {key: row.get(key) for key in ("variant", "member", "engine", "precision", "file_bytes", "thresholds")}
    fixed |= {"accuracy": row.get("accuracy"), "url": url}
    fingerprint = hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()
    return ServiceSource(url, row["variant"], long_side, row["thresholds"]["score"], fingerprint)


def _call(address: str, body: bytes | None = None) -> dict[str, Any]:
    """GET, or POST of a picture -> the JSON answer. Waits and asks again where the service is busy."""
    headers = {} if body is None else {"Content-Type": "image/png"}
    for attempt in range(ATTEMPTS):
        try:
            with urllib.request.urlopen(
                urllib.request.Request(address, body, headers), timeout=TIMEOUT_SECONDS
            ) as response:
                content = json.loads(response.read())
            if not isinstance(content, dict):
                raise ValueError(f"{address} answered with something else than the service does")
            return content
        except urllib.error.HTTPError as error:
            detail = _detail(error)
            if error.code != 503:
                raise ValueError(f"{address} answered {error.code}: {detail}") from error
            if attempt == ATTEMPTS - 1:
                raise ConnectionError(f"{address} answered 503 {ATTEMPTS} times: {detail}") from error
            wait = error.headers.get("Retry-After", "1")
            time.sleep(min(float(wait), 10.0) if wait.isdigit() else 1.0)
        except json.JSONDecodeError as error:
            raise ValueError(f"{address} did not answer with JSON: is this the service?") from error
        except urllib.error.URLError as error:
            raise ConnectionError(f"no service answers at {address}: {error.reason}") from error
        except TimeoutError as error:
            raise ConnectionError(f"{address} did not answer within {TIMEOUT_SECONDS:.0f} s") from error
    raise AssertionError("unreachable")


def _detail(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.loads(error.read())["detail"])
    except (ValueError, KeyError, TypeError):
        return error.reason
