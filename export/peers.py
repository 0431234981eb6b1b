"""Other people's face detectors behind the same interface as ours (`training.evaluation.detections.Source`).

Each is used as its authors use it: their own resizing (OpenCV's bilinear), normalisation, decoding and NMS threshold;
the score threshold is ours. None is part of the project; the files come from a folder that the user names, but for Haar
and MTCNN, whose weights are in their wheels.

To add a detector: write a class with the attributes `name`, `long_side` and `fingerprint` whose call takes a photo
(uint8 [h, w, 3], RGB) and returns `Detections` in that photo's pixels; the classes below are the pattern, each a few
lines of resizing, normalising and decoding around `_session`. Then give it a word in `KINDS`, and
`python -m export profile --peer NAME=FILE:WORD` measures it. A pattern in `FILES` also finds its file in a folder.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime as ort
from cv2.data import haarcascades
from numpy.typing import NDArray

from service.engines.base import Detections
from training.evaluation.detections import Pixels, Source
from training.evaluation.sources import default_sizes, file_fingerprint

Floats = NDArray[np.float32]

# Raised whenever an adapter below changes its answers, so that no stale detections are taken from a cache.
ADAPTER_VERSION = 2
# The threshold that our graphs are built with. Lower ones add about 0.001 AP.50 at most, and a long tail to NMS.
SCORE = 0.05
MOST = 2000


def nms(boxes: Floats, scores: Floats, iou: float, most: int = MOST) -> Detections:
    """Greedy NMS by OpenCV over the `most` best. boxes: [n, 4] x1 y1 x2 y2; scores: [n] -> those over SCORE, best
    first."""
    best = np.argsort(-scores)[:most]
    boxes, scores = boxes[best], scores[best]
    rectangles = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    kept = np.asarray(cv2.dnn.NMSBoxes(rectangles.tolist(), scores.tolist(), SCORE, iou), dtype=np.int64).reshape(-1)
    return Detections(boxes[kept], scores[kept])


def resize(pixels: Pixels, long_side: int) -> tuple[Pixels, float]:
    """Resize to a long side by OpenCV's bilinear filter. -> (pixels, factor)."""
    height, width = pixels.shape[:2]
    scale = long_side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(pixels, size), dtype=np.uint8), scale


