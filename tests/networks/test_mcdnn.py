"""What arXiv:1202.2745 states about a column of MCDNN, and what its fields do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import parity
from flaxnets import create_model
from flaxnets.models.mcdnn import scaled_tanh
from flaxnets.training.state import jit_once

model = create_model("mcdnn_mnist")


@pytest.fixture(scope="module")
def variables():
    return jit_once(model.init)(jax.random.key(0), jnp.zeros((1, *model.input_shape)))


def test_initial_weights_are_uniform_in_0_05(variables):
    for leaf in jax.tree.leaves(variables):
        assert abs(leaf).max() <= 0.05
        if leaf.size > 1000:
            assert float(leaf.std()) == pytest.approx(0.1 / 12**0.5, rel=0.05)


def test_activation_maps_one_to_one():
    assert scaled_tanh(jnp.array([-1.0, 0.0, 1.0])) == pytest.approx([-1, 0, 1], abs=1e-4)


def test_smallest_images(variables):
    dense = model.clone(dense=True)
    assert jax.eval_shape(dense.apply, variables, jnp.zeros((1, 29, 29, 1))).shape == (1, 1, 1, 10)
    with pytest.raises(ValueError, match="images are too small for this network"):
        jax.eval_shape(model.apply, variables, jnp.zeros((1, 29, 28, 1)))


def test_dense_map_averages_to_the_logits(variables):
    x = parity.images(29 + 6, channels=1)
    grid = jax.jit(model.clone(dense=True).apply)(variables, x)
    assert grid.shape == (2, 2, 2, 10)
    assert np.asarray(grid).std((1, 2)).min() > 0  # the positions differ
    logits = jax.jit(model.apply)(variables, x)
    assert parity.relative_error(grid.mean((1, 2)), logits) < 1e-5
