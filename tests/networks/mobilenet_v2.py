"""torchvision's MobileNetV2, trained with fewer and narrower blocks."""

from torch import nn

from parity import Case, Small
from tools.torchvision_import import torchvision

# Rows with and without expansion, with stride 1 and 2, and with one block or two.
SHORT = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 24, 1, 1), (2, 32, 1, 2))


def mobilenet_v2(
    num_classes: int = 1000, rows: tuple | None = None, width: float = 1.0
) -> nn.Module:
    setting = rows and [list(row) for row in rows]
    return torchvision.models.MobileNetV2(num_classes, width, setting)


CASES = {
    "mobilenet_v2": Case(
        3_504_872,
        sizes=(224, 97),
        train_size=32,
        train_fields={"rows": SHORT, "width": 0.35},
        reference=mobilenet_v2,
    )
}
SMALL = {
    "mobilenet_v2": Small({"rows": ((1, 8, 1, 1), (2, 8, 2, 2)), "width": 0.5}, 32, 8, 1, 3),
}
HEAD = "classifier.1"
