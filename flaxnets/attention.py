"""Attention and the blocks around it that vision transformers share."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.blocks import gelu
from flaxnets.kernels.attention import attention
from flaxnets.kernels.geometry import relative_position_index
from flaxnets.kernels.matmul import linear
from flaxnets.kernels.precision import plus_bias as plus_bias
from flaxnets.kernels.precision import widened as widened
from flaxnets.layers import Array, Dtype, Linear


class Attention(nn.Module):
    """Scaled dot-product attention of several heads (Vaswani et al. 2017, "Attention Is All You
    Need", arXiv:1706.03762, section 3.2).

    It is a module without parameters, so that its products are counted and its output has a name.
    Queries, keys and values are (..., positions, heads, C). `bias` is (..., heads, positions,
    positions), where an axis of length 1 is repeated. The caller applies the scale.
    """

    @nn.compact
    def __call__(self, query: Array, key: Array, value: Array, bias: Array | None = None) -> Array:
        return attention(query, key, value, bias)


def split_heads(x: Array, heads: int) -> tuple[Array, Array, Array]:
    """Return queries, keys and values (..., heads, C) from `x` (..., 3 heads C), which has them in
    this order.
    """
    x = x.reshape(*x.shape[:-1], 3, heads, -1)
    return x[..., 0, :, :], x[..., 1, :, :], x[..., 2, :, :]


def position_biases(table: Array, side: int) -> Array:
    """Return the biases (heads, side^2, side^2) of the positions of a square window.

    `table` ((2 side - 1)^2, heads) has a row for each offset between two positions.
    """
    return table[relative_position_index(side)].transpose(2, 0, 1)


class SelfAttention(nn.Module):
    """Multi-head attention of (N, positions, C) to itself (arXiv:2010.11929, appendix A), torch's
    `MultiheadAttention`. One linear layer, `in_proj`, gives queries, keys and values.
    """

    heads: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        features = x.shape[-1]
        init, zeros = nn.initializers.xavier_uniform(), nn.initializers.zeros
        kernel = self.param("in_proj_weight", init, (features, 3 * features), jnp.float32)
        bias = self.param("in_proj_bias", zeros, (3 * features,), jnp.float32)
        x = linear(x.astype(self.dtype), kernel.astype(self.dtype), bias)
        query, key, value = split_heads(x, self.heads)
        query *= (features // self.heads) ** -0.5
        y = Attention(name="attention")(query, key, value).reshape(*x.shape[:2], features)
        return Linear(features, bias_init=zeros, dtype=self.dtype, name="out_proj")(y)


def to_windows(x: Any, window: tuple[int, int]) -> Any:
    """Return an array (N, H, W, C) of whole windows as (N, windows, positions, C), both in reading
    order.
    """
    n, height, width, channels = x.shape
    rows, columns = window
    x = x.reshape(n, height // rows, rows, width // columns, columns, channels)
    return x.swapaxes(2, 3).reshape(n, -1, rows * columns, channels)


def from_windows(x: Array, size: tuple[int, int], window: tuple[int, int]) -> Array:
    """Return the map (N, *size, C) of the windows `x` (N, windows, positions, C)."""
    n, *_, channels = x.shape
    (height, width), (rows, columns) = size, window
    x = x.reshape(n, height // rows, width // columns, rows, columns, channels)
    return x.swapaxes(2, 3).reshape(n, height, width, channels)


class FeedForward(nn.Module):
    """Two linear layers `0` and `3` with a GELU between them, each followed by dropout.

    They act on the last axis: (..., C) to (..., C) through `hidden_features`.
    """

    hidden_features: int
    linear: Callable[..., nn.Module]
    dropout: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        features = x.shape[-1]
        x = self.dropout(name="2")(gelu(self.linear(self.hidden_features, name="0")(x)))
        return self.dropout(name="4")(self.linear(features, name="3")(x))
