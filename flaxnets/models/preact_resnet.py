"""Pre-activation residual networks for 32x32 images: He et al. 2016, "Identity Mappings in Deep
Residual Networks" (arXiv:1603.05027), Figure 4e and the appendix.

- `preact_resnet110_cifar`: blocks of two 3x3 convolutions, shortcuts without parameters.
- `preact_resnet164_cifar` and `preact_resnet1001_cifar`: bottlenecks, and projections where the
  shape changes, as in the authors' github.com/KaimingHe/resnet-1k-layers, resnet-pre-act.lua.

Not in torchvision; modules have the names of its residual networks.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.blocks import shortcut, stage_strides
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
    residual_sum,
)
from flaxnets.models.base import Model


class BasicBlock(nn.Module):
    """Norm, ReLU and 3x3 convolution, twice. In the `first` block of the network the shortcut also
    reads the activated input (appendix).
    """

    features: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    stride: int = 1
    first: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = self.norm(name="bn1")(x, relu=True)
        start = y if self.first else x
        around: Any = shortcut("A", start, self.features, self.stride, self.conv, self.norm)
        y = self.conv(self.features, 3, self.stride, 1, name="conv1")(y)
        y = self.norm(name="bn2")(y, relu=True)
        return residual_sum(self.conv(self.features, 3, padding=1, name="conv2")(y), around)


class Bottleneck(nn.Module):
    """Norm, ReLU and convolution, three times: 1x1, 3x3, and 1x1 to four times the features.

    A projection reads the activated input. The first block of the network has one.
    """

    features: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    stride: int = 1
    first: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = self.norm(name="bn1")(x, relu=True)
        if x.shape[-1] != 4 * self.features:
            x = self.conv(4 * self.features, 1, self.stride, name="downsample")(y)
        y = self.conv(self.features, 1, self.stride, name="conv1")(y)
        y = self.norm(name="bn2")(y, relu=True)
        y = self.conv(self.features, 3, padding=1, name="conv2")(y)
        y = self.norm(name="bn3")(y, relu=True)
        return residual_sum(self.conv(4 * self.features, 1, name="conv3")(y), x)


class PreActResNetCIFAR(Model):
    """Map images `(N, H, W, C)`, 32x32x3 in the paper, to logits `(N, num_classes)`. Images may
    have any size.

    `depth` is 6n + 2, or 9n + 2 with `bottleneck`: a first convolution, three stages of n blocks
    with 16, 32 and 64 features on maps of 32, 16 and 8 pixels, and a linear layer. `remat`
    recomputes each block in the backward pass.

    With `dense`: the map of logits `(N, H / 4, W / 4, num_classes)`. The logits are its mean over
    positions.
    """

    depth: int
    bottleneck: bool = False
    num_classes: int = 10
    dense: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    input_shape = (32, 32, 3)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        layers = 9 if self.bottleneck else 6
        n, left_over = divmod(self.depth - 2, layers)
        if n < 1 or left_over:
            raise InputError(
                f"depth is {self.depth}; expected {layers}n + 2, for example {18 * layers + 2}"
            )
        conv = functools.partial(
            Conv, use_bias=False, kernel_init=he_normal_fan_out, dtype=self.dtype
        )
        norm = functools.partial(BatchNorm, use_running_average=not train, dtype=self.dtype)
        block_type = Bottleneck if self.bottleneck else BasicBlock
        block = functools.partial(
            nn.remat(block_type) if self.remat else block_type, conv=conv, norm=norm
        )
        x = conv(16, 3, padding=1, name="conv1")(x)
        for stage in range(3):
            blocks = [
                block(16 * 2**stage, stride=stride, first=stage == index == 0)
                for index, stride in enumerate(stage_strides(1 if stage == 0 else 2, n))
            ]
            x = Sequential(blocks, name=f"layer{stage + 1}")(x)
        x = norm(name="bn1")(x, relu=True)
        if not self.dense:
            x = average_positions(x)
        return Linear(
            self.num_classes, bias_init=nn.initializers.zeros, dtype=self.dtype, name="fc"
        )(x)


bottleneck = functools.partial(PreActResNetCIFAR, bottleneck=True)

VARIANTS = {
    "preact_resnet110_cifar": functools.partial(PreActResNetCIFAR, depth=110),
    "preact_resnet164_cifar": functools.partial(bottleneck, depth=164),
    "preact_resnet1001_cifar": functools.partial(bottleneck, depth=1001),
}
