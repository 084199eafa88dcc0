"""torchvision's MaxViT."""

import parity
from parity import Case, Small
from tools.torchvision_import import torchvision


def maxvit(*, num_classes: int = 1000, vary: bool = True, pixels: int | None = None, **fields):
    depths, partition = fields.get("depths", (2, 2, 5, 2)), fields.get("partition_size", 7)
    side = pixels or 2 ** (1 + len(depths)) * partition
    reference = torchvision.models.MaxVit(
        (side, side),
        fields.get("stem_channels", 64),
        partition,
        list(fields.get("channels", (64, 128, 256, 512))),
        list(depths),
        fields.get("head_channels", 32),
        0.2,
        num_classes=num_classes,
    )
    return parity.without_constants(reference) if vary else reference


NARROW = {
    "channels": (8, 12), "depths": (1, 2), "stem_channels": 6, "head_channels": 4,
    "partition_size": 4,
}  # fmt: skip
CASES = {
    "maxvit_t": Case(
        30_919_624,
        train_size=32,
        train_fields=NARROW,
        sizes=(224,),
        reference=maxvit,
    ),
}
SMALL = {
    "maxvit_t": Small({**NARROW, "channels": (8,), "depths": (2,)}, 16, 0, 16, recomputed=2),
}
HEAD = "classifier.5"
