"""ZFNet written from Figure 3 of arXiv:1311.2901.

It is trained with a sixteenth of the channels and a narrow classifier, at the paper's image size.
"""

from collections import OrderedDict

from torch import nn

from parity import Case, Small


def zfnet(
    channels: tuple[int, ...] = (96, 256, 384, 384, 256),
    hidden_features: int = 4096,
    num_classes: int = 1000,
) -> nn.Module:
    def pool_and_normalize() -> list[nn.Module]:  # torch divides alpha by the number of channels
        lrn = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2)
        return [nn.MaxPool2d(3, 2, ceil_mode=True), lrn]

    c1, c2, c3, c4, c5 = channels
    features = nn.Sequential(
        nn.Conv2d(3, c1, 7, stride=2, padding=1), nn.ReLU(), *pool_and_normalize(),
        nn.Conv2d(c1, c2, 5, stride=2), nn.ReLU(), *pool_and_normalize(),
        nn.Conv2d(c2, c3, 3, padding=1), nn.ReLU(),
        nn.Conv2d(c3, c4, 3, padding=1), nn.ReLU(),
        nn.Conv2d(c4, c5, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
    )  # fmt: skip
    classifier = nn.Sequential(
        nn.Linear(c5 * 6 * 6, hidden_features), nn.ReLU(), nn.Dropout(),
        nn.Linear(hidden_features, hidden_features), nn.ReLU(), nn.Dropout(),
        nn.Linear(hidden_features, num_classes),
    )  # fmt: skip
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        features=features, flatten=nn.Flatten(), classifier=classifier
    )
    return nn.Sequential(parts)


CASES = {
    "zfnet": Case(
        62_357_608,
        sizes=(224, 225),
        cut_fields={"hidden_features": 128},
        train_size=224,
        train_optimization=1,
        train_fields={"channels": (6, 16, 24, 24, 16), "hidden_features": 64},
        batch=2,
        reference=zfnet,
    )
}
SMALL = {"zfnet": Small(CASES["zfnet"].train_fields, 256, 2, 207)}
HEAD = "classifier.6"
