"""MaxViT: Tu et al. 2022, "MaxViT: Multi-Axis Vision Transformer" (arXiv:2204.01697), Table 1 and
Figure 2; names and initialisation of torchvision/models/maxvit.py.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.attention import (
    Attention,
    from_windows,
    position_biases,
    split_heads,
    to_windows,
)
from flaxnets.blocks import (
    ConvNormActivation,
    LayerNorm,
    SqueezeExcitation,
    StochasticDepth,
    gelu,
    rates_by_depth,
    silu,
    stage_strides,
)
from flaxnets.errors import InputError
from flaxnets.initializers import normal
from flaxnets.layers import (
    Array,
    BatchNorm,
    Conv,
    Dtype,
    Linear,
    Sequential,
    average_positions,
    avg_pool,
    residual_sum,
)
from flaxnets.models.base import Model


class MBConv(nn.Module):
    """An inverted bottleneck with a norm before it (equation 5). It has four times the new channels
    inside, and squeeze-and-excitation to a quarter of the new channels. Where it halves the map,
    the shortcut is an average pool and a projection (appendix A.1).
    """

    features: int
    stride: int
    stochastic_depth_rate: float
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    train: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        inner = 4 * self.features
        layer = functools.partial(ConvNormActivation, inner, self.conv, self.norm, activation=gelu)
        y = self.norm(name="layers.pre_norm")(x)
        y = layer(1, name="layers.conv_a")(y)
        y = layer(3, self.stride, groups=inner, name="layers.conv_b")(y)
        y = SqueezeExcitation(
            self.features // 4,
            silu,
            kernel_init=normal(0.02),
            bias_init=nn.initializers.zeros,
            name="layers.squeeze_excitation",
        )(y)
        y = self.conv(self.features, 1, name="layers.conv_c")(y)
        if self.stride > 1:
            x = avg_pool(3, self.stride, 1)(x)
            x = self.conv(self.features, 1, name="proj.1")(x)
        return residual_sum(x, StochasticDepth(self.stochastic_depth_rate, self.train)(y))


class RelativeAttention(nn.Module):
    """Attention within each window of (N, windows, side^2, C), with a learned bias for each offset
    between two positions (equation 1).

    The products are divided by the root of all C channels, as in torchvision.
    """

    side: int
    head_channels: int
    linear: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        heads = channels // self.head_channels
        table = self.param(
            "partition_bias_table",
            normal(0.02),
            ((2 * self.side - 1) ** 2, heads),
            jnp.float32,
        )
        bias = position_biases(table, self.side)
        query, key, value = split_heads(self.linear(3 * channels, name="to_qkv")(x), heads)
        key = key * channels**-0.5
        y = Attention(name="attention")(query, key, value, bias[None, None]).reshape(x.shape)
        return self.linear(channels, name="merge")(y)


class PartitionAttention(nn.Module):
    """Attention and two linear layers at each position (Figure 3).

    Attention acts within windows of `side` x `side` neighbours. With `grid` it acts among as many
    positions that are spread evenly over the map.
    """

    side: int
    grid: bool
    head_channels: int
    stochastic_depth_rate: float
    linear: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    train: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        height, width, channels = x.shape[1:]
        side = self.side
        window = (height // side, width // side) if self.grid else (side, side)
        x = to_windows(x, window)
        x = x.swapaxes(1, 2) if self.grid else x
        attention = [self.norm(), RelativeAttention(side, self.head_channels, self.linear)]
        mlp = [self.norm(), self.linear(4 * channels), gelu, self.linear(channels)]
        for layers, name in ((attention, "attn_layer"), (mlp, "mlp_layer")):
            y = Sequential(layers, name=name)(x)
            x = residual_sum(x, StochasticDepth(self.stochastic_depth_rate, self.train)(y))
        x = x.swapaxes(1, 2) if self.grid else x
        return from_windows(x, (height, width), window)


class Block(nn.Module):
    """Figure 2: a convolution, attention in windows and attention in a grid."""

    features: int
    stride: int
    stochastic_depth_rate: float
    conv: Callable[..., nn.Module]
    batch_norm: Callable[..., nn.Module]
    attention: Callable[..., nn.Module]
    train: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        rate = self.stochastic_depth_rate
        parts = {"conv": self.conv, "norm": self.batch_norm, "train": self.train}
        x = MBConv(self.features, self.stride, rate, **parts, name="layers.MBconv")(x)
        attention = functools.partial(self.attention, stochastic_depth_rate=rate, train=self.train)
        x = attention(grid=False, name="layers.window_attention")(x)
        return attention(grid=True, name="layers.grid_attention")(x)


class MaxViT(Model):
    """Map images `(N, H, W, C)`, 224x224x3 in the paper, to logits `(N, num_classes)`. Sides must
    be multiples of 32 `partition_size`, which is 224; others raise InputError.

    Windows and grids have `partition_size` x `partition_size` positions. `stochastic_depth_rate` is
    the rate of the last block; rates grow linearly from zero in the first block. `remat` recomputes
    each block in the backward pass.

    The head has a norm and a tanh after the mean over positions, so there is no `dense` map.
    """

    channels: Sequence[int] = (64, 128, 256, 512)
    depths: Sequence[int] = (2, 2, 5, 2)
    stem_channels: int = 64
    head_channels: int = 32
    partition_size: int = 7
    stochastic_depth_rate: float = 0.2
    num_classes: int = 1000
    remat: bool = False
    dtype: Dtype = jnp.float32

    @property
    def size_step(self) -> int:
        return 2 ** (1 + len(self.depths)) * self.partition_size

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return self.size_step, self.size_step, 3

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        height, width = x.shape[1:3]
        if height % self.size_step or width % self.size_step or not height * width:
            raise InputError(
                f"the images have {height}x{width} pixels; expected multiples of {self.size_step}"
            )
        parts = {
            "kernel_init": normal(0.02),
            "bias_init": nn.initializers.zeros,
            "dtype": self.dtype,
        }
        conv, linear = functools.partial(Conv, **parts), functools.partial(Linear, **parts)
        norm = functools.partial(LayerNorm, dtype=self.dtype)
        batch_norm = functools.partial(
            BatchNorm, not train, momentum=0.01, epsilon=1e-3, dtype=self.dtype
        )
        attention = functools.partial(
            PartitionAttention,
            self.partition_size,
            head_channels=self.head_channels,
            linear=linear,
            norm=norm,
        )
        block = functools.partial(
            nn.remat(Block) if self.remat else Block,
            conv=conv,
            batch_norm=batch_norm,
            attention=attention,
            train=train,
        )
        rates = iter(rates_by_depth(self.stochastic_depth_rate, sum(self.depths)))

        stem = functools.partial(ConvNormActivation, self.stem_channels, conv, batch_norm)
        x = stem(3, 2, activation=gelu, name="stem.0")(x)
        x = conv(self.stem_channels, 3, padding=1, name="stem.1.0")(x)
        for stage, (channels, depth) in enumerate(zip(self.channels, self.depths, strict=True)):
            for index, stride in enumerate(stage_strides(2, depth)):
                x = block(channels, stride, next(rates), name=f"blocks.{stage}.layers.{index}")(x)
        x = norm(name="classifier.2")(average_positions(x))
        x = jnp.tanh(linear(x.shape[-1], name="classifier.3")(x))
        return linear(self.num_classes, use_bias=False, name="classifier.5")(x)


VARIANTS = {"maxvit_t": functools.partial(MaxViT)}
