"""timm's EfficientNet-Lite with TensorFlow's padding; odd sizes pad otherwise than even ones.

Trained with half of the layers, of which three still have a sum.
"""

import functools

from torch import nn

from parity import Case, Small
from tools.torchvision_import import torchvision  # which timm imports

PARAMETERS = {
    "efficientnet_lite0": 4_652_008,
    "efficientnet_lite1": 5_416_680,
    "efficientnet_lite2": 6_092_072,
}


def lite(name: str, depth: float | None = None, num_classes: int = 1000) -> nn.Module:
    import timm

    assert torchvision
    model = timm.create_model(f"tf_{name}", pretrained=False, num_classes=num_classes)
    for module in model.modules():
        # Larger ones make the last map chaotic: torch's float32 is off by 5e-5 from its float64.
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    if depth == 0.5:
        for stage, layers in zip(model.blocks, (1, 1, 1, 2, 2, 2, 1), strict=True):
            del stage[layers:]
    return model


CASES = {
    name: Case(
        count,
        sizes=(224, 193) if name == "efficientnet_lite0" else (64, 45),
        train_fields={"depth": 0.5},
        deeper=name != "efficientnet_lite0",
        reference=functools.partial(lite, name),
    )
    for name, count in PARAMETERS.items()
}
SMALL = {"efficientnet_lite0": Small({"depth": 0.5, "width": 0.25}, 64, 2, 1, recomputed=10)}
HEAD = "classifier"
