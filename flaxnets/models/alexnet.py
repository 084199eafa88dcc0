"""AlexNet: torchvision's single tower, and the networks of Krizhevsky et al. 2012.

- `alexnet`: torchvision/models/alexnet.py, which is the one-tower network of Krizhevsky 2014
  (arXiv:1404.5997) with dropout before the first two linear layers and an adaptive pool.
- `alexnet_2012`: "ImageNet Classification with Deep Convolutional Neural Networks", section 3.
- `alexnet_cifar` and `alexnet_cifar_local`: its small networks for CIFAR-10. Figure 1 compares ReLU
  and tanh on "a four-layer convolutional network", section 3.3 networks with (11% error) and
  without (13%) response normalisation. The paper leaves them to the files of cuda-convnet, in
  example-layers: the four layers are those of layers-18pct.cfg, the two errors those of
  layers-conv-local-11pct.cfg and -13pct.cfg, whose third and fourth layers share no weights.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from flaxnets.blocks import activation_named
from flaxnets.initializers import normal
from flaxnets.layers import (
    Array,
    Conv,
    Dtype,
    Linear,
    Sequential,
    adaptive_avg_pool,
    average_positions,
    avg_pool,
    local_response_norm,
    max_pool,
    relu,
)
from flaxnets.models.base import Model


class AlexNet(Model):
    """`(N, H, W, C)`, 224x224x3 in torchvision, to logits `(N, num_classes)`; 63 pixels at least.

    With `dense`: the map `(N, H', W', num_classes)` of logits at every 6x6 patch of the features
    (larger images than 224 for more than one; no adaptive pool). `offset_pooling` as in
    `AlexNet2012`.
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
    """`(N, H, W, C)`, 224x224x3 in the paper, to logits `(N, num_classes)`; 195 pixels at least.

    Layers 2, 4 and 5 are split in two groups, one for each of the paper's two GPUs. The paper's
    first layer has 55x55 positions, which a 224-pixel image gives at stride 4 only with three
    pixels of padding: 227 = 55 * 4 + 7. Padding 2 on both sides reads just those
    (the fourth is left over), so that images stay 224x224 as the paper's text has them.

    Larger images give the mean of the class scores over positions, or with `dense` their map. With
    `offset_pooling` the last pool moves by one pixel instead of two and the classifier reads every
    other position: the map at both offsets of the pool, interleaved, 16 pixels apart instead of 32
    (Sermanet et al. 2013, arXiv:1312.6229, section 3.3). The pool is 3 wide, but its windows
    overlap: there are as many offsets as its stride has pixels.
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
        # Section 5: weights from N(0, 0.01); biases one in layers 2, 4, 5 and the fully connected
        # hidden layers, which gives their ReLUs positive inputs early on; zero elsewhere.
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


def response_norm_within_maps(alpha: float, beta: float) -> Callable[[Array], Array]:
    """Return x / (1 + alpha * mean of x^2 over 3x3 pixels) ** beta, with zeros beyond the edge.

    cuda-convnet's `rnorm`, whose `size` is 3 and whose `scale` is alpha.
    """
    return lambda x: x * (1 + alpha * avg_pool(3, 1, 1)(jnp.square(x))) ** -beta


def identity(x: Array) -> Array:
    """Return `x`: a layer left out, whose place keeps the numbers of the others."""
    return x


def avg_pool_to_the_edge(x: Array) -> Array:
    """Return the means of windows of 3x3 pixels at stride 2; the last ones may extend beyond the
    edge, where nothing counts.
    """

    def means(x: Array) -> Array:
        beyond = [(0, 1 - size % 2) for size in x.shape[1:3]]
        return avg_pool(3, 2)(jnp.pad(x, [(0, 0), *beyond, (0, 0)]))

    return means(x) / means(jnp.ones((1, *x.shape[1:3], 1), x.dtype))


class AlexNetCIFAR(Model):
    """`(N, H, W, C)`, 32x32x3 in cuda-convnet, to logits `(N, num_classes)`; 32 pixels at least.

    `activation` is "relu" or "tanh", `response_norm` is the one within maps.

    Larger images give the mean of the class scores over positions, or with `dense` their map
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
    """A 3x3 convolution with a kernel and a bias of its own at each of H * W positions.

    `(N, H, W, C) -> (N, H, W, features)`. The weight is `(H * W, 9 * C, features)`, patches
    channels first, as torch unfolds them.
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
        patches = lax.conv_general_dilated_patches(
            x, (3, 3), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ).reshape(count, *shape[:2])
        y = jnp.einsum("npc,pcf->npf", patches, weight.astype(self.dtype)) + bias.astype(self.dtype)
        return y.reshape(count, height, width, self.features)


class AlexNetCIFARLocal(Model):
    """`(N, H, W, C)`, 24x24x3 in cuda-convnet (crops of CIFAR), to logits `(N, num_classes)`.

    Its locally connected layers read their input at one size: others than at initialisation do not
    fit, and there is no `dense` map. `activation` is "relu" or "tanh", `response_norm` is the
    paper's equation with cuda-convnet's constants.
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
        # cuda-convnet divides its scale by the size: 0.001 / 5 multiplies the sum.
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
    "alexnet": functools.partial(AlexNet),
    "alexnet_2012": functools.partial(AlexNet2012),
    "alexnet_cifar": functools.partial(AlexNetCIFAR),
    "alexnet_cifar_local": functools.partial(AlexNetCIFARLocal),
}
