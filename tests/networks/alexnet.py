"""torchvision's AlexNet, and the network of 2012 written from the paper's section 3.

Both are compared with fewer than 4096 features in the classifier, to save time.
"""

from collections import OrderedDict

from torch import nn

from parity import Case
from tools.torchvision_import import torchvision


def alexnet_2012(num_classes: int = 1000, hidden_features: int = 4096) -> nn.Module:
    # torch averages over the window where the paper sums, so alpha is multiplied by 5
    def lrn() -> nn.Module:
        return nn.LocalResponseNorm(5, alpha=5 * 1e-4, beta=0.75, k=2)

    features = nn.Sequential(
        nn.Conv2d(3, 96, 11, 4, 2), nn.ReLU(), lrn(), nn.MaxPool2d(3, 2),
        nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(), lrn(), nn.MaxPool2d(3, 2),
        nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2),
    )  # fmt: skip
    classifier = nn.Sequential(
        nn.Linear(256 * 6 * 6, hidden_features), nn.ReLU(), nn.Dropout(),
        nn.Linear(hidden_features, hidden_features), nn.ReLU(), nn.Dropout(),
        nn.Linear(hidden_features, num_classes),
    )  # fmt: skip
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        features=features, flatten=nn.Flatten(), classifier=classifier
    )
    return nn.Sequential(parts)


def alexnet(num_classes: int = 1000, hidden_features: int = 4096) -> nn.Module:
    model = torchvision.models.alexnet(num_classes=num_classes)
    if hidden_features != 4096:
        model.classifier[1] = nn.Linear(256 * 6 * 6, hidden_features)
        model.classifier[4] = nn.Linear(hidden_features, hidden_features)
        model.classifier[6] = nn.Linear(hidden_features, num_classes)
    return model


NARROW = {"hidden_features": 256}
CASES = {
    "alexnet": Case(61_100_840, cut_fields=NARROW, train_fields=NARROW, reference=alexnet),
    # The paper has "60 million parameters". 225 pixels give the same 6x6 features as 224.
    "alexnet_2012": Case(
        60_965_224,
        sizes=(224, 225),
        train_size=224,
        train_optimization=1,
        batch=2,
        cut_fields=NARROW,
        train_fields=NARROW,
        reference=alexnet_2012,
    ),
}
HEAD = "classifier.6"
