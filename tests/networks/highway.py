"""Highway networks, written from the paper's equations and the authors' lists of layers."""

import functools
import itertools
from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from parity import Case, Small


class Highway(nn.Module):
    def __init__(self, layer: Callable[[], nn.Module]):
        super().__init__()
        self.H, self.T = layer(), layer()

    def forward(self, x):
        h, t = self.H(x).relu(), self.T(x).sigmoid()
        return t * h + (1 - t) * x


class Plain(nn.Module):
    def __init__(self, layer: Callable[[], nn.Module]):
        super().__init__()
        self.H = layer()

    def forward(self, x):
        return self.H(x).relu()


def as_published(model: nn.Module) -> nn.Module:
    """Initialise a network as in the paper: He's weights, and gates biased to carry.

    With torch's default the images fade on their way, and the logits would be biases only.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, Highway):
            nn.init.constant_(module.get_parameter("T.bias"), -2.0)
    return model


def highway_cifar(
    layers: tuple[tuple[int, int], ...],
    num_classes: int = 10,
    stages: tuple[tuple[int, int], ...] | None = None,
    layer: type[nn.Module] = Highway,
) -> nn.Module:
    parts: OrderedDict[str, nn.Module] = OrderedDict(drop1=nn.Dropout())
    channels, numbers = 3, itertools.count(1)
    for stage, (width, depth) in enumerate(stages or layers, 1):
        if stage > 1:
            parts |= {f"pool{stage}": nn.MaxPool2d(2), f"drop{stage}": nn.Dropout()}
        parts[f"conv{next(numbers)}"] = nn.Conv2d(channels, width, 3, padding=1)
        parts[f"relu{stage}"] = nn.ReLU()
        for number in itertools.islice(numbers, depth):
            parts[f"conv{number}"] = layer(functools.partial(nn.Conv2d, width, width, 3, 1, 1))
        channels = width
    parts |= {f"conv{next(numbers)}": nn.Conv2d(channels, 100, 1), "relu": nn.ReLU()}
    parts |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "drop": nn.Dropout()}
    parts["fc"] = nn.Linear(100, num_classes)
    return as_published(nn.Sequential(parts))


def highway_mlp(
    num_classes: int = 10, width: int = 50, layer: type[nn.Module] = Highway
) -> nn.Module:
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        flatten=nn.Flatten(), fc1=nn.Linear(784, width), relu=nn.ReLU()
    )
    for number in range(2, 11):
        parts[f"fc{number}"] = layer(functools.partial(nn.Linear, width, width))
    parts["output"] = nn.Linear(width, num_classes)
    return as_published(nn.Sequential(parts))


CASES = {
    # Table 2: 236 k, 2.3 M and 1.25 M. They are trained with fewer highway layers to save time.
    "highway19_cifar": Case(
        2_256_838,
        sizes=(32, 27),
        train_size=12,
        train_fields={"stages": ((32, 2), (80, 1), (128, 2))},
        reference=functools.partial(highway_cifar, ((32, 4), (80, 5), (128, 5))),
    ),
    "highway11_cifar": Case(
        235_954,
        sizes=(32,),
        reference=functools.partial(highway_cifar, ((28, 2), (28, 2), (64, 2))),
        deeper=True,
    ),
    "highway32_cifar": Case(
        1_255_270,
        sizes=(27,),
        reference=functools.partial(highway_cifar, ((32, 9), (48, 9), (64, 9))),
        deeper=True,
    ),
    "highway_mlp": Case(85_660, sizes=(28,), train_size=28, reference=highway_mlp),
    "plain_mlp": Case(
        102_463,
        sizes=(28,),
        train_size=28,
        reference=functools.partial(highway_mlp, width=71, layer=Plain),
    ),
}
SMALL = {
    "highway19_cifar": Small({"stages": ((4, 1), (6, 2), (8, 1))}, 11, 2, 4, recomputed=4),
    "highway_mlp": Small({"depth": 4, "width": 7}, 31, 4, 28, recomputed=3),
}
HEAD = "fc"
