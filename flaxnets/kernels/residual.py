"""The sum of a residual connection without a ReLU; `activation.relu_of_sum` is that with one."""

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Array = jax.Array


def residual_sum(x: Array, shortcut: Array) -> Array:
    """Return `x` + `shortcut`, arrays of one shape and type.

    XLA:CPU stores it and its gradient. It would fuse a sum into its readers where all of them are
    its own operations, and the sums before it as well, so that each block adds up all blocks before
    it again. ViT-L/16's training step takes half of the time, ViT-B/16's 0.8.
    """
    return _stored.bind(x + shortcut)


def _stored_by_choice(x: Array) -> Array:
    """Return `x`, which XLA:CPU stores because the choice reads it twice."""
    return jnp.where(x == x, x, jnp.nan)


_stored = Primitive("stored")
_stored.def_impl(lambda x: x)
_stored.def_abstract_eval(lambda x: x)
mlir.register_lowering(_stored, lambda context, x: [x])
mlir.register_lowering(_stored, mlir.lower_fun(_stored_by_choice, False), platform="cpu")
ad.deflinear(_stored, lambda cotangent: [_stored.bind(cotangent)])
batching.defvectorized(_stored)
