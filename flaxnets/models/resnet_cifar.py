"""ResNet and ResNeXt for 32x32 images.

- He et al. 2015, "Deep Residual Learning for Image Recognition" (arXiv:1512.03385), section 4.2: 6n
  + 2 layers, shortcuts without parameters (section 3.3, option A), and the plain networks of Figure
  6.
- Huang et al. 2016, "Deep Networks with Stochastic Depth" (arXiv:1603.09382): a field of the above.
- Xie et al. 2016, "Aggregated Residual Transformations for Deep Neural Networks"
  (arXiv:1611.05431v2), section 5.3 and appendix A: 29 layers of bottlenecks, with a ReLU after the
  sum. The first arXiv version normalised before each convolution, as the authors' README says.

Neither is in torchvision; modules have the names of its ImageNet networks.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.blocks import StochasticDepth, rates_by_depth, shortcut, stage_strides
from flaxnets.errors import InputError
from flaxnets.layers import (
    Array,
    BatchNorm,
    Conv,
    Dtype,
    Linear,
    Sequential,
    average_positions,
    he_normal_fan_in,
    he_normal_fan_out,
    relu_of_sum,
)
from flaxnets.models.base import Model


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, or none."""

    features: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    shortcut: str
    drop: Callable[..., nn.Module]
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        around = shortcut(self.shortcut, x, self.features, self.stride, self.conv, self.norm)
        y = self.conv(self.features, 3, self.stride, 1, name="conv1")(x)
        y = self.norm(name="bn1")(y, relu=True)
        y = self.conv(self.features, 3, padding=1, name="conv2")(y)
        y = self.norm(name="bn2")(y, relu=around is None)
        return y if around is None else relu_of_sum(self.drop()(y), around)


class ResNetCIFAR(Model):
    """Map images `(N, H, W, C)`, 32x32x3 in the paper, to logits `(N, num_classes)`. Images may
    have any size.

    `depth` is 6n + 2: a first convolution, three stages of n blocks with 16, 32 and 64 features on
    maps of 32, 16 and 8 pixels, and a linear layer. `shortcut` is "A", "B" or "C" of section 3.3,
    or "none" for the plain network. `remat` recomputes each block in the backward pass.

    `stochastic_depth_rate` is the share of images that skip the last block in training. The share
    grows linearly with depth (Huang et al. 2016, section 3, with 0.5). The paper draws once for a
    whole batch, we draw for each image. It scales the branches in evaluation, we scale them in
    training.

    With `dense`: the map of logits `(N, H / 4, W / 4, num_classes)`. The logits are its mean over
    positions.
    """

    depth: int
    shortcut: str = "A"
    stochastic_depth_rate: float = 0.0
    num_classes: int = 10
    dense: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    input_shape = (32, 32, 3)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        n, left_over = divmod(self.depth - 2, 6)
        if n < 1 or left_over:
            raise InputError(f"depth is {self.depth}; expected 6n + 2, for example 20")
        if self.shortcut == "none" and self.stochastic_depth_rate:
            raise InputError(
                "shortcut is 'none', with which stochastic_depth_rate would skip layers without "
                "an alternative; expected A, B or C"
            )
        # Section 4.2: the initialisation of He et al. 2015 (arXiv:1502.01852), zero biases.
        conv = functools.partial(
            Conv, use_bias=False, kernel_init=he_normal_fan_in, dtype=self.dtype
        )
        norm = functools.partial(BatchNorm, use_running_average=not train, dtype=self.dtype)
        block = functools.partial(
            nn.remat(BasicBlock) if self.remat else BasicBlock,
            conv=conv, norm=norm, shortcut=self.shortcut,
        )  # fmt: skip
        x = norm(name="bn1")(conv(16, 3, padding=1, name="conv1")(x), relu=True)
        # The rate would be zero at the image, before the first block.
        rates = iter(rates_by_depth(self.stochastic_depth_rate, 3 * n + 1)[1:])
        for stage in range(3):
            blocks = []
            for stride in stage_strides(1 if stage == 0 else 2, n):
                drop = functools.partial(StochasticDepth, next(rates), train)
                blocks.append(block(16 * 2**stage, stride=stride, drop=drop))
            x = Sequential(blocks, name=f"layer{stage + 1}")(x)
        if not self.dense:
            x = average_positions(x)
        return Linear(
            self.num_classes, kernel_init=he_normal_fan_in, bias_init=nn.initializers.zeros,
            dtype=self.dtype, name="fc",
        )(x)  # fmt: skip