def _session(path: Path, threads: int) -> ort.InferenceSession:
    # Older exporters list weights among the inputs too, which keeps ONNX Runtime from folding them: twice the time.
    model = onnx.load(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class Scrfd:
    """SCRFD (insightface): strides 8, 16 and 32 with two anchors a cell, distances to the four sides, NMS 0.4.

    The published square letterbox is replaced by the smallest of our own canvases (square, 4:3, 3:4), so that both
    networks see the same pixels and neither pays for blank ones.
    """

    STRIDES = (8, 16, 32)
    ANCHORS = 2

    def __init__(self, path: Path, long_side: int, threads: int) -> None:
        self.name = path.stem.replace("_", "-")
        self.long_side = long_side
        self.fingerprint = f"{file_fingerprint(path)}-{ADAPTER_VERSION}"
        self._sizes = default_sizes(long_side)
        self._session = _session(path, threads)
        self._input = self._session.get_inputs()[0].name

    def __call__(self, pixels: Pixels) -> Detections:
        small, scale = resize(pixels, self.long_side)
        height, width = small.shape[:2]
        fitting = (size for size in self._sizes if size.height >= height and size.width >= width)
        size = min(fitting, key=lambda one: one.height * one.width)
        canvas = np.zeros((size.height, size.width, 3), dtype=np.uint8)
        canvas[:height, :width] = small
        blob = cv2.dnn.blobFromImage(canvas, 1 / 128, mean=(127.5, 127.5, 127.5))
        outputs = self._session.run(None, {self._input: blob})
        all_boxes, all_scores = [], []
        for level, stride in enumerate(self.STRIDES):
            scores = outputs[level].reshape(-1)
            keep = np.flatnonzero(scores > SCORE)
            rows, columns = np.divmod(keep // self.ANCHORS, size.width // stride)
            centre = np.stack([columns, rows], axis=1).astype(np.float32) * stride
            distance = outputs[level + 3].reshape(-1, 4)[keep] * stride
            all_boxes.append(np.concatenate([centre - distance[:, :2], centre + distance[:, 2:]], axis=1) / scale)
            all_scores.append(scores[keep])
        return nms(np.concatenate(all_boxes), np.concatenate(all_scores), iou=0.4)


class YuNet:
    """YuNet (OpenCV zoo) through `cv2.FaceDetectorYN`, NMS 0.45 as in its authors' evaluation."""

    def __init__(self, path: Path, long_side: int, threads: int) -> None:
        cv2.setNumThreads(threads)
        self.name, self.long_side = "yunet", long_side
        self.fingerprint = f"{file_fingerprint(path)}-{ADAPTER_VERSION}"
        self._detector = cv2.FaceDetectorYN.create(str(path), "", (320, 320), SCORE, 0.45, MOST)

    def __call__(self, pixels: Pixels) -> Detections:
        small, scale = resize(pixels, self.long_side)
        self._detector.setInputSize((small.shape[1], small.shape[0]))
        _, faces = self._detector.detect(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
        table = np.zeros((0, 15), dtype=np.float32) if faces is None else np.asarray(faces, dtype=np.float32)
        boxes = np.concatenate([table[:, :2], table[:, :2] + table[:, 2:4]], axis=1) / scale
        return Detections(boxes.astype(np.float32), table[:, 14])


class UltraLight:
    """Ultra-Light-Fast-Generic-Face-Detector, RFB: one fixed input size that pictures are stretched to, NMS 0.5
    over the 1000 best (its background scores 0.05 to 0.1, so that every cell is a candidate)."""

    def __init__(self, path: Path, threads: int) -> None:
        self._session = _session(path, threads)
        graph_input = self._session.get_inputs()[0]
        self._input = graph_input.name
        self._height, self._width = (int(side) for side in graph_input.shape[2:])
        self.name, self.long_side = path.stem.replace("_", "-"), self._width
        self.fingerprint = f"{file_fingerprint(path)}-{ADAPTER_VERSION}"

    def __call__(self, pixels: Pixels) -> Detections:
        height, width = pixels.shape[:2]
        blob = cv2.dnn.blobFromImage(pixels, 1 / 128, (self._width, self._height), mean=(127.0, 127.0, 127.0))
        scores, boxes = self._session.run(["scores", "boxes"], {self._input: blob})
        keep = scores[0, :, 1] > SCORE
        in_pixels = boxes[0, keep] * np.array([width, height, width, height], dtype=np.float32)
        return nms(in_pixels, scores[0, keep, 1], iou=0.5, most=1000)


class Haar:
    """OpenCV's Haar cascade of frontal faces (`alt2`), scored by how many windows agree on a face.

    Of OpenCV's three frontal cascades, with scores from neighbours or from the last stage's weight, with equalised
    histograms or without, this did best on photos of our dev split.
    """

    def __init__(self, long_side: int, threads: int) -> None:
        cv2.setNumThreads(threads)
        path = Path(haarcascades) / "haarcascade_frontalface_alt2.xml"
        self.name, self.long_side = "haar", long_side
        self.fingerprint = f"{file_fingerprint(path)}-{cv2.__version__}-{ADAPTER_VERSION}"
        self._cascade = cv2.CascadeClassifier(str(path))

    def __call__(self, pixels: Pixels) -> Detections:
        small, scale = resize(pixels, self.long_side)
        grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
        rectangles, neighbours = self._cascade.detectMultiScale2(grey, scaleFactor=1.1, minNeighbors=1)
        table = np.asarray(rectangles, dtype=np.float32).reshape(-1, 4)
        boxes = np.concatenate([table[:, :2], table[:, :2] + table[:, 2:]], axis=1) / scale
        return Detections(boxes.astype(np.float32), np.asarray(neighbours, dtype=np.float32).reshape(-1))


class Mtcnn:
    """MTCNN in PyTorch (`facenet-pytorch`): smallest face 20 pixels, published thresholds but for the last stage's.

    That one is lowered from 0.7 to 0.2, as every other detector's, so that the curve has its tail (+0.025 AP.50).
    """

    def __init__(self, long_side: int, threads: int) -> None:
        import facenet_pytorch
        import torch

        torch.set_num_threads(threads)
        self.name, self.long_side = "mtcnn", long_side
        weights = sorted((Path(facenet_pytorch.__file__).parent / "data").glob("?net.pt"))
        self.fingerprint = f"{file_fingerprint(*weights)}-{ADAPTER_VERSION}"
        self._detector = facenet_pytorch.MTCNN(
            thresholds=[0.6, 0.7, 0.2], keep_all=True, select_largest=False, device="cpu"
        )

    def __call__(self, pixels: Pixels) -> Detections:
        small, scale = resize(pixels, self.long_side)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy deprecations inside the package
            boxes, scores = self._detector.detect(small)
        if boxes is None:
            return Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
        return Detections(np.asarray(boxes, dtype=np.float32) / scale, np.asarray(scores, dtype=np.float32))


Build = Callable[[Path, int, int], Source]  # (file, long side, threads) -> detector

KINDS: Mapping[str, Build] = {
    "scrfd": Scrfd,
    "yunet": YuNet,
    "ultralight": lambda path, _long_side, threads: UltraLight(path, threads),
}
"""Adapters by the word that `--peer NAME=FILE:KIND` takes."""

FILES: Mapping[str, str] = {
    "scrfd_500m.onnx": "scrfd",
    "scrfd_2.5g.onnx": "scrfd",
    "yunet*.onnx": "yunet",
    "ultralight_rfb_*.onnx": "ultralight",
}
"""Names that files of a folder are known by, and their adapters."""


@dataclass(frozen=True)
class Peer:
    """What `--peer` asks for."""

    name: str
    path: Path
    kind: str

    def open(self, long_side: int, threads: int) -> Source:
        """Load it at one long side."""
        return KINDS[self.kind](self.path, long_side, threads)


def parse_peer(text: str) -> Peer:
    """NAME=FILE:KIND. Raises ValueError that says what is wrong, and FileNotFoundError."""
    name, equals, rest = text.partition("=")
    file, colon, kind = rest.rpartition(":")
    if not (name and equals and file and colon):
        raise ValueError(f"--peer takes NAME=FILE:KIND, such as mine=scrfd_10g.onnx:scrfd, not {text!r}")
    if kind not in KINDS:
        raise ValueError(
            f"--peer {text}: there is no adapter {kind!r}; there are {', '.join(KINDS)} (export/peers.py says how to "
            "add one)"
        )
    if not Path(file).is_file():
        raise FileNotFoundError(f"--peer {text}: there is no file {file}")
    return Peer(name, Path(file), kind)


def find_peers(folder: Path | None, long_side: int, threads: int) -> list[tuple[str, Callable[[], Source]]]:
    """(name, how to open it) of every peer: the known files that `folder` holds, Haar, and MTCNN.

    Opened one at a time and not before its turn, since thread counts of OpenCV and PyTorch are global.
    """
    peers: list[tuple[str, Callable[[], Source]]] = []
    if folder is not None:
        for pattern, kind in FILES.items():
            for path in sorted(folder.glob(pattern)):
                peers.append((path.stem, partial(Peer(path.stem, path, kind).open, long_side, threads)))
    peers.append(("haar", lambda: Haar(long_side, threads)))
    peers.append(("mtcnn", lambda: Mtcnn(long_side, threads)))
    return peers
