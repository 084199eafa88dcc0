"""What several families of torchvision share: its `ops.misc`, `ops.StochasticDepth`, attention, and
torch's activations and layer norm as those networks set them.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.errors import one_of
from flaxnets.kernels.attention import attention
from flaxnets.kernels.geometry import relative_position_index as relative_position_index
from flaxnets.kernels.matmul import linear
from flaxnets.kernels.normalization import layer_norm
from flaxnets.kernels.precision import plus_bias as plus_bias
from flaxnets.kernels.precision import widened as widened
from flaxnets.layers import (
    Array,
    Conv,
    Dtype,
    Initializer,
    Linear,
    Sequential,
    Size,
    relu,
    torch_default,
)

Activation = Callable[[Array], Array]

relu6 = jax.nn.relu6
silu = jax.nn.silu
sigmoid = jax.nn.sigmoid
hard_sigmoid = jax.nn.hard_sigmoid

ACTIVATIONS: dict[str, Activation] = {"relu": relu, "sigmoid": sigmoid, "tanh": jnp.tanh}
SHORTCUTS = ("A", "B", "C", "none")


def activation_named(name: str) -> Activation:
    """Return the activation of a name. Raises InputError for an unknown one."""
    return ACTIVATIONS[one_of(ACTIVATIONS, name, "activation")]


def hard_swish(x: Array) -> Array:
    """Return x times the hard sigmoid of x, torch's `Hardswish`; jax's own cannot be pickled, and
    with it no network that has it in a field.
    """
    return jax.nn.hard_swish(x)


def gelu(x: Array) -> Array:
    """Return x times the normal distribution function of x, torch's `GELU`; jax's own default is an
    approximation.
    """
    return jax.nn.gelu(x, approximate=False)


# Uniform in +-1/sqrt(fan_out): TensorFlow's EfficientNets start their heads with it.
uniform_fan_out = nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform")


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


def shortcut(
    option: str,
    x: Array,
    features: int,
    stride: int,
    conv: Callable[..., nn.Module],
    norm: Callable[..., nn.Module],
) -> Array | None:
    """Return the shortcut of a residual block from its input `x`: He et al. 2015, "Deep Residual
    Learning for Image Recognition" (arXiv:1512.03385), section 3.3 and Table 3.

    Args:
        option: "A" has no parameters: every `stride`-th pixel, and zeros for new channels, after
            the old ones. "B" projects where the shape changes, "C" in every block. "none" is the
            paper's plain network.
        x: (N, H, W, C).
        features: channels of the shortcut.
        stride: of the block.
        conv: makes the convolution of a projection, `downsample.0`.
        norm: makes its norm, `downsample.1`.

    Returns:
        `(N, H / stride, W / stride, features)`, or None for "none".

    Raises InputError for an unknown option.
    """
    if one_of(SHORTCUTS, option, "shortcut") == "none":
        return None
    changes = stride > 1 or x.shape[-1] != features
    if option == "C" or (option == "B" and changes):
        return Sequential([conv(features, 1, stride), norm()], name="downsample")(x)
    if changes:
        new = [(0, 0)] * 3 + [(0, features - x.shape[-1])]
        return jnp.pad(x[:, ::stride, ::stride], new)
    return x


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
    """Multi-head attention of (N, positions, C) to itself (arXiv:2010.11929, appendix A), torch's
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


def to_windows(x: Any, window: tuple[int, int]) -> Any:
    """Return an array (N, H, W, C), of whole windows, as (N, windows, positions, C), both in
    reading order.
    """
    n, height, width, channels = x.shape
    rows, columns = window
    x = x.reshape(n, height // rows, rows, width // columns, columns, channels)
    return x.swapaxes(2, 3).reshape(n, -1, rows * columns, channels)


def from_windows(x: Array, size: tuple[int, int], window: tuple[int, int]) -> Array:
    """Return the map (N, *size, C) whose windows (N, windows, positions, C) are given."""
    n, *_, channels = x.shape
    (height, width), (rows, columns) = size, window
    x = x.reshape(n, height // rows, width // columns, rows, columns, channels)
    return x.swapaxes(2, 3).reshape(n, height, width, channels)


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
