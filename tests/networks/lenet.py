"""LeNet-5 as the lecture lists it, in the torch names of its two parts."""

from collections import OrderedDict

from torch import nn

from parity import Case


def lenet5(num_classes: int = 10) -> nn.Module:
    features = nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2, 2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2, 2),
    )  # fmt: skip
    classifier = nn.Sequential(
        nn.Linear(256, 120), nn.ReLU(),
        nn.Linear(120, 84), nn.ReLU(),
        nn.Linear(84, num_classes),
    )  # fmt: skip
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        features=features, flatten=nn.Flatten(), classifier=classifier
    )
    return nn.Sequential(parts)


CASES = {"lenet5": Case(44_426, sizes=(28,), train_size=28, reference=lenet5)}
HEAD = "classifier.4"
