"""Facts about the residual networks that the comparison of every network does not state."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import parity
from flaxnets import InputError, create_model, to_torch
from flaxnets.blocks import StochasticDepth, shortcut
from flaxnets.initializers import drawn
from flaxnets.layers import BatchNorm, Conv
from flaxnets.models.resnet import BasicBlock, Bottleneck
from flaxnets.models.resnet_cifar import BasicBlock as resnet_cifar_block
from flaxnets.models.wide_resnet import WideBlock
from networks import CASES, resnet, resnet_cifar

INIT = {
    "resnet18": {"depths": (1, 2)},
    "resnet50": {"depths": (1, 2)},
    "resnext50_32x4d": {"depths": (1, 2)},
    "resnet20_cifar": {"depth": 14},
    "resnext29_8x64d_cifar": {"groups": 2},
    "wrn_16_4": {"depth": 10},
}


def shapes(model, *shape: int):
    x = jnp.zeros(shape or (1, *model.input_shape))
    return jax.eval_shape(model.init, jax.random.key(0), x)


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@functools.cache
def initialised(name: str, **fields):
    model = create_model(name, **INIT[name], **fields)
    return to_torch(drawn(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3))))


def no_norm(**_):
    return lambda x, relu=False: nn.relu(x) if relu else x


@pytest.mark.parametrize(
    ("block", "channels", "parameters"),
    [
        (functools.partial(BasicBlock, 64), 64, 73_856),
        (functools.partial(BasicBlock, 256), 256, 1_180_160),
        # The paper's "about 70k": 256-64-64-256, a sixteenth of two 3x3 convolutions of 256.
        (functools.partial(Bottleneck, 64), 256, 70_016),
    ],
)
def test_parameters_of_a_block_of_convolutions_with_biases(block, channels, parameters):
    assert count(shapes(block(conv=Conv, norm=no_norm), 1, 8, 8, channels)) == parameters


def test_the_bottleneck_of_the_paper_has_the_same_tree_and_torch_with_its_strides():
    fields = {"depths": (1, 2, 1, 1), "num_classes": 10}
    model, reference = parity.build_pair("resnet50", CASES["resnet50"], **fields)
    paper = create_model("resnet50", stride_in_1x1=True, **fields)
    assert shapes(paper) == shapes(model)
    assert count(shapes(create_model("resnet50", stride_in_1x1=True))["params"]) == 25_557_032
    for layer in ("layer2", "layer3", "layer4"):
        for conv, stride in (("conv1", (2, 2)), ("conv2", (1, 1))):
            vars(reference.get_submodule(f"{layer}.0.{conv}"))["stride"] = stride
    for size in (64, 49):
        x = parity.images(size)
        assert parity.logits_error(paper, reference, x) < 1e-5
        assert parity.logits_error(model, reference, x) > 1e-3


@pytest.mark.slow
def test_all_50_layers_take_the_same_step():
    model, reference = parity.build_pair("resnet50", CASES["resnet50"], num_classes=10)
    for column, error in parity.training_errors(model, reference, [parity.images(48, 2)]).items():
        assert error < 1e-9, column


def test_basic_blocks_have_no_groups():
    with pytest.raises(
        InputError, match="blocks without bottleneck have neither, expected 1 and 64"
    ):
        shapes(create_model("resnet18", groups=32))


@pytest.mark.parametrize(("name", "last"), [("resnet18", "bn2"), ("resnet50", "bn3")])
def test_zero_init_residual_zeroes_the_last_norm_of_each_block_only(name, last):
    zeroed = initialised(name, zero_init_residual=True)
    for key, value in zeroed.items():
        if value.ndim == 1 and key.endswith("weight"):
            in_block = key.startswith("layer") and key.endswith(f"{last}.weight")
            assert np.all(value == (0 if in_block else 1)), key
    for key, value in initialised(name).items():
        if value.ndim == 1 and key.endswith("weight"):
            assert np.all(value == 1), key


@pytest.mark.parametrize(
    ("name", "key", "fan"),
    [
        ("resnet50", "layer2.1.conv2.weight", 128 * 9),
        ("resnext50_32x4d", "layer2.1.conv2.weight", 256 * 9),  # not divided by the groups
        ("resnet50", "layer2.0.downsample.0.weight", 512),
        ("resnet20_cifar", "layer3.0.conv1.weight", 32 * 9),  # fan-in
        ("resnet20_cifar", "fc.weight", 64),
        ("resnext29_8x64d_cifar", "layer3.1.conv1.weight", 512),
        ("wrn_16_4", "layer3.0.conv1.weight", 256 * 9),
        ("wrn_16_4", "layer3.0.downsample.weight", 256),
    ],
)
def test_weights_are_initialised_normally_with_variance_two_over_the_fan(name, key, fan):
    value = initialised(name)[key]
    # The sampling error of a standard deviation is 1 / sqrt(2 n). Four of these errors are allowed.
    assert abs(value.std() / np.sqrt(2 / fan) - 1) < 4 / np.sqrt(2 * value.size)
    normal = abs(value / value.std())
    assert 0.29 < np.mean(normal > 1) < 0.35 or value.size < 10_000
    assert normal.max() > 3  # not truncated


@pytest.mark.parametrize(
    ("name", "fan_in", "bias"),
    [("resnet50", 512, True), ("resnext29_8x64d_cifar", 1024, False), ("wrn_16_4", 256, False)],
)
def test_the_linear_layer_is_initialised_as_torch_does(name, fan_in, bias):
    weight, start = (initialised(name)[f"fc.{leaf}"] for leaf in ("weight", "bias"))
    bound = 1 / np.sqrt(fan_in)
    assert 0.95 * bound < abs(weight).max() <= bound
    assert bool(start.any()) == bias
    assert abs(start).max() <= bound


@pytest.mark.parametrize("size", [224, 193])
def test_the_last_map_of_an_imagenet_network_has_a_thirtysecond_of_the_pixels(size):
    model = create_model("resnet50", dense=True)
    x = jnp.zeros((1, size, size, 3))
    dense = jax.eval_shape(model.apply, shapes(model), x)
    assert dense.shape == (1, 7, 7, 1000)


@pytest.mark.parametrize(("name", "depth"), [("resnet20_cifar", 21), ("wrn_16_4", 20)])
def test_a_depth_that_is_no_whole_number_of_blocks_is_refused(name, depth):
    with pytest.raises(InputError, match=f"depth is {depth}; expected 6n"):
        shapes(create_model(name, depth=depth))


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110, 1202])
def test_depth_counts_convolutions_and_the_linear_layer(depth):
    """They are counted in torch's network. Ours has all its keys and shapes (tests/parity)."""
    name = f"resnet{depth}_cifar"
    reference = parity.shapes_of_reference(name, CASES[name])
    assert sum(len(shape) > 1 for shape in reference.values()) == depth


