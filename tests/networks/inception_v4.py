"""timm's Inception-v4, compared with two blocks of each kind and trained with one, to save time."""

import timm
from torch import nn

from parity import Case, Small


def inception_v4(depths: tuple[int, int, int] = (4, 7, 3), num_classes: int = 1000) -> nn.Module:
    model = timm.create_model("inception_v4", num_classes=num_classes)
    kept, dropped = [], {kind: n - k for kind, n, k in zip("ABC", (4, 7, 3), depths, strict=True)}
    for layer in model.get_submodule("features").children():
        kind = type(layer).__name__.removeprefix("Inception")
        if dropped.get(kind, 0):
            dropped[kind] -= 1
        else:
            kept.append(layer)
    model.features = nn.Sequential(*kept)
    return model


CASES = {
    "inception_v4": Case(
        42_679_816,
        sizes=(299, 139),
        cut_fields={"depths": (2, 2, 2)},
        train_size=107,
        batch=3,
        train_optimization=1,
        train_fields={"depths": (1, 1, 1)},
        reference=inception_v4,
    )
}
SMALL = {
    "inception_v4": Small({"depths": (1, 1, 1)}, 107, 2, 75),
}
HEAD = "last_linear"
