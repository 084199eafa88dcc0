"""torchvision's DenseNet; for CIFAR with the stem of the paper's section 3 instead of its own.

Compared with a few layers a block, and trained with one or two: deeper ones are the same loop.
"""

import functools
from collections.abc import Sequence

from torch import nn

from parity import Case, Small
from tools.torchvision_import import torchvision

LAYERS = {
    "densenet121": ((6, 12, 24, 16), 32),
    "densenet161": ((6, 12, 36, 24), 48),
    "densenet169": ((6, 12, 32, 32), 32),
    "densenet201": ((6, 12, 48, 32), 32),
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


def case(name: str, parameters: int, sizes: tuple[int, ...], train_layers: int) -> Case:
    blocks = len(LAYERS[name][0])
    return Case(
        parameters,
        sizes=sizes,
        cut_fields={"depths": (2, 3, 4, 2) if blocks == 4 else (3, 4, 2)},
        train_size=64 if blocks == 4 else 16,
        train_fields={"depths": (train_layers,) * blocks},
        reference=functools.partial(densenet, name),
        deeper=name not in ("densenet121", "densenet_bc_100_12"),
    )


# The CIFAR counts are the 0.8 M, 15.3 M and 25.6 M of the paper's Table 2.
CASES = {
    name: case(name, *row)
    for name, row in {
        "densenet121": (7_978_856, (224, 193), 2),
        "densenet161": (28_681_000, (65,), 1),
        "densenet169": (14_149_480, (65,), 1),
        "densenet201": (20_013_928, (65,), 1),
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
