"""Maps joined along their channels."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from flaxnets.kernels.platform import platform
from flaxnets.kernels.precision import is_narrow

Array = jax.Array


def joined(maps: Sequence[Array]) -> Array:
    """Return maps (..., C) of one type, joined along their channels.

    XLA:CPU joins narrow types in float32 and converts them before and after (a tenth of GoogLeNet's
    inference in bfloat16). There their bits are joined.
    """
    if platform() == "cpu" and is_narrow(maps[0]):
        return _joined_bits(*maps)
    return jnp.concatenate(maps, -1)


@jax.custom_jvp
def _joined_bits(*maps: Array) -> Array:
    bits = [lax.bitcast_convert_type(x, jnp.uint16) for x in maps]
    return lax.bitcast_convert_type(jnp.concatenate(bits, -1), maps[0].dtype)


@_joined_bits.defjvp
def _joined_bits_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]):
    return _joined_bits(*primals), jnp.concatenate(tangents, -1)
