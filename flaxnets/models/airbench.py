"""Airbench94, the network of speed records on CIFAR-10: Jordan 2024, "94% on CIFAR-10 in 3.29
Seconds on a Single GPU" (arXiv:2404.00498), section 3.

This is the form that Muon trains (github.com/KellerJordan/cifar10-airbench, airbench94_muon.py),
with its names. The recipe sets the first convolution to a whitening of the patches of the training
images (`Recipe.whiten`). It freezes that convolution and the scales of the norms, which are one.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.blocks import gelu
from flaxnets.layers import (
    Array,
    BatchNorm,
    Conv,
    Dtype,
    Linear,
    Sequential,
    average_positions,
    max_pool,
    torch_default,
)
from flaxnets.models.base import Model


def dirac(key: Array, shape: Sequence[int], dtype: Dtype = jnp.float32) -> Array:
    """Return a kernel (height, width, C, features) whose first C filters copy their input (section
    3.2); the other filters have torch's default values.
    """
    height, width, channels, features = shape
    same = min(channels, features)
    identity = jnp.zeros((height, width, channels, same), dtype)
    identity = identity.at[height // 2, width // 2].set(jnp.eye(channels, same, dtype=dtype))
    return torch_default(key, shape, dtype).at[..., :same].set(identity)


def unit_deviation(key: Array, shape: Sequence[int], dtype: Dtype = jnp.float32) -> Array:
    """Return torch's default values, scaled to a standard deviation of one."""
    kernel = torch_default(key, shape, dtype)
    return kernel / kernel.std(ddof=1)


class Group(nn.Module):
    """Two 3x3 convolutions with a 2x2 max pool after the first."""

    features: int
    train: bool
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        conv = functools.partial(
            Conv, self.features, 3, padding=1,
            use_bias=False, kernel_init=dirac, dtype=self.dtype,
        )  # fmt: skip
        norm = functools.partial(
            BatchNorm, not self.train, momentum=0.4, epsilon=1e-12, dtype=self.dtype
        )
        x = max_pool(2)(conv(name="conv1")(x))
        x = gelu(norm(name="norm1")(x))
        return gelu(norm(name="norm2")(conv(name="conv2")(x)))


class Airbench(Model):
    """Map images `(N, H, W, C)`, 32x32x3 in the paper, to logits `(N, num_classes)`. Images need at
    least 25x25 pixels.

    The groups have `widths` features; the logits are divided by the last width. `remat` recomputes
    each group in the backward pass.

    With `dense`: the map of logits with one position for every 24 pixels. The logits are its mean
    over positions.
    """

    widths: Sequence[int] = (64, 256, 256)
    num_classes: int = 10
    dense: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    input_shape = (32, 32, 3)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        # One filter for each of the 2 * 2 * C numbers of a patch, and one for its negative.
        x = Conv(2 * 4 * x.shape[-1], 2, dtype=self.dtype, name="whiten")(x)
        group = nn.remat(Group) if self.remat else Group
        groups = [group(features, train, self.dtype) for features in self.widths]
        x = Sequential([gelu, *groups, max_pool(3)], name="layers")(x)
        if not self.dense:
            x = average_positions(x)
        features = x.shape[-1]
        x = Linear(
            self.num_classes, use_bias=False, kernel_init=unit_deviation,
            dtype=self.dtype, name="head",
        )(x)  # fmt: skip
        return x / features if self.num_classes else x


VARIANTS = {"airbench94": functools.partial(Airbench)}
