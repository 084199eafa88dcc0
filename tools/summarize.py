"""Summarize a network layer by layer, or compare our counts with published ones.

    python tools/summarize.py --arch resnet50
    python tools/summarize.py --arch lenet5 --image-size 32 --json
    python tools/summarize.py --table he2015

Counts are for one image in evaluation, as in the papers. Only convolutions and fully connected
layers have multiply-adds; a multiplication and its addition count as one. Neurons are the outputs
of these layers. Nothing is computed, because shapes are enough.

Auxiliary classifiers run in training only. Their rows are marked. They have parameters, which the
total includes, but neither multiply-adds nor neurons; their output shapes are those of
initialisation.
"""

if __name__ == "__main__":  # first, because the other imports take seconds
    from flaxnets.terminal import quiet

    quiet()

import dataclasses
import decimal
from typing import Any

import flax.linen as nn
import tyro

from flaxnets import create_model, list_models
from flaxnets.errors import InputError, one_of
from flaxnets.models import FAMILIES
from flaxnets.runs.files import json_text
from flaxnets.runs.progress import track
from flaxnets.summary import footers, summarize, totals
from flaxnets.tables import print_table
from flaxnets.terminal import arguments, one_sentence_errors

# Multiply-adds by the number of layers: He et al. 2015 (arXiv:1512.03385), Table 1, last row, where
# they are called FLOPs. Our counts round to them, except for 34 layers (3.66; 3.64 with the
# shortcuts without parameters of the paper's Table 2) and 50 (3.858), which the paper truncates.
HE2015 = {18: "1.8e9", 34: "3.6e9", 50: "3.8e9", 101: "7.6e9", 152: "11.3e9"}

