"""Zagoruyko & Komodakis 2016, Table 1, written from the paper's text and Figure 1d."""

import functools
from collections import OrderedDict

from torch import nn

from parity import Case, Small


class WideBlock(nn.Module):
    def __init__(self, inputs: int, features: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.dropout = nn.Dropout(0.3)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.downsample = None
        if inputs != features:
            self.downsample = nn.Conv2d(inputs, features, 1, stride, bias=False)

    def forward(self, x):
        activated = self.bn1(x).relu()
        identity = x if self.downsample is None else self.downsample(activated)
        y = self.dropout(self.bn2(self.conv1(activated)).relu())
        return identity + self.conv2(y)


def wide_resnet(depth: int, widen: int, num_classes: int = 10) -> nn.Module:
    n, k = (depth - 4) // 6, widen
    stages = [
        nn.Sequential(
            WideBlock(inputs, features, stride),
            *[WideBlock(features, features, 1) for _ in range(n - 1)],
        )
        for inputs, features, stride in ((16, 16 * k, 1), (16 * k, 32 * k, 2), (32 * k, 64 * k, 2))
    ]
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, 16, 3, 1, 1, bias=False),
        layer1=stages[0], layer2=stages[1], layer3=stages[2],
        bn1=nn.BatchNorm2d(64 * k), relu=nn.ReLU(),
        avgpool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(64 * k, num_classes),
    )  # fmt: skip
    return nn.Sequential(parts)


# The paper has 36.5 M for WRN-28-10 and 8.9 M for WRN-40-4 (Table 5). WRN-16-4 is its SVHN network.
SIZES = {(16, 4): 2_748_890, (28, 10): 36_479_194, (40, 4): 8_949_210}
CASES = {
    f"wrn_{depth}_{widen}": Case(
        count,
        sizes=(32, 27) if depth == 16 else (27,),
        train_size=16,
        train_optimization=1,
        deeper=depth > 16,
        reference=functools.partial(wide_resnet, depth=depth, widen=widen),
    )
    for (depth, widen), count in SIZES.items()
}
SMALL = {
    "wrn_16_4": Small({"depth": 10, "widen": 1}, 32, 8, 1, recomputed=3),
}
HEAD = "fc"
