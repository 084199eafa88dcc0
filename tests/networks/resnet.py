"""torchvision's residual networks, trained with fewer blocks where blocks only repeat, and some
with fewer stages.

At this learning rate and batch size, 50 layers or more diverge: rounding grows thirtyfold a step,
from 1e-14 in the first loss to 1e-8 in the fifth. `test_resnet.py` has a single step of all 50.

torchvision has only shortcuts of option B. Here its blocks get the paper's other options.
"""

import functools
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from parity import Case, Small
from tools.torchvision_import import torchvision


class Padded(nn.Module):
    """Shortcut of option A where the shape changes."""

    def forward(self, x):
        x = x[:, :, ::2, ::2]
        return torch.cat([x, torch.zeros_like(x)], 1)


def with_shortcuts(model: nn.Module, option: str) -> nn.Module:
    """Replace the shortcuts of a network of basic blocks."""
    block: Any
    for block in model.modules():
        if isinstance(block, torchvision.models.resnet.BasicBlock):
            features, inputs, stride = *block.conv1.weight.shape[:2], block.stride
            if option == "none":
                block.downsample = None
                block.forward = functools.partial(plain_forward, block)
            elif option == "A" and inputs != features:
                block.downsample = Padded()
            elif option == "C":
                block.downsample = nn.Sequential(
                    nn.Conv2d(inputs, features, 1, stride, bias=False), nn.BatchNorm2d(features)
                )
    return model


def plain_forward(block, x):
    y = F.relu(block.bn1(block.conv1(x)))
    return F.relu(block.bn2(block.conv2(y)))


def plain(name: str, **fields) -> nn.Module:
    return with_shortcuts(resnet(name, **fields), "none")


def resnet(name: str, depths: tuple[int, ...] | None = None, num_classes: int = 1000) -> nn.Module:
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    if depths is None:
        return model
    for stage in range(1, 5):
        blocks = getattr(model, f"layer{stage}")
        kept = blocks[: depths[stage - 1]] if stage <= len(depths) else nn.Identity()
        setattr(model, f"layer{stage}", kept)
    features = model.fc.in_features >> (4 - len(depths))  # each stage doubles them
    model.fc = nn.Linear(features, num_classes)
    return model


PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
}
BASE = ("resnet18", "resnet50", "resnext50_32x4d")
CASES = {
    name: Case(
        count,
        sizes=(224, 193) if name in BASE else (65,),
        # The full width, with one block or two in each stage.
        cut_fields={"depths": (1, 2, 1, 1)} if count > 60e6 else {},
        train_size=33,
        batch=2,
        # Wide stages are slow to compile, on small maps above all.
        train_fields={"depths": (1, 2, 1, 1) if name == "resnet18" else (1, 2)},
        deeper=name not in BASE,
        reference=functools.partial(resnet, name),
    )
    for name, count in PARAMETERS.items()
}
CASES |= {  # without the projections
    f"plain{depth}": Case(
        PARAMETERS[f"resnet{depth}"] - 173_824,
        sizes=(65,),
        cut_fields={"depths": (1, 2, 1, 1)},
        train_size=33,
        batch=2,
        train_fields={"depths": (1, 2)},
        deeper=depth > 18,
        reference=functools.partial(plain, f"resnet{depth}"),
    )
    for depth in (18, 34)
}
SMALL = {
    "resnet18": Small({"depths": (1, 1)}, 64, 8, 1, recomputed=2),
    "resnet50": Small({"depths": (1, 1)}, 64, 8, 1, recomputed=2),
}
HEAD = "fc"