# Published numbers of parameters: exact, or in millions.
PUBLISHED: dict[str, dict[str, int | str]] = {
    "torchvision": {
        "alexnet": 61_100_840,
        "vgg11": 132_863_336, "vgg13": 133_047_848, "vgg16": 138_357_544, "vgg19": 143_667_240,
        "vgg11_bn": 132_868_840, "vgg13_bn": 133_053_736, "vgg16_bn": 138_365_992,
        "vgg19_bn": 143_678_248,
        "googlenet": 13_004_888, "googlenet without auxiliary": 6_624_904,
        "inception_v3": 27_161_264, "inception_v3 without auxiliary": 23_834_568,
        "densenet121": 7_978_856, "densenet161": 28_681_000,
        "densenet169": 14_149_480, "densenet201": 20_013_928,
        "resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032,
        "resnet101": 44_549_160, "resnet152": 60_192_808,
        "resnext50_32x4d": 25_028_904, "resnext101_32x8d": 88_791_336,
        "resnext101_64x4d": 83_455_272,
        "wide_resnet50_2": 68_883_240, "wide_resnet101_2": 126_886_696,
        "squeezenet1_0": 1_248_424, "squeezenet1_1": 1_235_496,
        "mobilenet_v2": 3_504_872,
        "mobilenet_v3_large": 5_483_032, "mobilenet_v3_small": 2_542_856,
        "shufflenet_v2_x0_5": 1_366_792, "shufflenet_v2_x1_0": 2_278_604,
        "shufflenet_v2_x1_5": 3_503_624, "shufflenet_v2_x2_0": 7_393_996,
        "mnasnet0_5": 2_218_512, "mnasnet0_75": 3_170_208, "mnasnet1_0": 4_383_312,
        "mnasnet1_3": 6_282_256,
        "convnext_tiny": 28_589_128, "convnext_small": 50_223_688,
        "convnext_base": 88_591_464, "convnext_large": 197_767_336,
        "vit_b_16": 86_567_656, "vit_b_32": 88_224_232, "vit_l_16": 304_326_632,
        "vit_l_32": 306_535_400, "vit_h_14": 632_045_800,
        "regnet_x_400mf": 5_495_976, "regnet_x_800mf": 7_259_656, "regnet_x_1_6gf": 9_190_136,
        "regnet_x_3_2gf": 15_296_552, "regnet_x_8gf": 39_572_648, "regnet_x_16gf": 54_278_536,
        "regnet_x_32gf": 107_811_560,
        "regnet_y_400mf": 4_344_144, "regnet_y_800mf": 6_432_512, "regnet_y_1_6gf": 11_202_430,
        "regnet_y_3_2gf": 19_436_338, "regnet_y_8gf": 39_381_472, "regnet_y_16gf": 83_590_140,
        "regnet_y_32gf": 145_046_770, "regnet_y_128gf": 644_812_894,
        "efficientnet_b0": 5_288_548, "efficientnet_b1": 7_794_184, "efficientnet_b2": 9_109_994,
        "efficientnet_b3": 12_233_232, "efficientnet_b4": 19_341_616,
        "efficientnet_b5": 30_389_784, "efficientnet_b6": 43_040_704,
        "efficientnet_b7": 66_347_960,
        "efficientnet_v2_s": 21_458_488, "efficientnet_v2_m": 54_139_356,
        "efficientnet_v2_l": 118_515_272,
        "swin_t": 28_288_354, "swin_s": 49_606_258, "swin_b": 87_768_224,
        "swin_v2_t": 28_351_570, "swin_v2_s": 49_737_442, "swin_v2_b": 87_930_848,
        "maxvit_t": 30_919_624,
    },
    "timm": {
        "inception_v4": 42_679_816, "inception_resnet_v2": 55_843_464,
        "efficientnet_lite0": 4_652_008, "efficientnet_lite1": 5_416_680,
        "efficientnet_lite2": 6_092_072,
    },
    "Krizhevsky et al. 2012, abstract": {"alexnet_2012": "60 M"},
    "Lin et al. 2013, the authors' files": {"nin_cifar": "0.97 M"},
    "the authors' nin_imagenet, 29 MB": {"nin_imagenet": "7.6 M"},
    "Sermanet et al. 2013, Table 4": {"overfeat_fast": "145 M", "overfeat_accurate": "144 M"},
    "Ioffe & Szegedy 2015, section 4.2": {"bn_inception": "13.6 M"},
    "Srivastava et al. 2015, Table 2": {
        "highway11_cifar": "0.236 M", "highway19_cifar": "2.3 M", "highway32_cifar": "1.25 M",
    },
    "He et al. 2015, Table 6": {
        "resnet20_cifar": "0.27 M", "resnet32_cifar": "0.46 M", "resnet44_cifar": "0.66 M",
        "resnet56_cifar": "0.85 M", "resnet110_cifar": "1.7 M", "resnet1202_cifar": "19.4 M",
    },
    "He et al. 2016, Table 4": {
        "preact_resnet110_cifar": "1.7 M", "preact_resnet164_cifar": "1.7 M",
        "preact_resnet1001_cifar": "10.2 M",
    },
    "Xie et al. 2016, Table 7": {
        "resnext29_8x64d_cifar": "34.4 M", "resnext29_16x64d_cifar": "68.1 M",
    },
    "Simonyan & Zisserman 2014, Table 2": {"vgg11_lrn": "133 M", "vgg16_c": "134 M"},
    "Zagoruyko & Komodakis 2016": {
        "wrn_16_4": "2.8 M", "wrn_28_10": "36.5 M", "wrn_40_4": "8.9 M",
    },
    "Huang et al. 2016, Table 2": {
        "densenet_40_12": "1.0 M", "densenet_100_12": "7.0 M", "densenet_100_24": "27.2 M",
        "densenet_bc_100_12": "0.8 M", "densenet_bc_250_24": "15.3 M",
        "densenet_bc_190_40": "25.6 M",
    },
}  # fmt: skip
# Reasons for counts that differ from the published ones by more than rounding or truncation.
REASONS = {
    "bn_inception": "Figure 5 adds up to 11.3 M",
    "preact_resnet1001_cifar": "10,178,490 without the norms",
    "wrn_16_4": "2,772,020 with 100 classes",
}


def agreement(count: int, published: int | str) -> str:
    """Return how `count` agrees with a published number: exact, rounded, truncated, or differs."""
    if isinstance(published, int):
        return "exact" if count == published else "differs"
    value = decimal.Decimal(published.replace(" M", "e6"))  # the exponent is that of the last digit
    ways = {"rounded": decimal.ROUND_HALF_EVEN, "truncated": decimal.ROUND_DOWN}
    exact = decimal.Decimal(count)
    return next((way for way, r in ways.items() if exact.quantize(value, r) == value), "differs")


