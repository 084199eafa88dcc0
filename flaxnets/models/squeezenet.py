"""SqueezeNet: Iandola, Han, Moskewicz, Ashraf, Dally & Keutzer 2016, "SqueezeNet: AlexNet-level
accuracy with 50x fewer parameters and <0.5MB model size" (arXiv:1602.07360); names and
initialisation of torchvision's `squeezenet.py`.

- `squeezenet1_0`: Table 1.
- `squeezenet1_1`: the authors' later version (github.com/forresti/SqueezeNet), with a smaller first
  layer and earlier pools: 2.4 times fewer multiply-adds.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.layers import (
    Array,
    Conv,
    Dtype,
    Sequential,
    average_positions,
    joined,
    max_pool,
    relu,
)
from flaxnets.models.base import Model

# The first layer's channels and kernel size, then pools and fire modules. A fire module is given by
# the channels of its squeeze layer and of each half of its expand layer.
POOL = "pool"
Rows = tuple[tuple[int, int], *tuple[tuple[int, int] | str, ...]]
SQUEEZENET_1_0: Rows = (
    (96, 7), POOL,
    (16, 64), (16, 64), (32, 128), POOL,
    (32, 128), (48, 192), (48, 192), (64, 256), POOL,
    (64, 256),
)  # fmt: skip
SQUEEZENET_1_1: Rows = (
    (64, 3), POOL,
    (16, 64), (16, 64), POOL,
    (32, 128), (32, 128), POOL,
    (48, 192), (48, 192), (64, 256), (64, 256),
)  # fmt: skip


class Fire(nn.Module):
    """Section 3.2: a 1x1 convolution to few channels, then 1x1 and 3x3 convolutions that read them.
    The outputs of these two are concatenated.
    """

    squeeze: int
    expand: int
    conv: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = relu(self.conv(self.squeeze, 1, name="squeeze")(x))
        small = self.conv(self.expand, 1, name="expand1x1")(x)
        large = self.conv(self.expand, 3, padding=1, name="expand3x3")(x)
        return relu(joined((small, large)))


class SqueezeNet(Model):
    """Map images `(N, H, W, C)`, 224x224x3 in torchvision, to class scores `(N, num_classes)`, the
    mean of each class's map. Images need at least 21x21 pixels, 17x17 in `squeezenet1_1`.

    The scores are never negative, because a ReLU makes the maps. `remat` recomputes each fire
    module in the backward pass.

    With `dense`: the maps themselves, `(N, H / 16, W / 16, num_classes)`.
    """

    rows: Rows
    num_classes: int = 1000
    dropout_rate: float = 0.5
    dense: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    input_shape = (224, 224, 3)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        conv = functools.partial(
            Conv,
            kernel_init=nn.initializers.variance_scaling(2.0, "fan_in", "uniform"),
            bias_init=nn.initializers.zeros,
            dtype=self.dtype,
        )
        fire = functools.partial(nn.remat(Fire) if self.remat else Fire, conv=conv)
        (channels, kernel_size), *rows = self.rows
        layers = [max_pool(3, 2, ceil_mode=True) if row == POOL else fire(*row) for row in rows]
        x = Sequential([conv(channels, kernel_size, 2), relu, *layers], name="features")(x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        normal = nn.initializers.normal(0.01)
        x = relu(conv(self.num_classes, 1, kernel_init=normal, name="classifier.1")(x))
        return x if self.dense else average_positions(x)


VARIANTS = {
    "squeezenet1_0": functools.partial(SqueezeNet, rows=SQUEEZENET_1_0),
    "squeezenet1_1": functools.partial(SqueezeNet, rows=SQUEEZENET_1_1),
}
