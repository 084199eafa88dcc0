"""torchvision's GoogLeNet with its auxiliary heads, and optionally the paper's 5x5 kernels."""

from torch import nn

from parity import Case, Small
from tools.torchvision_import import torchvision


def googlenet(aux_dropout_rate: float = 0.7, five_by_five: bool = False, **fields) -> nn.Module:
    model = torchvision.models.GoogLeNet(init_weights=False, dropout_aux=aux_dropout_rate, **fields)
    if five_by_five:
        for module in model.children():
            if hasattr(module, "branch3"):
                three = module.branch3[1].conv
                widths = three.in_channels, three.out_channels
                module.branch3[1].conv = nn.Conv2d(*widths, 5, padding=2, bias=False)
    return model


CASES = {
    "googlenet": Case(
        13_004_888,
        train_size=96,
        batch=2,
        reference=googlenet,
        train_fields={"aux_dropout_rate": 0.0},
    ),
}
SMALL = {
    "googlenet": Small({}, 64, 2, 15),
}
HEAD = "fc"