def counts_rows(name: str) -> list[dict[str, Any]]:
    """Return a row with a network's parameters and the published number.

    A network with auxiliary classifiers gets another row without them.
    """
    model = create_model(name)
    return published_rows(name, totals(summarize(model, model.input_shape)))


def published_rows(name: str, sums: dict[str, int]) -> list[dict[str, Any]]:
    """Return a row with the sums of a network's layers and the published numbers."""
    family = next(family for family, variants in FAMILIES.items() if name in variants)
    parameters = {name: sums["parameters"]}
    if sums["parameters_without_auxiliary"] != sums["parameters"]:
        parameters[f"{name} without auxiliary"] = sums["parameters_without_auxiliary"]
    rows = []
    for network, count in parameters.items():
        source = next((source for source, counts in PUBLISHED.items() if network in counts), None)
        published = PUBLISHED[source][network] if source else None
        way = agreement(count, published) if published else None
        row = {"network": network, "family": family, "parameters": count, "published": published}
        rows.append(row | {"agreement": way, "source": source, "note": REASONS.get(network)})
    return rows


def counts() -> list[dict[str, Any]]:
    """Return the rows of all networks, with parameters and published numbers."""
    names = track(list_models(), "tracing", transient=True)
    return [row for name in names for row in counts_rows(name)]


def he2015() -> list[dict[str, Any]]:
    """Return the multiply-adds of ResNets with the paper's strides, and the paper's numbers.

    Projections are included.
    """
    rows = []
    for layers, paper in HE2015.items():
        model = create_model(f"resnet{layers}", stride_in_1x1=True)
        count = totals(summarize(model, model.input_shape))["multiply_adds"]
        row = {"layers": layers, "multiply_adds": count, "published": paper}
        rows.append(row | {"agreement": agreement(count, paper)})
    return rows


TABLES = {"he2015": he2015, "counts": counts}


@dataclasses.dataclass(frozen=True)
class Options:
    arch: str | None = None
    """Name of a network; flaxnets.list_models() lists them."""
    num_classes: int | None = None
    """Outputs of the network; by default its own number."""
    image_size: int | None = None
    """Height and width of the image in pixels; by default its paper's."""
    channels: int | None = None
    """Channels of the image; by default its paper's."""
    table: str | None = None
    """Compare with published numbers instead: he2015, the multiply-adds of ResNets, or counts, the
    parameters of every network."""
    json: bool = False
    """Print JSON instead of a table."""


def network(options: Options) -> tuple[nn.Module, tuple[int, ...]]:
    """Return the network, and the shape of its images or features."""
    if options.arch is None:
        raise InputError("no network given; expected --arch NAME or --table NAME")
    fields = {} if options.num_classes is None else {"num_classes": options.num_classes}
    model = create_model(options.arch, **fields)
    *size, channels = model.input_shape
    sizes = {"--image-size": options.image_size, "--channels": options.channels}
    for flag, value in sizes.items():
        if value is not None and not size:
            raise InputError(f"{options.arch} reads rows of features; leave out {flag}")
        if value is not None and value < 1:
            raise InputError(f"{flag} is {value}; expected at least 1")
    return model, (*[options.image_size or n for n in size], options.channels or channels)


def main(options: Options) -> None:
    if options.table is not None:
        if options != Options(table=options.table, json=options.json):
            raise InputError("--table chooses its networks; leave out every option except --json")
        rows = TABLES[one_of(TABLES, options.table, "table")]()
        title, footer = options.table, []
        result = {"table": options.table, "rows": rows}
    else:
        model, input_shape = network(options)
        layers = summarize(model, input_shape)
        title = f"{options.arch} on {'x'.join(map(str, input_shape))}"
        rows, footer = [dataclasses.asdict(layer) for layer in layers], footers(layers)
        sums = totals(layers)
        result = {"arch": options.arch, "input_shape": input_shape, "totals": sums, "layers": rows}
    if options.json:
        print(json_text(result, indent=2))
    else:
        print_table(title, rows, footer)


if __name__ == "__main__":
    with one_sentence_errors():
        main(tyro.cli(Options, args=arguments(), description=__doc__))
