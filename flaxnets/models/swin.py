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

from flaxnets.attention import (
    Attention,
    FeedForward,
    from_windows,
    plus_bias,
    position_biases,
    split_heads,
    to_windows,
    widened,
)
from flaxnets.blocks import LayerNorm, StochasticDepth, identity, rates_by_depth
from flaxnets.initializers import normal
from flaxnets.layers import (
    Array,
    Conv,
    Dtype,
    Linear,
    Sequential,
    average_positions,
    relu,
    residual_sum,
)
from flaxnets.models.base import Model

# Section 3.3: channels of the first stage, number of layers and heads of each stage.
TINY = {"channels": 96, "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24)}
SMALL = {"channels": 96, "depths": (2, 2, 18, 2), "heads": (3, 6, 12, 24)}
BASE = {"channels": 128, "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32)}
OUTSIDE = -100.0  # added to the logits of positions that are not neighbours


class WindowAttention(nn.Module):
    """Attention within windows of (N, H, W, C). Every other block shifts the windows by half their
    size where the map is larger than one window (section 3.2).

    Maps are padded with zeros to whole windows. A shifted window at the edge holds parts of the map
    that are not neighbours; `OUTSIDE` keeps them apart.
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
        biases (heads, positions, positions), for windows `x` (..., positions, C).
        """
        channels = x.shape[-1]
        query, key, value = split_heads(self.linear(3 * channels, name="qkv")(x), self.heads)
        table = self.param(
            "relative_position_bias_table",
            normal(0.02),
            ((2 * self.window - 1) ** 2, self.heads),
            jnp.float32,
        )
        query *= (channels // self.heads) ** -0.5
        return query, key, value, position_biases(table, self.window)

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
    """Swin V2's attention (section 3.3): the cosine of queries and keys, divided by a learned
    temperature for each head. A network of two layers gives the position biases from the logarithms
    of offsets.

    Keys have no bias of their own. torch stores the biases of queries, keys and values together and
    sets those of keys to zero.

    The table of offsets is a buffer in torch, and here a variable of the collection "buffers". Its
    values are then torch's to the bit. No parameter implies its size.
    """

    def operands(self, x: Array) -> tuple[Array, Array, Array, Array]:
        """Return the operands of cosine attention, in the shapes of `WindowAttention.operands`."""
        channels = x.shape[-1]
        zeros = nn.initializers.zeros
        offsets = self.param("qkv.bias", zeros, (3 * channels,), jnp.float32)
        offsets = offsets.reshape(3, -1) * jnp.array([[1.0], [0.0], [1.0]], offsets.dtype)
        qkv = self.linear(3 * channels, use_bias=False, name="qkv")(x)
        query, key, value = split_heads(plus_bias(qkv, offsets.reshape(-1)), self.heads)

        init = nn.initializers.constant(math.log(10))
        scale = self.param("logit_scale", init, (self.heads, 1, 1), jnp.float32)
        scale = jnp.exp(jnp.minimum(scale, math.log(100)))[:, 0]
        query, key = _unit(query), _unit(key)
        query = query * lax.broadcast_to_rank(scale.astype(query.dtype), query.ndim)

        table = self.variable("buffers", "relative_coords_table", self._log_offsets).value
        linear = functools.partial(self.linear, dtype=jnp.promote_types(x.dtype, jnp.float32))
        layers = [linear(512), relu, linear(self.heads, use_bias=False)]
        table = Sequential(layers, name="cpb_mlp")(table).reshape(-1, self.heads)
        biases = 16 * nn.sigmoid(position_biases(table, self.window))
        return query.astype(value.dtype), key.astype(value.dtype), value, biases

    def _log_offsets(self) -> Array:
        """Return the table (1, 2 window - 1, 2 window - 1, 2) of equation 4, with offsets scaled to
        +-8.
        """
        offsets = np.arange(1 - self.window, self.window) / max(self.window - 1, 1) * 8
        offsets = np.sign(offsets) * np.log2(np.abs(offsets) + 1) / 3
        table = np.stack(np.meshgrid(offsets, offsets, indexing="ij"), -1)[None]
        return jnp.asarray(table, jnp.float32)


def _unit(x: Array) -> Array:
    """Return `x` (..., C) divided by its length, in float32 at least. Zero stays zero and has a
    gradient.
    """
    x = widened(x)
    return x * lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


class Block(nn.Module):
    """Attention in windows, then two linear layers at each position (Figure 3b). Norms come before
    them, in Swin V2 after them.
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
        dropout = functools.partial(nn.Dropout, 0.0, deterministic=True)  # keeps torch's indices
        branches = (
            (self.norm(name="norm1"), self.attention(name="attn")),
            (
                self.norm(name="norm2"),
                FeedForward(4 * x.shape[-1], self.linear, dropout, name="mlp"),
            ),
        )
        for norm, layer in branches:
            y = norm(layer(x)) if self.norm_is_last else layer(norm(x))
            x = residual_sum(x, drop()(y))
        return x


class PatchMerging(nn.Module):
    """Half the positions in each direction, twice the channels: a linear layer over 2x2 neighbours
    (section 3.1). Its norm comes before it, in Swin V2 after it. An odd side is padded with zeros.
    """

    linear: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    norm_is_last: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        n, height, width, channels = x.shape
        x = jnp.pad(x, [(0, 0), (0, height % 2), (0, width % 2), (0, 0)])
        rows, columns = x.shape[1] // 2, x.shape[2] // 2
        # Order of the four neighbours: (row, column) = (0, 0), (1, 0), (0, 1), (1, 1).
        x = x.reshape(n, rows, 2, columns, 2, channels).transpose(0, 1, 3, 4, 2, 5)
        x = x.reshape(n, rows, columns, 4 * channels)
        reduction = self.linear(2 * channels, use_bias=False, name="reduction")
        norm = self.norm(name="norm")
        return norm(reduction(x)) if self.norm_is_last else reduction(norm(x))


class SwinTransformer(Model):
    """Map images `(N, H, W, C)`, 224x224x3 in the paper (Swin V2: 256x256x3), to logits
    `(N, num_classes)`. Images may have any size from 4x4 pixels.

    The maps of the stages have 1/4 to 1/32 of the image's side, and windows of `window` x `window`
    positions. `stochastic_depth_rate` is the rate of the last block; rates grow linearly from zero
    in the first block. `remat` recomputes each block in the backward pass.

    With `dense`: the map of logits `(N, H / 32, W / 32, num_classes)`. The logits are its mean over
    positions.
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
            kernel_init=normal(0.02),
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
