"""AlexNet for CIFAR-10: the small networks of Krizhevsky et al. 2012, "ImageNet Classification with
Deep Convolutional Neural Networks" (NIPS 2012), Figure 1 and section 3.3.

Figure 1 compares ReLU and tanh on "a four-layer convolutional network". Section 3.3 compares
networks with response normalisation (11% error) and without (13%). The paper refers to the files of
cuda-convnet, in example-layers:

- `alexnet_cifar`: the four layers of layers-18pct.cfg.
- `alexnet_cifar_local`: layers-conv-local-11pct.cfg and -13pct.cfg, whose errors section 3.3 gives.
  The weights of the third and fourth layer are not shared between positions.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.blocks import activation_named, identity
from flaxnets.layers import (
    Array,
    Conv,
    Dtype,
    Linear,
    Sequential,
    average_positions,
    avg_pool,
    local_response_norm,
    max_pool,
)
from flaxnets.models.base import Model


def response_norm_within_maps(alpha: float, beta: float) -> Callable[[Array], Array]:
    """Return x / (1 + alpha * mean of x^2 over 3x3 pixels) ** beta, with zeros beyond the edge.

    It is cuda-convnet's `rnorm` with a `size` of 3 and a `scale` of alpha.
    """
    return lambda x: x * (1 + alpha * avg_pool(3, 1, 1)(jnp.square(x))) ** -beta


def avg_pool_to_the_edge(x: Array) -> Array:
    """Return the means of windows of 3x3 pixels at stride 2. The last windows may extend beyond the
    edge; only pixels inside count.
    """

    def means(x: Array) -> Array:
        beyond = [(0, 1 - size % 2) for size in x.shape[1:3]]
        return avg_pool(3, 2)(jnp.pad(x, [(0, 0), *beyond, (0, 0)]))

    return means(x) / means(jnp.ones((1, *x.shape[1:3], 1), x.dtype))


class AlexNetCIFAR(Model):
    """Map images `(N, H, W, C)`, 32x32x3 in cuda-convnet, to logits `(N, num_classes)`. Images need
    at least 32x32 pixels.

    `activation` is "relu" or "tanh". `response_norm` normalises within maps.

    Larger images give the mean of the logits over all positions, or with `dense` their map
    `(N, H', W', num_classes)`.
    """

    activation: str = "relu"
    response_norm: bool = True
    num_classes: int = 10
    dense: bool = False
    remat: bool = False
    dtype: Dtype = jnp.float32

    input_shape = (32, 32, 3)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        activation = activation_named(self.activation)
        norm = response_norm_within_maps(5e-5, 0.75) if self.response_norm else identity
        x = Sequential(
            [
                _conv5x5(32, 1e-4, self.dtype), max_pool(3, 2, ceil_mode=True), activation, norm,
                _conv5x5(32, 0.01, self.dtype), activation, avg_pool_to_the_edge, norm,
                _conv5x5(64, 0.01, self.dtype), activation, avg_pool_to_the_edge,
            ],
            self.remat,
            name="features",
        )(x)  # fmt: skip
        x = Linear(
            self.num_classes, patch=(4, 4), kernel_init=nn.initializers.normal(0.01),
            bias_init=nn.initializers.zeros, dtype=self.dtype, name="fc10",
        )(x)  # fmt: skip
        return x if self.dense else average_positions(x)


def _conv5x5(features: int, deviation: float, dtype: Dtype) -> Conv:
    normal, zeros = nn.initializers.normal(deviation), nn.initializers.zeros
    return Conv(features, 5, padding=2, kernel_init=normal, bias_init=zeros, dtype=dtype)


class LocalConv(nn.Module):
    """A 3x3 convolution with a separate kernel and bias at each of H * W positions.

    `(N, H, W, C) -> (N, H, W, features)`. The weight is `(H * W, 9 * C, features)`, with the
    channels of a patch first, as torch unfolds it.
    """

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.astype(self.dtype)
        count, height, width, channels = x.shape
        shape = height * width, 9 * channels, self.features
        weight = self.param("weight", nn.initializers.normal(0.04), shape, jnp.float32)
        zeros = nn.initializers.zeros
        bias = self.param("bias", zeros, (shape[0], self.features), jnp.float32)
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        cells = [x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
        patches = jnp.stack(cells, -1).reshape(count, *shape[:2])
        y = jnp.einsum("npc,pcf->npf", patches, weight.astype(self.dtype)) + bias.astype(self.dtype)
        return y.reshape(count, height, width, self.features)


class AlexNetCIFARLocal(Model):
    """Map images `(N, H, W, C)`, 24x24x3 in cuda-convnet (crops of CIFAR), to logits
    `(N, num_classes)`.

    Locally connected layers fix the size of their input. Images must therefore have the size of
    initialisation, and there is no `dense` map. `activation` is "relu" or "tanh". `response_norm`
    is the paper's equation with cuda-convnet's constants.
    """

    activation: str = "relu"
    response_norm: bool = True
    num_classes: int = 10
    remat: bool = False
    dtype: Dtype = jnp.float32

    input_shape = (24, 24, 3)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        activation = activation_named(self.activation)
        # cuda-convnet divides its scale by the size, so 0.001 / 5 multiplies the sum.
        lrn = local_response_norm(size=5, alpha=0.001 / 5, beta=0.75, k=1)
        norm = lrn if self.response_norm else identity
        pool = max_pool(3, 2, ceil_mode=True)
        x = Sequential(
            [
                _conv5x5(64, 1e-4, self.dtype), activation, norm, pool,
                _conv5x5(64, 0.01, self.dtype), activation, norm, pool,
                LocalConv(32, self.dtype), activation,
                LocalConv(32, self.dtype), activation,
            ],
            self.remat,
            name="features",
        )(x)  # fmt: skip
        x = Linear(
            self.num_classes, patch=(x.shape[1], x.shape[2]),
            kernel_init=nn.initializers.normal(0.01), bias_init=nn.initializers.zeros,
            dtype=self.dtype, name="fc10",
        )(x)  # fmt: skip
        return average_positions(x)


VARIANTS = {
    "alexnet_cifar": functools.partial(AlexNetCIFAR),
    "alexnet_cifar_local": functools.partial(AlexNetCIFARLocal),
}
