"""How XLA compiles programs whose layers have many different shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets import create_model
from flaxnets.kernels.compilation import OLDER_EMITTERS, compiler_options
from flaxnets.kernels.platform import compiling_for


def parameters(arch):
    model = create_model(arch)
    images = jnp.zeros((1, *model.input_shape))
    return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


@pytest.mark.parametrize(
    ("arch", "expected"),
    [("densenet_bc_100_12", OLDER_EMITTERS), ("densenet_40_12", {}), ("resnet20_cifar", {})],
)
def test_a_network_of_many_shapes_has_older_emitters_on_cpus(arch, expected):
    params = parameters(arch)
    assert compiler_options(params) == expected
    with compiling_for("gpu"):
        assert compiler_options(params) == {}


def test_both_emitters_give_the_same_values():
    def moved(p, m, g):
        momentum = 0.9 * m + g + 1e-4 * p
        return p - 0.1 * momentum, jnp.tanh(momentum).sum(0)

    operands = [np.random.default_rng(i).standard_normal((17, 9), np.float32) for i in range(3)]
    older = jax.jit(moved, compiler_options=OLDER_EMITTERS)(*operands)
    for ours, theirs in zip(older, jax.jit(moved)(*operands), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
