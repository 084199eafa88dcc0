"""torchvision's ConvNeXts. The first is compared whole, the others with a block or two in each
stage.
"""

import functools
from typing import Any

import parity
from parity import Case, Small
from tools.torchvision_import import torchvision

SIZES = {
    "tiny": ((96, 192, 384, 768), (3, 3, 9, 3), 28_589_128),
    "small": ((96, 192, 384, 768), (3, 3, 27, 3), 50_223_688),
    "base": ((128, 256, 512, 1024), (3, 3, 27, 3), 88_591_464),
    "large": ((192, 384, 768, 1536), (3, 3, 27, 3), 197_767_336),
}


def convnext(size: str, *, num_classes: int = 1000, vary: bool = True, **fields: Any):
    channels, depths, _ = SIZES[size]
    channels, depths = fields.get("channels", channels), fields.get("depths", depths)
    stages = zip(channels, [*channels[1:], None], depths, strict=True)
    configuration = [torchvision.models.convnext.CNBlockConfig(*stage) for stage in stages]
    reference = torchvision.models.ConvNeXt(configuration, num_classes=num_classes)
    return parity.without_constants(reference) if vary else reference


CASES = {
    f"convnext_{size}": Case(
        parameters,
        sizes=(224, 125) if size == "tiny" else (64,),
        cut_fields={} if size == "tiny" else {"depths": (1, 1, 2, 1)},
        train_size=64,
        train_fields={
            "channels": (8, 12, 16, 24),
            "depths": (1, 2, 1, 1),
            "stochastic_depth_rate": 0.0,
        },
        reference=functools.partial(convnext, size),
        deeper=size != "tiny",
    )
    for size, (*_, parameters) in SIZES.items()
}
SMALL = {
    "convnext_tiny": Small({"channels": (4, 6), "depths": (1, 1)}, 38, 4, 8, recomputed=2),
}
HEAD = "classifier.2"
