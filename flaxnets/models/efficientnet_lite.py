"""EfficientNet-Lite; names and behaviour of timm's `tf_efficientnet_lite0` to `2`.

Tan & Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks"
(arXiv:1905.11946), Table 1, as Google adapts it for phones (models/official/efficientnet/lite in
github.com/tensorflow/tpu). There is no squeeze-excitation, ReLU6 replaces SiLU, and the first and
the last layer have the same width at every scale. The weights expect TensorFlow's "SAME" padding.
"""

import functools
import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.blocks import (
    StochasticDepth,
    rates_by_depth,
    relu6,
    round_channels,
    stage_strides,
    uniform_fan_out,
)
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
)
from flaxnets.models.base import Model

# Table 1: expansion, kernel size, stride, features and layers of each stage.
STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


def pad_same(x: Array, kernel_size: int, stride: int) -> Array:
    """Return `x` (N, H, W, C) with TensorFlow's "SAME" padding.

    A convolution without padding then gives a map of ceil(H / stride) x ceil(W / stride). Where the
    padding is an odd number of rows or columns, the extra one comes after the map; torch's padding
    puts it before.
    """
    margins = []
    for size in x.shape[1:3]:
        total = max((-(-size // stride) - 1) * stride + kernel_size - size, 0)
        margins.append((total // 2, total - total // 2))
    return jnp.pad(x, ((0, 0), *margins, (0, 0)))


class InvertedResidual(nn.Module):
    """A 1x1 convolution to `expansion` times the channels (`conv_pw`), a depthwise convolution
    (`conv_dw`) and a linear 1x1 convolution to `features` (`conv_pwl`). The input is added where
    the shapes agree. With an expansion of 1 the first is missing and the last is called `conv_pw`.
    """

    expansion: int
    kernel_size: int
    stride: int
    features: int
    stochastic_depth_rate: float
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    train: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        names = ["bn1", "bn2", "bn3"] if self.expansion > 1 else ["bn1", "bn2"]
        norms = [self.norm(name=name) for name in names]
        width = self.expansion * x.shape[-1]
        y = x
        if self.expansion > 1:
            y = relu6(norms[0](self.conv(width, 1, name="conv_pw")(y)))
        y = self.conv(
            width,
            self.kernel_size,
            self.stride,
            groups=width,
            kernel_init=he_normal_fan_in,  # timm initialises each filter as a layer with one output
            name="conv_dw",
        )(pad_same(y, self.kernel_size, self.stride))
        y = relu6(norms[-2](y))
        name = "conv_pwl" if self.expansion > 1 else "conv_pw"
        y = norms[-1](self.conv(self.features, 1, name=name)(y))
        if self.stride > 1 or x.shape[-1] != self.features:
            return y
        return x + StochasticDepth(self.stochastic_depth_rate, self.train)(y)


class EfficientNetLite(Model):
    """Map images `(N, H, W, C)` to logits `(N, num_classes)`. Images may have any size;
    `input_shape` is the size in training.

    `width` multiplies the features of each stage (section 3.3), `depth` the number of layers of
    each stage but the first and the last. In training, block i of n, counted from 0, is skipped
    with probability `stochastic_depth_rate` * i / n. `remat` recomputes each block in the backward
    pass.

    With `dense`: the map of logits `(N, H / 32, W / 32, num_classes)`. The logits are its mean over
    positions.
    """

    input_shape: tuple[int, int, int]
    stages: Sequence[tuple[int, int, int, int, int]] = STAGES
    width: float = 1.0
    depth: float = 1.0
    dropout_rate: float = 0.2
    stochastic_depth_rate: float = 0.2
    num_classes: int = 1000
    dense: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        conv = functools.partial(
            Conv, use_bias=False, kernel_init=he_normal_fan_out, dtype=self.dtype
        )
        norm = functools.partial(
            BatchNorm, use_running_average=not train, epsilon=1e-3, dtype=self.dtype
        )
        counts = [count for *_, count in self.stages]
        counts[1:-1] = [math.ceil(self.depth * count) for count in counts[1:-1]]
        block = functools.partial(
            nn.remat(InvertedResidual) if self.remat else InvertedResidual,
            conv=conv, norm=norm, train=train,
        )  # fmt: skip
        # The rate would reach `stochastic_depth_rate` after the last block.
        rates = iter(rates_by_depth(self.stochastic_depth_rate, sum(counts) + 1))
        stages = []
        for (expansion, size, first, features, _), count in zip(self.stages, counts, strict=True):
            features = round_channels(self.width * features)
            blocks = [
                block(expansion, size, stride, features, next(rates))
                for stride in stage_strides(first, count)
            ]
            stages.append(Sequential(blocks))

        x = conv(32, 3, 2, name="conv_stem")(pad_same(x, 3, 2))
        x = relu6(norm(name="bn1")(x))
        x = Sequential(stages, name="blocks")(x)
        x = conv(1280, 1, name="conv_head")(x)
        x = relu6(norm(name="bn2")(x))
        self.sow("intermediates", "bn2.act", x)  # readable on request (`inference.features`)
        if not self.dense:
            x = average_positions(x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return Linear(
            self.num_classes,
            kernel_init=uniform_fan_out,
            bias_init=nn.initializers.zeros,
            dtype=self.dtype,
            name="classifier",
        )(x)


VARIANTS = {
    "efficientnet_lite0": functools.partial(EfficientNetLite, input_shape=(224, 224, 3)),
    "efficientnet_lite1": functools.partial(EfficientNetLite, input_shape=(240, 240, 3), depth=1.1),
    "efficientnet_lite2": functools.partial(
        EfficientNetLite, input_shape=(260, 260, 3), width=1.1, depth=1.2, dropout_rate=0.3
    ),
}
