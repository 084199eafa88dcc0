"""What every class of networks promises, tried on a small network of each class: the map of
`dense=True`, the smallest image, and what `remat=True` recomputes.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import parity
from flaxnets import create_model
from networks import SMALL


def small(name: str, **fields):
    return create_model(name, num_classes=3, **SMALL[name].fields, **fields)


def random_variables(model, x: np.ndarray):
    """Return values of a size that keeps the signal through many layers."""
    rng = np.random.default_rng(0)

    def random(leaf):
        fan_in = np.prod(leaf.shape[:-1])
        return rng.standard_normal(leaf.shape, np.float32) / np.float32(fan_in**0.5) + np.float32(
            leaf.ndim == 1
        )

    variables = jax.tree.map(random, parity.initial_shapes(model, x))
    if "batch_stats" in variables:
        variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])
    return variables


WITH_MAP = [name for name, case in SMALL.items() if case.cells]


@pytest.mark.parametrize("name", [name for name in WITH_MAP if SMALL[name].linear])
def test_the_mean_of_the_map_is_the_logits(name):
    """Images have one channel, which every network accepts."""
    case, model = SMALL[name], small(name)
    x = parity.images(case.size, channels=1)
    variables = random_variables(model, x)

    @jax.jit
    def both(variables, x):
        return model.apply(variables, x), model.clone(dense=True).apply(variables, x)

    logits, scores = map(np.asarray, both(variables, x))
    assert scores.shape == (2, case.cells, case.cells, 3)
    assert parity.relative_error(scores.mean((1, 2)), logits) < 1e-5
    assert np.ptp(scores, axis=(1, 2)).max() > 1e-3 * abs(logits).max()  # the positions differ


@pytest.mark.parametrize("name", WITH_MAP)
def test_the_smallest_image_and_one_sentence_for_a_smaller_one(name):
    """Images have one channel, and the computation is in bfloat16."""
    side, model = SMALL[name].smallest, small(name, dtype=jnp.bfloat16)
    x = jnp.zeros((2, side, side, 1))
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    logits: Any = jax.eval_shape(model.apply, variables, x)
    assert (logits.shape, logits.dtype) == ((2, 3), jnp.bfloat16)
    wide: Any = jax.eval_shape(model.apply, variables, jnp.zeros((2, side, side + 32, 1)))
    assert wide.shape == (2, 3)
    scores: Any = jax.eval_shape(model.clone(dense=True).apply, variables, x)
    assert scores.shape == (2, 1, 1, 3)
    if side > 1:
        for smaller in (x[:, 1:], x[:, :, 1:]):
            with pytest.raises(ValueError, match="the images are too small for this network"):
                jax.eval_shape(model.apply, variables, smaller)


@pytest.mark.parametrize("name", [name for name, case in SMALL.items() if case.recomputed])
@pytest.mark.slow
def test_remat_has_the_same_tree_gradients_and_statistics(name):
    """The comparison is in float64, in training mode, with one key for dropout."""

    def loss(params, rest, model, x):
        logits, updates = model.apply(
            {"params": params, **rest}, x, train=True, mutable=[*rest],
            rngs={"dropout": jax.random.key(1)},
        )  # fmt: skip
        return jnp.square(logits).sum(), updates

    with jax.enable_x64():
        model = small(name, dtype=jnp.float64)
        remat = model.clone(remat=True)
        x = parity.images(SMALL[name].size, channels=model.input_shape[-1]).astype(np.float64)
        shapes = parity.initial_shapes(model, x)
        assert parity.initial_shapes(remat, x) == shapes
        rest = random_variables(model, x)
        params = rest.pop("params")
        gradients = parity.jit_quickly(jax.grad(loss, has_aux=True), static_argnums=2)
        ours, expected = (gradients(params, rest, m, x) for m in (remat, model))
        traced = gradients.trace(params, rest, remat, x)
    # The gradient of a bias between two norms is rounding alone.
    floor = 1e-4 * max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected[0]))
    for one, other in zip(*map(jax.tree.leaves, (ours, expected)), strict=True):
        largest = max(np.abs(other).max(), floor)
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9 * largest)
    assert parity.recomputed_parts(traced.jaxpr.jaxpr) >= SMALL[name].recomputed
