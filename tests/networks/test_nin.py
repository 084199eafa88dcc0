"""Facts about network in network that the comparison of every network does not state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import parity
from flaxnets import create_model, to_torch
from flaxnets.initializers import drawn
from networks.nin import THIN

SIZE = {"nin_cifar": 12, "nin_imagenet": 67}  # side of the images in pixels
both = pytest.mark.parametrize("name", THIN)


def thin(name: str, **fields):
    return create_model(name, mlpconvs=THIN[name], num_classes=3, **fields)


def shapes(model, *shape: int):
    x = jnp.zeros(shape or (1, *model.input_shape))
    return jax.eval_shape(model.init, jax.random.key(0), x)


@pytest.mark.parametrize(
    ("name", "maps"), [("nin_cifar", (8, 8, 10)), ("nin_imagenet", (6, 6, 1000))]
)
def test_a_map_of_scores_for_every_class(name, maps):
    model = create_model(name, dense=True)
    x = jnp.zeros((1, *model.input_shape))
    assert jax.eval_shape(model.apply, shapes(model), x).shape == (1, *maps)


def test_an_mlpconv_layer_is_a_convolution_and_a_perceptron_over_its_channels():
    first = shapes(create_model("nin_cifar"))["params"]["mlpconv1"]
    assert {name: layer["kernel"].shape for name, layer in first.items()} == {
        "conv": (5, 5, 3, 192),
        "cccp1": (1, 1, 192, 160),
        "cccp2": (1, 1, 160, 96),
    }


@both
def test_the_scores_are_means_of_rectified_maps(name):
    model, x = thin(name), parity.images(99)
    variables = drawn(model.init)(jax.random.key(0), x)
    scores, dense = jax.jit(model.apply), jax.jit(model.clone(dense=True).apply)
    maps = dense(variables, x)
    assert maps.shape[1] > 1
    np.testing.assert_allclose(maps.mean((1, 2)), scores(variables, x), rtol=1e-5)
    assert maps.max() > 0
    last = variables["params"][f"mlpconv{len(THIN[name])}"]["cccp2"]
    last["bias"] -= 1e6
    assert not scores(variables, x).any()


@pytest.mark.parametrize(
    ("name", "deviations"),
    [
        ("nin_cifar", [(0.05, 0.05, 0.05)] * 3),
        (
            "nin_imagenet",
            [(0.01, 0.05, 0.05), (0.05, 0.05, 0.05), (0.01, 0.05, 0.05), (0.05, 0.05, 0.01)],
        ),
    ],
)
def test_initial_weights_are_the_authors_but_for_one_bias(name, deviations):
    model = create_model(name)
    init = to_torch(drawn(model.init)(jax.random.key(0), jnp.zeros((1, 67, 67, 3))))
    for number, row in enumerate(deviations, 1):
        for layer, deviation in zip(("conv", "cccp1", "cccp2"), row, strict=True):
            value = init.pop(f"mlpconv{number}.{layer}.weight")
            # The sampling error of a standard deviation is 1 / sqrt(2 n). Four of these errors are
            # allowed.
            assert abs(value.std() / deviation - 1) < 4 / np.sqrt(2 * value.size)
            bias = 1 if (name, number, layer) == ("nin_cifar", 3, "cccp2") else 0
            assert (init.pop(f"mlpconv{number}.{layer}.bias") == bias).all()
    assert not init


@pytest.mark.parametrize(("name", "pools"), [("nin_cifar", (1, 2)), ("nin_imagenet", (3,))])
def test_dropout_follows_the_pools_of_the_authors_and_acts_in_training_only(name, pools):
    rows = create_model(name).mlpconvs
    assert tuple(number for number, row in enumerate(rows, 1) if row[-1]) == pools
    model, x = thin(name), parity.images(SIZE[name])
    variables = drawn(model.init)(jax.random.key(0), x)

    @functools.partial(jax.jit, static_argnames="train")
    def scores(seed: int, train: bool = True):
        return model.apply(variables, x, train, rngs={"dropout": jax.random.key(seed)})

    assert model.dropout_rate == 0.5
    assert np.any(scores(0) != scores(1))
    np.testing.assert_array_equal(scores(0, train=False), scores(1, train=False))
