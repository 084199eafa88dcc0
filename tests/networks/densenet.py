"""torchvision's DenseNets, and for CIFAR with the stem of the paper's section 3 in place of theirs.

They are compared with a few layers a block and trained with one or two, because deeper ones run the
same loop.
"""

import functools
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from parity import Case, Small
from tools.torchvision_import import torchvision

LAYERS = {
    "densenet121": ((6, 12, 24, 16), 32),
    "densenet161": ((6, 12, 36, 24), 48),
    "densenet169": ((6, 12, 32, 32), 32),
    "densenet201": ((6, 12, 48, 32), 32),
    "densenet_40_12": ((12, 12, 12), 12),
    "densenet_100_12": ((32, 32, 32), 12),
    "densenet_100_24": ((32, 32, 32), 24),
    "densenet_bc_100_12": ((16, 16, 16), 12),
    "densenet_bc_250_24": ((41, 41, 41), 24),
    "densenet_bc_190_40": ((31, 31, 31), 40),
}


def densenet(
    name: str, num_classes: int | None = None, depths: Sequence[int] | None = None
) -> nn.Module:
    default, growth_rate = LAYERS[name]
    cifar = len(default) == 3
    model = torchvision.models.DenseNet(
        growth_rate,
        depths or default,
        2 * growth_rate,
        num_classes=num_classes or (10 if cifar else 1000),
    )
    if cifar:
        model.features.conv0 = nn.Conv2d(3, 2 * growth_rate, 3, padding=1, bias=False)
        del model.features.norm0, model.features.relu0, model.features.pool0
    return model


def plain(name: str, num_classes: int = 10, depths: Sequence[int] | None = None) -> nn.Module:
    """Section 3, "Implementation Details": 16 first channels, layers of one 3x3 convolution,
    transitions that keep the channels. torchvision cannot omit the bottlenecks.
    """
    depths, growth_rate = depths or LAYERS[name][0], LAYERS[name][1]
    channels = 16
    features: OrderedDict[str, nn.Module] = OrderedDict(
        conv0=nn.Conv2d(3, channels, 3, padding=1, bias=False)
    )
    for block, depth in enumerate(depths, 1):
        layers = OrderedDict()
        for layer in range(1, depth + 1):
            layers[f"denselayer{layer}"] = PlainLayer(channels, growth_rate)
            channels += growth_rate
        features[f"denseblock{block}"] = nn.Sequential(layers)
        norm = nn.BatchNorm2d(channels)
        if block < len(depths):
            conv = nn.Conv2d(channels, channels, 1, bias=False)
            parts: dict[str, nn.Module] = {"norm": norm, "relu": nn.ReLU(), "conv": conv}
            parts["pool"] = nn.AvgPool2d(2)
            features[f"transition{block}"] = nn.Sequential(OrderedDict(parts))
        else:
            features |= {"norm5": norm, "relu5": nn.ReLU()}
    network: OrderedDict[str, nn.Module] = OrderedDict(
        features=nn.Sequential(features), pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(),
        classifier=nn.Linear(channels, num_classes),
    )  # fmt: skip
    return nn.Sequential(network)


class PlainLayer(nn.Module):
    def __init__(self, channels: int, growth_rate: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, growth_rate, 3, padding=1, bias=False)

    def forward(self, x):
        return torch.cat([x, self.conv1(self.norm1(x).relu())], 1)


def case(name: str, parameters: int, sizes: tuple[int, ...], train_layers: int) -> Case:
    blocks = len(LAYERS[name][0])
    return Case(
        parameters,
        sizes=sizes,
        cut_fields={"depths": (2, 3, 4, 2) if blocks == 4 else (3, 4, 2)},
        train_size=64 if blocks == 4 else 16,
        train_fields={"depths": (train_layers,) * blocks},
        reference=functools.partial(densenet if blocks == 4 or "bc" in name else plain, name),
        deeper=name not in ("densenet121", "densenet_bc_100_12", "densenet_40_12"),
    )


# The CIFAR counts are the 1.0 M, 7.0 M, 27.2 M, 0.8 M, 15.3 M and 25.6 M of the paper's Table 2.
CASES = {
    name: case(name, *row)
    for name, row in {
        "densenet121": (7_978_856, (224, 193), 2),
        "densenet161": (28_681_000, (65,), 1),
        "densenet169": (14_149_480, (65,), 1),
        "densenet201": (20_013_928, (65,), 1),
        "densenet_40_12": (1_019_722, (32, 27), 2),
        "densenet_100_12": (6_979_642, (17,), 2),
        "densenet_100_24": (27_249_082, (17,), 2),
        "densenet_bc_100_12": (769_162, (32, 27), 2),
        "densenet_bc_250_24": (15_324_406, (17,), 1),
        "densenet_bc_190_40": (25_624_430, (17,), 1),
    }.items()
}
SMALL = {
    "densenet121": Small({"depths": (1, 2, 1, 1), "growth_rate": 4}, 70, 2, 29),
    "densenet_bc_100_12": Small({"depths": (2, 1, 1), "growth_rate": 4}, 32, 8, 4, recomputed=4),
}
HEAD = "classifier"
