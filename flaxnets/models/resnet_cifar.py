"""ResNet and ResNeXt for 32x32 images.

- He et al. 2015, "Deep Residual Learning for Image Recognition" (arXiv:1512.03385), section 4.2:
  6n + 2 layers, shortcuts without parameters (section 3.3, option A), and the plain networks beside
  them in Figure 6.
- Huang et al. 2016, "Deep Networks with Stochastic Depth" (arXiv:1603.09382): a field of the above.
- Xie et al. 2016, "Aggregated Residual Transformations for Deep Neural Networks"
  (arXiv:1611.05431v2), section 5.3 and appendix A: 29 layers of bottlenecks, ReLU behind the sum.
  (The first arXiv version normalised in front of each convolution, as the authors' README says.)

Neither is in torchvision; modules have the names of its ImageNet networks.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.blocks import StochasticDepth, shortcut
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
    """Two 3x3 convolutions around a shortcut, or none."""

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
    """`(N, H, W, C)`, 32x32x3 in the paper, to logits `(N, num_classes)`; any image size.

    `depth` is 6n + 2: a first convolution, three stages of n blocks with 16, 32 and 64 features on
    maps of 32, 16 and 8 pixels, a linear layer. `shortcut` is one of section 3.3, "A", "B" or "C",
    or "none" for the plain network. `remat` recomputes each block in the backward pass.

    `stochastic_depth_rate` is the share of images whose last block is left out in training; it
    grows linearly from the first block on (Huang et al. 2016, section 3; 0.5 there). They draw once
    for all images of a batch and scale the branches in evaluation instead of training.

    With `dense`: the map `(N, H / 4, W / 4, num_classes)` of logits, whose mean are the logits.
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
            raise ValueError(f"depth is {self.depth}; expected 6n + 2, for example 20")
        if self.shortcut == "none" and self.stochastic_depth_rate:
            raise ValueError("a plain network has no blocks to leave out; expected a shortcut")
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
        for stage in range(3):
            blocks = []
            for index in range(n):
                rate = self.stochastic_depth_rate * (stage * n + index + 1) / (3 * n)
                drop = functools.partial(StochasticDepth, rate, train)
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(16 * 2**stage, stride=stride, drop=drop))
            x = Sequential(blocks, name=f"layer{stage + 1}")(x)
        if not self.dense:
            x = average_positions(x)
        return Linear(
            self.num_classes, kernel_init=he_normal_fan_in, bias_init=nn.initializers.zeros,
            dtype=self.dtype, name="fc",
        )(x)  # fmt: skip


class Bottleneck(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolutions around an identity or a projection (option B)."""

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
    """`(N, H, W, C)`, 32x32x3 in the paper, to logits `(N, num_classes)`; any image size.

    Three stages of three bottlenecks, whose 3x3 convolutions have `groups` groups of 64, 128 and
    256 channels. `remat` recomputes each block in the backward pass.

    With `dense`: the map `(N, H / 4, W / 4, num_classes)` of logits, whose mean are the logits.
    """

    groups: int
    num_classes: int = 10
    dense: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    input_shape = (32, 32, 3)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        # Appendix A leaves the initialisation to Facebook's fb.resnet.torch: He's with the fan-out,
        # and for the linear layer torch's default with zero biases (models/resnet.lua).
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
            strides = (1 if stage == 0 else 2, 1, 1)
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
