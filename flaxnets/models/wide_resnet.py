"""Wide residual networks for 32x32 images: Zagoruyko & Komodakis 2016, "Wide Residual Networks"
(arXiv:1605.07146), Table 1 with the block B(3, 3) and the dropout of section 2.4.

WRN-depth-k has k times the features of He et al. 2015's CIFAR networks, and normalisation and ReLU
before each convolution (He et al. 2016, arXiv:1603.05027). Not in torchvision; modules have the
names of its residual networks. torchvision's own `wide_resnet50_2` is in `flaxnets.models.resnet`.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.blocks import stage_strides
from flaxnets.errors import InputError
from flaxnets.layers import (
    Array,
    BatchNorm,
    Conv,
    Dtype,
    Linear,
    Sequential,
    average_positions,
    he_normal_fan_out,
)
from flaxnets.models.base import Model


class WideBlock(nn.Module):
    """Figure 1d: norm, ReLU and 3x3 convolution, twice; dropout before the second convolution."""

    features: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    dropout: Callable[..., nn.Module]
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = self.norm(name="bn1")(x, relu=True)
        if x.shape[-1] != self.features:  # the projection also reads the normalised input
            x = self.conv(self.features, 1, self.stride, name="downsample")(y)
        y = self.conv(self.features, 3, self.stride, 1, name="conv1")(y)
        y = self.dropout()(self.norm(name="bn2")(y, relu=True))
        return x + self.conv(self.features, 3, padding=1, name="conv2")(y)


class WideResNet(Model):
    """Map images `(N, H, W, C)`, 32x32x3 in the paper, to logits `(N, num_classes)`. Images may
    have any size.

    `depth` is 6n + 4: a first convolution, three stages of n blocks, three projections. `widen` is
    the paper's k. `remat` recomputes each block in the backward pass.

    With `dense`: the map of logits `(N, H / 4, W / 4, num_classes)`. The logits are its mean over
    positions.
    """

    depth: int
    widen: int
    dropout_rate: float = 0.0  # 0.3 in the paper's runs with dropout on CIFAR
    num_classes: int = 10
    dense: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    input_shape = (32, 32, 3)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        n, left_over = divmod(self.depth - 4, 6)
        if n < 1 or left_over:
            raise InputError(f"depth is {self.depth}; expected 6n + 4, for example 28")
        conv = functools.partial(
            Conv, use_bias=False, kernel_init=he_normal_fan_out, dtype=self.dtype
        )
        norm = functools.partial(BatchNorm, use_running_average=not train, dtype=self.dtype)
        dropout = functools.partial(nn.Dropout, self.dropout_rate, deterministic=not train)
        block = functools.partial(
            nn.remat(WideBlock) if self.remat else WideBlock,
            conv=conv, norm=norm, dropout=dropout,
        )  # fmt: skip
        x = conv(16, 3, padding=1, name="conv1")(x)
        for stage in range(3):
            strides = stage_strides(1 if stage == 0 else 2, n)
            blocks = [block(16 * 2**stage * self.widen, stride=stride) for stride in strides]
            x = Sequential(blocks, name=f"layer{stage + 1}")(x)
        x = norm(name="bn1")(x, relu=True)
        if not self.dense:
            x = average_positions(x)
        return Linear(
            self.num_classes, bias_init=nn.initializers.zeros, dtype=self.dtype, name="fc"
        )(x)


VARIANTS = {
    "wrn_16_4": functools.partial(WideResNet, depth=16, widen=4),
    "wrn_28_10": functools.partial(WideResNet, depth=28, widen=10),
    "wrn_40_4": functools.partial(WideResNet, depth=40, widen=4),
}
