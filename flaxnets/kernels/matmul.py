"""The matrix product of a fully connected layer. XLA's own product is fast on every platform."""

import jax
import jax.numpy as jnp

from flaxnets.kernels.platform import platform
from flaxnets.kernels.precision import is_narrow, plus_bias, widened

Array = jax.Array


def linear(x: Array, kernel: Array, bias: Array | None = None) -> Array:
    """Return `x` (..., C) @ `kernel` (C, O) plus `bias` (O,), in the type of `x`.

    Where that type has less than 32 bits, the kernel is rounded to it, and the sum of products and
    bias is rounded once. On CPUs the kernel is not rounded: XLA multiplies in float32 there and
    would only convert it back.
    """
    if platform() == "cpu" and is_narrow(x):
        return plus_bias(widened(x) @ widened(kernel), bias).astype(x.dtype)
    kernel = kernel.astype(x.dtype)
    if is_narrow(x) and bias is not None:
        return _narrow_linear(x, kernel, bias)
    return plus_bias(x @ kernel, bias)


@jax.custom_jvp
def _narrow_linear(x: Array, kernel: Array, bias: Array) -> Array:
    product = jnp.matmul(x, kernel, preferred_element_type=jnp.float32)
    return plus_bias(product, bias).astype(x.dtype)


@_narrow_linear.defjvp
def _narrow_linear_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]):
    # The products of the gradients stay narrow. The gradients of a float32 product would use
    # float32.
    def rounded_twice(x: Array, kernel: Array, bias: Array) -> Array:
        return plus_bias(x @ kernel, bias)

    return _narrow_linear(*primals), jax.jvp(rounded_twice, primals, tangents)[1]
