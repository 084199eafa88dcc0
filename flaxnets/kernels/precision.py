"""Types narrower than float32: what is added up is added up in float32 and rounded once. And which
devices multiply them.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from flaxnets.kernels.onednn.library import computes_bfloat16
from flaxnets.kernels.platform import platform

Array = jax.Array


def multiplies_bfloat16() -> bool:
    """Return whether the device multiplies bfloat16 in hardware: a TPU, a GPU of compute capability
    8 or later, or a CPU with avx512_bf16 or AMX, where oneDNN is there to use them.
    """
    name = platform()
    if name == "cpu":
        return computes_bfloat16()
    if name == "gpu":
        capability = str(getattr(jax.devices()[0], "compute_capability", ""))
        major = capability.partition(".")[0]
        return major.isdecimal() and int(major) >= 8
    return name == "tpu"


def is_narrow(x: Array) -> bool:
    """Return whether the floating-point type of `x` has less than 32 bits."""
    return jnp.finfo(x.dtype).bits < 32


def widened(x: Array) -> Array:
    """Return `x` in float32, or in its own type where that is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def plus_bias(y: Array, bias: Array | None) -> Array:
    """Return `y` (..., C) + `bias` (C,) in the type of `y`; the gradient of `bias`, a sum over all
    positions, is a sum in float32 at least.
    """
    if bias is None:
        return y
    if is_narrow(y):
        return y + _narrow_bias(bias, y.shape, y.dtype)
    return y + lax.broadcast_to_rank(bias.astype(y.dtype), y.ndim)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _narrow_bias(bias: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    return jnp.broadcast_to(bias.astype(dtype), shape)


@_narrow_bias.defjvp
def _narrow_bias_jvp(shape: tuple[int, ...], dtype: Any, primals, tangents):
    # XLA adds up narrow values in their own type, on GPUs too (an error of 6% after 1500 of them).
    change = jnp.broadcast_to(tangents[0].astype(jnp.float32), shape).astype(dtype)
    return _narrow_bias(*primals, shape, dtype), change
