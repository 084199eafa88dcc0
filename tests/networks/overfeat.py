"""OverFeat written from Tables 1 and 3 of arXiv:1312.6229.

It is trained with a sixteenth of the convolutions' channels and a narrow classifier, at the paper's
image size, below which no patch fits. The odd size leaves a remainder in every pool.
"""

from collections import OrderedDict

from torch import nn

from parity import Case, Small


def fast(
    channels: tuple[int, ...] = (96, 256, 512, 1024, 1024),
    hidden_features: tuple[int, int] = (3072, 4096),
    num_classes: int = 1000,
) -> nn.Module:
    c1, c2, c3, c4, c5 = channels
    c6, c7 = hidden_features
    features = nn.Sequential(
        nn.Conv2d(3, c1, 11, 4), nn.ReLU(), nn.MaxPool2d(2, 2),
        nn.Conv2d(c1, c2, 5), nn.ReLU(), nn.MaxPool2d(2, 2),
        nn.Conv2d(c2, c3, 3, padding=1), nn.ReLU(),
        nn.Conv2d(c3, c4, 3, padding=1), nn.ReLU(),
        nn.Conv2d(c4, c5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 2),
    )  # fmt: skip
    return with_classifier(features, c5 * 6 * 6, c6, c7, num_classes)


def accurate(
    channels: tuple[int, ...] = (96, 256, 512, 512, 1024, 1024),
    hidden_features: tuple[int, int] = (4096, 4096),
    num_classes: int = 1000,
) -> nn.Module:
    c1, c2, c3, c4, c5, c6 = channels
    c7, c8 = hidden_features
    features = nn.Sequential(
        nn.Conv2d(3, c1, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 3),
        nn.Conv2d(c1, c2, 7), nn.ReLU(), nn.MaxPool2d(2, 2),
        nn.Conv2d(c2, c3, 3, padding=1), nn.ReLU(),
        nn.Conv2d(c3, c4, 3, padding=1), nn.ReLU(),
        nn.Conv2d(c4, c5, 3, padding=1), nn.ReLU(),
        nn.Conv2d(c5, c6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 3),
    )  # fmt: skip
    return with_classifier(features, c6 * 5 * 5, c7, c8, num_classes)


def with_classifier(
    features: nn.Module, n_patch: int, n_first: int, n_second: int, num_classes: int
) -> nn.Module:
    classifier = nn.Sequential(
        nn.Linear(n_patch, n_first), nn.ReLU(), nn.Dropout(),
        nn.Linear(n_first, n_second), nn.ReLU(), nn.Dropout(),
        nn.Linear(n_second, num_classes),
    )  # fmt: skip
    parts = OrderedDict(features=features, flatten=nn.Flatten(), classifier=classifier)
    return nn.Sequential(parts)


CASES = {
    "overfeat_fast": Case(  # Table 4: 145 million
        145_920_872,
        sizes=(231, 247),
        cut_fields={"hidden_features": (48, 64)},
        train_size=231,
        train_optimization=1,
        train_fields={"channels": (6, 16, 32, 64, 64), "hidden_features": (48, 64)},
        batch=2,
        reference=fast,
    ),
    "overfeat_accurate": Case(  # Table 4: 144 million
        144_656_488,
        sizes=(221, 255),
        cut_fields={"hidden_features": (48, 64)},
        train_size=221,
        train_optimization=1,
        train_fields={"channels": (6, 16, 32, 32, 64, 64), "hidden_features": (64, 64)},
        batch=2,
        reference=accurate,
    ),
}
SMALL = {
    "overfeat_fast": Small(CASES["overfeat_fast"].train_fields, 231 + 32, 2, 231),
    "overfeat_accurate": Small(CASES["overfeat_accurate"].train_fields, 221 + 36, 2, 221),
}
HEAD = "classifier.6"
