"""Airbench94 written from section 3 of arXiv:2404.00498, with the widths of airbench94_muon.py."""

from collections import OrderedDict

import torch
from torch import nn

from parity import Case, Small


def group(channels: int, features: int) -> nn.Module:
    def conv(channels: int) -> nn.Module:
        return nn.Conv2d(channels, features, 3, padding="same", bias=False)

    def norm() -> nn.Module:
        return nn.BatchNorm2d(features, eps=1e-12, momentum=1 - 0.6)

    return nn.Sequential(
        OrderedDict(
            conv1=conv(channels),
            pool=nn.MaxPool2d(2),
            norm1=norm(),
            first=nn.GELU(),
            conv2=conv(features),
            norm2=norm(),
            second=nn.GELU(),
        )
    )


class Airbench(nn.Module):
    def __init__(self, widths: tuple[int, int, int] = (64, 256, 256), num_classes: int = 10):
        super().__init__()
        self.whiten = nn.Conv2d(3, 24, 2)
        first, second, third = widths
        self.layers = nn.Sequential(
            nn.GELU(), group(24, first), group(first, second), group(second, third), nn.MaxPool2d(3)
        )
        self.head = nn.Linear(third, num_classes, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers(self.whiten(x)).mean((2, 3))
        return self.head(x) / x.shape[1]


CASES = {
    "airbench94": Case(
        1_972_792, sizes=(32, 59), train_size=32, train_fields={"widths": (8, 16, 16)},
        reference=Airbench,
    )
}  # fmt: skip
SMALL = {"airbench94": Small({"widths": (4, 8, 8)}, 56, 2, 25, recomputed=3)}
HEAD = "head"
