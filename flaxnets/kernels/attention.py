"""Scaled dot-product attention of several heads: softmax(q k^T + bias) v.

The weights of all pairs of positions are large (ViT-B/16, 256 images in bfloat16: 238 MB a layer,
read and written several times). cuDNN's kernel keeps them in the processors' own memory (Dao et al.
2022, "FlashAttention", arXiv:2205.14135).
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

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
    is_narrow_call = is_narrow(query) and query.dtype == key.dtype == value.dtype
    on_gpu = formulation("attention") == "gpu" and is_narrow_call
    weights = (_narrow_weights if on_gpu else _weights)(query, key, bias)
    return jnp.einsum("...hqk,...khc->...qhc", weights.astype(value.dtype), value)


def _weights(query: Array, key: Array, bias: Array | None) -> Array:
    """Return the weights (..., heads, Q, K) of the values, in float32 at least."""
    wide = jnp.promote_types(query.dtype, jnp.float32)
    logits = _products(query, key, preferred_element_type=wide)
    return jax.nn.softmax(logits if bias is None else logits + widened(bias))


_products = functools.partial(jnp.einsum, "...qhc,...khc->...hqk")


@jax.custom_jvp
def _narrow_weights(query: Array, key: Array, bias: Array | None) -> Array:
    return _weights(query, key, bias).astype(query.dtype)


@_narrow_weights.defjvp
def _narrow_weights_jvp(primals, tangents):
    # As in FlashAttention, the gradient of the logits is rounded before it is multiplied. Otherwise
    # XLA:GPU stores it and the weights in float32, and multiplies in float32: Swin-T's step, whose
    # attention has a bias, moves 1.1 times the bytes.
    (query, key, bias), (dquery, dkey, dbias) = primals, tangents
    weights = lax.optimization_barrier(_narrow_weights(query, key, bias))
    change = _products(dquery, key) + _products(query, dkey)
    if bias is not None:
        change = (widened(change) + widened(dbias)).astype(change.dtype)
    wide, change = widened(weights), widened(lax.optimization_barrier(change))
    change = wide * (change - (wide * change).sum(-1, keepdims=True))
    return weights, change.astype(weights.dtype)


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
