"""LeNet-5 as the lecture prints it (after LeCun et al. 1998, "Gradient-based learning applied to
document recognition", section II.B).

The 1998 network differs: trainable subsampling, a sparse connection table in its third layer, tanh,
and radial basis functions at the output. The lecture has max pooling, full connections and ReLU.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.layers import (
    Array,
    Conv,
    Dtype,
    Linear,
    Sequential,
    average_positions,
    max_pool,
    relu,
)
from flaxnets.models.base import Model


class LeNet5(Model):
    """`(N, H, W, C)`, 28x28x1 in the lecture, to logits `(N, num_classes)`; 28 pixels at least.

    Larger images give the mean of the class scores over positions, or with `dense` their map
    `(N, H', W', num_classes)`.
    """

    num_classes: int = 10
    dense: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    input_shape = (28, 28, 1)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        conv = functools.partial(Conv, dtype=self.dtype)
        linear = functools.partial(Linear, dtype=self.dtype)
        x = Sequential(
            [
                conv(6, 5), relu, max_pool(2),
                conv(16, 5), relu, max_pool(2),
            ],
            self.remat,
            name="features",
        )(x)  # fmt: skip
        x = Sequential(
            [
                linear(120, patch=(4, 4)), relu,
                linear(84), relu,
                linear(self.num_classes),
            ],
            name="classifier",
        )(x)  # fmt: skip
        return x if self.dense else average_positions(x)


VARIANTS = {"lenet5": functools.partial(LeNet5)}
