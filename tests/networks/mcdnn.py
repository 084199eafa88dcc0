"""One column of MCDNN, written from section 3.1 of arXiv:1202.2745."""

from collections import OrderedDict

import torch
from torch import nn

from parity import Case, Small


class ScaledTanh(nn.Module):
    def forward(self, x):
        return 1.7159 * torch.tanh(x * (2 / 3))


def mcdnn_mnist(num_classes: int = 10) -> nn.Module:
    features = nn.Sequential(
        nn.Conv2d(1, 20, 4), ScaledTanh(), nn.MaxPool2d(2, 2),
        nn.Conv2d(20, 40, 5), ScaledTanh(), nn.MaxPool2d(3, 3),
    )  # fmt: skip
    classifier = nn.Sequential(nn.Linear(360, 150), ScaledTanh(), nn.Linear(150, num_classes))
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        features=features, flatten=nn.Flatten(), classifier=classifier
    )
    return nn.Sequential(parts)


# 34 pixels leave a remainder in both pools
CASES = {"mcdnn_mnist": Case(76_040, sizes=(29, 34), train_size=29, reference=mcdnn_mnist)}
SMALL = {
    "mcdnn_mnist": Small({}, 35, 2, 29),
}
HEAD = "classifier.2"
