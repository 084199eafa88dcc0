"""OverFeat: Sermanet et al. 2013, "OverFeat: Integrated Recognition, Localization and Detection
using Convolutional Networks" (arXiv:1312.6229), Table 1 (fast) and Table 3 (accurate).

Pooling regions do not overlap, and there is no contrast normalisation (section 3.1). Table 1 prints
24x24 as the input size of layer 2. Its other numbers imply 28x28, and 24x24 after the convolution.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.initializers import normal
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


class OverFeat(Model):
    """Map images `(N, H, W, C)` to logits `(N, num_classes)`. Images need at least the size of
    `input_shape`.

    Larger images give the mean of the logits over all positions, or with `dense` their map
    `(N, H', W', num_classes)`. With `offset_pooling` the last pool moves by one pixel instead of
    its width, and the classifier samples its output in steps of that width. The result is the map
    at every offset, interleaved (section 3.3 and Figure 3): positions are 12 pixels apart instead
    of 36 in the accurate network.

    Each field is a row of the paper's table. `channels`, `filters`, `strides` and `pools` (1: none)
    have one entry per convolution, `hidden_features` one per hidden fully connected layer.
    """

    input_shape: tuple[int, int, int]
    channels: tuple[int, ...]
    filters: tuple[int, ...]
    strides: tuple[int, ...]
    pools: tuple[int, ...]
    patch: tuple[int, int]  # size of the last feature map, input of the first full layer
    hidden_features: tuple[int, int]
    num_classes: int = 1000
    dropout_rate: float = 0.5
    dense: bool = False
    offset_pooling: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        # Section 3.1: weights from N(0, 0.01). It does not mention biases; ours are zero.
        init = {"kernel_init": normal(0.01), "bias_init": nn.initializers.zeros}
        conv = functools.partial(Conv, dtype=self.dtype, **init)
        linear = functools.partial(Linear, dtype=self.dtype, **init)
        dropout = functools.partial(nn.Dropout, self.dropout_rate, deterministic=not train)
        features = []
        table = zip(self.channels, self.filters, self.strides, self.pools, strict=True)
        for layer, (channels, size, stride, pool) in enumerate(table, start=1):
            # Zero padding keeps the grid from layer 3 on.
            features += [conv(channels, size, stride, size // 2 if layer > 2 else 0), relu]
            if pool > 1:
                last = layer == len(self.pools)
                features.append(max_pool(pool, 1 if last and self.offset_pooling else pool))
        x = Sequential(features, self.remat, name="features")(x)
        dilation = self.pools[-1] if self.offset_pooling else 1
        first, second = self.hidden_features
        x = Sequential(
            [
                linear(first, patch=self.patch, dilation=dilation), relu, dropout(),
                linear(second), relu, dropout(),
                linear(self.num_classes),
            ],
            name="classifier",
        )(x)  # fmt: skip
        return x if self.dense else average_positions(x)


VARIANTS = {
    "overfeat_fast": functools.partial(
        OverFeat,
        input_shape=(231, 231, 3),
        channels=(96, 256, 512, 1024, 1024),
        filters=(11, 5, 3, 3, 3),
        strides=(4, 1, 1, 1, 1),
        pools=(2, 2, 1, 1, 2),
        patch=(6, 6),
        hidden_features=(3072, 4096),
    ),
    "overfeat_accurate": functools.partial(
        OverFeat,
        input_shape=(221, 221, 3),
        channels=(96, 256, 512, 512, 1024, 1024),
        filters=(7, 7, 3, 3, 3, 3),
        strides=(2, 1, 1, 1, 1, 1),
        pools=(3, 2, 1, 1, 1, 3),
        patch=(5, 5),
        hidden_features=(4096, 4096),
    ),
}
