"""torchvision's VGGs, and the two columns of the paper's Table 1 that torchvision lacks, made of
their neighbours. All are compared with fewer than 4096 features in the classifier, to save time.
"""

import functools
from typing import Any

from torch import nn

from parity import Case
from tools.torchvision_import import torchvision


def vgg(name: str, hidden_features: int = 4096, num_classes: int = 1000) -> nn.Module:
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    if hidden_features != 4096:
        model.classifier[0] = nn.Linear(512 * 7 * 7, hidden_features)
        model.classifier[3] = nn.Linear(hidden_features, hidden_features)
        model.classifier[6] = nn.Linear(hidden_features, num_classes)
    return model


def with_lrn(**fields) -> nn.Module:
    """Return column A-LRN: the norm follows the first convolution and its ReLU. torch divides alpha
    by 5.
    """
    model: Any = vgg("vgg11", **fields)
    lrn = nn.LocalResponseNorm(5, alpha=5 * 1e-4, beta=0.75, k=2)
    model.features = nn.Sequential(*model.features[:2], lrn, *model.features[2:])
    return model


def with_pointwise_convolutions(**fields) -> nn.Module:
    """Return column C: column D with 1x1 kernels in the last convolution of three stages."""
    model: Any = vgg("vgg16", **fields)
    for index in (14, 21, 28):
        channels = model.features[index].out_channels
        model.features[index] = nn.Conv2d(channels, channels, 1)
    return model


PARAMETERS = {
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "vgg11_bn": 132_868_840,
    "vgg13_bn": 133_053_736,
    "vgg16_bn": 138_365_992,
    "vgg19_bn": 143_678_248,
}
CASES = {
    name: Case(
        count,
        sizes=(224, 193) if name.startswith("vgg11") else (65,),
        cut_fields={"hidden_features": 128},
        train_size=32,
        train_fields={"hidden_features": 128},
        batch=4 if name.endswith("_bn") else 2,
        reference=functools.partial(vgg, name),
        deeper=not name.startswith("vgg11"),
    )
    for name, count in PARAMETERS.items()
}
CASES |= {  # Table 2: 133 M and 134 M
    "vgg11_lrn": Case(
        132_863_336,
        sizes=(65,),
        cut_fields={"hidden_features": 128},
        train_size=32,
        train_fields={"hidden_features": 128},
        batch=2,
        reference=with_lrn,
    ),
    "vgg16_c": Case(
        138_357_544 - 8 * (256**2 + 2 * 512**2),
        sizes=(65,),
        cut_fields={"hidden_features": 128},
        train_size=32,
        train_fields={"hidden_features": 128},
        reference=with_pointwise_convolutions,
        deeper=True,
    ),
}
HEAD = "classifier.6"
