"""What goes over the wire, as pydantic models. Answers to /detect are written by hand to match (see `answers.py`)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_BUDGET_MS = 600_000.0


class DetectQuery(BaseModel):
    """Query parameters of POST /detect. Any other parameter is refused, so that a typing mistake is never ignored."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    tier: str | None = Field(
        default=None, description="Name of a latency tier, see GET /tiers. Not together with latency_ms."
    )
    latency_ms: float | None = Field(
        default=None,
        gt=0,
        le=MAX_BUDGET_MS,
        allow_inf_nan=False,
        description="Budget in milliseconds, from the first byte of the request to the answer.",
    )
    on_infeasible: Literal["degrade", "reject"] = Field(
        default="degrade",
        description="When no detector can finish in time: `degrade` runs the fastest one anyway, `reject` answers 503.",
    )
    min_score: float | None = Field(
        default=None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Only faces with at least this score. Not below the threshold that the models were built with.",
    )
    max_faces: int | None = Field(default=None, ge=1, le=100_000, description="At most so many faces, best first.")
    min_face: float = Field(
        default=0.0,
        ge=0,
        le=100_000,
        allow_inf_nan=False,
        description="Only faces whose shorter side has at least so many pixels of the original.",
    )
    variant: str | None = Field(
        default=None, max_length=64, description="Run exactly this variant (see GET /models), whatever the budget."
    )
    long_side: int | None = Field(
        default=None, ge=32, le=4096, description="Run at this input size; only together with variant."
    )
    return_: Literal["json", "image"] = Field(
        default="json",
        alias="return",
        description="`image` answers with the annotated picture: JPEG, or PNG where Accept asks for it.",
    )


class Face(BaseModel):
    box: tuple[float, float, float, float] = Field(
        description="x1, y1, x2, y2 in pixels of the original after its EXIF orientation is applied"
    )
    score: float = Field(ge=0, le=1)


class Size(BaseModel):
    width: int
    height: int


class Model(BaseModel):
    variant: str
    member: str
    engine: str
    input: Size = Field(description="input size of the network that was run, in pixels")
    ap50: float | None = Field(
        description="average precision at IoU 0.5 at this size, where measured; of float16 that of its float32 form"
    )
    batch: int = Field(description="pictures that the engine ran together")


class Latency(BaseModel):
    budget_ms: float
    decode_ms: float
    queue_ms: float
    infer_ms: float
    total_ms: float = Field(description="first byte of the request to the finished answer, upload included")
    predicted_ms: float = Field(description="from the request to the answer, as predicted when the detector was chosen")
    deadline_met: bool


_EXAMPLE: dict[str, Any] = {
    "faces": [{"box": [170.2, 65.9, 270.4, 205.3], "score": 0.9812}],
    "image": {"width": 512, "height": 512},
    "model": {
        "variant": "d0-int8",
        "member": "d0",
        "engine": "onnxruntime-cpu",
        "input": {"height": 640, "width": 640},
        "ap50": 0.8137,
        "batch": 1,
    },
    "latency": {
        "budget_ms": 1000.0,
        "decode_ms": 3.1,
        "queue_ms": 0.2,
        "infer_ms": 61.4,
        "total_ms": 66.0,
        "predicted_ms": 80.2,
        "deadline_met": True,
    },
    "request_id": "5f0c2a9e6f5c4b0f8f1d7a3b2c4d5e6f",
}


class DetectAnswer(BaseModel):
    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    faces: list[Face]
    image: Size = Field(description="size of the original, upright")
    model: Model
    latency: Latency
    request_id: str


class Problem(BaseModel):
    """RFC 9457. Further members depend on `type`, such as `parameter`, `predicted_ms` or `smallest_feasible_ms`."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:asfd:problem:bad-parameter",
                    "title": "Bad parameter",
                    "status": 422,
                    "detail": "There is no tier 'fast'. Tiers: realtime, interactive, standard, accurate.",
                    "parameter": "tier",
                    "request_id": "5f0c2a9e6f5c4b0f8f1d7a3b2c4d5e6f",
                }
            ]
        },
    )

    type: str
    title: str
    status: Annotated[int, Field(ge=400, le=599)]
    detail: str
    request_id: str


class BatchResult(BaseModel):
    """One picture of a batch: faces, image, model and latency as in the answer of /detect, or a problem."""

    name: str = Field(description="file name, as the form gave it")
    faces: list[Face] | None = None
    image: Size | None = None
    model: Model | None = None
    latency: Latency | None = None
    problem: Problem | None = None


class BatchAnswer(BaseModel):
    results: list[BatchResult] = Field(description="in the order of the form")
    budget_ms: float
    total_ms: float
    deadline_met: bool
    request_id: str


class Tier(BaseModel):
    name: str
    budget_ms: float
    default: bool


class TiersAnswer(BaseModel):
    tiers: list[Tier]
    custom: str = Field(
        default=f"latency_ms=<milliseconds> instead of tier, above 0 and up to {MAX_BUDGET_MS:.0f}",
        description="how to ask for a budget of one's own",
    )


class Health(BaseModel):
    status: str = Field(examples=["ready"])
