"""ShuffleNetV2: Ma, Zhang, Zheng & Sun 2018, "ShuffleNet V2: Practical Guidelines for Efficient CNN
Architecture Design" (arXiv:1807.11164), Table 5; names and initialisation of torchvision's
`shufflenetv2.py`.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.blocks import stage_strides
from flaxnets.layers import (
    Array,
    BatchNorm,
    Conv,
    Dtype,
    Linear,
    Sequential,
    average_positions,
    max_pool,
    relu,
)
from flaxnets.models.base import Model

# Table 5: output channels of Conv1, stages 2 to 4 and Conv5, by complexity.
WIDTHS = {
    0.5: (24, 48, 96, 192, 1024),
    1.0: (24, 116, 232, 464, 1024),
    1.5: (24, 176, 352, 704, 1024),
    2.0: (24, 244, 488, 976, 2048),
}


class ShuffleUnit(nn.Module):
    """Figure 3c: half of the channels skip the convolutions of the other half. With stride 2,
    Figure 3d: two branches read all channels and halve the map.

    In the output the channels of the two halves alternate, so that the next split mixes them
    ("channel shuffle").
    """

    features: int
    stride: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        half = self.features // 2

        def depthwise(channels: int) -> nn.Module:
            return self.conv(channels, 3, self.stride, 1, groups=channels)

        if self.stride == 1:
            passed, x = jnp.split(x, 2, -1)
        else:
            channels = x.shape[-1]
            passed = Sequential(
                [depthwise(channels), self.norm(), self.conv(half, 1), self.norm(), relu],
                name="branch1",
            )(x)
        y = Sequential(
            [
                self.conv(half, 1), self.norm(), relu,
                depthwise(half), self.norm(),
                self.conv(half, 1), self.norm(), relu,
            ],
            name="branch2",
        )(x)  # fmt: skip
        return jnp.stack((passed, y), -1).reshape(*y.shape[:-1], self.features)


class ShuffleNetV2(Model):
    """Map images `(N, H, W, C)`, 224x224x3 in the paper, to logits `(N, num_classes)`. Images may
    have any size.

    `depths` counts the units of stages 2 to 4. `widths` is a row of `WIDTHS`. `remat` recomputes
    each unit in the backward pass.

    With `dense`: the map of logits `(N, H / 32, W / 32, num_classes)`. The logits are its mean over
    positions.
    """

    widths: Sequence[int]
    depths: Sequence[int] = (4, 8, 4)
    num_classes: int = 1000
    dense: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    input_shape = (224, 224, 3)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        conv = functools.partial(Conv, use_bias=False, dtype=self.dtype)
        norm = functools.partial(BatchNorm, use_running_average=not train, dtype=self.dtype)
        unit = functools.partial(
            nn.remat(ShuffleUnit) if self.remat else ShuffleUnit, conv=conv, norm=norm
        )
        first, *widths, last = self.widths

        x = Sequential([conv(first, 3, 2, 1), norm(), relu], name="conv1")(x)
        x = max_pool(3, 2, 1)(x)
        self.sow("intermediates", "maxpool", x)  # readable on request (`inference.features`)
        for number, (width, depth) in enumerate(zip(widths, self.depths, strict=True), 2):
            units = [unit(width, stride) for stride in stage_strides(2, depth)]
            x = Sequential(units, name=f"stage{number}")(x)
        x = Sequential([conv(last, 1), norm(), relu], name="conv5")(x)
        if not self.dense:
            x = average_positions(x)
        return Linear(self.num_classes, dtype=self.dtype, name="fc")(x)


VARIANTS = {
    "shufflenet_v2_x0_5": functools.partial(ShuffleNetV2, widths=WIDTHS[0.5]),
    "shufflenet_v2_x1_0": functools.partial(ShuffleNetV2, widths=WIDTHS[1.0]),
    "shufflenet_v2_x1_5": functools.partial(ShuffleNetV2, widths=WIDTHS[1.5]),
    "shufflenet_v2_x2_0": functools.partial(ShuffleNetV2, widths=WIDTHS[2.0]),
}
