"""Facts from section II.B of LeCun et al. 1998."""

import fnmatch
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import parity
from flaxnets import create_model, to_torch
from flaxnets.blocks import scaled_tanh
from flaxnets.initializers import drawn
from flaxnets.models.lenet import CONNECTIONS, RadialBasis
from flaxnets.recipes import recipe_for
from flaxnets.summary import summarize


@pytest.fixture(scope="module")
def start():
    model = create_model("lenet5_1998")
    return to_torch(drawn(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 1))))


def test_trainable_parameters_of_each_layer(start):
    sizes = {"features.0": 156, "features.2": 12, "features.4": 1_516, "features.6": 32}
    sizes |= {"classifier.0": 48_120, "classifier.2": 10_164}
    for layer, expected in sizes.items():
        assert sum(v.size for k, v in start.items() if k.startswith(f"{layer}.")) == expected
    frozen = recipe_for("lenet5_1998", "small images").freeze
    free = [k for k in start if not any(fnmatch.fnmatchcase(k, pattern) for pattern in frozen)]
    assert sum(start[key].size for key in free) == 60_000


def test_connections_of_table_1():
    """Six maps read three contiguous maps, nine read four, one reads all. No two read the same
    maps.
    """
    assert [len(row) for row in CONNECTIONS] == [3] * 6 + [4] * 9 + [6]
    assert len(set(CONNECTIONS)) == 16
    assert sorted(sum(CONNECTIONS, ())) == sorted([*range(6)] * 10)
    model = create_model("lenet5_1998")
    layers = {layer.name: layer for layer in summarize(model, model.input_shape)}
    sums = [layers[f"features.4.{i}"].multiply_adds for i in range(16)]
    assert sum(sums) == 100 * 25 * 60  # the paper's 151,600 connections include the biases
    assert layers["features.0"].multiply_adds == 122_304 - 28 * 28 * 6


def test_weights_are_uniform_in_2_4_over_the_fan_in(start):
    fans = {"features.0": 25, "features.2": 4, "features.4.0": 75, "features.4.15": 150}
    fans |= {"classifier.0": 400, "classifier.2": 120}
    for layer, fan_in in fans.items():
        for leaf in ("weight", "bias"):
            assert abs(start[f"{layer}.{leaf}"]).max() <= 2.4 / fan_in
    assert abs(start["classifier.0.weight"]).max() > 0.99 * 2.4 / 400
    assert set(start["classifier.4.weight"].ravel()) == {-1, 1}


def test_the_squashing_function_is_one_at_one():
    np.testing.assert_allclose(scaled_tanh(jnp.array([-1.0, 0, 1])), [-1, 0, 1], rtol=3e-6)


def test_cross_entropy_is_equation_9():
    """It is the distance of the right code plus the logarithm of the sum of exp(-distance)."""
    layer = RadialBasis(5, jnp.float64)
    with jax.enable_x64():
        variables = layer.init(jax.random.key(0), jnp.zeros((1, 84)))
    codes = np.asarray(variables["params"]["kernel"])
    labels = np.array([4, 0, 2])
    near = 0.5 * (codes[:, labels] + codes[:, labels - 1]).T  # between two codes
    x = near + 0.1 * parity.images(1, batch=3, channels=84)[:, 0, 0]
    distances = np.square(x[:, :, None].astype(np.float64) - codes).sum(1)
    with jax.enable_x64():
        logits: Any = layer.apply(variables, x)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    expected = distances[np.arange(3), labels] + np.log(np.exp(-distances).sum(1))
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
