"""RegNetX and RegNetY: Radosavovic, Kosaraju, Girshick, He & Dollar 2020, "Designing Network Design
Spaces" (arXiv:2003.13678), section 3.3 and Figures 15 and 16; names and initialisation of
torchvision's `regnet.py`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from flaxnets.blocks import ConvNormActivation, SqueezeExcitation, round_channels, stage_strides
from flaxnets.layers import (
    Array,
    BatchNorm,
    Conv,
    Dtype,
    Linear,
    average_positions,
    he_normal_fan_out,
    relu_of_sum,
)
from flaxnets.models.base import Model


def linear_widths(
    depth: int, initial: int, slope: float, ratio: float, group_width: int
) -> dict[str, Any]:
    """Return `depths`, `widths` and `group_width` of a RegNet (section 3.3).

    The width of block j is `initial + slope * j` (equation 2). It is rounded to `initial` times a
    power of `ratio` (equations 3 and 4) and then to a multiple of 8. Blocks of equal width form a
    stage, whose width is finally rounded to a multiple of the group width.
    """
    exponents = np.round(np.log1p(slope / initial * np.arange(depth)) / np.log(ratio))
    blocks = 8 * np.round(initial * ratio**exponents / 8).astype(int)
    widths, depths = np.unique(blocks, return_counts=True)
    return {
        "depths": tuple(depths.tolist()),
        "widths": tuple(round_channels(w, min(w, group_width)) for w in widths.tolist()),
        "group_width": group_width,
    }


class Bottleneck(nn.Module):
    """Figure 4: 1x1, grouped 3x3 and 1x1 convolutions of one width. The input is projected where
    its shape changes.

    RegNetY (section 4, "SE") has squeeze-excitation after the second convolution, with `squeeze`
    times the channels of the block's input between its layers.
    """

    features: int
    stride: int
    group_width: int
    squeeze: float
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        unit = functools.partial(ConvNormActivation, self.features, self.conv, self.norm)
        groups = self.features // min(self.features, self.group_width)
        y = unit(1, name="f.a")(x)
        y = unit(3, self.stride, groups, name="f.b")(y)
        if self.squeeze:
            y = SqueezeExcitation(
                round(self.squeeze * x.shape[-1]), kernel_init=he_normal_fan_out, name="f.se"
            )(y)
        y = unit(1, activation=None, name="f.c")(y)
        if self.stride > 1 or x.shape[-1] != self.features:
            x = unit(1, self.stride, activation=None, name="proj")(x)
        return relu_of_sum(y, x)


class RegNet(Model):
    """Map images `(N, H, W, C)`, 224x224x3 in the paper, to logits `(N, num_classes)`. Images may
    have any size.

    Stages have `depths` blocks with `widths` features; each halves the map. Their 3x3 convolutions
    have groups of `group_width` channels. `squeeze` is the ratio of RegNetY's squeeze-excitation; 0
    gives RegNetX. `remat` recomputes each block in the backward pass.

    With `dense`: the map of logits `(N, H / 32, W / 32, num_classes)`. The logits are its mean over
    positions.
    """

    depths: Sequence[int]
    widths: Sequence[int]
    group_width: int
    squeeze: float = 0.0
    num_classes: int = 1000
    dense: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    input_shape = (224, 224, 3)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        conv = functools.partial(Conv, kernel_init=he_normal_fan_out, dtype=self.dtype)
        norm = functools.partial(BatchNorm, use_running_average=not train, dtype=self.dtype)
        block = functools.partial(
            nn.remat(Bottleneck) if self.remat else Bottleneck,
            group_width=self.group_width, squeeze=self.squeeze, conv=conv, norm=norm,
        )  # fmt: skip

        x = ConvNormActivation(32, conv, norm, stride=2, name="stem")(x)
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True), 1):
            for index, stride in enumerate(stage_strides(2, depth)):
                name = f"trunk_output.block{stage}.block{stage}-{index}"
                x = block(width, stride, name=name)(x)
        if not self.dense:
            x = average_positions(x)
        return Linear(
            self.num_classes,
            kernel_init=nn.initializers.normal(0.01),
            bias_init=nn.initializers.zeros,
            dtype=self.dtype,
            name="fc",
        )(x)


# Figures 15 and 16: depth, initial width, slope, ratio and group width.
X = {
    "400mf": (22, 24, 24.48, 2.54, 16),
    "800mf": (16, 56, 35.73, 2.28, 16),
    "1_6gf": (18, 80, 34.01, 2.25, 24),
    "3_2gf": (25, 88, 26.31, 2.25, 48),
    "8gf": (23, 80, 49.56, 2.88, 120),
    "16gf": (22, 216, 55.59, 2.1, 128),
    "32gf": (23, 320, 69.86, 2.0, 168),
}
Y = {
    "400mf": (16, 48, 27.89, 2.09, 8),
    "800mf": (14, 56, 38.84, 2.4, 16),
    "1_6gf": (27, 48, 20.71, 2.65, 24),
    "3_2gf": (21, 80, 42.63, 2.66, 24),
    "8gf": (17, 192, 76.82, 2.19, 56),
    "16gf": (18, 200, 106.23, 2.48, 112),
    "32gf": (20, 232, 115.89, 2.53, 232),
    "128gf": (27, 456, 160.83, 2.52, 264),  # Singh et al. 2022 (arXiv:2201.08371)
}

VARIANTS = {
    **{f"regnet_x_{name}": functools.partial(RegNet, **linear_widths(*X[name])) for name in X},
    **{
        f"regnet_y_{name}": functools.partial(RegNet, **linear_widths(*Y[name]), squeeze=0.25)
        for name in Y
    },
}
