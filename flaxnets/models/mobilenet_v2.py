"""MobileNetV2: Sandler, Howard, Zhu, Zhmoginov & Chen 2018, "MobileNetV2: Inverted Residuals and
Linear Bottlenecks" (arXiv:1801.04381), Table 2; names and initialisation of torchvision's
`mobilenetv2.py`.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.blocks import ConvNormActivation, relu6, round_channels, stage_strides
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

# Table 2: expansion, output channels, number of blocks, stride of the first block.
TABLE_2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """Table 1: a 1x1 convolution to `expansion` times the channels, a 3x3 depthwise convolution and
    a linear 1x1 convolution. The input is added where the shapes agree (Figure 4d).
    """

    features: int
    stride: int
    expansion: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        unit = functools.partial(
            ConvNormActivation, conv=self.conv, norm=self.norm, activation=relu6
        )
        wide = self.expansion * x.shape[-1]
        expand = [unit(wide, kernel_size=1)] if self.expansion > 1 else []
        depthwise = unit(wide, stride=self.stride, groups=wide)
        project = [self.conv(self.features, 1, use_bias=False), self.norm()]
        y = Sequential([*expand, depthwise, *project], name="conv")(x)
        return x + y if self.stride == 1 and x.shape[-1] == self.features else y


class MobileNetV2(Model):
    """Map images `(N, H, W, C)`, 224x224x3 in the paper, to logits `(N, num_classes)`. Images may
    have any size.

    `rows` is the paper's Table 2. `width` multiplies all channels, rounded to multiples of 8. The
    1280 of the last layer only grow (section 6.1). `remat` recomputes each block in the backward
    pass.

    With `dense`: the map of logits `(N, H / 32, W / 32, num_classes)`. The logits are its mean over
    positions.
    """

    rows: Sequence[tuple[int, int, int, int]] = TABLE_2
    width: float = 1.0
    num_classes: int = 1000
    dropout_rate: float = 0.2
    dense: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    input_shape = (224, 224, 3)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        conv = functools.partial(Conv, kernel_init=he_normal_fan_out, dtype=self.dtype)
        norm = functools.partial(BatchNorm, use_running_average=not train, dtype=self.dtype)
        unit = functools.partial(ConvNormActivation, conv=conv, norm=norm, activation=relu6)
        block = functools.partial(
            nn.remat(InvertedResidual) if self.remat else InvertedResidual, conv=conv, norm=norm
        )

        layers: list[nn.Module] = [unit(round_channels(32 * self.width), stride=2)]
        for expansion, channels, depth, first_stride in self.rows:
            features = round_channels(channels * self.width)
            strides = stage_strides(first_stride, depth)
            layers += [block(features, stride, expansion) for stride in strides]
        layers.append(unit(round_channels(1280 * max(1.0, self.width)), kernel_size=1))
        x = Sequential(layers, name="features")(x)
        if not self.dense:
            x = average_positions(x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return Linear(
            self.num_classes,
            kernel_init=nn.initializers.normal(0.01),
            bias_init=nn.initializers.zeros,
            dtype=self.dtype,
            name="classifier.1",
        )(x)


VARIANTS = {"mobilenet_v2": functools.partial(MobileNetV2)}
