"""torchvision's vision transformers. The first is compared whole, the others in their shapes and in
the values of two layers on four patches. They are trained with two narrow layers.
"""

import functools
from typing import Any

import parity
from parity import Case, Small
from tools.torchvision_import import torchvision

SIZES = {  # layers, heads, features, and features of the feed-forward layers
    "b": (12, 12, 768, 3072),
    "l": (24, 16, 1024, 4096),
    "h": (32, 16, 1280, 5120),
}


def vit(size: str, patches: int, *, image_size: int = 224, num_classes: int = 1000, **fields: Any):
    layers, heads, features, mlp_features = SIZES[size]
    reference = torchvision.models.VisionTransformer(
        image_size,
        fields.get("patch_size", patches),
        fields.get("layers", layers),
        fields.get("heads", heads),
        fields.get("features", features),
        fields.get("mlp_features", mlp_features),
        num_classes=num_classes,
    )
    return parity.without_constants(reference)


def case(size: str, patch_size: int, parameters: int) -> Case:
    narrow = {"patch_size": 8, "layers": 2, "heads": 2, "features": 16, "mlp_features": 32}
    is_whole = (size, patch_size) == ("b", 16)
    side = 2 * patch_size
    return Case(
        parameters,
        sizes=(224 if is_whole else side,),
        cut_fields={} if is_whole else {"layers": 2, "image_size": side},
        train_size=24,
        train_fields={"image_size": 24, **narrow},
        reference=functools.partial(vit, size, patch_size),
        deeper=not is_whole,
    )


CASES = {
    "vit_b_16": case("b", 16, 86_567_656),
    "vit_b_32": case("b", 32, 88_224_232),
    "vit_l_16": case("l", 16, 304_326_632),
    "vit_l_32": case("l", 32, 306_535_400),
    "vit_h_14": case("h", 14, 632_045_800),
}
HEAD = "heads.head"
SMALL = {
    "vit_b_16": Small(
        {"patch_size": 8, "layers": 3, "heads": 2, "features": 16, "mlp_features": 32}, 24, 0, 8, 3
    ),
}
