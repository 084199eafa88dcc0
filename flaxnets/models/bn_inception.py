"""BN-Inception: Ioffe & Szegedy 2015, "Batch Normalization: Accelerating Deep Network Training by
Reducing Internal Covariate Shift" (arXiv:1502.03167), Figure 5 and the appendix beside it.

The paper leaves some choices open. Padding is half the kernel everywhere, in pools too, so that all
branches of a module see the same centres at any image size. Average pools count the padding,
epsilon is 1e-3, and kernels are initialised as in He et al. 2015. Section 4.2 gives 13.6 million
parameters, but the rows of Figure 5 add up to 11.3 million.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.blocks import ConvNormRelu
from flaxnets.layers import (
    Array,
    BatchNorm,
    Conv,
    Dtype,
    Linear,
    Sequential,
    adaptive_avg_pool,
    average_positions,
    avg_pool,
    he_normal_fan_out,
    joined,
    max_pool,
)
from flaxnets.models.base import Model

# Figure 5: widths of the 1x1, the 3x3 reduction, the 3x3, the double 3x3 reduction and the double
# 3x3; the pool and the width of its projection. A row without 1x1 and projection ("pass through")
# has stride 2.
ROWS = {
    "3a": (64, 64, 64, 64, 96, avg_pool, 32),
    "3b": (64, 64, 96, 64, 96, avg_pool, 64),
    "3c": (0, 128, 160, 64, 96, max_pool, 0),
    "4a": (224, 64, 96, 96, 128, avg_pool, 128),
    "4b": (192, 96, 128, 96, 128, avg_pool, 128),
    # The widths of 4c, 4d and 4e add up to 608, 608 and 1056. The figure's column of output sizes
    # has 576, 576 and 1024, which projections of 96 would give. Like the ports to Caffe, MXNet and
    # torch, we keep 128.
    "4c": (160, 128, 160, 128, 160, avg_pool, 128),
    "4d": (96, 128, 192, 160, 192, avg_pool, 128),
    "4e": (0, 128, 192, 192, 256, max_pool, 0),
    "5a": (352, 192, 320, 160, 224, avg_pool, 128),
    "5b": (352, 192, 320, 192, 224, max_pool, 128),
}


class Inception(nn.Module):
    """One row of Figure 5."""

    row: tuple
    unit: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        one, reduce3, three, reduce_double, double, pool, project = self.row
        stride = 1 if project else 2
        branches = {
            "branch1": [self.unit(one)],
            "branch2": [self.unit(reduce3), self.unit(three, 3, stride)],
            "branch3": [
                self.unit(reduce_double), self.unit(double, 3), self.unit(double, 3, stride)
            ],
            "branch4": [pool(3, stride, padding=1), self.unit(project)],
        }  # fmt: skip
        if not project:
            branches["branch4"].pop()
        if not one:
            branches.pop("branch1")
        outputs = [Sequential(branch, name=name)(x) for name, branch in branches.items()]
        return joined(outputs)


class BNInception(Model):
    """Map images `(N, H, W, C)`, 224x224x3 in the paper, to logits `(N, num_classes)`. Images may
    have any size.

    The first convolution is separable: eight 7x7 filters on each channel, then 1x1. With
    `separable_stem=False` it is the plain 7x7 convolution of the ports to Caffe and torch. There is
    no dropout, as in the modified network of section 4.2.1; the ensemble of section 4.2.3 has rates
    of 0.05 and 0.1. `remat` recomputes each module in the backward pass.

    With `dense`: the map of logits `(N, H', W', num_classes)` at every position of the features.
    """

    num_classes: int = 1000
    separable_stem: bool = True
    dropout_rate: float = 0.0
    dense: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    input_shape = (224, 224, 3)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        conv = functools.partial(
            Conv, use_bias=False, kernel_init=he_normal_fan_out, dtype=self.dtype
        )
        norm = functools.partial(
            BatchNorm, epsilon=1e-3, use_running_average=not train, dtype=self.dtype
        )
        dropout = functools.partial(nn.Dropout, self.dropout_rate, deterministic=not train)
        unit = functools.partial(ConvNormRelu, conv=conv, norm=norm)
        inception = nn.remat(Inception) if self.remat else Inception

        if self.separable_stem:
            channels = x.shape[-1]
            x = conv(8 * channels, 7, 2, 3, groups=channels, name="depthwise")(x)
            x = unit(64, name="conv1")(x)
        else:
            x = unit(64, 7, 2, name="conv1")(x)
        x = max_pool(3, 2, padding=1)(x)
        x = unit(64, name="conv2")(x)
        x = unit(192, 3, name="conv3")(x)
        x = max_pool(3, 2, padding=1)(x)
        for name, row in ROWS.items():
            x = inception(row, unit, name=f"inception{name}")(x)
        if not self.dense:
            x = adaptive_avg_pool(1)(x)
        x = Linear(self.num_classes, dtype=self.dtype, name="fc")(dropout()(x))
        return x if self.dense else average_positions(x)


VARIANTS = {"bn_inception": functools.partial(BNInception)}
