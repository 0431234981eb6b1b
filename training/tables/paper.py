"""What the paper printed: AP in percent on WIDER Face's validation set, easy, medium and hard (COCO's for Table 8)."""

from __future__ import annotations

from collections.abc import Mapping

Scores = Mapping[str, float]
_SUBSETS = ("easy", "medium", "hard")


def _row(*values: float) -> Scores:
    """Three values of AP.50 and three of AP, as Tables 3 to 7 print them."""
    names = [f"{kind}_{subset}" for kind in ("ap50", "ap") for subset in _SUBSETS]
    return dict(zip(names, values, strict=True))


# Table 1: AP.50 on hard; row: the level that is aggregated, column: with which; both P2 .. P7.
PAIRS: tuple[tuple[float, ...], ...] = (
    (82.9, 84.3, 85.0, 84.7, 84.5, 82.7),
    (83.0, 82.9, 85.1, 84.8, 84.5, 83.2),
    (83.0, 83.2, 82.9, 84.5, 83.8, 83.3),
    (82.7, 83.0, 83.0, 82.9, 83.7, 83.2),
    (82.8, 83.0, 82.9, 82.9, 82.9, 83.1),
    (82.7, 82.8, 83.3, 83.0, 83.0, 82.9),
)

# Table 2: one enhancement on one level, P2 .. P7. The caption does not say which subset; the values are of hard's size.
LEVELS: Mapping[str, tuple[float, ...]] = {
    "aspp": (86.5, 86.8, 86.9, 87.2, 87.5, 87.1),
    "cpm": (86.8, 86.9, 87.0, 87.1, 87.4, 87.2),
    "rfb": (86.8, 86.9, 87.0, 87.3, 87.4, 87.2),
    "rfe": (87.4, 87.6, 87.5, 87.4, 87.2, 87.1),
}

AGGREGATIONS: Mapping[str, Scores] = {  # Table 3
    "fpn": _row(95.1, 94.0, 87.2, 61.9, 59.2, 46.5),
    "nas-fpn": _row(95.1, 93.9, 86.2, 61.8, 59.0, 45.7),
    "nas-fcos": _row(94.7, 93.1, 85.6, 61.5, 58.1, 45.1),
    "auto-fpn": _row(94.6, 93.4, 86.0, 61.4, 58.5, 45.6),
    "pafpn": _row(95.3, 94.1, 87.3, 62.1, 59.4, 46.8),
    "bifpn": _row(95.5, 94.4, 87.4, 62.3, 59.6, 46.9),
    "abifpn": _row(95.3, 94.5, 87.5, 62.2, 59.7, 47.0),
    "fem-fpn": _row(95.2, 94.0, 86.7, 62.1, 59.4, 46.5),
    "darts-fa": _row(95.1, 93.5, 86.5, 61.8, 58.6, 45.6),
    "pc-darts-fa": _row(95.0, 93.7, 86.6, 61.8, 58.9, 46.0),
    "autofa": _row(95.4, 94.4, 87.8, 62.8, 60.2, 47.4),
}

ENHANCEMENTS: Mapping[str, Scores] = {  # Table 4
    "none": _row(94.7, 92.8, 82.9, 61.7, 58.4, 45.0),
    "aspp": _row(94.8, 93.0, 83.4, 62.1, 58.8, 45.3),
    "rfb": _row(94.5, 92.7, 83.0, 61.5, 58.5, 45.2),
    "cpm": _row(94.6, 92.8, 83.0, 61.5, 58.4, 45.2),
    "fem-cpm": _row(94.5, 92.9, 83.3, 61.9, 58.7, 45.5),
    "rfe": _row(94.5, 92.8, 83.2, 61.8, 58.7, 45.4),
    "darts-fe": _row(94.7, 92.9, 83.0, 61.6, 58.6, 45.1),
    "pc-darts-fe": _row(94.6, 93.0, 83.0, 61.8, 58.6, 45.2),
    "autofe": _row(95.2, 93.2, 83.5, 62.1, 59.0, 45.8),
}

CASCADE = _row(95.4, 94.5, 87.9, 62.8, 60.2, 47.5)  # Table 5
JOINT = _row(95.7, 95.0, 88.6, 62.9, 60.5, 47.8)
BEFORE = _row(95.2, 94.3, 87.5, 62.4, 60.1, 46.9)  # Table 6
AFTER = _row(95.3, 94.4, 88.0, 62.4, 60.2, 47.3)

# Table 7, tested at several scales; the latency is of one pass over a VGA picture on a V100.
MEMBERS: Mapping[str, Scores] = {
    "d0": {**_row(95.7, 94.8, 88.0, 63.7, 61.1, 48.3), "latency_ms": 3.1},
    "d1": {**_row(96.1, 95.2, 88.8, 64.1, 61.5, 48.9), "latency_ms": 5.7},
    "d2": {**_row(96.4, 95.6, 89.5, 64.6, 62.3, 49.6), "latency_ms": 10.5},
    "d3": {**_row(96.6, 95.9, 90.5, 65.1, 62.8, 50.4), "latency_ms": 16.6},
    "d4": {**_row(97.0, 96.3, 91.2, 65.8, 63.3, 50.9), "latency_ms": 26.2},
    "d5": {**_row(97.0, 96.5, 91.9, 65.9, 63.3, 51.7), "latency_ms": 29.6},
    "d6": {**_row(97.2, 96.5, 92.5, 66.2, 63.5, 52.3), "latency_ms": 36.1},
}

GENERIC: Mapping[tuple[str, str], Scores] = {  # Table 8
    ("retinanet", "fpn"): {"ap": 36.5, "ap50": 55.1, "ap75": 39.0},
    ("retinanet", "autofae"): {"ap": 37.5, "ap50": 56.6, "ap75": 39.9},
    ("fcos", "fpn"): {"ap": 38.6, "ap50": 57.2, "ap75": 41.7},
    ("fcos", "autofae"): {"ap": 39.2, "ap50": 57.6, "ap75": 42.2},
    ("faster-rcnn", "fpn"): {"ap": 37.4, "ap50": 58.1, "ap75": 40.4},
    ("faster-rcnn", "autofae"): {"ap": 37.9, "ap50": 58.3, "ap75": 41.2},
}
