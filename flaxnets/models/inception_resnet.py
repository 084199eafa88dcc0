"""Inception-ResNet: Szegedy, Ioffe, Vanhoucke & Alemi 2016, "Inception-v4, Inception-ResNet and the
Impact of Residual Connections on Learning" (arXiv:1602.07261), Figures 10-15.

- `inception_resnet_v1`: Figures 10-15, with the names of the second version.
- `inception_resnet_v2`: timm/models/inception_resnet_v2.py, whose weights the authors published.

The published network differs from the paper's version 2:

- The stem is Inception-v3's, followed by `mixed_5b`.
- There are 10, 20 and 10 blocks instead of 5, 10 and 5.
- The grids have 320, 1088 and 2080 channels instead of 384, 1154 and 2048.
- The last block has no ReLU. A 1x1 convolution to 1536 channels follows it.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.blocks import ConvNormRelu, Mixed, branch, concatenated
from flaxnets.layers import (
    Array,
    BatchNorm,
    Conv,
    Dtype,
    Linear,
    Sequential,
    average_positions,
    avg_pool,
    max_pool,
    relu,
)
from flaxnets.models.base import Model

V = 0  # no padding: convolutions marked "V" in the figures. All others keep the size of the grid.
MAX = max_pool(3, 2)
AVERAGE = avg_pool(3, 1, 1, count_include_pad=False)

# A branch is a name and its layers; a convolution is (features, kernel, stride, padding).
STEM: tuple[tuple[Any, ...], ...] = (
    ("conv2d_1a", (32, 3, 2, V)),
    ("conv2d_2a", (32, 3, 1, V)),
    ("conv2d_2b", (64, 3)),
    ("maxpool_3a", MAX),
    ("conv2d_3b", (80, 1)),
    ("conv2d_4a", (192, 3, 1, V)),
)
STEM_ENDS: dict[str, tuple[Any, ...]] = {
    "v1": ("conv2d_4b", (256, 3, 2, V)),  # Figure 14
    "v2": ("maxpool_5a", MAX),
}
MIXED_5B = (
    ("branch0", (96, 1)),
    ("branch1", (48, 1), (64, 5)),
    ("branch2", (64, 1), (96, 3), (96, 3)),
    ("branch3", AVERAGE, (64, 1)),
)
# The residual branches on the grids of 35x35, 17x17 and 8x8 positions (for 299 pixels).
RESIDUALS = {
    "v1": (  # Figures 10, 11, 13
        (("branch0", (32, 1)), ("branch1", (32, 1), (32, 3)),
         ("branch2", (32, 1), (32, 3), (32, 3))),
        (("branch0", (128, 1)), ("branch1", (128, 1), (128, (1, 7)), (128, (7, 1)))),
        (("branch0", (192, 1)), ("branch1", (192, 1), (192, (1, 3)), (192, (3, 1)))),
    ),
    "v2": (
        (("branch0", (32, 1)), ("branch1", (32, 1), (32, 3)),
         ("branch2", (32, 1), (48, 3), (64, 3))),
        (("branch0", (192, 1)), ("branch1", (128, 1), (160, (1, 7)), (192, (7, 1)))),
        (("branch0", (192, 1)), ("branch1", (192, 1), (224, (1, 3)), (256, (3, 1)))),
    ),
}  # fmt: skip
SCALES = (0.17, 0.10, 0.20)  # factors of those residuals (section 3.3: between 0.1 and 0.3)
# The reductions from the first grid to the second and from the second to the third.
REDUCTIONS = {
    "v1": (  # Figure 7 with k, l, m, n of Table 1; Figure 12
        (("branch0", (384, 3, 2, V)), ("branch1", (192, 1), (192, 3), (256, 3, 2, V)),
         ("branch2", MAX)),
        (("branch0", (256, 1), (384, 3, 2, V)), ("branch1", (256, 1), (256, 3, 2, V)),
         ("branch2", (256, 1), (256, 3), (256, 3, 2, V)), ("branch3", MAX)),
    ),
    "v2": (
        (("branch0", (384, 3, 2, V)), ("branch1", (256, 1), (256, 3), (384, 3, 2, V)),
         ("branch2", MAX)),
        (("branch0", (256, 1), (384, 3, 2, V)), ("branch1", (256, 1), (288, 3, 2, V)),
         ("branch2", (256, 1), (288, 3), (320, 3, 2, V)), ("branch3", MAX)),
    ),
}  # fmt: skip

ModuleDef = Callable[..., nn.Module]


class Residual(nn.Module):
    """x + scale * a linear 1x1 convolution of the concatenated branches, followed by a ReLU."""

    branches: tuple
    scale: float
    conv: ModuleDef
    relu: bool = True
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = concatenated(x, self.branches, self.conv)
        x = x + self.scale * Conv(x.shape[-1], 1, dtype=self.dtype, name="conv2d")(y)
        return relu(x) if self.relu else x


class InceptionResNet(Model):
    """Map images `(N, H, W, C)`, 299x299x3 in the paper, to logits `(N, num_classes)`. Images need
    at least 75x75 pixels.

    `depths` counts the residual blocks on the three grids. `remat` recomputes each of them in the
    backward pass.

    With `dense`: the map of logits `(N, H', W', num_classes)` at every position of the last
    features.
    """

    version: str
    depths: tuple[int, int, int]
    num_classes: int = 1000
    dropout_rate: float = 0.2  # Figure 15: keep 0.8
    dense: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    input_shape = (299, 299, 3)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        norm = functools.partial(
            BatchNorm, use_running_average=not train, epsilon=1e-3, dtype=self.dtype
        )
        conv = functools.partial(
            ConvNormRelu, conv=functools.partial(Conv, use_bias=False, dtype=self.dtype), norm=norm
        )
        residual = functools.partial(
            nn.remat(Residual) if self.remat else Residual, conv=conv, dtype=self.dtype
        )
        for row in (*STEM, STEM_ENDS[self.version]):
            x = branch(conv, *row)(x)
        if self.version == "v2":
            x = Mixed(MIXED_5B, conv, name="mixed_5b")(x)
        names = zip(("repeat", "repeat_1", "repeat_2"), ("mixed_6a", "mixed_7a", None), strict=True)
        for grid, (repeat, reduction) in enumerate(names):
            branches, scale = RESIDUALS[self.version][grid], SCALES[grid]
            blocks = [residual(branches, scale) for _ in range(self.depths[grid])]
            x = Sequential(blocks, name=repeat)(x)
            if reduction:
                x = Mixed(REDUCTIONS[self.version][grid], conv, name=reduction)(x)
        if self.version == "v2":
            x = residual(RESIDUALS["v2"][-1], scale=1.0, relu=False, name="block8")(x)
            x = conv(1536, 1, name="conv2d_7b")(x)
        if not self.dense:
            x = average_positions(x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return Linear(self.num_classes, dtype=self.dtype, name="classif")(x)


VARIANTS = {
    "inception_resnet_v1": functools.partial(InceptionResNet, "v1", depths=(5, 10, 5)),
    "inception_resnet_v2": functools.partial(InceptionResNet, "v2", depths=(10, 20, 9)),
}
