"""torchvision's MnasNets, trained with fewer and narrower blocks."""

import functools

from torch import nn

from parity import Case, Small
from tools.torchvision_import import torchvision

PARAMETERS = {
    "mnasnet0_5": 2_218_512,
    "mnasnet0_75": 3_170_208,
    "mnasnet1_0": 4_383_312,
    "mnasnet1_3": 6_282_256,
}
SHORT = ((24, 3, 2, 3, 2), (40, 5, 2, 2, 1))


def mnasnet(
    name: str, num_classes: int = 1000, rows: tuple | None = None, width: float = 1.0
) -> nn.Module:
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    if rows is None:
        return model
    module = torchvision.models.mnasnet
    model = module.MNASNet(width, num_classes)
    *stem, last, norm, relu = [
        layer for layer in model.layers if not isinstance(layer, nn.Sequential)
    ]
    stacks, channels = [], stem[-1].num_features
    for features, size, stride, expansion, depth in rows:
        features = module._round_to_multiple_of(features * width, 8)
        momentum = module._BN_MOMENTUM
        stacks.append(module._stack(channels, features, size, stride, expansion, depth, momentum))
        channels = features
    last = nn.Conv2d(channels, last.out_channels, 1, bias=False)
    model.layers = nn.Sequential(*stem, *stacks, last, norm, relu)
    return model


CASES = {
    name: Case(
        count,
        sizes=(65,) if name != "mnasnet1_0" else (224, 97),
        train_size=32,
        train_fields={"rows": SHORT, "width": 0.5},
        reference=functools.partial(mnasnet, name),
        deeper=name != "mnasnet1_0",
    )
    for name, count in PARAMETERS.items()
}
SMALL = {"mnasnet0_5": Small({"rows": SHORT, "width": 0.35}, 32, 4, 1, recomputed=3)}
HEAD = "classifier.1"
