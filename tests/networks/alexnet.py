"""torchvision's AlexNet, and the 2012 networks written from the paper's section 3 and, for CIFAR,
the layers of cuda-convnet's files; the large ones are compared with a narrower classifier than
4096, which only costs time here.
"""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F

from parity import Case, Small
from tools.torchvision_import import torchvision


def alexnet_2012(num_classes: int = 1000, hidden_features: int = 4096) -> nn.Module:
    def lrn() -> nn.Module:  # torch averages over the window where the paper sums: alpha times 5
        return nn.LocalResponseNorm(5, alpha=5 * 1e-4, beta=0.75, k=2)

    features = nn.Sequential(
        nn.Conv2d(3, 96, 11, 4, 2), nn.ReLU(), lrn(), nn.MaxPool2d(3, 2),
        nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(), lrn(), nn.MaxPool2d(3, 2),
        nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2),
    )  # fmt: skip
    classifier = nn.Sequential(
        nn.Linear(256 * 6 * 6, hidden_features), nn.ReLU(), nn.Dropout(),
        nn.Linear(hidden_features, hidden_features), nn.ReLU(), nn.Dropout(),
        nn.Linear(hidden_features, num_classes),
    )  # fmt: skip
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        features=features, flatten=nn.Flatten(), classifier=classifier
    )
    return nn.Sequential(parts)


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
    """A loop over positions."""

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


def with_fc10(features: nn.Module, inputs: int, num_classes: int) -> nn.Module:
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        features=features, flatten=nn.Flatten(), fc10=nn.Linear(inputs, num_classes)
    )
    return nn.Sequential(parts)


def alexnet(num_classes: int = 1000, hidden_features: int = 4096) -> nn.Module:
    model = torchvision.models.alexnet(num_classes=num_classes)
    if hidden_features != 4096:
        model.classifier[1] = nn.Linear(256 * 6 * 6, hidden_features)
        model.classifier[4] = nn.Linear(hidden_features, hidden_features)
        model.classifier[6] = nn.Linear(hidden_features, num_classes)
    return model


NARROW = {"hidden_features": 256}
CASES = {
    "alexnet": Case(61_100_840, cut_fields=NARROW, train_fields=NARROW, reference=alexnet),
    # the paper: "60 million parameters"; 225 gives the same 6x6 features as 224
    "alexnet_2012": Case(
        60_965_224,
        sizes=(224, 225),
        train_size=224,
        train_optimization=1,
        batch=2,
        cut_fields=NARROW,
        train_fields=NARROW,
        reference=alexnet_2012,
    ),
    "alexnet_cifar": Case(89_578, sizes=(32,), train_size=32, reference=alexnet_cifar),
    "alexnet_cifar_local": Case(
        1_116_490, sizes=(24,), train_size=24, batch=2, reference=alexnet_cifar_local
    ),
}
SMALL = {"alexnet_cifar": Small({}, 40, 2, 32, recomputed=3)}
HEAD = "classifier.6"
