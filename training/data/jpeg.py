"""What JPEG does to a picture, as arithmetic on a batch: 8x8 cosine transform, quantisation, and back.

Written out because the codecs at hand work picture by picture on the CPU, and this stage may run on a GPU. Chroma is
quantised but not subsampled.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Quantisation tables of the standard's annex K, at quality 50.
_LUMA = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
_CHROMA = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, 99, 99, 99, 99, 99, 99, *(99,) * 32,
)  # fmt: skip
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


def compress(images: Tensor, quality: Tensor) -> Tensor:
    """images: float [N, 3, H, W] in 0..255, H and W multiples of 8; quality: [N] in 1..100 -> what a decoder gives."""
    n, _, height, width = images.shape
    device = images.device
    ycc = torch.einsum("ij,njhw->nihw", torch.tensor(_TO_YCC, device=device), images)
    ycc[:, 0] -= 128
    blocks = ycc.reshape(n, 3, height // 8, 8, width // 8, 8)
    basis = _basis(device)
    frequencies = torch.einsum("ui,vj,ncyixj->ncyuxv", basis, basis, blocks)
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality) / 100
    luma, chroma = (torch.tensor(t, device=device, dtype=torch.float32).view(1, 8, 1, 8) for t in (_LUMA, _CHROMA))
    tables = torch.stack((luma, chroma, chroma))[None] * scale.to(device).view(n, 1, 1, 1, 1, 1)
    tables = tables.round().clamp(1, 255)
    kept = (frequencies / tables).round() * tables
    back = torch.einsum("ui,vj,ncyuxv->ncyixj", basis, basis, kept).reshape(n, 3, height, width)
    back[:, 0] += 128
    return torch.einsum("ij,njhw->nihw", torch.tensor(_TO_RGB, device=device), back).clamp(0, 255)


def _basis(device: torch.device) -> Tensor:
    """The orthonormal cosine transform of eight numbers: [8 frequencies, 8 places]."""
    places = torch.arange(8, dtype=torch.float32)
    rows = torch.cos((2 * places[None] + 1) * places[:, None] * math.pi / 16) / 2
    rows[0] /= math.sqrt(2)
    return rows.to(device)
