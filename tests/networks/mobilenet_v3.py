"""torchvision's MobileNetV3s, trained with fewer and narrower blocks."""

import functools

import torch
from torch import nn

from parity import Case, Small
from tools.torchvision_import import torchvision

# Every kind of block: with and without expansion, squeeze-and-excite and a sum, with both
# activations, strides and kernels.
SHORT = (
    (3, 16, 16, True, "RE", 1),
    (3, 64, 24, False, "RE", 2),
    (5, 72, 24, True, "HS", 1),
    (5, 72, 24, True, "HS", 2),
)


def mobilenet_v3(
    name: str,
    num_classes: int = 1000,
    rows: tuple | None = None,
    hidden_features: int | None = None,
) -> nn.Module:
    if rows is None:
        return torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    module = torchvision.models.mobilenetv3
    inputs = (16, *(row[2] for row in rows[:-1]))
    setting = [
        module.InvertedResidualConfig(before, *row, dilation=1, width_mult=1.0)
        for before, row in zip(inputs, rows, strict=True)
    ]
    model = module.MobileNetV3(setting, hidden_features, num_classes)
    for layer in model.modules():
        if isinstance(layer, torchvision.ops.SqueezeExcitation):
            layer.scale_activation = HardSigmoid()
    return model


class HardSigmoid(nn.Module):
    """torch's own hard sigmoid multiplies the gradient by 1 / 6 in float32, even in float64."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu6(x + 3) / 6


PARAMETERS = {"mobilenet_v3_large": 5_483_032, "mobilenet_v3_small": 2_542_856}
CASES = {
    name: Case(
        count,
        sizes=(224, 97),
        train_size=32,
        train_fields={"rows": SHORT, "hidden_features": 40},
        reference=functools.partial(mobilenet_v3, name),
    )
    for name, count in PARAMETERS.items()
}
SMALL = {
    "mobilenet_v3_large": Small(
        {"rows": SHORT[1:3], "hidden_features": 16, "width": 0.5}, 32, 8, 1, 2, linear=False
    )
}
HEAD = "classifier.3"
