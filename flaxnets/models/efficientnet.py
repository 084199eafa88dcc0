"""EfficientNet B0 to B7 and EfficientNetV2; names and initialisation of torchvision's
`efficientnet.py`.

- Tan & Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks"
  (arXiv:1905.11946), Table 1 and section 3.3.
- Tan & Le 2021, "EfficientNetV2: Smaller Models and Faster Training" (arXiv:2104.00298), Table 4;
  the medium and large networks follow the authors' code (github.com/google/automl, efficientnetv2).
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.blocks import (
    ConvNormActivation,
    SqueezeExcitation,
    StochasticDepth,
    rates_by_depth,
    round_channels,
    silu,
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
    he_normal_fan_out,
)
from flaxnets.models.base import Model


class Stage(NamedTuple):
    """A row of a table: blocks of one kind. The first block has the stride, the others have stride
    1.
    """

    block: Literal["mbconv", "fused"]
    expansion: int
    kernel_size: int
    stride: int
    features: int
    layers: int


# arXiv:1905.11946, Table 1. Strides follow the authors' code, as in torchvision. The table prints
# each stride one stage earlier.
B0 = (
    Stage("mbconv", 1, 3, 1, 16, 1),
    Stage("mbconv", 6, 3, 2, 24, 2),
    Stage("mbconv", 6, 5, 2, 40, 2),
    Stage("mbconv", 6, 3, 2, 80, 3),
    Stage("mbconv", 6, 5, 1, 112, 3),
    Stage("mbconv", 6, 5, 2, 192, 4),
    Stage("mbconv", 6, 3, 1, 320, 1),
)
# arXiv:2104.00298, Table 4.
V2_S = (
    Stage("fused", 1, 3, 1, 24, 2),
    Stage("fused", 4, 3, 2, 48, 4),
    Stage("fused", 4, 3, 2, 64, 4),
    Stage("mbconv", 4, 3, 2, 128, 6),
    Stage("mbconv", 6, 3, 1, 160, 9),
    Stage("mbconv", 6, 3, 2, 256, 15),
)
V2_M = (
    Stage("fused", 1, 3, 1, 24, 3),
    Stage("fused", 4, 3, 2, 48, 5),
    Stage("fused", 4, 3, 2, 80, 5),
    Stage("mbconv", 4, 3, 2, 160, 7),
    Stage("mbconv", 6, 3, 1, 176, 14),
    Stage("mbconv", 6, 3, 2, 304, 18),
    Stage("mbconv", 6, 3, 1, 512, 5),
)
V2_L = (
    Stage("fused", 1, 3, 1, 32, 4),
    Stage("fused", 4, 3, 2, 64, 7),
    Stage("fused", 4, 3, 2, 96, 7),
    Stage("mbconv", 4, 3, 2, 192, 10),
    Stage("mbconv", 6, 3, 1, 224, 19),
    Stage("mbconv", 6, 3, 2, 384, 25),
    Stage("mbconv", 6, 3, 1, 640, 7),
)


class MBConv(nn.Module):
    """arXiv:1905.11946, section 4: a 1x1 convolution to `expansion` times the channels, a depthwise
    convolution, squeeze-excitation and a linear 1x1 convolution. The squeeze-excitation has a
    quarter of the input's channels between its layers.

    A "fused" block (arXiv:2104.00298, Figure 2) has one dense convolution in place of the first
    three layers. With an expansion of 1 it is that convolution alone.

    The input is added where the shapes agree.
    """

    stage: Stage
    stride: int
    features: int
    stochastic_depth_rate: float
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    train: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        block, expansion, size, *_ = self.stage
        wide = round_channels(expansion * x.shape[-1])
        unit = functools.partial(ConvNormActivation, conv=self.conv, norm=self.norm)
        if block == "fused":
            last = self.features if expansion == 1 else wide
            layers = [unit(last, kernel_size=size, stride=self.stride, activation=silu)]
        else:
            layers = [unit(wide, kernel_size=1, activation=silu)] if expansion > 1 else []
            layers += [
                unit(wide, kernel_size=size, stride=self.stride, groups=wide, activation=silu),
                SqueezeExcitation(
                    max(1, x.shape[-1] // 4),
                    silu,
                    kernel_init=he_normal_fan_out,
                    bias_init=nn.initializers.zeros,
                ),
            ]
        if block == "mbconv" or expansion > 1:
            layers.append(unit(self.features, kernel_size=1, activation=None))
        y = Sequential(layers, name="block")(x)
        if self.stride > 1 or x.shape[-1] != self.features:
            return y
        return x + StochasticDepth(self.stochastic_depth_rate, self.train)(y)


class EfficientNet(Model):
    """Map images `(N, H, W, C)` to logits `(N, num_classes)`. Images may have any size;
    `input_shape` is the size in evaluation.

    `width` multiplies the features of the first layer and of each stage, `depth` the number of
    layers of each stage (arXiv:1905.11946, section 3.3). The last convolution has `last_features`;
    None stands for four times the features of the last stage. In training, block i of n, counted
    from 0, is skipped with probability `stochastic_depth_rate` * i / n. `epsilon` and `momentum`
    are those of the norms. `remat` recomputes each block in the backward pass.

    With `dense`: the map of logits `(N, H / 32, W / 32, num_classes)`. The logits are its mean over
    positions.
    """

    stages: Sequence[Stage] = B0
    width: float = 1.0
    depth: float = 1.0
    first_features: int = 32
    last_features: int | None = None
    dropout_rate: float = 0.2
    stochastic_depth_rate: float = 0.2
    epsilon: float = 1e-5
    momentum: float = 0.1
    input_shape: tuple[int, int, int] = (224, 224, 3)
    num_classes: int = 1000
    dense: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        conv = functools.partial(Conv, kernel_init=he_normal_fan_out, dtype=self.dtype)
        norm = functools.partial(
            BatchNorm,
            use_running_average=not train,
            momentum=self.momentum,
            epsilon=self.epsilon,
            dtype=self.dtype,
        )
        unit = functools.partial(ConvNormActivation, conv=conv, norm=norm, activation=silu)
        block = functools.partial(
            nn.remat(MBConv) if self.remat else MBConv, conv=conv, norm=norm, train=train
        )

        layers: list[nn.Module] = [unit(round_channels(self.width * self.first_features), stride=2)]
        depths = [math.ceil(self.depth * stage.layers) for stage in self.stages]
        # The rate would reach `stochastic_depth_rate` after the last block.
        rates = iter(rates_by_depth(self.stochastic_depth_rate, sum(depths) + 1))
        for stage, depth in zip(self.stages, depths, strict=True):
            features = round_channels(self.width * stage.features)
            strides = stage_strides(stage.stride, depth)
            blocks = [block(stage, stride, features, next(rates)) for stride in strides]
            layers.append(Sequential(blocks))
        last = round_channels(self.width * self.stages[-1].features)
        layers.append(unit(self.last_features or 4 * last, kernel_size=1))
        x = Sequential(layers, name="features")(x)
        if not self.dense:
            x = average_positions(x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return Linear(
            self.num_classes,
            kernel_init=uniform_fan_out,
            bias_init=nn.initializers.zeros,
            dtype=self.dtype,
            name="classifier.1",
        )(x)


# arXiv:1905.11946, scaled as in the authors' code: width, depth, dropout rate, image size. The size
# is torchvision's in evaluation; the authors' B2 has 260 pixels.
SCALES = {
    "b0": (1.0, 1.0, 0.2, 224),
    "b1": (1.0, 1.1, 0.2, 240),
    "b2": (1.1, 1.2, 0.3, 288),
    "b3": (1.2, 1.4, 0.3, 300),
    "b4": (1.4, 1.8, 0.4, 380),
    "b5": (1.6, 2.2, 0.4, 456),
    "b6": (1.8, 2.6, 0.5, 528),
    "b7": (2.0, 3.1, 0.5, 600),
}
v2 = functools.partial(EfficientNet, last_features=1280, epsilon=1e-3)

VARIANTS = {
    **{
        f"efficientnet_{name}": functools.partial(
            EfficientNet,
            width=width,
            depth=depth,
            dropout_rate=dropout,
            input_shape=(size, size, 3),
            **({"epsilon": 1e-3, "momentum": 0.01} if name in ("b5", "b6", "b7") else {}),
        )
        for name, (width, depth, dropout, size) in SCALES.items()
    },
    "efficientnet_v2_s": functools.partial(
        v2, stages=V2_S, first_features=24, input_shape=(384, 384, 3)
    ),
    "efficientnet_v2_m": functools.partial(
        v2, stages=V2_M, first_features=24, dropout_rate=0.3, input_shape=(480, 480, 3)
    ),
    "efficientnet_v2_l": functools.partial(
        v2, stages=V2_L, dropout_rate=0.4, input_shape=(480, 480, 3)
    ),
}
