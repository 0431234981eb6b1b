"""What NMS in a graph needs on crowded photos: how many iterations, how far fewer are from greedy NMS, their cost."""

from __future__ import annotations

import datetime
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel
from tqdm import tqdm

from export.member import input_sizes
from export.nms import DEFAULT_ITERATIONS, greedy_nms, step, suppressions
from service.engines.base import EngineError
from service.letterbox import fitting_size, letterbox
from service.profiling import machine_name
from service.repository.manifest import Thresholds

CANDIDATES = ["candidate_boxes", "candidate_scores"]
TRIED = (2, 4, 6, 8, 10, 12, 16)
_GRIDS = (2, 3)  # mosaics of 2 x 2 and 3 x 3 photos
_RUNS = 25
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

Pixels = NDArray[np.uint8]
Boxes = NDArray[np.float32]


@dataclass(frozen=True)
class Scene:
    """A photo, or a mosaic of several. pixels: uint8 [h, w, 3]."""

    name: str
    pixels: Pixels


@dataclass(frozen=True)
class Found:
    """One picture's candidates. boxes: float32 [K, 4], scores: float32 [K]; best first."""

    boxes: Boxes
    scores: Boxes


@dataclass(frozen=True)
class Convergence:
    """One picture. candidates: above the score threshold; kept: by greedy NMS; needed: iterations until nothing
    changes, and needed_with_all where boxes below the threshold take part; missing, extra: boxes too few and too many
    after each number of `TRIED`; equal: whether the end is greedy NMS, box by box."""

    candidates: int
    kept: int
    needed: int
    needed_with_all: int
    missing: dict[int, int]
    extra: dict[int, int]
    equal: bool


class Short(BaseModel):
    """After so many iterations: pictures that differ from greedy NMS, and boxes too few and too many in all of them."""

    iterations: int
    pictures: int
    missing: int
    extra: int


class Row(BaseModel):
    """One detector at one long side. needed: iterations -> number of pictures; unequal: pictures whose end, however
    many iterations, is not greedy NMS (none, unless rounding settles an overlap at the very threshold otherwise)."""

    source: str
    long_side: int
    pictures: int
    candidates_median: float
    candidates_max: int
    kept_max: int
    needed: dict[int, int]
    needed_max: int
    needed_with_all_max: int
    unequal: int
    short: list[Short]


class Cost(BaseModel):
    """NMS alone on one picture, in milliseconds (medians): `fixed_ms` for the overlaps and what follows,
    `iteration_ms` for each iteration, `operator_ms` for ONNX's NonMaxSuppression in its place."""

    candidates: int
    runs: int
    fixed_ms: float
    iteration_ms: float
    chosen_ms: float
    operator_ms: float


class Report(BaseModel):
    """load: the machine's load average before; iterations: what the exporter builds in. cost: of one CPU thread;
    gpu: its name where there is one, gpu_cost: on its clock, copies in and out within `fixed_ms`; gpu_absent: why there
    is none."""

    date: str
    hardware: str
    onnxruntime: str
    load: float
    data: str
    splits: list[str]
    scenes: int
    iterations: int
    iou: float
    score: float
    rows: list[Row]
    cost: Cost
    gpu: str = ""
    gpu_cost: Cost | None = None
    gpu_absent: str = ""


def crowded_scenes(data: Path, splits: Sequence[str], count: int) -> list[Scene]:
    """The `count` photos of each split with the most faces, and mosaics of them, 2 x 2 and 3 x 3, with the crowds side
    by side. Raises FileNotFoundError and ValueError where there are none."""
    from training.data.cache import load_picture
    from training.evaluation.detections import read_split

    scenes = []
    for split in splits:
        photos, images = read_split(data, split)
        most = sorted(photos, key=lambda photo: (-int((~photo.ignore).sum()), photo.name))[:count]
        loaded = [load_picture(images / photo.name) for photo in most]
        scenes += [Scene(f"{split}/{p.name}", pixels) for p, pixels in zip(most, loaded, strict=True)]
        for grid in _GRIDS:
            for at in range(0, len(loaded) - grid * grid + 1, grid * grid):
                parts = loaded[at : at + grid * grid]
                scenes.append(Scene(f"{split}/mosaic-{grid}x{grid}-{at}", mosaic(parts, grid)))
    if not scenes:
        raise ValueError(f"{data}: no photos in {', '.join(splits)}")
    return scenes


def mosaic(pictures: Sequence[Pixels], grid: int, side: int = 960) -> Pixels:
    """grid x grid pictures in a square of `side` pixels; each fills its tile, whatever becomes of its proportions."""
    tile = side // grid
    tiles = [np.asarray(Image.fromarray(p).resize((tile, tile), Image.Resampling.BILINEAR)) for p in pictures]
    rows = [np.concatenate(tiles[at : at + grid], axis=1) for at in range(0, grid * grid, grid)]
    return np.ascontiguousarray(np.concatenate(rows))


