"""BN-Inception written from Figure 5 of Ioffe & Szegedy 2015, with its rows spelled out one by
one.
"""

from collections import OrderedDict

import torch
from torch import nn

from parity import Case, Small


def unit(c_in: int, c_out: int, size: int, stride: int = 1) -> nn.Module:
    conv = nn.Conv2d(c_in, c_out, size, stride, padding=size // 2, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(c_out, eps=1e-3), relu=nn.ReLU()))


class Branches(nn.Module):
    def __init__(self, **branches: nn.Module):
        super().__init__()
        for name, branch in branches.items():
            self.add_module(name, branch)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([branch(x) for branch in self.children()], 1)


def module(
    c_in: int,
    one: int,
    three: tuple[int, int],
    double: tuple[int, int],
    pool: nn.Module,
    project: int,
) -> nn.Module:
    return Branches(
        branch1=nn.Sequential(unit(c_in, one, 1)),
        branch2=nn.Sequential(unit(c_in, three[0], 1), unit(*three, 3)),
        branch3=nn.Sequential(
            unit(c_in, double[0], 1), unit(*double, 3), unit(double[1], double[1], 3)
        ),
        branch4=nn.Sequential(pool, unit(c_in, project, 1)),
    )


def stride_2(c_in: int, three: tuple[int, int], double: tuple[int, int]) -> nn.Module:
    return Branches(
        branch2=nn.Sequential(unit(c_in, three[0], 1), unit(*three, 3, 2)),
        branch3=nn.Sequential(
            unit(c_in, double[0], 1), unit(*double, 3), unit(double[1], double[1], 3, 2)
        ),
        branch4=nn.MaxPool2d(3, 2, padding=1),
    )


def bn_inception(num_classes: int = 1000, separable_stem: bool = True) -> nn.Module:
    average, maximum = nn.AvgPool2d(3, 1, padding=1), nn.MaxPool2d(3, 1, padding=1)
    parts = OrderedDict(conv1=unit(3, 64, 7, 2))
    if separable_stem:
        depthwise = nn.Conv2d(3, 8 * 3, 7, 2, padding=3, groups=3, bias=False)
        parts = OrderedDict(depthwise=depthwise, conv1=unit(8 * 3, 64, 1))
    parts |= OrderedDict(
        pool1=nn.MaxPool2d(3, 2, padding=1),
        conv2=unit(64, 64, 1),
        conv3=unit(64, 192, 3),
        pool2=nn.MaxPool2d(3, 2, padding=1),
        inception3a=module(192, 64, (64, 64), (64, 96), average, 32),
        inception3b=module(256, 64, (64, 96), (64, 96), average, 64),
        inception3c=stride_2(320, (128, 160), (64, 96)),
        inception4a=module(576, 224, (64, 96), (96, 128), average, 128),
        inception4b=module(576, 192, (96, 128), (96, 128), average, 128),
        inception4c=module(576, 160, (128, 160), (128, 160), average, 128),
        inception4d=module(608, 96, (128, 192), (160, 192), average, 128),
        inception4e=stride_2(608, (128, 192), (192, 256)),
        inception5a=module(1056, 352, (192, 320), (160, 224), average, 128),
        inception5b=module(1024, 352, (192, 320), (192, 224), maximum, 128),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        fc=nn.Linear(1024, num_classes),
    )
    return nn.Sequential(parts)


CASES = {"bn_inception": Case(11_278_528, train_size=96, batch=2, reference=bn_inception)}
SMALL = {
    "bn_inception": Small({}, 64, 2, 1),
}
HEAD = "fc"
