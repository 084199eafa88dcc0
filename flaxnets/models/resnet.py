"""ResNet, ResNeXt and wide ResNet; names and initialisation of torchvision/models/resnet.py.

- ResNet: He et al. 2015, "Deep Residual Learning for Image Recognition" (arXiv:1512.03385), Table
  1. torchvision halves a stage's map in the 3x3 convolution of its first bottleneck ("v1.5", as in
  Facebook's fb.resnet.torch). The paper halves it in the 1x1 convolution before:
  `stride_in_1x1=True`. The field `shortcut` selects the plain networks of Table 2 and the shortcuts
  of Table 3; torchvision has option B alone.
- ResNeXt: Xie et al. 2016, "Aggregated Residual Transformations for Deep Neural Networks"
  (arXiv:1611.05431), Table 1, in the grouped form of Figure 3c.
- Wide ResNet with bottlenecks: Zagoruyko & Komodakis 2016, "Wide Residual Networks"
  (arXiv:1605.07146), Table 8: ResNet's layers with the 3x3 convolutions twice as wide.
"""

import functools
from collections.abc import Callable, Sequence

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
    max_pool,
    relu_of_sum,
)
from flaxnets.models.base import Model

# Table 1: residual blocks in the stages conv2_x to conv5_x.
DEPTHS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


class Block(nn.Module):
    """The fields of both residual blocks, and how the blocks end."""

    features: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    stride: int = 1
    groups: int = 1
    width_per_group: int = 64
    stride_in_1x1: bool = False
    shortcut: str = "B"
    last_scale_init: nn.initializers.Initializer = nn.initializers.ones

    def join(self, y: Array, x: Array, norm: str) -> Array:
        """Return the ReLU of the normalised branch `y` plus the shortcut from `x`, if any."""
        around = shortcut(self.shortcut, x, y.shape[-1], self.stride, self.conv, self.norm)
        y = self.norm(scale_init=self.last_scale_init, name=norm)(y, relu=around is None)
        return y if around is None else relu_of_sum(y, around)


class BasicBlock(Block):
    """Figure 5, left: two 3x3 convolutions."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = self.conv(self.features, 3, self.stride, 1, name="conv1")(x)
        y = self.norm(name="bn1")(y, relu=True)
        return self.join(self.conv(self.features, 3, padding=1, name="conv2")(y), x, "bn2")


class Bottleneck(Block):
    """Figure 5, right: 1x1, 3x3 (grouped in ResNeXt) and 1x1 to four times the features."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = self.features * self.width_per_group // 64 * self.groups
        first, second = (self.stride, 1) if self.stride_in_1x1 else (1, self.stride)
        y = self.conv(width, 1, first, name="conv1")(x)
        y = self.norm(name="bn1")(y, relu=True)
        y = self.conv(width, 3, second, 1, groups=self.groups, name="conv2")(y)
        y = self.norm(name="bn2")(y, relu=True)
        return self.join(self.conv(4 * self.features, 1, name="conv3")(y), x, "bn3")


class ResNet(Model):
    """Map images `(N, H, W, C)`, 224x224x3 in the paper, to logits `(N, num_classes)`. Images may
    have any size.

    The 3x3 convolutions of bottlenecks have `groups` groups. In the first stage a group has
    `width_per_group` channels, in each later stage twice as many as in the stage before.

    `stride_in_1x1` gives the paper's bottleneck, with the same parameters. 18 and 34 layers have no
    bottlenecks and are the paper's in both cases. `shortcut` is "A", "B" or "C" of section 3.3, or
    "none" for the plain network. `zero_init_residual` starts every residual branch at zero (Goyal
    et al. 2017, arXiv:1706.02677, section 5.1). `remat` recomputes each block in the backward pass,
    so that only the inputs of blocks are stored.

    With `dense`: the map of logits `(N, H / 32, W / 32, num_classes)`. The logits are its mean over
    positions.
    """

    block: type[Block]
    depths: Sequence[int]
    groups: int = 1
    width_per_group: int = 64
    stride_in_1x1: bool = False
    shortcut: str = "B"
    zero_init_residual: bool = False
    num_classes: int = 1000
    dense: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    input_shape = (224, 224, 3)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        if self.block is BasicBlock and (self.groups, self.width_per_group) != (1, 64):
            raise InputError(
                f"groups are {self.groups} and width_per_group is {self.width_per_group}; blocks "
                "without bottleneck have neither, expected 1 and 64"
            )
        if self.shortcut == "none" and self.zero_init_residual:
            raise InputError(
                "shortcut is 'none', with which zero_init_residual would make all blocks zero; "
                "expected A, B or C"
            )
        conv = functools.partial(
            Conv, use_bias=False, kernel_init=he_normal_fan_out, dtype=self.dtype
        )
        norm = functools.partial(BatchNorm, use_running_average=not train, dtype=self.dtype)
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        block = functools.partial(
            nn.remat(self.block) if self.remat else self.block,
            conv=conv,
            norm=norm,
            groups=self.groups,
            width_per_group=self.width_per_group,
            stride_in_1x1=self.stride_in_1x1,
            shortcut=self.shortcut,
            last_scale_init=zeros if self.zero_init_residual else ones,
        )

        x = norm(name="bn1")(conv(64, 7, 2, 3, name="conv1")(x), relu=True)
        x = max_pool(3, 2, 1)(x)
        for stage, depth in enumerate(self.depths):
            strides = stage_strides(1 if stage == 0 else 2, depth)
            blocks = [block(64 * 2**stage, stride=stride) for stride in strides]
            x = Sequential(blocks, name=f"layer{stage + 1}")(x)
        if not self.dense:
            x = average_positions(x)
        return Linear(self.num_classes, dtype=self.dtype, name="fc")(x)


basic = functools.partial(ResNet, BasicBlock)
plain = functools.partial(basic, shortcut="none")
bottleneck = functools.partial(ResNet, Bottleneck)
resnext = functools.partial(bottleneck, groups=32, width_per_group=4)

VARIANTS = {
    "resnet18": functools.partial(basic, depths=DEPTHS[18]),
    "resnet34": functools.partial(basic, depths=DEPTHS[34]),
    "plain18": functools.partial(plain, depths=DEPTHS[18]),
    "plain34": functools.partial(plain, depths=DEPTHS[34]),
    "resnet50": functools.partial(bottleneck, depths=DEPTHS[50]),
    "resnet101": functools.partial(bottleneck, depths=DEPTHS[101]),
    "resnet152": functools.partial(bottleneck, depths=DEPTHS[152]),
    "resnext50_32x4d": functools.partial(resnext, depths=DEPTHS[50]),
    "resnext101_32x8d": functools.partial(resnext, depths=DEPTHS[101], width_per_group=8),
    "resnext101_64x4d": functools.partial(resnext, depths=DEPTHS[101], groups=64),
    "wide_resnet50_2": functools.partial(bottleneck, depths=DEPTHS[50], width_per_group=128),
    "wide_resnet101_2": functools.partial(bottleneck, depths=DEPTHS[101], width_per_group=128),
}
