"""Answers to /detect: JSON by hand, as `schemas.DetectAnswer` declares it, or the annotated picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic_core import to_json

from service.contract import Answer
from service.imaging.annotate import MAX_LONG_SIDE, ImageFormat, annotate
from service.imaging.decode import ImageHeader, decode


def answer_json(answer: Answer, total_ms: float, request_id: str) -> bytes:
    """Without validating what was just computed: with hundreds of faces that would cost more than it is worth."""
    return to_json({**answer_document(answer, total_ms), "request_id": request_id})


def answer_document(answer: Answer, total_ms: float) -> dict[str, Any]:
    """One picture's answer, as plain containers."""
    # Rounded as float64, because a rounded float32 prints with all its digits.
    boxes = np.round(np.asarray(answer.boxes, dtype=np.float64), 1).tolist()
    scores = np.round(np.asarray(answer.scores, dtype=np.float64), 4).tolist()
    return {
        "faces": [{"box": box, "score": score} for box, score in zip(boxes, scores, strict=True)],
        "image": {"width": answer.width, "height": answer.height},
        "model": {
            "variant": answer.variant,
            "member": answer.member,
            "engine": answer.engine,
            "input": {"height": answer.input_height, "width": answer.input_width},
            "ap50": answer.ap50,
            "batch": answer.batch,
        },
        "latency": {
            "budget_ms": answer.budget_ms,
            "decode_ms": round(answer.decode_ms, 2),
            "queue_ms": round(answer.queue_ms, 2),
            "infer_ms": round(answer.infer_ms, 2),
            "total_ms": round(total_ms, 2),
            "predicted_ms": round(answer.predicted_ms, 2),
            "deadline_met": total_ms <= answer.budget_ms,
        },
    }


def answer_headers(answer: Answer, total_ms: float) -> dict[str, str]:
    """Server-Timing for browsers' tools, and what an annotated picture cannot say in its body."""
    timing = (
        ("decode", answer.decode_ms),
        ("queue", answer.queue_ms),
        ("infer", answer.infer_ms),
        ("total", total_ms),
    )
    return {
        "Server-Timing": ", ".join(f"{name};dur={ms:.2f}" for name, ms in timing),
        "X-Model-Variant": answer.variant,
        "X-Face-Count": str(len(answer.scores)),
        "Cache-Control": "no-store",
    }


def annotated(data: bytes, header: ImageHeader, answer: Answer, image_format: ImageFormat) -> bytes:
    """The picture with its faces. Decodes once more where the detector's copy is too small to look good. CPU-bound."""
    wanted = min(MAX_LONG_SIDE, header.long_side)
    picture = answer.picture
    if picture is None or max(picture.size) < wanted:
        picture = decode(data, header, wanted).picture
    return annotate(
        picture,
        answer.boxes,
        answer.scores,
        original_width=header.width,
        original_height=header.height,
        image_format=image_format,
    )


def preferred_format(accept: str) -> ImageFormat:
    """PNG where the Accept header prefers it to JPEG, else JPEG."""
    quality = {"image/png": 0.0, "image/jpeg": 0.0}
    for entry in accept.lower().split(","):
        media, *parameters = (piece.strip() for piece in entry.split(";"))
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    weight = float(parameter[2:])
                except ValueError:
                    weight = 0.0
        if media in quality:
            quality[media] = max(quality[media], weight)
    return "PNG" if quality["image/png"] > quality["image/jpeg"] else "JPEG"
