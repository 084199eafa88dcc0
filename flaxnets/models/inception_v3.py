"""Inception v3: Szegedy et al. 2015, "Rethinking the Inception Architecture for Computer Vision"
(arXiv:1512.00567), Figures 5-8 and 10.

Where torchvision/models/inception.py and the published weights depart from the paper's Table 1, we
follow them: names, widths, initialisation, batch norms with epsilon 1e-3.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.blocks import ConvNormRelu
from flaxnets.initializers import normal
from flaxnets.layers import (
    Array,
    BatchNorm,
    Conv,
    Dtype,
    Linear,
    adaptive_avg_pool,
    average_positions,
    avg_pool,
    imagenet_to_unit_range,
    joined,
    max_pool,
)
from flaxnets.models.base import Model

# A branch is a name and a chain of convolutions (features, kernel). Two kernels mean two parallel
# convolutions, whose outputs are concatenated.
FIGURE_5 = (  # the published weights have a 5x5 where the figure has a single 3x3
    ("branch1x1", (64, 1)),
    ("branch5x5", (48, 1), (64, 5)),
    ("branch3x3dbl", (64, 1), (96, 3), (96, 3)),
)
# Figure 6 with 1x7 and 7x1 kernels, by the width of the 1x1 convolution before them.
FIGURE_6 = {
    n: (
        ("branch1x1", (192, 1)),
        ("branch7x7", (n, 1), (n, (1, 7)), (192, (7, 1))),
        ("branch7x7dbl", (n, 1), (n, (7, 1)), (n, (1, 7)), (n, (7, 1)), (192, (1, 7))),
    )
    for n in (128, 160, 192)
}
FIGURE_7 = (
    ("branch1x1", (320, 1)),
    ("branch3x3", (384, 1), (384, (1, 3), (3, 1))),
    ("branch3x3dbl", (448, 1), (384, 3), (384, (1, 3), (3, 1))),
)
# Reductions of the grid (Figure 10), from 35x35 and from 17x17. The last convolution of every
# branch has stride 2 and no padding.
REDUCE_35 = (
    ("branch3x3", (384, 3)),
    ("branch3x3dbl", (64, 1), (96, 3), (96, 3)),
)
REDUCE_17 = (
    ("branch3x3", (192, 1), (320, 3)),
    ("branch7x7x3", (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3)),
)
# The branches and the width of the pool's projection. A reduction has a pool without projection.
MIXED = {
    "Mixed_5b": (FIGURE_5, 32),
    "Mixed_5c": (FIGURE_5, 64),
    "Mixed_5d": (FIGURE_5, 64),
    "Mixed_6a": (REDUCE_35, None),
    "Mixed_6b": (FIGURE_6[128], 192),
    "Mixed_6c": (FIGURE_6[160], 192),
    "Mixed_6d": (FIGURE_6[160], 192),
    "Mixed_6e": (FIGURE_6[192], 192),
    "Mixed_7a": (REDUCE_17, None),
    "Mixed_7b": (FIGURE_7, 192),
    "Mixed_7c": (FIGURE_7, 192),
}

# torchvision truncates at +-2, which is 20 standard deviations. That is a plain normal
# distribution. It intends 0.01 for the head's 5x5 convolution, but sets the value where its loop
# ignores it.
tenth = normal(0.1)


class Mixed(nn.Module):
    """The branches of a table above and a pool, concatenated."""

    branches: tuple
    project: int | None
    unit: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        outputs = []
        for branch, *chain in self.branches:
            y = x
            for number, (features, *kernels) in enumerate(chain, 1):
                reduce = self.project is None and number == len(chain)
                unit = functools.partial(self.unit, stride=2, padding=0) if reduce else self.unit
                name = f"{branch}_{number}" if len(chain) > 1 else branch
                sides = "ab" if len(kernels) > 1 else [""]
                y = joined([
                    unit(features, kernel, name=name + side)(y)
                    for side, kernel in zip(sides, kernels, strict=True)
                ])  # fmt: skip
            outputs.append(y)
        if self.project is None:
            outputs.append(max_pool(3, 2)(x))
        else:
            outputs.append(self.unit(self.project, name="branch_pool")(avg_pool(3, 1, 1)(x)))
        return joined(outputs)


class AuxiliaryHead(nn.Module):
    """A classifier of a 17x17 map (Figure 8), `(N, H, W, C)` to logits `(N, num_classes)`."""

    num_classes: int
    unit: Callable[..., nn.Module]
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.is_initializing():  # Shapes of parameters do not depend on the map's size.
            x = jnp.zeros((1, 17, 17, x.shape[-1]), x.dtype)
        x = self.unit(128, name="conv0")(avg_pool(5, 3)(x))
        x = self.unit(768, 5, padding=0, name="conv1")(x)
        tiny = normal(0.001)
        linear = Linear(self.num_classes, kernel_init=tiny, dtype=self.dtype, name="fc")
        return average_positions(linear(adaptive_avg_pool(1)(x)))


class InceptionV3(Model):
    """Map images `(N, H, W, C)`, 299x299x3 in the paper, to logits `(N, num_classes)`. Images need
    at least 75x75 pixels, and 299x299 to train with the auxiliary head.

    `modules` names the rows of `MIXED` to build. In training the auxiliary head sows its logits
    into the collection `"aux_logits"`, under torchvision's name, which is the same. The published
    weights need `transform_input=True`: it brings RGB images, normalised by ImageNet's statistics
    as for the other networks, to [-1, 1]. `remat` recomputes each module in the backward pass.

    With `dense`: the map of logits `(N, H', W', num_classes)` at every position of the features.
    """

    modules: tuple[str, ...] = tuple(MIXED)
    num_classes: int = 1000
    aux_logits: bool = True
    transform_input: bool = False
    dropout_rate: float = 0.5
    dense: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    input_shape = (299, 299, 3)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        conv = functools.partial(Conv, use_bias=False, kernel_init=tenth, dtype=self.dtype)
        norm = functools.partial(
            BatchNorm, epsilon=1e-3, use_running_average=not train, dtype=self.dtype
        )
        dropout = functools.partial(nn.Dropout, self.dropout_rate, deterministic=not train)
        unit = functools.partial(ConvNormRelu, conv=conv, norm=norm)
        mixed = nn.remat(Mixed) if self.remat else Mixed

        if self.transform_input:
            x = imagenet_to_unit_range(x, self.dtype)
        x = unit(32, 3, 2, padding=0, name="Conv2d_1a_3x3")(x)
        x = unit(32, 3, padding=0, name="Conv2d_2a_3x3")(x)
        x = unit(64, 3, name="Conv2d_2b_3x3")(x)
        x = max_pool(3, 2)(x)
        x = unit(80, name="Conv2d_3b_1x1")(x)
        x = unit(192, 3, padding=0, name="Conv2d_4a_3x3")(x)
        x = max_pool(3, 2)(x)
        for name in self.modules:
            branches, project = MIXED[name]
            x = mixed(branches, project, unit, name=name)(x)
            if name == "Mixed_6e" and self.aux_logits and (train or self.is_initializing()):
                logits = AuxiliaryHead(self.num_classes, unit, self.dtype, name="AuxLogits")(x)
                if not self.is_initializing():
                    self.sow("aux_logits", "aux_logits", logits)
        if not self.dense:
            x = adaptive_avg_pool(1)(x)
        linear = Linear(self.num_classes, kernel_init=tenth, dtype=self.dtype, name="fc")
        x = linear(dropout()(x))
        return x if self.dense else average_positions(x)


VARIANTS = {"inception_v3": functools.partial(InceptionV3)}
