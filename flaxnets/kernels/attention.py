"""Scaled dot-product attention of several heads: softmax(q k^T + bias) v."""

import jax
import jax.numpy as jnp

from flaxnets.kernels.precision import widened

Array = jax.Array


def attention(query: Array, key: Array, value: Array, bias: Array | None = None) -> Array:
    """Return `value` averaged over its positions by the softmax of the products of queries and
    keys: (..., Q, heads, C) from queries of that shape, keys and values (..., K, heads, C).

    Products are summed and the softmax is taken in float32 at least; `bias` is added to its logits
    and broadcasts to (..., heads, Q, K). The scale of the products is the caller's.
    """
    wide = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.einsum("...qhc,...khc->...hqk", query, key, preferred_element_type=wide)
    if bias is not None:
        logits = logits + widened(bias)
    weights = jax.nn.softmax(logits).astype(value.dtype)
    return jnp.einsum("...hqk,...khc->...qhc", weights, value)
