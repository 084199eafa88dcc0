"""torchvision's Swin transformers. The first of both versions is compared whole, the others with
two blocks in each stage. With odd sizes, windows are padded and an odd number of positions is
merged.
"""

import functools
from typing import Any

import parity
from parity import Case, Small
from tools.torchvision_import import torchvision

SIZES = {
    "t": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "s": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "b": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
}
PARAMETERS = {
    "swin_t": 28_288_354,
    "swin_s": 49_606_258,
    "swin_b": 87_768_224,
    "swin_v2_t": 28_351_570,
    "swin_v2_s": 49_737_442,
    "swin_v2_b": 87_930_848,
}


def swin(name: str, *, num_classes: int = 1000, vary: bool = True, **fields: Any):
    source = torchvision.models.swin_transformer
    channels, depths, heads = SIZES[name[-1]]
    second = {
        "block": source.SwinTransformerBlockV2,
        "downsample_layer": source.PatchMergingV2,
    }
    window = fields.get("window", 8 if "v2" in name else 7)
    reference = source.SwinTransformer(
        [4, 4],
        fields.get("channels", channels),
        fields.get("depths", depths),
        fields.get("heads", heads),
        [window, window],
        num_classes=num_classes,
        **(second if "v2" in name else {}),
    )
    return parity.without_constants(reference) if vary else reference


def case(name: str, parameters: int) -> Case:
    is_whole = name.endswith("_t")
    native = 256 if "v2" in name else 224
    return Case(
        parameters,
        sizes=(native, 149) if is_whole else (64,),
        cut_fields={} if is_whole else {"depths": (2, 2, 2, 2)},
        train_size=76,  # maps of 19 and 10 positions
        train_fields={
            "channels": 8,
            "depths": (2, 2),
            "heads": (1, 2),
            "window": 4,
            "stochastic_depth_rate": 0.0,
        },
        reference=functools.partial(swin, name),
        deeper=not is_whole,
    )


CASES = {name: case(name, parameters) for name, parameters in PARAMETERS.items()}
NARROW = {"channels": 4, "depths": (2, 1), "heads": (1, 2)}
SMALL = {
    "swin_t": Small({**NARROW, "window": 3}, 76, 10, 4, recomputed=3),
    "swin_v2_t": Small({**NARROW, "window": 4}, 76, 10, 4, recomputed=3),
}
HEAD = "head"
