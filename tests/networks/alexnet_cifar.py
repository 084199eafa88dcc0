"""AlexNet's networks for CIFAR-10, written from the layers of cuda-convnet's files."""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F

from parity import Case, Small


class NormWithinMaps(nn.Module):
    def forward(self, x):
        squares = F.unfold(x.flatten(0, 1)[:, None] ** 2, 3, padding=1).sum(1).view_as(x)
        return x / (1 + 5e-5 / 9 * squares) ** 0.75


def alexnet_cifar(
    num_classes: int = 10, activation: str = "relu", response_norm: bool = True
) -> nn.Module:
    act = nn.ReLU if activation == "relu" else nn.Tanh
    norm = NormWithinMaps() if response_norm else nn.Identity()
    features = nn.Sequential(
        nn.Conv2d(3, 32, 5, padding=2), nn.MaxPool2d(3, 2, ceil_mode=True), act(), norm,
        nn.Conv2d(32, 32, 5, padding=2), act(), nn.AvgPool2d(3, 2, ceil_mode=True), norm,
        nn.Conv2d(32, 64, 5, padding=2), act(), nn.AvgPool2d(3, 2, ceil_mode=True),
    )  # fmt: skip
    return with_fc10(features, 64 * 4 * 4, num_classes)


class LocalConv(nn.Module):
    """A locally connected layer as a loop over positions."""

    def __init__(self, inputs: int, features: int, side: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(features, inputs * 9, side * side) * 0.05)
        self.bias = nn.Parameter(torch.randn(features, side * side) * 0.1)
        self.side = side

    def forward(self, x):
        x, rows = F.pad(x, (1, 1, 1, 1)), []
        for position in range(self.side**2):
            row, column = divmod(position, self.side)
            patch = x[:, :, row : row + 3, column : column + 3].flatten(1)
            rows.append(patch @ self.weight[:, :, position].T + self.bias[:, position])
        return torch.stack(rows, -1).unflatten(-1, (self.side, self.side))


def alexnet_cifar_local(
    num_classes: int = 10, activation: str = "relu", response_norm: bool = True
) -> nn.Module:
    act = nn.ReLU if activation == "relu" else nn.Tanh
    lrn = nn.LocalResponseNorm(5, alpha=0.001, beta=0.75, k=1)
    norm = lrn if response_norm else nn.Identity()
    features = nn.Sequential(
        nn.Conv2d(3, 64, 5, padding=2), act(), norm, nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(64, 64, 5, padding=2), act(), norm, nn.MaxPool2d(3, 2, ceil_mode=True),
        LocalConv(64, 32, 6), act(),
        LocalConv(32, 32, 6), act(),
    )  # fmt: skip
    return with_fc10(features, 32 * 6 * 6, num_classes)


class Flattening(nn.Linear):
    """A linear layer over a whole map, which it flattens."""

    def forward(self, input):
        return super().forward(input.flatten(1))


def with_fc10(features: nn.Module, inputs: int, num_classes: int) -> nn.Module:
    parts = OrderedDict(features=features, fc10=Flattening(inputs, num_classes))
    return nn.Sequential(parts)


CASES = {
    "alexnet_cifar": Case(89_578, sizes=(32,), train_size=32, reference=alexnet_cifar),
    "alexnet_cifar_local": Case(
        1_116_490, sizes=(24,), train_size=24, batch=2, reference=alexnet_cifar_local
    ),
}
SMALL = {"alexnet_cifar": Small({}, 40, 2, 32, recomputed=3)}
HEAD = "fc10"
