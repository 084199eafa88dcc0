"""MnasNet-B1: Tan, Chen, Pang, Vasudevan, Sandler, Howard & Le 2018, "MnasNet: Platform-Aware
Neural Architecture Search for Mobile" (arXiv:1807.11626), Table 2: the network that the search
found without squeeze-and-excite. Widths, names and initialisation are those of torchvision's
`mnasnet.py`.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.blocks import relu, round_channels, stage_strides
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

# Stacks of inverted residuals: channels, kernel size, stride of the first block, expansion, number
# of blocks.
B1 = (
    (24, 3, 2, 3, 3),
    (40, 5, 2, 3, 3),
    (80, 5, 2, 6, 3),
    (96, 3, 1, 6, 2),
    (192, 5, 2, 6, 4),
    (320, 3, 1, 6, 1),
)


class InvertedResidual(nn.Module):
    """A 1x1 convolution to `expansion` times the channels, a depthwise convolution and a linear 1x1
    convolution. The input is added where the shapes agree.
    """

    features: int
    kernel_size: int
    stride: int
    expansion: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size, wide = self.kernel_size, self.expansion * x.shape[-1]
        y = Sequential(
            [
                self.conv(wide, 1), self.norm(), relu,
                self.conv(wide, size, self.stride, size // 2, groups=wide), self.norm(), relu,
                self.conv(self.features, 1), self.norm(),
            ],
            name="layers",
        )(x)  # fmt: skip
        return x + y if self.stride == 1 and x.shape[-1] == self.features else y


class MNASNet(Model):
    """Map images `(N, H, W, C)`, 224x224x3 in the paper, to logits `(N, num_classes)`. Images may
    have any size.

    `rows` are the stacks of blocks. `width` multiplies all channels but the 1280 of the last layer,
    rounded to multiples of 8. `remat` recomputes each block in the backward pass.

    With `dense`: the map of logits `(N, H / 32, W / 32, num_classes)`. The logits are its mean over
    positions.

    torchvision's module refuses a plain dictionary of weights: it needs their version, because the
    first layers of versions 1 and 2 differ. Ours are version 2:

        weights = {key: torch.from_numpy(value) for key, value in to_torch(variables).items()}
        weights = collections.OrderedDict(weights)
        weights._metadata = {"": {"version": 2}}
        torchvision.models.mnasnet1_0().load_state_dict(weights)
    """

    rows: Sequence[tuple[int, int, int, int, int]] = B1
    width: float = 1.0
    num_classes: int = 1000
    dropout_rate: float = 0.2
    dense: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    input_shape = (224, 224, 3)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        conv = functools.partial(
            Conv, use_bias=False, kernel_init=he_normal_fan_out, dtype=self.dtype
        )
        # The momentum 0.9997 of the paper's section 5 is TensorFlow's, which weighs the old value.
        norm = functools.partial(
            BatchNorm, use_running_average=not train, momentum=1 - 0.9997, dtype=self.dtype
        )
        block = functools.partial(
            nn.remat(InvertedResidual) if self.remat else InvertedResidual, conv=conv, norm=norm
        )

        def scaled(channels: int) -> int:
            return round_channels(channels * self.width)

        def stack(channels: int, size: int, first: int, expansion: int, depth: int) -> Sequential:
            strides = stage_strides(first, depth)
            return Sequential([block(scaled(channels), size, s, expansion) for s in strides])

        stem = scaled(32)
        x = Sequential(
            [
                conv(stem, 3, 2, 1), norm(), relu,
                conv(stem, 3, padding=1, groups=stem), norm(), relu,
                conv(scaled(16), 1), norm(),
                *(stack(*row) for row in self.rows),
                conv(1280, 1), norm(), relu,
            ],
            name="layers",
        )(x)  # fmt: skip
        if not self.dense:
            x = average_positions(x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return Linear(
            self.num_classes,
            kernel_init=nn.initializers.variance_scaling(1.0, "fan_out", "uniform"),
            bias_init=nn.initializers.zeros,
            dtype=self.dtype,
            name="classifier.1",
        )(x)


VARIANTS = {
    "mnasnet0_5": functools.partial(MNASNet, width=0.5),
    "mnasnet0_75": functools.partial(MNASNet, width=0.75),
    "mnasnet1_0": functools.partial(MNASNet),
    "mnasnet1_3": functools.partial(MNASNet, width=1.3),
}
