"""One column of MCDNN: Ciresan, Meier & Schmidhuber 2012, "Multi-column Deep Neural Networks for
Image Classification" (arXiv:1202.2745), section 3.1: 1x29x29-20C4-MP2-40C5-MP3-150N-10N.

The paper calls its activation a "scaled" tanh. The constants are those of its authors' MNIST
networks of 2010 (arXiv:1003.0358). The paper's classifier averages the softmax outputs of 35 such
columns, five for each of seven normalisations of the digits' width.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.blocks import scaled_tanh
from flaxnets.layers import Array, Conv, Dtype, Linear, Sequential, average_positions, max_pool
from flaxnets.models.base import Model


def uniform(key: Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
    """Return initial weights, uniform in +-0.05 (section 3)."""
    return jax.random.uniform(key, shape, dtype, -0.05, 0.05)


class MCDNN(Model):
    """Map images `(N, H, W, C)`, 29x29x1 in the paper, to logits `(N, num_classes)`. Images need at
    least 29x29 pixels.

    Larger images give the mean of the logits over all positions, or with `dense` their map
    `(N, H', W', num_classes)`.
    """

    num_classes: int = 10
    dense: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    input_shape = (29, 29, 1)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        init = {"kernel_init": uniform, "bias_init": uniform}
        conv = functools.partial(Conv, dtype=self.dtype, **init)
        linear = functools.partial(Linear, dtype=self.dtype, **init)
        x = Sequential(
            [
                conv(20, 4), scaled_tanh, max_pool(2),
                conv(40, 5), scaled_tanh, max_pool(3),
            ],
            self.remat,
            name="features",
        )(x)  # fmt: skip
        x = Sequential(
            [linear(150, patch=(3, 3)), scaled_tanh, linear(self.num_classes)],
            name="classifier",
        )(x)
        return x if self.dense else average_positions(x)


VARIANTS = {"mcdnn_mnist": functools.partial(MCDNN)}