def open_candidates(path: Path) -> Callable[[Pixels], Found]:
    """uint8 [H, W, 3] -> candidates as NMS sees them, from an exported `.onnx` file with ONNX's NMS, or a checkpoint.

    Raises FileNotFoundError, and ValueError where the file names no candidates.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    model: Any
    if path.suffix == ".onnx":
        model = _load_onnx(path)
    else:
        from export.build import open_detector
        from export.onnx_graph import export_onnx

        model = export_onnx(open_detector(path)[0], Thresholds(), "onnx", half=False)
    made = {output for node in model.graph.node for output in node.output}
    if not made.issuperset(CANDIDATES):
        raise ValueError(f"{path} does not name its candidates; give a file that was exported with --nms onnx")
    from onnx import TensorProto, helper

    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in CANDIDATES)
    session = _session(model.SerializeToString())

    def run(canvas: Pixels) -> Found:
        boxes, scores = session.run(CANDIDATES, {"images": canvas[None]})
        return Found(boxes[0], scores[0])

    return run


def _load_onnx(path: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return onnx.load(path)
    except DecodeError as error:
        raise ValueError(f"{path} is no ONNX file, or a damaged one: {error}") from error


def convergence(found: Found, limits: Thresholds) -> Convergence:
    """Run NMS as the graph does until it stops changing, and compare every stage with greedy NMS."""
    import torch

    wanted = found.scores > limits.score
    boxes = torch.from_numpy(found.boxes)[None]
    masked = boxes * torch.from_numpy(wanted)[None, :, None]
    stages = list(_stages(masked, limits.nms_iou))
    best = greedy_nms(found.boxes[wanted], found.scores[wanted], limits.nms_iou)
    reference = np.zeros(len(wanted), bool)
    reference[np.flatnonzero(wanted)[best]] = True
    # From the last stage on nothing changes.
    kept = {count: stages[min(count, len(stages) - 1)] & wanted for count in (*TRIED, len(stages) - 1)}
    return Convergence(
        candidates=int(wanted.sum()),
        kept=len(best),
        needed=len(stages) - 1,
        needed_with_all=sum(1 for _ in _stages(boxes, limits.nms_iou)) - 1,
        missing={count: int((reference & ~kept[count]).sum()) for count in TRIED},
        extra={count: int((kept[count] & ~reference).sum()) for count in TRIED},
        equal=bool((kept[len(stages) - 1] == reference).all()),
    )


def _stages(boxes: Any, iou: float) -> Iterator[NDArray[np.bool_]]:
    """The survivors after 0, 1, 2, ... iterations, until nothing changes. boxes: Tensor [1, K, 4] -> bool [K]."""
    overlaps = suppressions(boxes, iou)
    keep = boxes.new_ones(1, 1, boxes.shape[1])
    while True:
        yield (keep[0, 0] > 0.5).numpy()
        after = step(keep, overlaps)
        if bool((after == keep).all()):
            return
        keep = after


def summary(source: str, long_side: int, parts: Sequence[Convergence]) -> Row:
    """One row over all pictures."""
    return Row(
        source=source, long_side=long_side, pictures=len(parts),
        candidates_median=float(np.median([p.candidates for p in parts])),
        candidates_max=max(p.candidates for p in parts), kept_max=max(p.kept for p in parts),
        needed=dict(sorted(Counter(p.needed for p in parts).items())), needed_max=max(p.needed for p in parts),
        needed_with_all_max=max(p.needed_with_all for p in parts), unequal=sum(not p.equal for p in parts),
        short=[
            Short(
                iterations=count, pictures=sum(bool(p.missing[count] or p.extra[count]) for p in parts),
                missing=sum(p.missing[count] for p in parts), extra=sum(p.extra[count] for p in parts),
            )
            for count in TRIED
        ],
    )  # fmt: skip


def measure(
    sources: Sequence[tuple[str, Path]], scenes: Sequence[Scene], long_sides: Sequence[int], limits: Thresholds
) -> tuple[list[Row], Found]:
    """Every detector at every long side, and the candidates of the picture with the most of them above the
    threshold."""
    rows, fullest = [], Found(np.zeros((1, 4), np.float32), np.zeros(1, np.float32))
    for name, path in sources:
        candidates = open_candidates(path)
        for side in long_sides:
            parts = []
            for scene in tqdm(scenes, desc=f"{name} at {side}", unit="picture"):
                height, width = scene.pixels.shape[:2]
                size = fitting_size(width, height, input_sizes((side,)))
                assert size is not None, "a square size holds every picture"
                found = candidates(letterbox(scene.pixels, size, width, height).canvas)
                parts.append(convergence(found, limits))
                if (found.scores > limits.score).sum() > (fullest.scores > limits.score).sum():
                    fullest = found
            rows.append(summary(name, side, parts))
    return rows, fullest


def cost_of(found: Found, limits: Thresholds, runs: int = _RUNS, provider: str = _CPU) -> Cost:
    """Time the NMS of one picture on a provider of ONNX Runtime, without the network before it: one thread of a CPU,
    or a GPU (**which has never been done**: none was at hand). Raises `EngineError` where the provider does not start.
    """
    boxes, scores = found.boxes[None], found.scores[None]
    # Both with iterations: without any, nobody asks for the overlaps, and they are not computed.
    once, twice = (
        _median_ms(_plain_tail(limits, count, boxes, scores), boxes, scores, runs, provider)
        for count in (DEFAULT_ITERATIONS, 2 * DEFAULT_ITERATIONS)
    )
    slope = (twice - once) / DEFAULT_ITERATIONS
    return Cost(
        candidates=int((found.scores > limits.score).sum()), runs=runs,
        fixed_ms=round(once - DEFAULT_ITERATIONS * slope, 2), iteration_ms=round(slope, 3), chosen_ms=round(once, 2),
        operator_ms=round(_median_ms(_operator_tail(limits), boxes, scores, runs, provider), 2),
    )  # fmt: skip


def gpu_cost(found: Found, limits: Thresholds) -> dict[str, Any]:
    """The fields of a `Report` about the GPU."""
    from service.engines.cuda import device

    try:
        name = device().name
        return {"gpu": name, "gpu_cost": cost_of(found, limits, provider=_CUDA)}
    except EngineError as error:
        return {"gpu_absent": str(error)}


def _plain_tail(limits: Thresholds, iterations: int, boxes: Boxes, scores: Boxes) -> bytes:
    import tempfile

    import torch

    from export.graph import SuppressionGraph
    from export.onnx_graph import OPSET

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        file = Path(folder) / "tail.onnx"
        torch.onnx.export(
            SuppressionGraph(limits, iterations).eval(), (torch.from_numpy(boxes), torch.from_numpy(scores)), file,
            input_names=CANDIDATES, output_names=["num_detections", "boxes", "scores"], opset_version=OPSET,
            dynamo=False,
        )  # fmt: skip
        return file.read_bytes()


def _operator_tail(limits: Thresholds) -> bytes:
    from onnx import TensorProto, helper

    from export.onnx_graph import OPSET, attach_nms

    inputs = [
        helper.make_tensor_value_info(CANDIDATES[0], TensorProto.FLOAT, ["batch", "k", 4]),
        helper.make_tensor_value_info(CANDIDATES[1], TensorProto.FLOAT, ["batch", "k"]),
    ]
    model = helper.make_model(
        helper.make_graph([], "tail", inputs, []), opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8
    )
    attach_nms(model, limits)
    content: bytes = model.SerializeToString()
    return content


def _session(model: bytes, provider: str = _CPU) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if provider not in ort.get_available_providers():
        raise EngineError(f"the installed onnxruntime {ort.__version__} has no {provider}")
    if provider != _CPU:
        ort.preload_dlls()
    session = ort.InferenceSession(model, options, providers=list(dict.fromkeys((provider, _CPU))))
    if provider not in session.get_providers():  # it would quietly be the CPU that is timed
        raise EngineError(f"ONNX Runtime {ort.__version__} could not start its {provider}")
    return session


def _median_ms(model: bytes, boxes: Boxes, scores: Boxes, runs: int, provider: str) -> float:
    session = _session(model, provider)
    # On a CPU the time of this process alone, whatever else the machine does.
    clock = time.process_time if provider == _CPU else time.perf_counter
    samples = []
    for _ in range(runs + 2):
        began = clock()
        session.run(None, dict(zip(CANDIDATES, (boxes, scores), strict=True)))
        samples.append((clock() - began) * 1e3)
    return float(np.median(samples[2:]))


def build_report(
    sources: Sequence[tuple[str, Path]], data: Path, splits: Sequence[str], count: int, long_sides: Iterable[int]
) -> Report:
    """All of it. Raises FileNotFoundError and ValueError that say what is missing."""
    limits, load = Thresholds(), os.getloadavg()[0]
    scenes = crowded_scenes(data, splits, count)
    rows, fullest = measure(sources, scenes, tuple(long_sides), limits)
    return Report(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), hardware=machine_name(),
        onnxruntime=ort.__version__, load=round(load, 2), data=data.resolve().name, splits=list(splits),
        scenes=len(scenes), iterations=DEFAULT_ITERATIONS, iou=limits.nms_iou, score=limits.score, rows=rows,
        cost=cost_of(fullest, limits), **gpu_cost(fullest, limits),
    )  # fmt: skip
