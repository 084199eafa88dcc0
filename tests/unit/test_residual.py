"""The residual sum, which XLA:CPU stores."""

import functools
import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from flaxnets.kernels.platform import on_every_platform
from flaxnets.kernels.residual import residual_sum


def blocks(x, count, add):
    for scale in range(1, count + 1):
        x = add(x, scale * jnp.tanh(x))
    return x


def loss(x, count, add=residual_sum):
    return jnp.square(blocks(x, count, add)).sum()


def test_values_and_derivatives_are_those_of_a_sum():
    x = jnp.linspace(-1.0, 1.0, 24).reshape(4, 6)
    for function in (
        loss,
        jax.grad(loss),
        jax.hessian(loss),
        lambda *rest: jax.jvp(lambda x: loss(x, *rest[1:]), (rest[0],), (rest[0],)),
        lambda *rest: jax.vmap(lambda x: jax.grad(loss)(x, *rest[1:]))(rest[0]),
    ):
        found, expected = function(x, 3), function(x, 3, jnp.add)
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_what_is_no_number_and_infinities_stay():
    x = jnp.array([np.nan, np.inf, -np.inf, 1.0])
    total = jax.jit(residual_sum)(x, jnp.ones(4))
    np.testing.assert_array_equal(total, [np.nan, np.inf, -np.inf, 2.0])


@pytest.mark.parametrize("count", [4, 8])
def test_no_operation_reads_the_branches_of_all_blocks(count):
    """Without the stored sums, the gradients of the first layers read an array of each block."""

    def trained(kernels, x):
        for kernel in kernels:
            normed = x - x.mean(-1, keepdims=True)
            x = residual_sum(x, jnp.tanh(normed @ kernel))
        return jnp.square(x).sum()

    kernels = [jnp.eye(64)] * count
    step = jax.jit(jax.grad(trained))
    program = str(step.lower(kernels, jnp.ones((32, 64))).compile().as_text())
    inputs = [len(found.split(", ")) for found in re.findall(r" fusion\((.*?)\)", program)]
    assert max(inputs) <= 6


def test_it_goes_into_shard_map_and_into_programs_for_other_platforms():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("batch",))
    split = PartitionSpec("batch")
    x = jnp.linspace(-1.0, 1.0, 8)
    gradient = jax.grad(functools.partial(loss, count=2))
    mapped = jax.shard_map(gradient, mesh=mesh, in_specs=split, out_specs=split)
    np.testing.assert_allclose(mapped(x), gradient(x), rtol=1e-6)
    function = jax.jit(on_every_platform(gradient))
    exported = jax.export.export(function, platforms=("cpu", "cuda", "tpu"))(x)
    np.testing.assert_allclose(exported.call(x), gradient(x), rtol=1e-6)
