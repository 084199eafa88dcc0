"""Our counts agree with what papers and lectures say about the sizes of the networks."""

import functools
import json
import pathlib
import subprocess
import sys

import flax.linen as nn
import pytest

from flaxnets import InputError, create_model, list_models, summary
from flaxnets.layers import BatchNorm, Conv, Linear, Sequential
from networks import CASES
from tools import summarize as tool
from tools.torchvision_import import torchvision

ROOT = pathlib.Path(tool.__file__).parent.parent


@functools.cache
def layers(name: str, **fields) -> list[summary.Layer]:
    model = create_model(name, **fields)
    return summary.summarize(model, model.input_shape)


def total(name: str, key: str, **fields) -> int:
    return summary.totals(layers(name, **fields))[key]


# Published numbers that are truncated, not rounded, after their last digit.
TRUNCATED = {
    "alexnet_2012", "highway32_cifar", "overfeat_fast", "overfeat_accurate",
    "resnext29_16x64d_cifar",
}  # fmt: skip
UNPUBLISHED = {
    "plain18", "plain34", "zfnet", "prelu_net_a", "prelu_net_b", "prelu_net_c",
    *(f"plain{depth}_cifar" for depth in (20, 32, 44, 56, 110)),
    "alexnet_cifar", "alexnet_cifar_local", "lenet5", "lenet5_1998", "highway_mlp", "plain_mlp",
    "mcdnn_mnist", "inception_resnet_v1", "airbench94",
    "softmax_regression", "perceptron", "mlp", "linear_regression",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_network_has_its_published_number_of_parameters(name):
    """Layers are counted in one network of each kind.

    Deeper ones have the same layers; their parameters are counted in the comparison with torch.
    """
    case = CASES[name]
    if case.deeper:
        rows = tool.published_rows(
            name, dict.fromkeys(("parameters", "parameters_without_auxiliary"), case.parameters)
        )
    else:
        rows = tool.counts_rows(name)
    first, *others = rows
    assert first["network"] == name
    assert first["parameters"] == case.parameters  # `summarize` compares it with the tree
    assert bool(others) == (name in ("googlenet", "inception_v3"))
    assert (first["published"] is None) == (name in UNPUBLISHED)
    for row in rows:
        assert (row["note"] is not None) == (row["agreement"] == "differs")
        assert (row["agreement"] == "truncated") == (name in TRUNCATED)
        if isinstance(row["published"], int):
            assert row["agreement"] == "exact"


def test_every_published_number_belongs_to_a_network():
    published = {name for counts in tool.PUBLISHED.values() for name in counts}
    assert {name.removesuffix(" without auxiliary") for name in published} <= set(list_models())
    assert set(tool.REASONS) <= published


@pytest.mark.parametrize(
    ("count", "published", "agreement"),
    [
        (7, 7, "exact"), (8, 7, "differs"), (269_722, "0.27 M", "rounded"),
        (145_920_872, "145 M", "truncated"), (13_400_000, "13.6 M", "differs"),
    ],
)  # fmt: skip
def test_agreement_with_a_published_number(count, published, agreement):
    assert tool.agreement(count, published) == agreement


@pytest.mark.slow
def test_multiply_adds_of_he_2015():
    assert [tuple(row.values()) for row in tool.he2015()] == [
        (18, 1_814_073_344, "1.8e9", "rounded"),
        (34, 3_663_761_408, "3.6e9", "truncated"),
        (50, 3_857_973_248, "3.8e9", "truncated"),
        (101, 7_570_194_432, "7.6e9", "rounded"),
        (152, 11_282_415_616, "11.3e9", "rounded"),
    ]
    # Without the three projections, as in the paper's Table 2, both basic networks are rounded.
    for name, published in (("resnet18", "1.8e9"), ("resnet34", "3.6e9")):
        rows = [row for row in layers(name) if "downsample" not in row.name]
        assert tool.agreement(summary.totals(rows)["multiply_adds"], published) == "rounded"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_b_16", "convnext_tiny", "swin_t", "swin_v2_t", "maxvit_t"])
def test_multiply_adds_of_attention_are_torchvisions(name):
    """Multiply-adds are in units of 1e9, and include the products of queries, keys and values."""
    weights = torchvision.models.get_model_weights(name).DEFAULT
    assert round(total(name, "multiply_adds") / 1e9, 3) == weights.meta["_ops"]


def test_alexnet_2012_has_60_million_parameters_and_650_000_neurons():
    """The first layer has 55 * 55 * 96 = 290,400 neurons, with 96 kernels and 55x55 positions.

    The caption of Figure 2 counts 253,440, which is 55 * 48 * 96, as if the 48 maps of one GPU were
    a side of the map. Our sum is 659,272, and "650,000" keeps two of its digits; the caption's
    numbers add up to 622,312.
    """
    neurons = [row.neurons for row in layers("alexnet_2012")]
    caption = [253_440, 186_624, 64_896, 64_896, 43_264, 4096, 4096, 1000]
    assert neurons == [55 * 55 * 96, *caption[1:]]
    assert caption[0] == 55 * 48 * 96
    assert (sum(neurons), sum(caption)) == (659_272, 622_312)
    assert total("alexnet_2012", "neurons") == 659_272
    assert total("alexnet_2012", "parameters") == 60_965_224


@pytest.mark.slow
def test_googlenet_has_a_ninth_of_alexnets_parameters():
    """Szegedy et al. 2015 say "12 times fewer", which their own Table 1 contradicts.

    Their next paper (arXiv:1512.00567, section 1) divides 60 million by 5. In Table 1 the body
    alone has 5.6 M, and 6.0 M with its 5x5 convolutions.
    """
    alexnet = total("alexnet_2012", "parameters")
    five = total("googlenet", "parameters_without_auxiliary", five_by_five=True)
    assert five == 7_005_832
    assert round(alexnet / 6_624_904, 2) == 9.20
    assert round(alexnet / five, 2) == 8.70
    assert round(alexnet / total("googlenet", "parameters"), 2) == 4.69  # with auxiliary heads
    assert round(alexnet / (6_624_904 - 1_025_000), 1) == 10.9  # without any classifier
    # Abstract and section 3: "1.5 billion multiply-adds"
    assert tool.agreement(total("googlenet", "multiply_adds"), "1.5e9") == "rounded"


@pytest.mark.slow
def test_resnext_is_as_large_as_resnet():
    """Xie et al. 2016, Table 1: 25.5 and 25.0 M parameters, 4.1 and 4.2 x 10^9 FLOPs."""
    for name, parameters, flops in (
        ("resnet50", "25.5 M", "4.1e9"),
        ("resnext50_32x4d", "25.0 M", "4.2e9"),
    ):
        assert tool.agreement(total(name, "parameters"), parameters) != "differs"
        assert tool.agreement(total(name, "multiply_adds"), flops) == "rounded"


@pytest.mark.parametrize(
    ("convolutions", "channels", "parameters"),
    [
        ([Conv(64, 3, padding=1)] * 2, 64, 73_856),
        ([Conv(256, 3, padding=1)] * 2, 256, 1_180_160),
        ([Conv(64, 1), Conv(64, 3, padding=1), Conv(256, 1)], 256, 70_016),  # "about 70k"
    ],
)
def test_blocks_of_convolutions_with_biases(convolutions, channels, parameters):
    sums = summary.totals(summary.summarize(Sequential(convolutions), (14, 14, channels)))
    biases = sum(conv.features for conv in convolutions)
    assert sums["parameters"] == parameters
    assert sums["multiply_adds"] == 14 * 14 * (parameters - biases)


def test_a_row_has_the_torch_name_and_the_outputs_of_one_image():
    model = Sequential([Conv(8, 3, 2, 1, groups=2), BatchNorm(True), Linear(5, patch=(4, 4))])
    assert summary.summarize(model, (8, 8, 6)) == [
        summary.Layer("0", "Conv", (4, 4, 8), 8 * 27 + 8, 4 * 4 * 8 * 27, 128),
        summary.Layer("1", "BatchNorm", (4, 4, 8), 16, 0, 0),
        summary.Layer("2", "Linear", (1, 1, 5), 645, 640, 5),
    ]
    assert summary.summarize(nn.Dense(3), (4,)) == [summary.Layer("", "Dense", (3,), 15, 12, 3)]


def test_parameters_that_no_call_shows_are_an_error():
    class Attending(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Embed(3, 4).attend(x)

    with pytest.raises(ValueError, match="Attending has parameters outside of the counted layers"):
        summary.summarize(Attending(), (4,))


def test_auxiliary_classifiers_have_parameters_only():
    heads = [row for row in layers("googlenet") if row.auxiliary]
    assert {row.name.split(".")[0] for row in heads} == {"aux1", "aux2"}
    assert sum(row.parameters for row in heads) == 13_004_888 - 6_624_904
    assert not any(row.multiply_adds or row.neurons for row in heads)


def test_it_prints_a_table_or_json(capsys):
    tool.main(tool.Options("mlp", num_classes=5, image_size=28, channels=3))
    assert "total" in (printed := capsys.readouterr().out)
    assert "334,853" in printed
    tool.main(tool.Options("linear_regression", json=True))
    printed = json.loads(capsys.readouterr().out)
    assert printed["input_shape"] == [10]
    assert printed["totals"]["parameters"] == printed["layers"][0]["parameters"] == 11


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "no network given; expected --arch NAME or --table NAME"),
        ({"table": "count"}, "unknown table 'count'; did you mean 'counts'?"),
        ({"table": "counts", "channels": 1}, "leave out every option except --json"),
        ({"arch": "mlp", "image_size": 0}, "--image-size is 0; expected at least 1"),
        ({"arch": "vgg16", "image_size": 8}, "the images are too small for this network"),
        ({"arch": "linear_regression", "channels": 2}, "reads rows of features; leave out --chan"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(options, sentence):
    with pytest.raises(InputError, match=sentence.replace("?", r"\?")):
        tool.main(tool.Options(**options))


@pytest.mark.slow
def test_the_script_ends_with_status_2_and_needs_neither_tensorflow_nor_torch():
    code = """
import runpy, sys
sys.argv = ["", "--arch", "resnet51"]
try:
    runpy.run_path("tools/summarize.py", run_name="__main__")
finally:
    print({"tensorflow", "torch"} & set(sys.modules))
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "set()\n")
    assert result.stderr == "error: unknown architecture 'resnet51'; did you mean 'resnet50'?\n"
