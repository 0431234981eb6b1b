"""From the network's output to faces (paper, section 5.1.1): score > 0.05, top 2000, NMS 0.4, at most 750."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import nms

from training.models.boxes import decode
from training.models.detector import Output, scores


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
    quality = None if output.quality is None else output.quality.float()
    for ranked, deltas in zip(scores(output.logits.float(), quality), output.deltas.float(), strict=True):
        best, index = ranked.topk(min(config.top_k, len(ranked)))
        keep = best > config.score
        best, index = best[keep], index[keep]
        boxes = decode(deltas[index], output.anchors[index]).clamp(min=0).minimum(limit)
        kept = nms(boxes, best, config.nms_iou)[: config.max_detections]
        results.append((boxes[kept], best[kept]))
    return results
