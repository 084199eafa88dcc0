"""PReLU-nets written from Table 3 of arXiv:1502.01852, with torch's PReLU and adaptive pools.

They are compared with a narrower classifier than 4096, B and C also with fewer convolutions. They
are trained with few channels as well.
"""

import functools
from collections import OrderedDict

import torch
from torch import nn

from parity import Case


class Pyramid(nn.Module):
    def __init__(self):
        super().__init__()
        self.levels = nn.ModuleList(nn.AdaptiveMaxPool2d(n) for n in (7, 3, 2, 1))

    def forward(self, x):
        return torch.cat([level(x).flatten(1) for level in self.levels], 1)


def rectified(layer: nn.Module, channels: int) -> nn.Module:
    parts: OrderedDict[str, nn.Module] = OrderedDict(layer=layer, prelu=nn.PReLU(channels))
    for slope in parts["prelu"].parameters():  # values differ, as after training
        slope.data = torch.linspace(-0.2, 0.6, channels)
    return nn.Sequential(parts)


def prelu_net(
    stages: tuple[tuple[int, int], ...], num_classes: int = 1000, hidden_features: int = 4096
) -> nn.Module:
    parts: OrderedDict[str, nn.Module] = OrderedDict(conv1=rectified(nn.Conv2d(3, 96, 7, 2, 3), 96))
    inputs = 96
    for number, (width, depth) in enumerate(stages, 2):
        parts[f"pool{number}"] = nn.MaxPool2d(2)
        layers = []
        for _ in range(depth):
            layers.append(rectified(nn.Conv2d(inputs, width, 3, padding=1), width))
            inputs = width
        parts[f"conv{number}"] = nn.Sequential(*layers)
    parts["spp"] = Pyramid()
    inputs *= 49 + 9 + 4 + 1
    for number in (1, 2):
        parts[f"fc{number}"] = rectified(nn.Linear(inputs, hidden_features), hidden_features)
        parts[f"drop{number}"] = nn.Dropout()
        inputs = hidden_features
    parts["fc3"] = nn.Linear(inputs, num_classes)
    return nn.Sequential(parts)


STAGES = {
    "a": ((256, 5), (512, 5), (512, 5)),
    "b": ((256, 6), (512, 6), (512, 6)),
    "c": ((384, 6), (768, 6), (896, 6)),
}
CUT: dict[str, dict] = {
    "a": {},
    "b": {"stages": ((256, 1), (512, 2), (512, 1))},
    "c": {"stages": ((384, 1), (768, 2), (896, 1))},
}
COUNTS = {"a": 178_032_072, "b": 183_343_048, "c": 330_623_944}


def build(letter: str, stages: tuple[tuple[int, int], ...] | None = None, **fields) -> nn.Module:
    return prelu_net(stages or STAGES[letter], **fields)


CASES = {
    f"prelu_net_{letter}": Case(
        COUNTS[letter],
        sizes=(224, 97) if letter == "a" else (48,),
        cut_fields={"hidden_features": 64} | CUT[letter],
        train_size=80,
        train_fields={"stages": ((8, 1), (12, 2), (16, 1)), "hidden_features": 32},
        reference=functools.partial(build, letter),
        deeper=letter != "a",
    )
    for letter in STAGES
}
HEAD = "fc3"
