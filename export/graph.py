"""The network as it is served: uint8 pictures in, candidate boxes out; NMS follows in `export.onnx_graph`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.onnx.operators import shape_as_tensor

from export.nms import DEFAULT_ITERATIONS, cluster_nms
from service.repository.manifest import Thresholds
from training.models.anchors import pyramid_anchors
from training.models.boxes import decode
from training.models.detector import Detector, normalize, scores


class CandidateGraph(nn.Module):
    """forward: uint8 [N, H, W, 3] RGB -> (boxes [N, K, 4] clipped to the input, scores [N, K]), best first.

    Anchors are made from the maps' sizes inside the graph, so that one file serves every input size. The pictures
    become float32 before anything else is done to them: TensorRT has uint8 at a network's inputs and outputs alone.
    """

    def __init__(self, detector: Detector, thresholds: Thresholds) -> None:
        super().__init__()
        self.detector, self.top_k = detector, thresholds.pre_nms_top_k

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = images.float().permute(0, 3, 1, 2)
        x = normalize(pixels)
        features = self.detector.neck(self.detector.backbone(x))
        logits, deltas, quality = self.detector.head(features)
        sizes = [(m.shape[-2], m.shape[-1]) for m in features]
        anchors = pyramid_anchors(sizes, self.detector.anchor_config, images.device)
        # A lone logit ranks as its sigmoid does, which then is taken of the best alone.
        best, index = (logits if quality is None else scores(logits, quality)).topk(self.top_k, dim=1)
        picked = _rows(deltas, index)
        boxes = decode(picked, anchors[index])
        # A traced `clamp` would freeze the example's size; as a tensor it stays symbolic.
        limit = shape_as_tensor(pixels)[torch.tensor([3, 2, 3, 2])].to(boxes)
        clipped = torch.minimum(boxes.clamp(min=0), limit)
        return clipped, best.sigmoid() if quality is None else best


class SuppressionGraph(nn.Module):
    """NMS of plain fixed-shape operations: nothing data-dependent, no plugin, and every operator is one that TensorRT
    parses.

    forward: boxes [N, K, 4], scores [N, K], best first -> (num_detections int32 [N], boxes [N, M, 4], scores [N, M]).
    """

    def __init__(self, thresholds: Thresholds, iterations: int = DEFAULT_ITERATIONS) -> None:
        super().__init__()
        self.thresholds, self.iterations = thresholds, iterations

    def forward(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        wanted = (scores > self.thresholds.score).to(boxes.dtype)
        # What is below the threshold loses its area. It would suppress nothing above it anyhow, and would only make
        # chains longer.
        boxes = boxes * wanted[..., None]
        keep = cluster_nms(boxes, self.thresholds.nms_iou, self.iterations) * wanted
        kept, index = (scores * keep).topk(self.thresholds.max_detections, dim=1)
        found = (kept > 0).to(boxes.dtype)
        return found.sum(dim=1).to(torch.int32), _rows(boxes, index) * found[..., None], kept


class PlainGraph(nn.Module):
    """`CandidateGraph`, then `SuppressionGraph`: uint8 [N, H, W, 3] -> what the latter answers."""

    def __init__(self, detector: Detector, thresholds: Thresholds, iterations: int = DEFAULT_ITERATIONS) -> None:
        super().__init__()
        self.candidates = CandidateGraph(detector, thresholds)
        self.suppression = SuppressionGraph(thresholds, iterations)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor] = self.suppression(*self.candidates(images))
        return found


def _rows(boxes: Tensor, index: Tensor) -> Tensor:
    """boxes: [N, K, 4], index: [N, M] -> [N, M, 4]."""
    return torch.gather(boxes, 1, index[..., None].repeat(1, 1, 4))