def test_the_shortcut_without_parameters_subsamples_and_appends_zeros():
    x = jnp.arange(1.0, 26.0).reshape(1, 5, 5, 1)
    y = shortcut("A", x, 3, 2, Conv, BatchNorm)
    assert y is not None
    np.testing.assert_array_equal(y[0, ..., 0], [[1, 3, 5], [11, 13, 15], [21, 23, 25]])
    assert not y[..., 1:].any()
    assert shortcut("A", x, 1, 1, Conv, BatchNorm) is x


@pytest.mark.parametrize("option", ["A", "B", "C"])
def test_shortcuts_of_table_3(option):
    """Compare logits of both kinds of networks with torch, and the gradients of one."""
    fields = {"depths": (2, 1), "num_classes": 10}
    case = dataclasses.replace(
        CASES["resnet18"],
        reference=lambda **fields: resnet.with_shortcuts(
            resnet.resnet("resnet18", **fields), option
        ),
    )
    _, reference = parity.build_pair("resnet18", case, **fields)
    model = create_model("resnet18", shortcut=option, **fields)
    assert parity.logits_error(model, reference, parity.images(49)) < 1e-5

    case = dataclasses.replace(
        CASES["resnet20_cifar"],
        reference=functools.partial(resnet_cifar.resnet, shortcut=option),
    )
    _, reference = parity.build_pair("resnet20_cifar", case, depth=14)
    model = create_model("resnet20_cifar", shortcut=option, depth=14)
    assert parity.logits_error(model, reference, parity.images(27)) < 1e-5
    if option == "C":
        batches = [parity.images(8, 4, seed=seed) for seed in range(2)]
        for column, error in parity.training_errors(model, reference, batches).items():
            assert error < 1e-9, column


