"""Swin Transformer, both versions; names, initialisation and stochastic depth rates of
torchvision/models/swin_transformer.py.

- Liu et al. 2021, "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows"
  (arXiv:2103.14030), section 3.3.
- Liu et al. 2021, "Swin Transformer V2: Scaling Up Capacity and Resolution" (arXiv:2111.09883),
  section 3: norms after the layers, cosine attention, position biases by a small network.
"""

import functools
import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax

from flaxnets.blocks import (
    Attention,
    FeedForward,
    LayerNorm,
    StochasticDepth,
    from_windows,
    identity,
    plus_bias,
    rates_by_depth,
    relative_position_index,
    to_windows,
    widened,
)
from flaxnets.layers import Array, Conv, Dtype, Linear, Sequential, average_positions, relu
from flaxnets.models.base import Model

# Section 3.3: channels of the first stage, layers and heads of the stages.
TINY = {"channels": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24)}
SMALL = {"channels": 96, "depths": (2, 2, 18, 2), "heads": (3, 6, 12, 24)}
BASE = {"channels": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32)}
OUTSIDE = -100.0  # logit of a position that a shifted window has from elsewhere


class WindowAttention(nn.Module):
    """Attention within windows of (N, H, W, C), shifted by half a window in every other block
    (section 3.2), where a map is larger than one.

    Maps are filled up with zeros to whole windows. A shifted window at the edge holds parts of the
    map that do not touch: `OUTSIDE` keeps them apart.
    """

    heads: int
    window: int
    shifted: bool
    linear: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        height, width, channels = x.shape[1:]
        rows, columns = (-(-size // self.window) * self.window for size in (height, width))
        x = jnp.pad(x, [(0, 0), (0, rows - height), (0, columns - width), (0, 0)])
        down, right = (
            self.window // 2 if self.shifted and size > self.window else 0
            for size in (rows, columns)
        )
        x = jnp.roll(x, (-down, -right), (1, 2))
        x = to_windows(x, (self.window, self.window))
        query, key, value, bias = self.operands(x)
        bias = bias[None, None]
        if down or right:
            apart = self._apart((rows, columns), (down, right))
            bias = bias + jnp.where(apart, OUTSIDE, 0.0)[None, :, None].astype(bias.dtype)
        y = Attention(name="attention")(query, key, value, bias).reshape(x.shape)
        y = self.linear(channels, name="proj")(y)
        y = from_windows(y, (rows, columns), (self.window, self.window))
        return jnp.roll(y, (down, right), (1, 2))[:, :height, :width]

    def operands(self, x: Array) -> tuple[Array, Array, Array, Array]:
        """Return scaled queries, keys and values (..., positions, heads, C / heads), and position
        biases (heads, positions, positions), of windows (..., positions, C).
        """
        channels = x.shape[-1]
        query, key, value = self.split(self.linear(3 * channels, name="qkv")(x))
        table = self.param(
            "relative_position_bias_table",
            nn.initializers.normal(0.02),
            ((2 * self.window - 1) ** 2, self.heads),
            jnp.float32,
        )
        return query * (channels // self.heads) ** -0.5, key, value, self.biases(table)

    def split(self, x: Array) -> tuple[Array, Array, Array]:
        """Return queries, keys and values (..., heads, C) of (..., 3 heads C)."""
        x = x.reshape(*x.shape[:-1], 3, self.heads, -1)
        return x[..., 0, :, :], x[..., 1, :, :], x[..., 2, :, :]

    def biases(self, table: Array) -> Array:
        """Return (heads, positions, positions) of a table (offsets, heads)."""
        return table[relative_position_index(self.window)].transpose(2, 0, 1)

    def _apart(self, sizes: tuple[int, int], shift: tuple[int, int]) -> Array:
        """Return (windows, positions, positions): whether two positions of a window were apart
        before the shift.
        """
        regions = [
            np.digitize(np.arange(size), [size - self.window, size - step] if step else [])
            for size, step in zip(sizes, shift, strict=True)
        ]
        region = regions[0][:, None] * 3 + regions[1]
        region = to_windows(region[None, :, :, None], (self.window, self.window))[0, ..., 0]
        return jnp.asarray(region)[:, :, None] != region[:, None]


class CosineWindowAttention(WindowAttention):
    """Swin V2's: the cosine of queries and keys, over a learned temperature for each head, and
    position biases from the logarithms of offsets, by a network of two layers (section 3.3).

    Keys have no bias of their own: torch keeps three thirds and sets theirs to zero. The table of
    offsets is a buffer in torch and here, of the collection "buffers": its values are torch's to
    the bit, and no parameter tells its size.
    """

    def operands(self, x: Array) -> tuple[Array, Array, Array, Array]:
        """As above, by cosines."""
        channels = x.shape[-1]
        zeros = nn.initializers.zeros
        offsets = self.param("qkv.bias", zeros, (3 * channels,), jnp.float32)
        offsets = offsets.reshape(3, -1) * jnp.array([[1.0], [0.0], [1.0]], offsets.dtype)
        qkv = self.linear(3 * channels, use_bias=False, name="qkv")(x)
        query, key, value = self.split(plus_bias(qkv, offsets.reshape(-1)))

        init = nn.initializers.constant(math.log(10))
        scale = self.param("logit_scale", init, (self.heads, 1, 1), jnp.float32)
        scale = jnp.exp(jnp.minimum(scale, math.log(100)))[:, 0]
        query, key = _unit(query), _unit(key)
        query = query * lax.broadcast_to_rank(scale.astype(query.dtype), query.ndim)

        table = self.variable("buffers", "relative_coords_table", self._log_offsets).value
        linear = functools.partial(self.linear, dtype=jnp.promote_types(x.dtype, jnp.float32))
        layers = [linear(512), relu, linear(self.heads, use_bias=False)]
        table = Sequential(layers, name="cpb_mlp")(table).reshape(-1, self.heads)
        return query.astype(value.dtype), key.astype(value.dtype), value, self.biases(table)

    def biases(self, table: Array) -> Array:
        """As above, between 0 and 16."""
        return 16 * nn.sigmoid(super().biases(table))

    def _log_offsets(self) -> Array:
        """Return (1, 2 window - 1, 2 window - 1, 2): equation 4, with offsets of -8 to 8."""
        offsets = np.arange(1 - self.window, self.window) / max(self.window - 1, 1) * 8
        offsets = np.sign(offsets) * np.log2(np.abs(offsets) + 1) / 3
        table = np.stack(np.meshgrid(offsets, offsets, indexing="ij"), -1)[None]
        return jnp.asarray(table, jnp.float32)


def _unit(x: Array) -> Array:
    """Return `x` (..., C) over its length, in float32 at least; zero stays, and has a gradient."""
    x = widened(x)
    return x * lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


class Block(nn.Module):
    """Attention in windows, then two layers at each position (Figure 3b); norms stand before them,
    in Swin V2 after them.
    """

    stochastic_depth_rate: float
    attention: Callable[..., nn.Module]
    linear: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    norm_is_last: bool
    train: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        drop = functools.partial(StochasticDepth, self.stochastic_depth_rate, self.train)
        dropout = functools.partial(nn.Dropout, 0.0, deterministic=True)  # torch counts them
        branches = (
            (self.norm(name="norm1"), self.attention(name="attn")),
            (
                self.norm(name="norm2"),
                FeedForward(4 * x.shape[-1], self.linear, dropout, name="mlp"),
            ),
        )
        for norm, layer in branches:
            x = x + drop()(norm(layer(x)) if self.norm_is_last else layer(norm(x)))
        return x


class PatchMerging(nn.Module):
    """Half the positions in each direction, twice the channels: a linear layer over four neighbours
    (section 3.1), with its norm before it, in Swin V2 after it. An odd size gets a row of zeros.
    """

    linear: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    norm_is_last: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        n, height, width, channels = x.shape
        x = jnp.pad(x, [(0, 0), (0, height % 2), (0, width % 2), (0, 0)])
        rows, columns = x.shape[1] // 2, x.shape[2] // 2
        # Of the four, in this order: (row, column) = (0, 0), (1, 0), (0, 1), (1, 1).
        x = x.reshape(n, rows, 2, columns, 2, channels).transpose(0, 1, 3, 4, 2, 5)
        x = x.reshape(n, rows, columns, 4 * channels)
        reduction = self.linear(2 * channels, use_bias=False, name="reduction")
        norm = self.norm(name="norm")
        return norm(reduction(x)) if self.norm_is_last else reduction(norm(x))


class SwinTransformer(Model):
    """`(N, H, W, C)`, 224x224x3 in the paper (Swin V2: 256x256x3), to logits `(N, num_classes)`;
    any image size, 4 pixels at least.

    The stages have maps of a quarter of the image to a 32nd and windows of `window` x `window`
    positions. `stochastic_depth_rate` is that of the last block; it grows linearly from zero in the
    first. `remat` recomputes each block in the backward pass.

    With `dense`: the map `(N, H / 32, W / 32, num_classes)` of logits, whose mean are the logits.
    """

    channels: int
    depths: Sequence[int]
    heads: Sequence[int]
    stochastic_depth_rate: float
    window: int = 7
    v2: bool = False
    num_classes: int = 1000
    dense: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32
    input_shape: tuple[int, int, int] = (224, 224, 3)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        linear = functools.partial(
            Linear,
            kernel_init=nn.initializers.normal(0.02),
            bias_init=nn.initializers.zeros,
            dtype=self.dtype,
        )
        norm = functools.partial(LayerNorm, dtype=self.dtype)
        block = functools.partial(
            nn.remat(Block) if self.remat else Block,
            linear=linear,
            norm=norm,
            norm_is_last=self.v2,
            train=train,
        )
        kind = CosineWindowAttention if self.v2 else WindowAttention
        rates = iter(rates_by_depth(self.stochastic_depth_rate, sum(self.depths)))

        layers: list[nn.Module] = [
            Sequential([Conv(self.channels, 4, 4, dtype=self.dtype), identity, norm()]),
        ]
        for stage, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True)):
            if stage > 0:
                layers.append(PatchMerging(linear, norm, self.v2))
            blocks = [
                block(
                    next(rates),
                    functools.partial(kind, heads, self.window, index % 2 == 1, linear),
                )
                for index in range(depth)
            ]
            layers.append(Sequential(blocks))
        x = norm(name="norm")(Sequential(layers, name="features")(x))
        if not self.dense:
            x = average_positions(x)
        return linear(self.num_classes, name="head")(x)


v2 = functools.partial(SwinTransformer, window=8, v2=True, input_shape=(256, 256, 3))

VARIANTS = {
    "swin_t": functools.partial(SwinTransformer, **TINY, stochastic_depth_rate=0.2),
    "swin_s": functools.partial(SwinTransformer, **SMALL, stochastic_depth_rate=0.3),
    "swin_b": functools.partial(SwinTransformer, **BASE, stochastic_depth_rate=0.5),
    "swin_v2_t": functools.partial(v2, **TINY, stochastic_depth_rate=0.2),
    "swin_v2_s": functools.partial(v2, **SMALL, stochastic_depth_rate=0.3),
    "swin_v2_b": functools.partial(v2, **BASE, stochastic_depth_rate=0.5),
}
