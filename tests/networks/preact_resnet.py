"""He et al. 2016, Figure 4e, written as the authors' lists of layers.

Norms and ReLUs come before the convolutions. They come before both branches in a block that
projects and in the first block.
"""

import functools
from collections import OrderedDict

import torch
from torch import nn

from parity import Case, Small


class Block(nn.Module):
    def __init__(self, inputs: int, shapes: list[tuple[int, int]], stride: int, first: bool):
        """Make a block; `shapes` has the outputs and the kernel size of each convolution."""
        super().__init__()
        self.names = []
        for number, (features, size) in enumerate(shapes, 1):
            self.add_module(f"bn{number}", nn.BatchNorm2d(inputs))
            conv = nn.Conv2d(inputs, features, size, stride, size // 2, bias=False)
            self.add_module(f"conv{number}", conv)
            self.names.append((f"bn{number}", f"conv{number}"))
            if number == 1:
                self.inputs, self.stride, stride = inputs, stride, 1
            inputs = features
        self.features, self.first = inputs, first
        if len(shapes) == 3 and self.inputs != self.features:
            self.downsample = nn.Conv2d(self.inputs, self.features, 1, self.stride, bias=False)

    def forward(self, x):
        y = x
        for number, (norm, conv) in enumerate(self.names):
            y = self.get_submodule(norm)(y).relu()
            if number == 0 and hasattr(self, "downsample"):
                x = self.downsample(y)
            elif number == 0 and self.first:
                x = y
            y = self.get_submodule(conv)(y)
        if x.shape[1] < self.features:
            x = x[:, :, :: self.stride, :: self.stride]
            x = torch.cat([x, torch.zeros_like(x)], 1)
        return y + x


def preact_resnet(depth: int, bottleneck: bool, num_classes: int = 10) -> nn.Module:
    parts: OrderedDict[str, nn.Module] = OrderedDict(conv1=nn.Conv2d(3, 16, 3, 1, 1, bias=False))
    inputs = 16
    for stage, width in enumerate((16, 32, 64), 1):
        shapes = [(width, 1), (width, 3), (4 * width, 1)] if bottleneck else [(width, 3)] * 2
        blocks = []
        for index in range((depth - 2) // (3 * len(shapes))):
            stride = 2 if stage > 1 and index == 0 else 1
            blocks.append(Block(inputs, shapes, stride, first=stage == 1 and index == 0))
            inputs = shapes[-1][0]
        parts[f"layer{stage}"] = nn.Sequential(*blocks)
    parts |= {"bn1": nn.BatchNorm2d(inputs), "relu": nn.ReLU(), "avgpool": nn.AdaptiveAvgPool2d(1)}
    parts |= {"flatten": nn.Flatten(), "fc": nn.Linear(inputs, num_classes)}
    return nn.Sequential(parts)


# Table 4: 1.7 M, 1.7 M, and 10.2 M, which leaves out the norms
CASES = {
    "preact_resnet110_cifar": Case(
        1_727_962,
        sizes=(32, 27),
        train_size=16,
        cut_fields={"depth": 20},
        train_fields={"depth": 14},
        reference=functools.partial(preact_resnet, depth=110, bottleneck=False),
    ),
    "preact_resnet164_cifar": Case(
        1_703_258,
        sizes=(32, 27),
        train_size=16,
        cut_fields={"depth": 29},
        train_fields={"depth": 20},
        reference=functools.partial(preact_resnet, depth=164, bottleneck=True),
    ),
    "preact_resnet1001_cifar": Case(
        10_327_706,
        sizes=(32, 27),
        train_size=16,
        cut_fields={"depth": 29},
        train_fields={"depth": 20},
        reference=functools.partial(preact_resnet, depth=1001, bottleneck=True),
        deeper=True,
    ),
}
SMALL = {
    "preact_resnet110_cifar": Small({"depth": 8}, 32, 8, 1, recomputed=3),
    "preact_resnet164_cifar": Small({"depth": 11}, 32, 8, 1, recomputed=3),
}
HEAD = "fc"
