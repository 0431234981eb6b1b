"""From the network's output to faces (paper, section 5.1.1): score > 0.05, top 2000, NMS 0.4, at most 750."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import nms

from training.models.boxes import decode
from training.models.detector import Output


@dataclass(frozen=True)
class PostprocessConfig:
    """The paper's inference numbers."""

    score: float = 0.05
    top_k: int = 2000
    nms_iou: float = 0.4
    max_detections: int = 750


@torch.no_grad()
def postprocess(output: Output, height: int, width: int, config: PostprocessConfig) -> list[tuple[Tensor, Tensor]]:
    """One (boxes [K, 4] x1 y1 x2 y2, scores [K]) a picture, best first, clipped to height x width pixels."""
    results = []
    limit = torch.tensor([width, height, width, height], device=output.logits.device, dtype=torch.float32)
    for logits, deltas in zip(output.logits.float(), output.deltas.float(), strict=True):
        scores = logits.sigmoid()
        scores, index = scores.topk(min(config.top_k, len(scores)))
        keep = scores > config.score
        scores, index = scores[keep], index[keep]
        boxes = decode(deltas[index], output.anchors[index]).clamp(min=0).minimum(limit)
        kept = nms(boxes, scores, config.nms_iou)[: config.max_detections]
        results.append((boxes[kept], scores[kept]))
    return results
