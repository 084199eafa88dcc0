"""Initializers beside those of flax and jax, and the values of whole networks."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets import create_model, initializers
from flaxnets.initializers import drawn, normal, uniform, variance_scaling

KEY = jax.random.key(3)
SHAPES = [(3, 3, 7, 30), (5, 5, 1, 16), (1, 1, 24, 12), (150, 10)]
OURS_AND_FLAXS = {
    "normal": (normal(0.03), nn.initializers.normal(0.03)),
    "he_normal": (variance_scaling(2.0, "fan_in", "truncated_normal"), nn.initializers.he_normal()),
    "fan_out": (
        variance_scaling(2.0, "fan_out", "normal"),
        nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    ),
    "torch_default": (
        variance_scaling(1 / 3, "fan_in", "uniform"),
        nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
    ),
    "uniform": (
        uniform(0.3),
        lambda key, shape: jax.random.uniform(key, shape, minval=-1) * np.float32(0.3),
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", OURS_AND_FLAXS)
def test_an_initializer_has_the_bits_of_flaxs(name, shape):
    """Draw by itself, in a program, and for several keys at once."""
    ours, theirs = OURS_AND_FLAXS[name]
    np.testing.assert_array_equal(ours(KEY, shape), theirs(KEY, shape))
    np.testing.assert_array_equal(jax.jit(lambda: ours(KEY, shape))(), theirs(KEY, shape))
    keys = jax.random.split(KEY, 2)
    each = jnp.stack([ours(key, shape) for key in keys])
    np.testing.assert_array_equal(jax.vmap(lambda key: ours(key, shape))(keys), each)


NETWORKS = [
    "lenet5", "resnet20_cifar", "highway_mlp",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in (
            "googlenet", "convnext_tiny", "resnet18", "wrn_16_4",
            "densenet_bc_100_12", "nin_cifar",
        )
    ),
]  # fmt: skip
FEW_LAYERS = {
    "densenet_bc_100_12": {"depths": (2, 2, 2)},
    "convnext_tiny": {"depths": (1, 1, 1, 1)},
}


@pytest.mark.parametrize("arch", NETWORKS)
def test_a_network_is_drawn_with_the_bits_of_its_own_program(arch):
    """With `remat` as well, where each block is a program inside."""
    model = create_model(arch, **FEW_LAYERS.get(arch, {}))
    images = jnp.zeros((1, *model.input_shape))
    expected = jax.jit(model.init)(KEY, images)
    versions = [model, model.clone(remat=True)] if hasattr(model, "remat") else [model]
    for version in versions:
        jax.tree.map(np.testing.assert_array_equal, drawn(version.init)(KEY, images), expected)


def test_no_draw_is_compiled_for_one_shape_alone():
    """Kernels of 129 to 256 numbers share one program."""

    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            for width in range(130, 140):
                x = nn.Dense(width, kernel_init=normal(0.1), bias_init=normal(0.1))(x[..., :1])
            return x

    programs: Any = initializers._compiled_numbers
    before = programs._cache_size()
    drawn(Deep().init)(KEY, jnp.zeros((1, 1)))
    assert programs._cache_size() <= before + 1


def test_a_value_that_no_key_decides_stays():
    tree = drawn(lambda a, b: {"sum": a + 1, "one": jnp.ones(2), "a": a})(jnp.arange(3), None)
    assert {name: leaf.tolist() for name, leaf in tree.items()} == {
        "sum": [1, 2, 3], "one": [1.0, 1.0], "a": [0, 1, 2],
    }  # fmt: skip
