"""What several families of torchvision share: its `ops.misc`, `ops.StochasticDepth`, attention, and
torch's activations and layer norm as those networks set them.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.kernels.attention import attention
from flaxnets.kernels.matmul import linear
from flaxnets.kernels.normalization import layer_norm
from flaxnets.layers import (
    Array,
    Conv,
    Dtype,
    Initializer,
    Linear,
    Size,
    relu,
    torch_default,
)

Activation = Callable[[Array], Array]

relu6 = jax.nn.relu6
silu = jax.nn.silu
sigmoid = jax.nn.sigmoid
hard_swish = jax.nn.hard_swish
hard_sigmoid = jax.nn.hard_sigmoid


def gelu(x: Array) -> Array:
    """Return x times the normal distribution function of x, torch's `GELU`; jax's own default is an
    approximation.
    """
    return jax.nn.gelu(x, approximate=False)


def identity(x: Array) -> Array:
    """Return `x`: torch's `Permute` between its layout and ours, which keeps its index in a
    Sequential.
    """
    return x


class LayerNorm(nn.Module):
    """Normalisation of each position over its channels: Ba, Kiros & Hinton 2016, "Layer
    Normalization" (arXiv:1607.06450), section 3.1; torch's, of shape (..., C).

    A call may give the variance (..., 1) to divide by instead of each position's own.
    """

    epsilon: float = 1e-5
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, variance: Array | None = None) -> Array:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        return layer_norm(x, scale, bias, self.epsilon, variance).astype(self.dtype)


def round_channels(channels: float, divisor: int = 8) -> int:
    """Return the multiple of `divisor` nearest to a scaled number of channels, or the next one
    where that would lose more than a tenth of them: the rule of the MobileNets' authors.
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


def pair_of(kernel_size: Size) -> tuple[int, int]:
    """Return the height and width of a kernel."""
    return (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size


class ConvNormActivation(nn.Module):
    """A convolution without bias that keeps the map's size up to its stride (`0`), its norm (`1`)
    and an activation, or none.
    """

    features: int
    conv: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]
    kernel_size: Size = 3
    stride: Size = 1
    groups: int = 1
    activation: Activation | None = relu

    @nn.compact
    def __call__(self, x: Array) -> Array:
        height, width = pair_of(self.kernel_size)
        x = self.conv(
            self.features,
            (height, width),
            self.stride,
            ((height - 1) // 2, (width - 1) // 2),
            groups=self.groups,
            use_bias=False,
            name="0",
        )(x)
        norm = self.norm(name="1")
        if self.activation is relu:
            return norm(x, relu=True)
        return norm(x) if self.activation is None else self.activation(norm(x))


class SqueezeExcitation(nn.Module):
    """A factor for each channel, computed from the means of all channels by two layers: Hu et al.
    2017, "Squeeze-and-Excitation Networks" (arXiv:1709.01507), section 3.

    Its input and output are maps (N, H, W, C); between the layers there are `features` numbers.
    """

    features: int
    activation: Activation = relu
    gate: Activation = sigmoid
    kernel_init: Initializer = torch_default
    bias_init: Initializer | None = None  # None: torch's default
    dtype: Dtype = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        conv = functools.partial(
            Conv,
            kernel_size=1,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            dtype=self.dtype or x.dtype,
        )
        y = x.mean((1, 2), keepdims=True)
        y = self.activation(conv(self.features, name="fc1")(y))
        return x * self.gate(conv(x.shape[-1], name="fc2")(y))


def rates_by_depth(last: float, count: int) -> list[float]:
    """Return the stochastic depth rates of `count` blocks, from zero linearly to `last` (Huang et
    al. 2016, arXiv:1603.09382, section 3, "survival probability").
    """
    return [last * block / max(count - 1, 1) for block in range(count)]


class StochasticDepth(nn.Module):
    """A residual branch that is left out for a share `rate` of the images in training, and divided
    by the share that keeps it: Huang et al. 2016, "Deep Networks with Stochastic Depth"
    (arXiv:1603.09382), in torchvision's mode "row". Draws from the stream "dropout".
    """

    rate: float
    train: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        axes = tuple(range(1, x.ndim))
        return nn.Dropout(self.rate, broadcast_dims=axes, deterministic=not self.train)(x)


class Attention(nn.Module):
    """Scaled dot-product attention of several heads (Vaswani et al. 2017, "Attention Is All You
    Need", arXiv:1706.03762, section 3.2); a module without parameters, so that its products are
    counted and its output can be asked for by name.

    Queries, keys and values are (..., positions, heads, C), `bias` (..., heads, positions,
    positions) or of 1 where it is the same; the scale is the caller's.
    """

    @nn.compact
    def __call__(self, query: Array, key: Array, value: Array, bias: Array | None = None) -> Array:
        return attention(query, key, value, bias)


class SelfAttention(nn.Module):
    """Multi-head attention of (N, positions, C) to itself (arXiv:2010.11929,
    appendix A), torch's
    `MultiheadAttention`: one linear layer, `in_proj`, gives queries, keys and values.
    """

    heads: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        features = x.shape[-1]
        init, zeros = nn.initializers.xavier_uniform(), nn.initializers.zeros
        kernel = self.param("in_proj_weight", init, (features, 3 * features), jnp.float32)
        bias = self.param("in_proj_bias", zeros, (3 * features,), jnp.float32)
        x = linear(x.astype(self.dtype), kernel.astype(self.dtype), bias)
        x = x.reshape(*x.shape[:2], 3, self.heads, -1)
        query, key, value = x[:, :, 0], x[:, :, 1], x[:, :, 2]
        query *= (features // self.heads) ** -0.5
        y = Attention(name="attention")(query, key, value).reshape(*x.shape[:2], features)
        return Linear(features, bias_init=zeros, dtype=self.dtype, name="out_proj")(y)


class FeedForward(nn.Module):
    """Two linear layers `0` and `3` with a GELU between them, each followed by dropout, on the last
    axis: (..., C) to (..., C) through `hidden_features`.
    """

    hidden_features: int
    linear: Callable[..., nn.Module]
    dropout: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        features = x.shape[-1]
        x = self.dropout(name="2")(gelu(self.linear(self.hidden_features, name="0")(x)))
        return self.dropout(name="4")(self.linear(features, name="3")(x))
