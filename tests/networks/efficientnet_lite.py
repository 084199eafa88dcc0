"""timm's EfficientNet-Lite with TensorFlow's padding, which differs between odd and even sizes.

It is trained with the first stages, which have every kind of block, padding and kernel.
"""

import functools
from typing import Any

from torch import nn

from flaxnets.models.efficientnet_lite import STAGES
from parity import Case, Small
from tools.torchvision_import import torchvision

PARAMETERS = {
    "efficientnet_lite0": 4_652_008,
    "efficientnet_lite1": 5_416_680,
    "efficientnet_lite2": 6_092_072,
}


def lite(name: str, stages=STAGES, num_classes: int = 1000, width: float = 0.0, **_) -> nn.Module:
    assert torchvision  # timm imports it
    import timm

    if width == 1.0:
        name = "efficientnet_lite0"
    model: Any = timm.create_model(f"tf_{name}", pretrained=False, num_classes=num_classes)
    del model.blocks[len(stages) :]
    model.conv_head = nn.Conv2d(model.blocks[-1][-1].bn3.num_features, 1280, 1, bias=False)
    for module in model.modules():
        # Larger weights make the last map chaotic: torch's float32 differs by 5e-5 from its
        # float64.
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
    return model


FIRST_STAGES = {
    "stages": STAGES[:3],
    "width": 1.0,
    "depth": 1.0,
    "dropout_rate": 0.0,
    "input_shape": (64, 64, 3),
}
CASES = {
    name: Case(
        count,
        sizes=(224, 193) if name == "efficientnet_lite0" else (64, 45),
        train_size=32,
        train_fields=FIRST_STAGES,
        deeper=name != "efficientnet_lite0",
        reference=functools.partial(lite, name),
    )
    for name, count in PARAMETERS.items()
}
SMALL = {"efficientnet_lite0": Small({"stages": STAGES[:3], "width": 0.25}, 64, 8, 1, recomputed=5)}
HEAD = "classifier"