def test_projections_take_as_many_parameters_as_table_3_says():
    """Option C projects in 13 more blocks than B, with 64, 128, 256 and 512 channels."""
    a, b, c = (count(shapes(create_model("resnet34", shortcut=o))["params"]) for o in "ABC")
    assert b - a == sum(width * width // 2 + 2 * width for width in (128, 256, 512))
    more = {64: 3, 128: 3, 256: 5, 512: 2}
    assert c - b == sum(n * (width * width + 2 * width) for width, n in more.items())


@pytest.mark.parametrize(
    ("name", "fields", "sentence"),
    [
        ("resnet18", {"shortcut": "D"}, "unknown shortcut 'D'; expected one of A, B, C, none"),
        ("plain18", {"zero_init_residual": True}, "shortcut is 'none', with which zero_init"),
        (
            "plain20_cifar",
            {"stochastic_depth_rate": 0.5},
            "shortcut is 'none', with which stochastic",
        ),
    ],
)
def test_shortcuts_that_do_not_fit_get_one_sentence(name, fields, sentence):
    with pytest.raises(InputError, match=sentence):
        shapes(create_model(name, **fields))


def test_stochastic_depth_grows_linearly_and_acts_in_training_only():
    """Huang et al. 2016, equation 4: the input survives with probability 1, the last block with 1 -
    rate.
    """
    model = create_model("resnet20_cifar", depth=8, stochastic_depth_rate=0.5)
    x = parity.images(8)
    variables = drawn(model.init)(jax.random.key(0), x)
    rates = []

    def record(next_function, args, kwargs, context):
        if isinstance(context.module, StochasticDepth):
            rates.append(context.module.rate)
        return next_function(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(model.apply, variables, x)
    np.testing.assert_allclose(rates, [1 / 6, 2 / 6, 3 / 6])

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def logits(seed: int, model=model, train: bool = True):
        return model.apply(
            variables, x, train, mutable=["batch_stats"], rngs={"dropout": jax.random.key(seed)}
        )[0]

    assert np.any(logits(0) != logits(1))
    whole = model.clone(stochastic_depth_rate=0.0)
    np.testing.assert_array_equal(logits(0, model, False), logits(1, whole, False))


def test_a_block_that_is_left_out_is_its_shortcut():
    norm: Any = no_norm
    block = resnet_cifar_block(4, Conv, norm, "A", functools.partial(StochasticDepth, 1.0, True))
    x = abs(parity.images(5, channels=4))
    variables = block.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, x)
    rngs = {"dropout": jax.random.key(2)}
    np.testing.assert_array_equal(block.apply(variables, x, rngs=rngs), x)


def test_a_wide_block_drops_activations_between_its_convolutions_only():
    block: Any = functools.partial(
        WideBlock, 4, functools.partial(Conv, use_bias=False),
        functools.partial(BatchNorm, use_running_average=True),
    )  # fmt: skip
    x = parity.images(8, channels=4)

    def drop_all():
        return jnp.zeros_like

    kept = block(lambda: lambda x: x)
    variables = kept.init(jax.random.key(0), x)
    np.testing.assert_array_equal(block(drop_all).apply(variables, x), x)
    assert np.any(kept.apply(variables, x) != x)


def test_the_dropout_rate_of_a_wide_network_acts_in_training_only():
    model = create_model("wrn_16_4", depth=10, widen=1, dropout_rate=0.3)
    x = parity.images(8)
    variables = drawn(model.init)(jax.random.key(0), x)

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def logits(seed: int, model=model, train: bool = True):
        return model.apply(
            variables, x, train, mutable=["batch_stats"], rngs={"dropout": jax.random.key(seed)}
        )[0]

    assert np.any(logits(0) != logits(1))
    np.testing.assert_array_equal(logits(0), logits(0))
    np.testing.assert_array_equal(logits(0, model, False), logits(1, model, False))
    undropped = model.clone(dropout_rate=0.0)
    np.testing.assert_array_equal(logits(0, undropped), logits(1, undropped))
    assert create_model("wrn_28_10").dropout_rate == 0


def test_no_block_computes_the_sums_of_earlier_blocks_again():
    """Operations other than convolutions, which are oneDNN's, grow with the number of blocks."""

    def operations(depth: int) -> float:
        model = create_model("resnet20_cifar", depth=depth)
        x = jnp.zeros((1, *model.input_shape))
        cost: Any = jax.jit(model.apply).lower(shapes(model), x).compile().cost_analysis()
        return cost["flops"]

    shallow, middle, deep = map(operations, (20, 38, 56))
    assert deep - middle < 1.1 * (middle - shallow)  # 1.7 with `nn.relu`
