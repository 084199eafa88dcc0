"""AlexNet: torchvision's single tower, and the network of Krizhevsky et al. 2012.

- `alexnet`: torchvision/models/alexnet.py. It is the one-tower network of Krizhevsky 2014
  (arXiv:1404.5997) with dropout before the first two linear layers and an adaptive pool.
- `alexnet_2012`: "ImageNet Classification with Deep Convolutional Neural Networks" (NIPS 2012),
  section 3.
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
    adaptive_avg_pool,
    average_positions,
    local_response_norm,
    max_pool,
    relu,
)
from flaxnets.models.base import Model


class AlexNet(Model):
    """Map images `(N, H, W, C)`, 224x224x3 in torchvision, to logits `(N, num_classes)`. Images
    need at least 63x63 pixels.

    With `dense`: the map of logits `(N, H', W', num_classes)` at every 6x6 patch of the features.
    There is no adaptive pool then, and only images larger than 224 pixels give more than one
    position. `offset_pooling` is explained in `AlexNet2012`.
    """

    num_classes: int = 1000
    hidden_features: int = 4096
    dropout_rate: float = 0.5
    dense: bool = False
    offset_pooling: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    input_shape = (224, 224, 3)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        conv = functools.partial(Conv, dtype=self.dtype)
        linear = functools.partial(Linear, dtype=self.dtype)
        dropout = functools.partial(nn.Dropout, self.dropout_rate, deterministic=not train)
        last_stride, dilation = (1, 2) if self.offset_pooling else (2, 1)
        x = Sequential(
            [
                conv(64, 11, 4, 2), relu, max_pool(3, 2),
                conv(192, 5, padding=2), relu, max_pool(3, 2),
                conv(384, 3, padding=1), relu,
                conv(256, 3, padding=1), relu,
                conv(256, 3, padding=1), relu, max_pool(3, last_stride),
            ],
            self.remat,
            name="features",
        )(x)  # fmt: skip
        if not (self.dense or self.offset_pooling):
            x = adaptive_avg_pool(6)(x)
        x = Sequential(
            [
                dropout(), linear(self.hidden_features, patch=(6, 6), dilation=dilation), relu,
                dropout(), linear(self.hidden_features), relu,
                linear(self.num_classes),
            ],
            name="classifier",
        )(x)  # fmt: skip
        return x if self.dense else average_positions(x)


class AlexNet2012(Model):
    """Map images `(N, H, W, C)`, 224x224x3 in the paper, to logits `(N, num_classes)`. Images need
    at least 195x195 pixels.

    Layers 2, 4 and 5 are split in two groups, one for each of the paper's two GPUs. The paper's
    first layer has 55x55 positions. At stride 4 these cover 227 pixels, three more than an image of
    224 has. We pad by 2 on both sides; the fourth of these pixels is left over. Images thus stay
    224x224, as in the paper's text.

    Larger images give the mean of the logits over all positions, or with `dense` their map. With
    `offset_pooling` the last pool moves by one pixel instead of two and the classifier samples
    every other position. The result is the map at both offsets of the pool, interleaved: positions
    are 16 pixels apart instead of 32 (Sermanet et al. 2013, arXiv:1312.6229, section 3.3). The pool
    is 3 wide, but its windows overlap, so there are as many offsets as its stride has pixels.
    """

    num_classes: int = 1000
    hidden_features: int = 4096
    dropout_rate: float = 0.5
    dense: bool = False
    offset_pooling: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    input_shape = (224, 224, 3)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        # Section 5: weights from N(0, 0.01). Biases are one in layers 2, 4, 5 and the fully
        # connected hidden layers, so that their ReLUs have positive inputs early on; they are zero
        # elsewhere.
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        conv = functools.partial(Conv, kernel_init=normal(0.01), dtype=self.dtype)
        linear = functools.partial(Linear, kernel_init=normal(0.01), dtype=self.dtype)
        dropout = functools.partial(nn.Dropout, self.dropout_rate, deterministic=not train)
        last_stride, dilation = (1, 2) if self.offset_pooling else (2, 1)
        lrn = local_response_norm(size=5, alpha=1e-4, beta=0.75, k=2)
        x = Sequential(
            [
                conv(96, 11, 4, 2, bias_init=zeros), relu, lrn, max_pool(3, 2),
                conv(256, 5, padding=2, groups=2, bias_init=ones), relu, lrn, max_pool(3, 2),
                conv(384, 3, padding=1, bias_init=zeros), relu,
                conv(384, 3, padding=1, groups=2, bias_init=ones), relu,
                conv(256, 3, padding=1, groups=2, bias_init=ones), relu,
                max_pool(3, last_stride),
            ],
            self.remat,
            name="features",
        )(x)  # fmt: skip
        x = Sequential(
            [
                linear(self.hidden_features, patch=(6, 6), dilation=dilation, bias_init=ones),
                relu, dropout(),
                linear(self.hidden_features, bias_init=ones), relu, dropout(),
                linear(self.num_classes, bias_init=zeros),
            ],
            name="classifier",
        )(x)  # fmt: skip
        return x if self.dense else average_positions(x)


VARIANTS = {
    "alexnet": functools.partial(AlexNet),
    "alexnet_2012": functools.partial(AlexNet2012),
}
