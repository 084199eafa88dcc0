"""He et al. 2015, section 4.2, and Xie et al. 2016, section 5.3, written from the papers' text."""

import functools
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from parity import Case, Small


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, features: int, stride: int, shortcut: str):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.stride, self.shortcut = stride, shortcut
        if shortcut == "C" or (shortcut == "B" and inputs != features):
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, features, 1, stride, bias=False), nn.BatchNorm2d(features)
            )

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.shortcut == "none":
            return F.relu(y)
        if hasattr(self, "downsample"):
            return F.relu(y + self.downsample(x))
        identity = x[:, :, :: self.stride, :: self.stride]
        new = y.shape[1] - x.shape[1]
        if new:
            identity = torch.cat([identity, torch.zeros_like(y[:, :new])], 1)
        return F.relu(y + identity)


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, features: int, stride: int, groups: int):
        super().__init__()
        width = groups * features
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * features, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * features)
        self.downsample = nn.Identity()
        if inputs != 4 * features:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, 4 * features, 1, stride, bias=False),
                nn.BatchNorm2d(4 * features),
            )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def cifar_network(stem: int, stages: Sequence[nn.Module], outputs: int, classes: int) -> nn.Module:
    parts = OrderedDict(
        conv1=nn.Conv2d(3, stem, 3, 1, 1, bias=False), bn1=nn.BatchNorm2d(stem), relu=nn.ReLU(),
        layer1=stages[0], layer2=stages[1], layer3=stages[2],
        avgpool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(outputs, classes),
    )  # fmt: skip
    return nn.Sequential(parts)


def resnet(depth: int, num_classes: int = 10, shortcut: str = "A") -> nn.Module:
    more = (depth - 2) // 6 - 1
    stages = [
        nn.Sequential(
            BasicBlock(inputs, features, stride, shortcut),
            *[BasicBlock(features, features, 1, shortcut) for _ in range(more)],
        )
        for inputs, features, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2))
    ]
    return cifar_network(16, stages, 64, num_classes)


def resnext29(groups: int, num_classes: int = 10) -> nn.Module:
    stages = [
        nn.Sequential(
            Bottleneck(inputs, features, stride, groups),
            Bottleneck(4 * features, features, 1, groups),
            Bottleneck(4 * features, features, 1, groups),
        )
        for inputs, features, stride in ((64, 64, 1), (256, 128, 2), (512, 256, 2))
    ]
    return cifar_network(64, stages, 1024, num_classes)


# He et al., Table 6: 0.27 M, 0.46 M, 0.66 M, 0.85 M, 1.7 M and 19.4 M; Xie et al., Table 7:
# 34.4 M and 68.1 M.
RESNETS = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962, 1202: 19_421_274}
RESNEXTS = {8: 34_426_698, 16: 68_155_210}
CASES = {
    f"resnet{depth}_cifar": Case(
        count,
        sizes=(32, 27) if depth == 20 else (27,),
        cut_fields={"depth": min(depth, 110)},
        train_size=16,
        train_fields={"depth": 8},
        reference=functools.partial(resnet, depth=depth),
        deeper=depth > 20,
    )
    for depth, count in RESNETS.items()
}
CASES |= {  # as many parameters as the residual network, whose shortcuts have none
    f"plain{depth}_cifar": Case(
        RESNETS[depth],
        sizes=(32, 27),
        cut_fields={"depth": 20},
        train_size=16,
        train_fields={"depth": 8},
        reference=functools.partial(resnet, depth=depth, shortcut="none"),
        deeper=depth > 20,
    )
    for depth in (20, 32, 44, 56, 110)
}
CASES |= {
    f"resnext29_{groups}x64d_cifar": Case(
        count,
        sizes=(32, 27) if groups == 8 else (27,),
        train_size=20,  # because maps of 4x4 and below are slow to compile
        train_fields={"groups": groups // 4},
        train_optimization=1,
        batch=2,
        deeper=groups > 8,
        reference=functools.partial(resnext29, groups=groups),
    )
    for groups, count in RESNEXTS.items()
}
SMALL = {
    "resnet20_cifar": Small({"depth": 8}, 32, 8, 1, recomputed=3),
    "resnext29_8x64d_cifar": Small({"groups": 1}, 16, 4, 1, recomputed=9),
}
HEAD = "fc"
