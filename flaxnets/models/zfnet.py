"""ZFNet: Zeiler & Fergus 2013, "Visualizing and Understanding Convolutional Networks"
(arXiv:1311.2901), Figure 3.

It is the network of Krizhevsky et al. 2012 without groups, with smaller filters and strides in the
first two layers. The figure's 55, 13 and 13 pixels after the pools result from windows that may
extend beyond the edge. The paper gives no constants for its contrast normalisation; ours are
Krizhevsky's. In training the paper renormalises filters whose root mean square exceeds 0.1 (section
3); we do not.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.layers import (
    Array,
    Conv,
    Dtype,
    Linear,
    Sequential,
    average_positions,
    local_response_norm,
    max_pool,
    relu,
)
from flaxnets.models.base import Model


class ZFNet(Model):
    """Map images `(N, H, W, C)`, 224x224x3 in the paper, to logits `(N, num_classes)`. Images need
    at least 207x207 pixels.

    Larger images give the mean of the logits over all positions, or with `dense` their map
    `(N, H', W', num_classes)`, with positions 32 pixels apart.
    """

    channels: Sequence[int] = (96, 256, 384, 384, 256)
    num_classes: int = 1000
    hidden_features: int = 4096
    dropout_rate: float = 0.5
    dense: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    input_shape = (224, 224, 3)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        # Section 3: weights of deviation 0.01, zero biases.
        normal, zeros = nn.initializers.normal(0.01), nn.initializers.zeros
        start = {"kernel_init": normal, "bias_init": zeros, "dtype": self.dtype}
        conv = functools.partial(Conv, **start)
        linear = functools.partial(Linear, **start)
        dropout = functools.partial(nn.Dropout, self.dropout_rate, deterministic=not train)
        lrn = local_response_norm(size=5, alpha=1e-4, beta=0.75, k=2)
        pool = max_pool(3, 2, ceil_mode=True)
        c1, c2, c3, c4, c5 = self.channels
        x = Sequential(
            [
                conv(c1, 7, 2, 1), relu, pool, lrn,
                conv(c2, 5, 2), relu, pool, lrn,
                conv(c3, 3, padding=1), relu,
                conv(c4, 3, padding=1), relu,
                conv(c5, 3, padding=1), relu, pool,
            ],
            self.remat,
            name="features",
        )(x)  # fmt: skip
        x = Sequential(
            [
                linear(self.hidden_features, patch=(6, 6)), relu, dropout(),
                linear(self.hidden_features), relu, dropout(),
                linear(self.num_classes),
            ],
            name="classifier",
        )(x)  # fmt: skip
        return x if self.dense else average_positions(x)


VARIANTS = {"zfnet": functools.partial(ZFNet)}
