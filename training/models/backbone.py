"""ResNet-18/34/50/101 of torchvision with two further levels: a pyramid C2..C7 of strides 4..128."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models import resnet

BackboneName = Literal["resnet18", "resnet34", "resnet50", "resnet101"]


class ExtraLevel(nn.Module):
    """Halve the resolution: 1x1 reduce, 3x3 stride 2, each with batch norm and ReLU."""

    def __init__(self, in_channels: int, mid_channels: int, out_channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(in_channels, mid_channels, 1, bias=False)
        self.reduce_norm = nn.BatchNorm2d(mid_channels)
        self.conv = nn.Conv2d(mid_channels, out_channels, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.reduce_norm(self.reduce(x)))
        return torch.relu(self.norm(self.conv(x)))


class ResNetPyramid(nn.Module):
    """Levels 6 and 7 are made on the backbone's side, before the neck, as in the authors' earlier release.

    forward: [N, 3, H, W] -> six maps [N, out_channels[i], ceil(H / 2^(i+2)), ceil(W / 2^(i+2))].
    """

    def __init__(self, name: BackboneName) -> None:
        super().__init__()
        body: resnet.ResNet = getattr(resnet, name)(weights=None)
        self.conv1, self.bn1, self.maxpool = body.conv1, body.bn1, body.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = body.layer1, body.layer2, body.layer3, body.layer4
        top = int(body.fc.in_features)
        self.layer5 = ExtraLevel(top, top // 4, top // 2)
        self.layer6 = ExtraLevel(top // 2, top // 8, top // 4)
        self.out_channels: tuple[int, ...] = (top // 8, top // 4, top // 2, top, top // 2, top // 4)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        levels = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4, self.layer5, self.layer6):
            x = stage(x)
            levels.append(x)
        return levels

    def load_imagenet(self, path: Path) -> None:
        """Load a torchvision ImageNet checkpoint from a local file. Nothing is ever downloaded.

        Raises FileNotFoundError, and ValueError where the file's tensors are not those of this ResNet.
        """
        try:
            stored = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(f"{path} cannot be read as weights: {str(error).splitlines()[0]}") from error
        if not isinstance(stored, dict):
            raise ValueError(f"{path} is not a checkpoint of this ResNet: it holds a {type(stored).__name__}")
        state = {key: value for key, value in stored.items() if not key.startswith("fc.")}
        missing, unexpected = self.load_state_dict(state, strict=False)
        missing = [key for key in missing if not key.startswith(("layer5.", "layer6."))]
        if missing or unexpected:
            wrong = f"missing {missing[:3]}, unexpected {unexpected[:3]}"
            raise ValueError(f"{path} is not a checkpoint of this ResNet: {wrong}")