class Bottleneck(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolutions, with an identity or a projection as shortcut (option
    B).
    """

    features: int
    groups: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width, out = self.features * self.groups, 4 * self.features
        y = self.conv(width, 1, name="conv1")(x)
        y = self.norm(name="bn1")(y, relu=True)
        y = self.conv(width, 3, self.stride, 1, groups=self.groups, name="conv2")(y)
        y = self.norm(name="bn2")(y, relu=True)
        y = self.norm(name="bn3")(self.conv(out, 1, name="conv3")(y))
        return relu_of_sum(y, shortcut("B", x, out, self.stride, self.conv, self.norm))


class ResNeXtCIFAR(Model):
    """Map images `(N, H, W, C)`, 32x32x3 in the paper, to logits `(N, num_classes)`. Images may
    have any size.

    There are three stages of three bottlenecks. Their 3x3 convolutions have `groups` groups of 64,
    128 and 256 channels. `remat` recomputes each block in the backward pass.

    With `dense`: the map of logits `(N, H / 4, W / 4, num_classes)`. The logits are its mean over
    positions.
    """

    groups: int
    num_classes: int = 10
    dense: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    input_shape = (32, 32, 3)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        # Appendix A refers to Facebook's fb.resnet.torch for the initialisation: He's with the
        # fan-out, and torch's default with zero biases for the linear layer (models/resnet.lua).
        conv = functools.partial(
            Conv, use_bias=False, kernel_init=he_normal_fan_out, dtype=self.dtype
        )
        norm = functools.partial(BatchNorm, use_running_average=not train, dtype=self.dtype)
        block = functools.partial(
            nn.remat(Bottleneck) if self.remat else Bottleneck,
            groups=self.groups, conv=conv, norm=norm,
        )  # fmt: skip
        x = norm(name="bn1")(conv(64, 3, padding=1, name="conv1")(x), relu=True)
        for stage in range(3):
            strides = stage_strides(1 if stage == 0 else 2, 3)
            blocks = [block(64 * 2**stage, stride=stride) for stride in strides]
            x = Sequential(blocks, name=f"layer{stage + 1}")(x)
        if not self.dense:
            x = average_positions(x)
        return Linear(
            self.num_classes, bias_init=nn.initializers.zeros, dtype=self.dtype, name="fc"
        )(x)


plain = functools.partial(ResNetCIFAR, shortcut="none")

VARIANTS = {
    "resnet20_cifar": functools.partial(ResNetCIFAR, depth=20),
    "resnet32_cifar": functools.partial(ResNetCIFAR, depth=32),
    "resnet44_cifar": functools.partial(ResNetCIFAR, depth=44),
    "resnet56_cifar": functools.partial(ResNetCIFAR, depth=56),
    "resnet110_cifar": functools.partial(ResNetCIFAR, depth=110),
    "resnet1202_cifar": functools.partial(ResNetCIFAR, depth=1202),
    "plain20_cifar": functools.partial(plain, depth=20),
    "plain32_cifar": functools.partial(plain, depth=32),
    "plain44_cifar": functools.partial(plain, depth=44),
    "plain56_cifar": functools.partial(plain, depth=56),
    "plain110_cifar": functools.partial(plain, depth=110),
    "resnext29_8x64d_cifar": functools.partial(ResNeXtCIFAR, groups=8),
    "resnext29_16x64d_cifar": functools.partial(ResNeXtCIFAR, groups=16),
}
