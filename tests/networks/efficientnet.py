"""torchvision's EfficientNets. B0 and the small one of the second version are compared whole, the
others with one layer or two a stage. They are trained with few and narrow stages of every kind of
block.
"""

import functools
from typing import Any

from torch import nn

from flaxnets.models.efficientnet import B0, V2_L, V2_M, Stage
from parity import Case, Small
from tools.torchvision_import import torchvision

ROWS = {
    "b0": (B0, 5_288_548),
    "b1": (B0, 7_794_184),
    "b2": (B0, 9_109_994),
    "b3": (B0, 12_233_232),
    "b4": (B0, 19_341_616),
    "b5": (B0, 30_389_784),
    "b6": (B0, 43_040_704),
    "b7": (B0, 66_347_960),
    "v2_s": (None, 21_458_488),
    "v2_m": (V2_M, 54_139_356),
    "v2_l": (V2_L, 118_515_272),
}
NARROW = (
    Stage("mbconv", 1, 3, 1, 8, 1),
    Stage("mbconv", 6, 3, 2, 16, 2),
    Stage("mbconv", 6, 5, 2, 24, 1),
)
NARROW_V2 = (
    Stage("fused", 1, 3, 1, 16, 2),
    Stage("fused", 4, 3, 2, 24, 2),
    Stage("mbconv", 4, 3, 2, 32, 2),
)


def narrow(stages: tuple[Stage, ...], **fields: Any) -> nn.Module:
    """Return torchvision's network of these stages, after a first layer of 16 channels."""
    configurations, channels = [], 16
    for stage in stages:
        block, *row, features, layers = stage
        kinds = torchvision.models.efficientnet
        kind = kinds.FusedMBConvConfig if block == "fused" else kinds.MBConvConfig
        configurations.append(kind(*row, channels, features, layers))
        channels = features
    return torchvision.models.EfficientNet(configurations, dropout=0.0, **fields)


def efficientnet(name: str, num_classes: int = 1000, stages=(), **fields: Any) -> nn.Module:
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    if "first_features" in fields:
        norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
        layer = functools.partial(nn.BatchNorm2d, eps=norm.eps, momentum=norm.momentum)
        last = 1280 if "v2" in name else None
        return narrow(stages, num_classes=num_classes, norm_layer=layer, last_channel=last)
    for stage, module in zip(stages, model.features[1:-1], strict=bool(stages)):
        del module[stage.layers :]
    return model


def shallow(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """Return the stages with one layer each, and two in the fourth."""
    return tuple(stage._replace(layers=1 + (i == 3)) for i, stage in enumerate(stages))


CASES = {
    f"efficientnet_{name}": Case(
        count,
        sizes=(224, 97) if name in ("b0", "v2_s") else (64, 45),
        cut_fields={}
        if name in ("b0", "v2_s")
        else {"stages": shallow(stages or ()), "depth": 1.0},
        train_size=32,
        train_fields={
            "stages": NARROW_V2 if "v2" in name else NARROW,
            "first_features": 16,
            "width": 1.0,
            "depth": 1.0,
            "dropout_rate": 0.0,
            "input_shape": (32, 32, 3),
        },
        deeper=name not in ("b0", "v2_s"),
        reference=functools.partial(efficientnet, f"efficientnet_{name}"),
    )
    for name, (stages, count) in ROWS.items()
}
SMALL = {
    "efficientnet_b0": Small({"stages": NARROW, "first_features": 8}, 64, 8, 1, recomputed=4),
    "efficientnet_v2_s": Small(
        {"stages": NARROW_V2, "first_features": 8, "last_features": 32}, 64, 8, 1, recomputed=6
    ),
}
HEAD = "classifier.1"
