"""Activations with constants that 16 bits do not hold: rounded once. The GELU's derivatives."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from flaxnets.blocks import gelu, scaled_tanh

X = np.linspace(-12, 12, 1201)


def torchs(x):
    """Return torch's values and gradients in float64."""
    x = torch.tensor(np.asarray(x, np.float64), requires_grad=True)
    y = torch.nn.functional.gelu(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    return y.detach().numpy(), gradient.numpy()


@pytest.mark.parametrize(("dtype", "atol"), [(jnp.float64, 1e-15), (jnp.float32, 1e-6)])
def test_values_and_gradients_are_torchs(dtype, atol):
    with jax.enable_x64(dtype == jnp.float64):
        x = jnp.asarray(X, dtype)
        y, pull = jax.vjp(gelu, x)
        (gradient,) = pull(jnp.ones_like(x))
        assert y.dtype == gradient.dtype == dtype
    values, slopes = torchs(x)
    np.testing.assert_allclose(y, values, atol=atol)
    np.testing.assert_allclose(gradient, slopes, atol=atol)


def test_infinity_and_what_is_no_number_stay():
    np.testing.assert_array_equal(gelu(jnp.array([np.inf, np.nan])), [np.inf, np.nan])


def test_in_bfloat16_values_and_gradients_are_rounded_once():
    x = jnp.asarray(X, jnp.bfloat16)
    y, pull = jax.vjp(gelu, x)
    (gradient,) = pull(jnp.ones_like(x))
    assert y.dtype == gradient.dtype == jnp.bfloat16
    for found, exact in zip((y, gradient), torchs(x), strict=True):
        # Half of the last of 8 bits, and float32's own error where 1 + erf nearly cancels.
        np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)


def test_derivatives_of_higher_order_and_in_forward_mode_are_right():
    x = jnp.linspace(-3.0, 3.0, 13)
    second = jax.vmap(jax.grad(jax.grad(gelu)))(x)
    density = np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(second, density * (2 - x**2), atol=1e-6)
    forward = jax.vmap(jax.jacfwd(gelu))(x)
    np.testing.assert_allclose(forward, jax.vmap(jax.grad(gelu))(x), atol=1e-7)


def test_the_backward_pass_needs_the_argument_alone():
    def stored(x):
        return jax.vjp(gelu, x)[1]

    x = jnp.zeros((8, 4), jnp.bfloat16)
    assert [a.shape for a in jax.tree.leaves(jax.eval_shape(stored, x))] == [(8, 4)]


def test_it_can_be_pickled_with_a_network_that_has_it_in_a_field():
    assert pickle.loads(pickle.dumps(gelu)) is gelu


def test_in_bfloat16_the_scaled_tanh_is_rounded_once():
    x = jnp.asarray(X, jnp.bfloat16)
    y = scaled_tanh(x)
    assert y.dtype == jnp.bfloat16
    exact = 1.7159 * np.tanh(2 / 3 * np.asarray(x, np.float64))
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=2**-8)
