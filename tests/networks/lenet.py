"""LeNet-5 as the lecture lists it, with torch's names for its two parts, and as the paper has it,
with Table I read by rows.
"""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F

from parity import Case, Small


def lenet5(num_classes: int = 10) -> nn.Module:
    features = nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2, 2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2, 2),
    )  # fmt: skip
    classifier = nn.Sequential(
        nn.Linear(256, 120), nn.ReLU(),
        nn.Linear(120, 84), nn.ReLU(),
        nn.Linear(84, num_classes),
    )  # fmt: skip
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        features=features, flatten=nn.Flatten(), classifier=classifier
    )
    return nn.Sequential(parts)


class Squash(nn.Module):
    def forward(self, x):
        return 1.7159 * torch.tanh(x * (2.0 / 3.0))


class Subsampling(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels).uniform_(-0.6, 0.6))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-0.6, 0.6))

    def forward(self, x):
        blocks = F.unfold(x.flatten(0, 1)[:, None], 2, stride=2).sum(1)
        blocks = blocks.view(*x.shape[:2], x.shape[2] // 2, x.shape[3] // 2)
        return blocks * self.weight[:, None, None] + self.bias[:, None, None]


# Table I by rows: the maps of C3 to which each map of S2 is connected.
ROWS = (
    (0, 4, 5, 6, 9, 10, 11, 12, 14, 15),
    (0, 1, 5, 6, 7, 10, 11, 12, 13, 15),
    (0, 1, 2, 6, 7, 8, 11, 13, 14, 15),
    (1, 2, 3, 6, 7, 8, 9, 12, 14, 15),
    (2, 3, 4, 7, 8, 9, 10, 12, 13, 15),
    (3, 4, 5, 8, 9, 10, 11, 13, 14, 15),
)


class PartialConv(nn.ModuleList):
    def __init__(self):
        self.columns = [[i for i, row in enumerate(ROWS) if j in row] for j in range(16)]
        super().__init__(nn.Conv2d(len(column), 1, 5) for column in self.columns)

    def forward(self, x):
        maps = [conv(x[:, column]) for conv, column in zip(self, self.columns, strict=True)]
        return torch.cat(maps, 1)


class RadialBasis(nn.Module):
    def __init__(self, num_classes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, 84).uniform_(-1, 1).sign())

    def forward(self, x):
        return -(torch.cdist(x[:, None], self.weight[None])[:, 0] ** 2)


def lenet5_1998(num_classes: int = 10) -> nn.Module:
    features = nn.Sequential(
        nn.Conv2d(1, 6, 5), Squash(), Subsampling(6), Squash(),
        PartialConv(), Squash(), Subsampling(16), Squash(),
    )  # fmt: skip
    classifier = nn.Sequential(
        nn.Linear(400, 120), Squash(), nn.Linear(120, 84), Squash(), RadialBasis(num_classes)
    )
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        features=features, flatten=nn.Flatten(), classifier=classifier
    )
    return nn.Sequential(parts)


CASES = {
    "lenet5": Case(44_426, sizes=(28,), train_size=28, reference=lenet5),
    # "60,000 trainable free parameters", and the codes
    "lenet5_1998": Case(60_000 + 840, sizes=(32,), train_size=32, reference=lenet5_1998),
}
SMALL = {"lenet5_1998": Small({}, 36, 2, 32, recomputed=4)}
HEAD = "classifier.4"
