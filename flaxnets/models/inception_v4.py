"""Inception-v4: Szegedy, Ioffe, Vanhoucke & Alemi 2016, "Inception-v4, Inception-ResNet and the
Impact of Residual Connections on Learning" (arXiv:1602.07261), Figures 3-9; names of
timm/models/inception_v4.py, whose weights the authors published.

Within some branches the order of 1x7 and 7x1 (1x3 and 3x1) convolutions is that of the published
weights and not that of the figures. This changes no size and no count.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.blocks import ConvNormRelu, Mixed
from flaxnets.layers import (
    Array,
    BatchNorm,
    Conv,
    Dtype,
    Linear,
    Sequential,
    average_positions,
    avg_pool,
    joined,
    max_pool,
)
from flaxnets.models.base import Model

V = 0  # no padding: convolutions marked "V" in the figures. All others keep the size of the grid.
MAX = max_pool(3, 2)
AVERAGE = avg_pool(3, 1, 1, count_include_pad=False)

# A block is a tuple of branches, whose outputs are concatenated. A branch is a name and its layers.
# A convolution is (features, kernel, stride, padding).
STEM = (  # Figure 3: the first three layers, then the three filter concatenations
    (("maxpool", MAX), ("conv", (96, 3, 2, V))),
    (
        ("branch0", (64, 1), (96, 3, 1, V)),
        ("branch1", (64, 1), (64, (1, 7)), (64, (7, 1)), (96, 3, 1, V)),
    ),
    (("conv", (192, 3, 2, V)), ("maxpool", MAX)),
)
INCEPTION_A = (  # Figure 4
    ("branch0", (96, 1)),
    ("branch1", (64, 1), (96, 3)),
    ("branch2", (64, 1), (96, 3), (96, 3)),
    ("branch3", AVERAGE, (96, 1)),
)
REDUCTION_A = (  # Figure 7 with k, l, m, n of Table 1
    ("branch0", (384, 3, 2, V)),
    ("branch1", (192, 1), (224, 3), (256, 3, 2, V)),
    ("branch2", MAX),
)
INCEPTION_B = (  # Figure 5
    ("branch0", (384, 1)),
    ("branch1", (192, 1), (224, (1, 7)), (256, (7, 1))),
    ("branch2", (192, 1), (192, (7, 1)), (224, (1, 7)), (224, (7, 1)), (256, (1, 7))),
    ("branch3", AVERAGE, (128, 1)),
)
REDUCTION_B = (  # Figure 8
    ("branch0", (192, 1), (192, 3, 2, V)),
    ("branch1", (256, 1), (256, (1, 7)), (320, (7, 1)), (320, 3, 2, V)),
    ("branch2", MAX),
)


class InceptionC(nn.Module):
    """Figure 6. Two branches fork into a 1x3 and a 3x1 convolution."""

    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        conv = self.conv
        fork1 = conv(384, 1, name="branch1_0")(x)
        fork2 = conv(384, 1, name="branch2_0")(x)
        fork2 = conv(448, (3, 1), name="branch2_1")(fork2)
        fork2 = conv(512, (1, 3), name="branch2_2")(fork2)
        outputs = [
            conv(256, 1, name="branch0")(x),
            conv(256, (1, 3), name="branch1_1a")(fork1),
            conv(256, (3, 1), name="branch1_1b")(fork1),
            conv(256, (1, 3), name="branch2_3a")(fork2),
            conv(256, (3, 1), name="branch2_3b")(fork2),
            Sequential([AVERAGE, conv(256, 1)], name="branch3")(x),
        ]
        return joined(outputs)


class InceptionV4(Model):
    """Map images `(N, H, W, C)`, 299x299x3 in the paper, to logits `(N, num_classes)`. Images need
    at least 75x75 pixels.

    `depths` counts the blocks of Figures 4, 5 and 6 (Figure 9: 4, 7, 3). `remat` recomputes each
    block in the backward pass.

    With `dense`: the map of logits `(N, H', W', num_classes)` at every position of the last
    features.
    """

    depths: tuple[int, int, int] = (4, 7, 3)
    num_classes: int = 1000
    dropout_rate: float = 0.2  # Figure 9: keep 0.8
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
        mixed = functools.partial(nn.remat(Mixed) if self.remat else Mixed, unit=conv)
        inception_c = functools.partial(nn.remat(InceptionC) if self.remat else InceptionC, conv)
        n_a, n_b, n_c = self.depths
        x = Sequential(
            [
                conv(32, 3, 2, V), conv(32, 3, 1, V), conv(64, 3),
                *(mixed(branches) for branches in STEM),
                *(mixed(INCEPTION_A) for _ in range(n_a)), mixed(REDUCTION_A),
                *(mixed(INCEPTION_B) for _ in range(n_b)), mixed(REDUCTION_B),
                *(inception_c() for _ in range(n_c)),
            ],
            name="features",
        )(x)  # fmt: skip
        if not self.dense:
            x = average_positions(x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return Linear(self.num_classes, dtype=self.dtype, name="last_linear")(x)


VARIANTS = {"inception_v4": functools.partial(InceptionV4)}
