"""ReLU, differentiated by its output."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from flaxnets.kernels.folding import rectified
from flaxnets.kernels.platform import formulation

Array = jax.Array


def _differentiated_by_output(rectify: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Return `rectify` with a gradient that is zero where the output is, so that the backward pass
    needs no input. The output is stored for the next layer anyway; the input then need not be: on
    GPUs a convolution's bias and ReLU are fused into it, and VGG-19's training step moves 0.9 of
    the bytes.
    """
    differentiated = jax.custom_jvp(rectify)

    @differentiated.defjvp
    def jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        y = differentiated(*primals)
        # XLA would turn `y > 0` back into a comparison of the input.
        return y, jnp.where(y == 0, 0, *tangents)

    def function(x: Array) -> Array:
        return jax.nn.relu(x) if formulation("activation") == "plain" else differentiated(x)

    return function


@_differentiated_by_output
def _relu(x: Array) -> Array:
    return jnp.maximum(x, 0)


@_differentiated_by_output
def _relu_of_sum(x: Array) -> Array:
    return jnp.maximum(x, 0) if formulation("activation") == "gpu" else jnp.where(x <= 0, 0, x)


def relu(x: Array) -> Array:
    """Return max(x, 0), whose gradient at zero is zero; NaN stays."""
    fused = rectified(x)
    return _relu(x) if fused is None else fused


def relu_of_sum(x: Array, shortcut: Array | None = None) -> Array:
    """Return the ReLU of a residual sum, of a convolution's output `x` or its norm and the
    `shortcut`, or of `x` if that is the sum. XLA:CPU then computes it once.

    XLA:CPU would fuse a maximum, and the sum with it, into both of its readers, the next
    convolution and the next sum, so that every block adds up all blocks before it again (1202
    layers did not compile in ten minutes). A choice between two arrays is stored. On GPUs sum and
    maximum are fused into a convolution.
    """
    fused = rectified(x, shortcut)
    if fused is not None:
        return fused
    return _relu_of_sum(x if shortcut is None else x + shortcut)
