"""Scaled dot-product attention of several heads: softmax(q k^T + bias) v."""

import jax
import jax.numpy as jnp

from flaxnets.kernels.precision import widened

Array = jax.Array


def attention(query: Array, key: Array, value: Array, bias: Array | None = None) -> Array:
    """Return the average of `value` over its positions, weighted by the softmax of the products of
    queries and keys.

    Queries and the result are (..., Q, heads, C), keys and values (..., K, heads, C). Sums of
    products and the softmax are in float32 at least. `bias` is added to the logits of the softmax
    and broadcasts to (..., heads, Q, K). The caller scales the products.
    """
    wide = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.einsum("...qhc,...khc->...hqk", query, key, preferred_element_type=wide)
    if bias is not None:
        logits = logits + widened(bias)
    weights = jax.nn.softmax(logits).astype(value.dtype)
    return jnp.einsum("...hqk,...khc->...qhc", weights, value)
