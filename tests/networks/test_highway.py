"""Facts about highway networks that the comparison of every network does not state."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import parity
from flaxnets import InputError, create_model, to_torch
from flaxnets.initializers import drawn
from flaxnets.layers import Conv
from flaxnets.models.highway import Highway
from networks import highway

SMALL = {
    "highway19_cifar": {"stages": ((4, 1), (6, 2), (8, 1))},
    "highway_mlp": {"depth": 4, "width": 7},
}


def small(name: str, **fields):
    return create_model(name, num_classes=3, **SMALL[name], **fields)


def shapes(model, *shape: int):
    x = jnp.zeros(shape or (1, *model.input_shape))
    return jax.eval_shape(model.init, jax.random.key(0), x)


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@functools.cache
def initialised(name: str):
    model = create_model(name)
    return to_torch(drawn(model.init)(jax.random.key(0), jnp.zeros((1, *model.input_shape))))


@pytest.mark.parametrize(
    ("name", "depth", "millions"),
    [
        ("highway11_cifar", 11, 0.236),
        ("highway19_cifar", 19, 2.3),
        ("highway32_cifar", 32, 1.25),
    ],
)
def test_layers_and_parameters_of_table_2(name, depth, millions):
    params = shapes(create_model(name))["params"]
    assert len(params) == depth
    assert abs(count(params) / 1e6 / millions - 1) < 0.02


def test_a_thin_fully_connected_layer_has_about_5000_parameters():
    params = shapes(create_model("highway_mlp"))["params"]  # section 3.1
    assert count(params["fc2"]) == 5_100
    assert len(params) == 10 + 1  # 10 layers and the output
    plain = shapes(create_model("plain_mlp"))["params"]
    assert count(plain["fc2"]) == 5_112


def test_a_plain_convolutional_network_is_torchs():
    stages = ((4, 1), (6, 2), (8, 1))
    reference = highway.highway_cifar(stages, layer=highway.Plain)
    model = create_model("highway19_cifar", gated=False, stages=stages)
    assert parity.logits_error(model, reference, parity.images(11)) < 1e-5


@pytest.mark.parametrize("name", ["highway19_cifar", "highway_mlp"])
def test_gates_are_biased_to_carry_and_everything_else_starts_at_zero_bias(name):
    biases = {key: value for key, value in initialised(name).items() if key.endswith("bias")}
    assert any(key.endswith(".T.bias") for key in biases)
    for key, value in biases.items():
        assert np.all(value == (-2 if key.endswith(".T.bias") else 0)), key


@pytest.mark.parametrize(
    ("name", "key", "deviation"),
    [
        ("highway19_cifar", "conv1.weight", 0.05),
        ("highway19_cifar", "conv17.H.weight", np.sqrt(2 / (128 * 9))),
        ("highway19_cifar", "conv17.T.weight", np.sqrt(2 / (128 * 9))),
        ("highway19_cifar", "conv18.weight", np.sqrt(2 / 128)),
        ("highway19_cifar", "fc.weight", 0.05),
        ("highway_mlp", "fc1.weight", np.sqrt(2 / 784)),
        ("highway_mlp", "fc10.T.weight", np.sqrt(2 / 50)),
    ],
)
def test_initial_weights(name, key, deviation):
    value = initialised(name)[key]
    # The sampling error of a standard deviation is 1 / sqrt(2 n). Four of these errors are allowed.
    assert abs(value.std() / deviation - 1) < 4 / np.sqrt(2 * value.size)
    assert abs(value).max() > 2.5 * value.std()  # not uniform


def test_a_closed_gate_carries_and_an_open_one_transforms():
    x = jnp.asarray(parity.images(5, channels=4))
    conv = functools.partial(Conv, kernel_size=3, padding=1)
    closed, open_ = (Highway(conv, gate_bias) for gate_bias in (-1e9, 1e9))
    variables = closed.init(jax.random.key(0), x)
    np.testing.assert_array_equal(closed.apply(variables, x), x)

    variables = open_.init(jax.random.key(0), x)
    transformed: Any = conv(4).apply({"params": variables["params"]["H"]}, x)
    transformed = nn.relu(transformed)
    np.testing.assert_array_equal(open_.apply(variables, x), transformed)


def test_fields_of_the_fully_connected_network():
    model = create_model("highway_mlp", patch=(8, 8), depth=5, activation="tanh", gate_bias=-4.0)
    x = parity.images(8, channels=1)
    variables = drawn(model.init)(jax.random.key(0), x)
    params = variables["params"]
    assert params["fc1"]["patch_kernel"].shape == (8, 8, 1, 50)
    assert len(params) == 5 + 1
    assert np.all(params["fc5"]["T"]["bias"] == -4)
    rectified = model.clone(activation="relu")
    logits, others = (jax.jit(m.apply)(variables, x) for m in (model, rectified))
    assert np.any(logits != others)
    with pytest.raises(InputError, match="unknown activation 'relo'; did you mean 'relu'"):
        shapes(model.clone(activation="relo"))


def test_dropout_acts_in_training_only():
    model, x = small("highway19_cifar"), parity.images(8)
    variables = drawn(model.init)(jax.random.key(0), x)
    calls = []

    def record(next_function, args, kwargs, context):
        if isinstance(context.module, nn.Dropout):
            calls.append(context.module.rate)
        return next_function(*args, **kwargs)

    @functools.partial(jax.jit, static_argnames="train")
    def logits(seed: int, train: bool = True):
        return model.apply(variables, x, train, rngs={"dropout": jax.random.key(seed)})

    with nn.intercept_methods(record):
        logits(0)
    assert calls == [0.2] * 4  # the input, two pools, the averaged map
    assert np.any(logits(0) != logits(1))
    np.testing.assert_array_equal(logits(0, train=False), logits(1, train=False))
