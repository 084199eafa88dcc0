"""What arXiv:1202.2745 states about a column of MCDNN, and what its fields do."""

import jax
import jax.numpy as jnp
import pytest

from flaxnets import create_model
from flaxnets.blocks import scaled_tanh
from flaxnets.initializers import drawn

model = create_model("mcdnn_mnist")


@pytest.fixture(scope="module")
def variables():
    return drawn(model.init)(jax.random.key(0), jnp.zeros((1, *model.input_shape)))


def test_initial_weights_are_uniform_in_0_05(variables):
    for leaf in jax.tree.leaves(variables):
        assert abs(leaf).max() <= 0.05
        if leaf.size > 1000:
            assert float(leaf.std()) == pytest.approx(0.1 / 12**0.5, rel=0.05)


def test_activation_maps_one_to_one():
    assert scaled_tanh(jnp.array([-1.0, 0.0, 1.0])) == pytest.approx([-1, 0, 1], abs=1e-4)
