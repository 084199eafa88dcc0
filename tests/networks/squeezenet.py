"""torchvision's SqueezeNets, trained with fewer fire modules.

torchvision initialises the last layer with small weights and zero biases, so that its logits would
be tiny. Here they are larger.
"""

import functools

import torch
from torch import nn

from parity import Case, Small
from tools.torchvision_import import torchvision

SHORT = {
    "squeezenet1_0": ((12, 7), "pool", (4, 8), "pool", (6, 8)),
    "squeezenet1_1": ((8, 3), "pool", (4, 8), "pool", (6, 8)),
}


def squeezenet(name: str, num_classes: int = 1000, rows: tuple | None = None) -> nn.Module:
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    if rows:
        (channels, size), *rest = rows
        layers: list[nn.Module] = [nn.Conv2d(3, channels, size, 2), nn.ReLU()]
        for row in rest:
            if row == "pool":
                layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
                continue
            squeeze, expand = row
            layers.append(torchvision.models.squeezenet.Fire(channels, squeeze, expand, expand))
            channels = 2 * expand
        model.features = nn.Sequential(*layers)
        model.classifier[1] = nn.Conv2d(channels, num_classes, 1)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            module.get_parameter("bias").data = torch.rand(module.out_channels) - 0.5
    return model


PARAMETERS = {"squeezenet1_0": 1_248_424, "squeezenet1_1": 1_235_496}
CASES = {
    name: Case(
        count,
        sizes=(224, 97),
        train_size=36,
        train_fields={"rows": SHORT[name]},
        reference=functools.partial(squeezenet, name),
    )
    for name, count in PARAMETERS.items()
}
# The side is odd, so that the pools' last windows lie inside.
SMALL = {"squeezenet1_0": Small({"rows": SHORT["squeezenet1_0"]}, 45, 5, 13, recomputed=2)}
HEAD = "classifier.1"
