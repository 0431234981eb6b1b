"""Colour and quality changes of a whole batch at once, on whatever device it lies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from training.data.jpeg import compress

_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class PhotometricConfig:
    """Ranges are half-widths around 1; shares are probabilities of a picture. jpeg_quality: uniform between these."""

    brightness: float = 0.35
    contrast: float = 0.35
    saturation: float = 0.4
    tint: float = 0.08
    gray: float = 0.15
    blur: float = 0.1
    noise: float = 0.1
    jpeg: float = 0.0
    jpeg_quality: tuple[float, float] = (20.0, 80.0)


def augment(images: Tensor, config: PhotometricConfig, generator: Generator) -> Tensor:
    """images: uint8 [N, 3, H, W] -> float32 [N, 3, H, W] in 0..255. The generator lives on the CPU.

    What is drawn a picture comes from it, so that no device has to be waited for; noise is drawn on the device.
    """

    def uniform(half_width: float, channels: int = 1) -> Tensor:
        drawn = torch.rand(len(images), channels, 1, 1, generator=generator) * 2 - 1
        return (1 + drawn * half_width).to(images.device)

    def chosen(share: float) -> Tensor:
        """Indices of the pictures drawn."""
        return (torch.rand(len(images), generator=generator) < share).nonzero().flatten().to(images.device)

    x = images.float() * uniform(config.brightness) * uniform(config.tint, 3)
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    x = (x - mean) * uniform(config.contrast) + mean
    luma = (x * torch.tensor(_LUMA, device=x.device).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    saturation = uniform(config.saturation)
    saturation[chosen(config.gray)] = 0.0
    x = luma + (x - luma) * saturation
    blurred = chosen(config.blur)
    if len(blurred):
        x[blurred] = F.avg_pool2d(F.pad(x[blurred], (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    noisy = chosen(config.noise)
    if len(noisy):
        part = x[noisy]
        x[noisy] = part + torch.randn(part.shape, generator=_on(x.device, generator), device=x.device) * 8
    x = x.clamp(0, 255)
    if not config.jpeg:
        return x
    encoded = chosen(config.jpeg)
    low, high = config.jpeg_quality
    quality = low + (high - low) * torch.rand(len(images), generator=generator).to(images.device)
    if len(encoded):
        x[encoded] = compress(x[encoded], quality[encoded])
    return x


def _on(device: torch.device, generator: Generator) -> Generator:
    """The generator itself on the CPU; elsewhere one of that device, seeded from it."""
    if device.type == "cpu":
        return generator
    seed = int(torch.randint(2**62, (1,), generator=generator))
    return torch.Generator(device).manual_seed(seed)
