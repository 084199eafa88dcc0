"""What torchvision has published: files, accuracies, and the evaluation behind those."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from flaxnets.errors import InputError, one_of
from flaxnets.models import create_model


@dataclasses.dataclass(frozen=True)
class PublishedWeights:
    """Weights that torchvision published, and the evaluation behind their published accuracy.

    Images are resized to `resize` pixels on the shorter side (with antialiasing), their central
    `crop` x `crop` pixels taken, brought to 0..1 and normalised by `mean` and `std` (RGB).
    """

    arch: str
    name: str
    """torchvision's, such as "IMAGENET1K_V1"."""
    file: str
    """At download.pytorch.org, without its suffix; it ends in the first digits of its SHA-256."""
    classes: int
    """ImageNet's 1000; 0 if only the features were published."""
    top1: float
    """Per cent of ImageNet's validation images."""
    top5: float
    resize: int
    crop: int
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    """Of the network, `create_model(arch, **fields)`, which these weights expect."""
    fresh: str | None = None
    """A regular expression of keys that the file has no values for."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    @property
    def url(self) -> str:
        return f"https://download.pytorch.org/models/{self.file}.pth"

    @property
    def sha256(self) -> str:
        """The first digits of the file's SHA-256."""
        return self.file.rpartition("-")[2]

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation for the network without `fields`: `transform_input` of images that
        `mean` and `std` normalised is the same as 0.5 and 0.5 in their place.
        """
        if self.fields.get("transform_input"):
            return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
        return self.mean, self.std


def list_weights(arch: str) -> list[str]:
    """Return the names of the published weights of a network; none for most that torchvision
    lacks.
    """
    return [published.name for published in WEIGHTS if published.arch == arch]


def published_weights(arch: str, name: str = "IMAGENET1K_V1") -> PublishedWeights:
    """Return a row of `WEIGHTS`; the name "DEFAULT" is torchvision's for the most accurate.

    Raises InputError for an unknown network or name.
    """
    create_model(arch)  # a wrong name is answered first
    rows = {published.name: published for published in WEIGHTS if published.arch == arch}
    if not rows:
        raise InputError(
            f"no weights of {arch!r} are published by torchvision; give a checkpoint file"
        )
    if name == "DEFAULT":
        return max((row for row in rows.values() if row.classes), key=lambda row: row.top1)
    return rows[one_of(rows, name, f"weights of {arch}")]


# torchvision/models/*.py, `Weights`: its own evaluation with the preprocessing beside it. The file
# of GoogLeNet has auxiliary heads, which were not trained.
V1, V2 = "IMAGENET1K_V1", "IMAGENET1K_V2"
FEATURES = "IMAGENET1K_FEATURES"
# fmt: off
_ROWS = (
    # architecture, name, file, classes, top-1, top-5 (%), resize, crop (pixels)
    ("alexnet",          V1, "alexnet-owt-7be5be79",         1000, 56.522, 79.066, 256, 224),
    ("vgg11",            V1, "vgg11-8a719046",               1000, 69.020, 88.628, 256, 224),
    ("vgg13",            V1, "vgg13-19584684",               1000, 69.928, 89.246, 256, 224),
    ("vgg16",            V1, "vgg16-397923af",               1000, 71.592, 90.382, 256, 224),
    ("vgg16", FEATURES, "vgg16_features-amdegroot-88682ab5", 0, math.nan, math.nan, 256, 224),
    ("vgg19",            V1, "vgg19-dcbb9e9d",               1000, 72.376, 90.876, 256, 224),
    ("vgg11_bn",         V1, "vgg11_bn-6002323d",            1000, 70.370, 89.810, 256, 224),
    ("vgg13_bn",         V1, "vgg13_bn-abd245e5",            1000, 71.586, 90.374, 256, 224),
    ("vgg16_bn",         V1, "vgg16_bn-6c64b313",            1000, 73.360, 91.516, 256, 224),
    ("vgg19_bn",         V1, "vgg19_bn-c79401a0",            1000, 74.218, 91.842, 256, 224),
    ("googlenet",        V1, "googlenet-1378be20",           1000, 69.778, 89.530, 256, 224),
    ("inception_v3",     V1, "inception_v3_google-0cc3c7bd", 1000, 77.294, 93.450, 342, 299),
    ("densenet121",      V1, "densenet121-a639ec97",         1000, 74.434, 91.972, 256, 224),
    ("densenet161",      V1, "densenet161-8d451a50",         1000, 77.138, 93.560, 256, 224),
    ("densenet169",      V1, "densenet169-b2777c0a",         1000, 75.600, 92.806, 256, 224),
    ("densenet201",      V1, "densenet201-c1103571",         1000, 76.896, 93.370, 256, 224),
    ("resnet18",         V1, "resnet18-f37072fd",            1000, 69.758, 89.078, 256, 224),
    ("resnet34",         V1, "resnet34-b627a593",            1000, 73.314, 91.420, 256, 224),
    ("resnet50",         V1, "resnet50-0676ba61",            1000, 76.130, 92.862, 256, 224),
    ("resnet50",         V2, "resnet50-11ad3fa6",            1000, 80.858, 95.434, 232, 224),
    ("resnet101",        V1, "resnet101-63fe2227",           1000, 77.374, 93.546, 256, 224),
    ("resnet101",        V2, "resnet101-cd907fc2",           1000, 81.886, 95.780, 232, 224),
    ("resnet152",        V1, "resnet152-394f9c45",           1000, 78.312, 94.046, 256, 224),
    ("resnet152",        V2, "resnet152-f82ba261",           1000, 82.284, 96.002, 232, 224),
    ("resnext50_32x4d",  V1, "resnext50_32x4d-7cdf4587",     1000, 77.618, 93.698, 256, 224),
    ("resnext50_32x4d",  V2, "resnext50_32x4d-1a0047aa",     1000, 81.198, 95.340, 232, 224),
    ("resnext101_32x8d", V1, "resnext101_32x8d-8ba56ff5",    1000, 79.312, 94.526, 256, 224),
    ("resnext101_32x8d", V2, "resnext101_32x8d-110c445d",    1000, 82.834, 96.228, 232, 224),
    ("resnext101_64x4d", V1, "resnext101_64x4d-173b62eb",    1000, 83.246, 96.454, 232, 224),
    ("wide_resnet50_2",  V1, "wide_resnet50_2-95faca4d",     1000, 78.468, 94.086, 256, 224),
    ("wide_resnet50_2",  V2, "wide_resnet50_2-9ba9bcbe",     1000, 81.602, 95.758, 232, 224),
    ("wide_resnet101_2", V1, "wide_resnet101_2-32ee1156",    1000, 78.848, 94.284, 256, 224),
    ("wide_resnet101_2", V2, "wide_resnet101_2-d733dc28",    1000, 82.510, 96.020, 232, 224),
)
# fmt: on
# What differs from the defaults.
_PARTICULARS = {
    ("vgg16", FEATURES): {
        "fresh": r"classifier\.",
        "mean": (0.48235, 0.45882, 0.40784),
        "std": (1 / 255, 1 / 255, 1 / 255),
    },
    ("googlenet", V1): {"fields": {"transform_input": True}},
    ("inception_v3", V1): {"fields": {"transform_input": True}},
}
WEIGHTS = tuple(PublishedWeights(*row, **_PARTICULARS.get(row[:2], {})) for row in _ROWS)
