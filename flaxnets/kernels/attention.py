"""Scaled dot-product attention of several heads: softmax(q k^T + bias) v.

The weights of all pairs of positions are large (ViT-B/16, 256 images in bfloat16: 238 MB a layer,
read and written several times). cuDNN's kernel keeps them in the processors' own memory (Dao et al.
2022, "FlashAttention", arXiv:2205.14135).
"""

import jax
import jax.numpy as jnp

from flaxnets.kernels.platform import formulation, has_cuda, on_cuda
from flaxnets.kernels.precision import is_narrow, multiplies_bfloat16, widened

Array = jax.Array


def attention(query: Array, key: Array, value: Array, bias: Array | None = None) -> Array:
    """Return the average of `value` over its positions, weighted by the softmax of the products of
    queries and keys.

    Queries and the result are (..., Q, heads, C), keys and values (..., K, heads, C). Sums of
    products and the softmax are in float32 at least. `bias` is added to the logits of the softmax
    and broadcasts to (..., heads, Q, K). The caller scales the products.

    In 16 bits and without a bias it is cuDNN's on GPUs that have it. That kernel has neither second
    nor forward-mode derivatives; with `plain("attention")` of `kernels.platform` it is XLA's.
    """
    if bias is None and _is_for_cudnn(query, key, value):
        return on_cuda(_by_cudnn, default=_by_xla)(query, key, value)
    return _by_xla(query, key, value, bias)


def _by_xla(query: Array, key: Array, value: Array, bias: Array | None = None) -> Array:
    wide = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.einsum("...qhc,...khc->...hqk", query, key, preferred_element_type=wide)
    if bias is not None:
        logits = logits + widened(bias)
    weights = jax.nn.softmax(logits).astype(value.dtype)
    return jnp.einsum("...hqk,...khc->...qhc", weights, value)


def _is_for_cudnn(query: Array, key: Array, value: Array) -> bool:
    """Return whether this machine's GPU has cuDNN and cuDNN has a kernel for these operands."""
    *sizes, channels = query.shape
    return (
        formulation("attention") == "gpu"
        and has_cuda()
        and multiplies_bfloat16()
        and is_narrow(query)
        and query.dtype == key.dtype == value.dtype
        and len(sizes) == 3
        and isinstance(sizes[0], int)  # jax.export's batch may be a symbol
        and channels % 8 == 0
        and channels <= 128
    )


def _by_cudnn(query: Array, key: Array, value: Array) -> Array:
    images, queries, *_ = query.shape
    keys = key.shape[1]
    lengths = {}
    if queries % 2 or keys % 2:  # jax has the gradient for even lengths only
        lengths = {
            "query_seq_lengths": jnp.full(images, queries, jnp.int32),
            "key_value_seq_lengths": jnp.full(images, keys, jnp.int32),
        }
    even = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (query, key, value))
    y = jax.nn.dot_product_attention(*even, scale=1.0, implementation="cudnn", **lengths)
    return y[:, :queries]
