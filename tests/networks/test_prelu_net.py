"""Facts about PReLU-nets that the comparison of every network does not state."""

import fnmatch
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import parity
from flaxnets import create_model, to_torch
from flaxnets.initializers import drawn
from flaxnets.models.prelu_net import PReLU, pyramid_pool
from flaxnets.recipes import recipe_for
from flaxnets.summary import summarize, totals
from networks.prelu_net import Pyramid

SMALL: dict[str, Any] = {
    "stages": ((4, 1), (6, 2), (8, 1)),
    "hidden_features": 16,
    "num_classes": 3,
}


@pytest.mark.parametrize("size", [(14, 14), (6, 17), (2, 1)])
def test_the_pyramid_is_torchs_for_a_map_of_any_size(size):
    x = np.random.default_rng(0).normal(size=(2, *size, 5)).astype(np.float32)
    with torch.no_grad():
        expected = Pyramid()(parity.nchw(x))
    y = jax.jit(pyramid_pool, static_argnums=1)(x, size)
    assert y.shape == (2, 1, 1, 5 * 63)
    np.testing.assert_array_equal(y[:, 0, 0], expected)


def test_the_map_has_the_pyramid_of_every_window():
    x = np.random.default_rng(0).normal(size=(1, 16, 15, 3)).astype(np.float32)
    pool = jax.jit(pyramid_pool, static_argnums=1)
    maps = pool(x, (14, 14))
    assert maps.shape == (1, 3, 2, 3 * 63)
    for row in range(3):
        for column in range(2):
            window = x[:, row : row + 14, column : column + 14]
            np.testing.assert_array_equal(maps[:, row, column], pool(window, (14, 14))[:, 0, 0])


def test_one_cell_of_the_map_is_the_logits():
    model = create_model("prelu_net_a", **SMALL)
    x = parity.images(224, batch=1)
    variables = drawn(model.init)(jax.random.key(0), x)

    @jax.jit
    def both(variables, x):
        return model.apply(variables, x), model.clone(dense=True).apply(variables, x)

    logits, scores = both(variables, x)
    np.testing.assert_array_equal(scores[:, 0, 0], logits)
    larger = jnp.zeros((1, 256, 240, 3))
    scores = jax.eval_shape(model.clone(dense=True).apply, variables, larger)
    assert scores.shape == (1, 3, 2, 3)


def test_a_map_needs_223_pixels_and_logits_15():
    model = create_model("prelu_net_a", **SMALL)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 15, 15, 3)))
    with pytest.raises(ValueError, match="the images are too small for this network"):
        jax.eval_shape(model.apply, variables, jnp.zeros((1, 14, 15, 3)))
    with pytest.raises(ValueError, match="the images are too small for this network"):
        jax.eval_shape(model.clone(dense=True).apply, variables, jnp.zeros((1, 222, 224, 3)))
    scores: Any = jax.eval_shape(
        model.clone(dense=True).apply, variables, jnp.zeros((1, 223, 223, 3))
    )
    assert scores.shape == (1, 1, 1, 3)


def test_slopes_start_at_a_quarter_and_the_recipe_does_not_decay_them():
    model = create_model("prelu_net_a", **SMALL)
    variables = drawn(model.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    start = to_torch(variables)
    patterns = recipe_for("prelu_net_a", "photographs").no_decay
    slopes = [key for key in start if any(fnmatch.fnmatchcase(key, p) for p in patterns)]
    assert len(slopes) == 1 + 4 + 2
    for key in start:
        if key in slopes:
            np.testing.assert_array_equal(start[key], np.float32(0.25), err_msg=key)
        elif key.endswith("bias"):
            assert not start[key].any()
    assert start["conv1.prelu.weight"].shape == (96,)  # one for each channel
    weight = start["conv1.layer.weight"]
    assert abs(weight.std() / np.sqrt(2 / (96 * 49)) - 1) < 4 / np.sqrt(2 * weight.size)


def test_a_negative_input_has_the_slope_and_gives_it_its_gradient():
    x = jnp.array([[-2.0, 3.0], [4.0, -1.0]])
    params = {"weight": jnp.array([0.5, -1.0])}

    def total(params):
        y: Any = PReLU().apply({"params": params}, x)
        return y.sum(), y

    gradient, y = jax.grad(total, has_aux=True)(params)
    np.testing.assert_array_equal(y, [[-1, 3], [4, 1]])
    np.testing.assert_array_equal(gradient["weight"], [-2, -1])


@pytest.mark.parametrize(("letter", "depth", "operations"), [("a", 19, 1.90), ("b", 22, 2.32)])
def test_layers_and_operations_of_table_3(letter, depth, operations):
    """Operations are in 1e10. Column C has 5.35 here and 5.30 in the table."""
    model = create_model(f"prelu_net_{letter}")
    layers = summarize(model, model.input_shape)
    assert sum(layer.multiply_adds > 0 for layer in layers) == depth
    assert totals(layers)["multiply_adds"] / 1e10 == pytest.approx(operations, abs=0.006)
