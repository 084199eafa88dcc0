"""MobileNetV3: Howard, Sandler, Chu, Chen, Chen, Tan, Wang, Zhu, Pang, Vasudevan, Le & Adam 2019,
"Searching for MobileNetV3" (arXiv:1905.02244), Tables 1 and 2; names and initialisation of
torchvision's `mobilenetv3.py`.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.blocks import (
    Activation,
    ConvNormActivation,
    SqueezeExcitation,
    hard_sigmoid,
    hard_swish,
    relu,
    round_channels,
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

# Tables 1 and 2, one row for each "bneck": kernel size, expanded channels ("exp size"), output
# channels, squeeze-and-excite, nonlinearity, stride.
ACTIVATIONS: dict[str, Activation] = {"RE": relu, "HS": hard_swish}
Row = tuple[int, int, int, bool, str, int]
LARGE: Sequence[Row] = (
    (3, 16, 16, False, "RE", 1),
    (3, 64, 24, False, "RE", 2),
    (3, 72, 24, False, "RE", 1),
    (5, 72, 40, True, "RE", 2),
    (5, 120, 40, True, "RE", 1),
    (5, 120, 40, True, "RE", 1),
    (3, 240, 80, False, "HS", 2),
    (3, 200, 80, False, "HS", 1),
    (3, 184, 80, False, "HS", 1),
    (3, 184, 80, False, "HS", 1),
    (3, 480, 112, True, "HS", 1),
    (3, 672, 112, True, "HS", 1),
    (5, 672, 160, True, "HS", 2),
    (5, 960, 160, True, "HS", 1),
    (5, 960, 160, True, "HS", 1),
)
SMALL: Sequence[Row] = (
    (3, 16, 16, True, "RE", 2),
    (3, 72, 24, False, "RE", 2),
    (3, 88, 24, False, "RE", 1),
    (5, 96, 40, True, "HS", 2),
    (5, 240, 40, True, "HS", 1),
    (5, 240, 40, True, "HS", 1),
    (5, 120, 48, True, "HS", 1),
    (5, 144, 48, True, "HS", 1),
    (5, 288, 96, True, "HS", 2),
    (5, 576, 96, True, "HS", 1),
    (5, 576, 96, True, "HS", 1),
)


class InvertedResidual(nn.Module):
    """MobileNetV2's block with squeeze-and-excite in its widest layer (Figure 4).

    It has a 1x1 convolution to `expanded` channels (unless the input already has that many), a
    depthwise convolution, squeeze-and-excite to a quarter of the channels (section 5.3), and a
    linear 1x1 convolution. The input is added where the shapes agree.
    """

    kernel_size: int
    expanded: int
    features: int
    squeeze: bool
    activation: str
    stride: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        unit = functools.partial(
            ConvNormActivation,
            conv=self.conv,
            norm=self.norm,
            activation=ACTIVATIONS[self.activation],
        )
        layers: list[nn.Module] = []
        if self.expanded != x.shape[-1]:
            layers.append(unit(self.expanded, kernel_size=1))
        layers.append(
            unit(
                self.expanded,
                kernel_size=self.kernel_size,
                stride=self.stride,
                groups=self.expanded,
            )
        )
        if self.squeeze:
            layers.append(
                SqueezeExcitation(
                    round_channels(self.expanded // 4),
                    gate=hard_sigmoid,
                    kernel_init=he_normal_fan_out,
                    bias_init=nn.initializers.zeros,
                )
            )
        layers.append(unit(self.features, kernel_size=1, activation=None))
        y = Sequential(layers, name="block")(x)
        return x + y if self.stride == 1 and x.shape[-1] == self.features else y


class MobileNetV3(Model):
    """Map images `(N, H, W, C)`, 224x224x3 in the paper, to logits `(N, num_classes)`. Images may
    have any size.

    `rows` is Table 1 or 2. `hidden_features` is the width of the layer before the logits. `width`
    multiplies all channels, rounded to multiples of 8. `remat` recomputes each block in the
    backward pass.

    With `dense`: the map `(N, H / 32, W / 32, num_classes)` of the head at every position. The head
    has a hidden layer ("efficient last stage", Figure 5), so the mean of a map with several
    positions is not the logits.
    """

    rows: Sequence[Row]
    hidden_features: int
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
        norm = functools.partial(
            BatchNorm,
            use_running_average=not train,
            momentum=0.01,
            epsilon=1e-3,
            dtype=self.dtype,
        )
        linear = functools.partial(
            Linear,
            kernel_init=nn.initializers.normal(0.01),
            bias_init=nn.initializers.zeros,
            dtype=self.dtype,
        )
        unit = functools.partial(ConvNormActivation, conv=conv, norm=norm, activation=hard_swish)
        block = functools.partial(
            nn.remat(InvertedResidual) if self.remat else InvertedResidual, conv=conv, norm=norm
        )

        def scaled(channels: int) -> int:
            return round_channels(channels * self.width)

        layers: list[nn.Module] = [unit(scaled(16), stride=2)]
        for kernel_size, expanded, features, *rest in self.rows:
            layers.append(block(kernel_size, scaled(expanded), scaled(features), *rest))
        layers.append(unit(6 * scaled(self.rows[-1][2]), kernel_size=1))
        x = Sequential(layers, name="features")(x)
        if not self.dense:
            x = average_positions(x)
        return Sequential(
            [
                linear(scaled(self.hidden_features)), hard_swish,
                nn.Dropout(self.dropout_rate, deterministic=not train),
                linear(self.num_classes),
            ],
            name="classifier",
        )(x)  # fmt: skip


VARIANTS = {
    "mobilenet_v3_large": functools.partial(MobileNetV3, rows=LARGE, hidden_features=1280),
    "mobilenet_v3_small": functools.partial(MobileNetV3, rows=SMALL, hidden_features=1024),
}
