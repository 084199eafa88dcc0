"""torchvision's DenseNet; for CIFAR with the stem of the paper's section 3 instead of its own.

Trained with two layers a block: deeper blocks are the same loop, which the logits cover.
"""

import functools
from collections.abc import Sequence

from torch import nn

from parity import Case
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


def imagenet(parameters: int, name: str) -> Case:
    return Case(
        parameters,
        sizes=(224, 193) if name == "densenet121" else (64, 75),
        train_fields={"depths": (2, 2, 2, 2)},
        reference=functools.partial(densenet, name),
    )


def cifar(parameters: int, name: str) -> Case:
    return Case(
        parameters,
        sizes=(32, 27) if name == "densenet_bc_100_12" else (16,),
        train_size=16,
        train_fields={"depths": (2, 2, 2)},
        reference=functools.partial(densenet, name),
    )


CASES = {
    "densenet121": imagenet(7_978_856, "densenet121"),
    "densenet161": imagenet(28_681_000, "densenet161"),
    "densenet169": imagenet(14_149_480, "densenet169"),
    "densenet201": imagenet(20_013_928, "densenet201"),
    # Table 2: 0.8 M, 15.3 M and 25.6 M
    "densenet_bc_100_12": cifar(769_162, "densenet_bc_100_12"),
    "densenet_bc_250_24": cifar(15_324_406, "densenet_bc_250_24"),
    "densenet_bc_190_40": cifar(25_624_430, "densenet_bc_190_40"),
}
