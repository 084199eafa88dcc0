"""torchvision's ShuffleNetV2s, trained with fewer and narrower units."""

import functools

from torch import nn

from parity import Case, Small
from tools.torchvision_import import torchvision

PARAMETERS = {
    "shufflenet_v2_x0_5": 1_366_792,
    "shufflenet_v2_x1_0": 2_278_604,
    "shufflenet_v2_x1_5": 3_503_624,
    "shufflenet_v2_x2_0": 7_393_996,
}
THIN = {"widths": (8, 12, 16, 20, 32), "depths": (2, 2, 1)}


def shufflenet_v2(
    name: str,
    num_classes: int = 1000,
    depths: tuple | None = None,
    widths: tuple | None = None,
) -> nn.Module:
    if depths is None:
        return torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    return torchvision.models.ShuffleNetV2(depths, widths, num_classes)


CASES = {
    name: Case(
        count,
        sizes=(64,) if name != "shufflenet_v2_x1_0" else (224, 97),
        train_fields=THIN,
        reference=functools.partial(shufflenet_v2, name),
        deeper=name != "shufflenet_v2_x1_0",
    )
    for name, count in PARAMETERS.items()
}
SMALL = {"shufflenet_v2_x0_5": Small(THIN, 64, 2, 1, recomputed=5)}
HEAD = "fc"
