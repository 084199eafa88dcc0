"""LeNet-5: LeCun, Bottou, Bengio & Haffner 1998, "Gradient-based learning applied to document
recognition" (Proceedings of the IEEE 86), section II.B.

- `lenet5`: the lecture's version, with max pooling, full connections and ReLU.
- `lenet5_1998`: the paper's, with trainable subsampling, the connection table of its third layer,
  scaled tanh, and radial basis functions at the output.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.blocks import scaled_tanh
from flaxnets.layers import (
    Array,
    Conv,
    Dtype,
    Initializer,
    Linear,
    Sequential,
    average_positions,
    avg_pool,
    max_pool,
    relu,
)
from flaxnets.models.base import Model


class LeNet5(Model):
    """Map images `(N, H, W, C)`, 28x28x1 in the lecture, to logits `(N, num_classes)`. Images need
    at least 28x28 pixels.

    Larger images give the mean of the logits over all positions, or with `dense` their map
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


# Table I: the maps of the second layer that each of the third layer's sixteen maps reads.
CONNECTIONS = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5),
    (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5),
    (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)  # fmt: skip


def uniform(fan_in: int) -> Initializer:
    """Return an initialiser of weights and biases, uniform in +-2.4 / fan_in (appendix A)."""

    def init(key: Array, shape: Sequence[int], dtype: Dtype = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -2.4 / fan_in, 2.4 / fan_in)

    return init


class Subsampling(nn.Module):
    """The sum of each 2x2 block of pixels, times a coefficient plus a bias, both of the channel."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        weight, bias = (
            self.param(leaf, uniform(4), x.shape[-1:], jnp.float32).astype(self.dtype)
            for leaf in ("weight", "bias")
        )
        return 4 * avg_pool(2)(x) * weight + bias


class PartialConv(nn.Module):
    """One 5x5 convolution for each row of a table. It reads the channels that the row names."""

    connections: Sequence[tuple[int, ...]]
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        maps = []
        for number, channels in enumerate(self.connections):
            init = uniform(25 * len(channels))
            conv = Conv(1, 5, kernel_init=init, bias_init=init, dtype=self.dtype, name=str(number))
            maps.append(conv(x[..., jnp.array(channels)]))
        return jnp.concatenate(maps, -1)


class RadialBasis(nn.Module):
    """The negative squared distance between the input and each of `features` codes (equation 7).

    The codes consist of -1 and 1. The paper draws them as stylised characters and mentions random
    codes as an alternative; ours are random. Without `features` it returns its input.
    """

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.astype(self.dtype)
        if not self.features:
            return x
        codes = self.param(
            "kernel", jax.random.rademacher, (x.shape[-1], self.features), jnp.float32
        )
        return -jnp.square(x[..., None] - codes.astype(self.dtype)).sum(-2)


class LeNet51998(Model):
    """Map images `(N, H, W, C)`, 32x32x1 in the paper, to logits `(N, num_classes)`. Images need at
    least 32x32 pixels.

    The paper's outputs are squared distances; the logits are their negatives. The cross entropy of
    these logits is the paper's criterion (equation 9) without its constant for images that show no
    character. As in the paper the codes are not trained: the recipe freezes them.

    Larger images give the mean of the logits over all positions, or with `dense` their map
    `(N, H', W', num_classes)`.
    """

    num_classes: int = 10
    dense: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    input_shape = (32, 32, 1)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        def start(fan_in: int) -> dict[str, Any]:
            init = uniform(fan_in)
            return {"kernel_init": init, "bias_init": init, "dtype": self.dtype}

        x = Sequential(
            [
                Conv(6, 5, **start(25 * x.shape[-1])), scaled_tanh,
                Subsampling(self.dtype), scaled_tanh,
                PartialConv(CONNECTIONS, self.dtype), scaled_tanh,
                Subsampling(self.dtype), scaled_tanh,
            ],
            self.remat,
            name="features",
        )(x)  # fmt: skip
        x = Sequential(
            [
                Linear(120, patch=(5, 5), **start(400)), scaled_tanh,
                Linear(84, **start(120)), scaled_tanh,
                RadialBasis(self.num_classes, self.dtype),
            ],
            name="classifier",
        )(x)  # fmt: skip
        return x if self.dense else average_positions(x)


VARIANTS = {
    "lenet5": functools.partial(LeNet5),
    "lenet5_1998": functools.partial(LeNet51998),
}
