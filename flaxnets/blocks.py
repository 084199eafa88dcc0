"""Blocks that several families share: activations, layer norm, convolutions with their norm,
squeeze-excitation, stochastic depth, shortcuts and the branches of Inception modules.

Names and defaults are torchvision's (`ops.misc`, `ops.StochasticDepth`) or torch's, as those
networks set them. `flaxnets.attention` has the blocks of transformers.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.errors import one_of
from flaxnets.kernels.normalization import layer_norm
from flaxnets.kernels.precision import widened
from flaxnets.layers import (
    Array,
    BatchNorm,
    Conv,
    Dtype,
    Initializer,
    Sequential,
    Size,
    joined,
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
    """Return the activation of a name.

    Raises InputError for an unknown name.
    """
    return ACTIVATIONS[one_of(ACTIVATIONS, name, "activation")]


def hard_swish(x: Array) -> Array:
    """Return x times the hard sigmoid of x, torch's `Hardswish`.

    jax's own function cannot be pickled, nor could a network with it in a field.
    """
    return jax.nn.hard_swish(x)


def gelu(x: Array) -> Array:
    """Return x times the normal distribution function of x, torch's `GELU`, computed in float32 at
    least and rounded once.

    jax's own default is an approximation. Its exact form rounds the argument of erfc, and takes 1.4
    to 3.6 times as long on CPUs.
    """
    return _gelu(x)  # an object of `jax.custom_jvp` cannot be pickled


@jax.custom_jvp
def _gelu(x: Array) -> Array:
    wide = widened(x)
    return (wide * _normal_distribution(wide)).astype(x.dtype)


def _normal_distribution(x: Array) -> Array:
    return 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))


# The backward pass needs `x` alone. A barrier against common subexpressions would keep XLA from
# fusing it with what comes before.
@functools.partial(jax.checkpoint, prevent_cse=False)
def _times_slope_of_gelu(x: Array, tangent: Array) -> Array:
    wide = widened(x)
    density = jnp.exp(-0.5 * wide * wide) * (2 * jnp.pi) ** -0.5
    slope = _normal_distribution(wide) + wide * density
    return (widened(tangent) * slope).astype(x.dtype)


@_gelu.defjvp
def _gelu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _gelu(*primals), _times_slope_of_gelu(*primals, *tangents)


def scaled_tanh(x: Array) -> Array:
    """Return 1.7159 tanh(2 x / 3), which is 1 at 1 and -1 at -1 (LeCun et al. 1998, appendix A),
    computed in float32 at least and rounded once.
    """
    return (1.7159 * jnp.tanh(2 / 3 * widened(x))).astype(x.dtype)


# Uniform in +-1/sqrt(fan_out), as in the heads of TensorFlow's EfficientNets.
uniform_fan_out = nn.initializers.variance_scaling(1 / 3, "fan_out", "uniform")


def identity(x: Array) -> Array:
    """Return `x`.

    In a Sequential it keeps the index of a layer that is left out or that only torch needs, such as
    the `Permute` between torch's layout and ours.
    """
    return x


class LayerNorm(nn.Module):
    """Normalisation of each position over its channels, for `x` (..., C), as in torch: Ba, Kiros &
    Hinton 2016, "Layer Normalization" (arXiv:1607.06450), section 3.1.

    A call may pass the variance (..., 1) to divide by, in place of each position's own.
    """

    epsilon: float = 1e-5
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, variance: Array | None = None) -> Array:
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], jnp.float32)
        return layer_norm(x, scale, bias, self.epsilon, variance).astype(self.dtype)


def round_channels(channels: float, divisor: int = 8) -> int:
    """Return the multiple of `divisor` nearest to a scaled number of channels.

    Where that would lose more than a tenth of the channels, it is the next multiple above. This is
    the rule of the MobileNets' authors.
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


def stage_strides(first: int, depth: int) -> tuple[int, ...]:
    """Return the strides of the `depth` blocks of a stage: `first`, then ones."""
    return (first, *[1] * (depth - 1))


def _half(kernel_size: Size) -> tuple[int, int]:
    """Return the padding with which an odd kernel keeps the size of the map at stride 1."""
    if isinstance(kernel_size, int):
        return kernel_size // 2, kernel_size // 2
    return kernel_size[0] // 2, kernel_size[1] // 2


class ConvNormActivation(nn.Module):
    """A convolution without bias (`0`), its norm (`1`) and an activation, or none. The convolution
    keeps the size of the map up to its stride.
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
        x = self.conv(
            self.features,
            self.kernel_size,
            self.stride,
            _half(self.kernel_size),
            groups=self.groups,
            use_bias=False,
            name="0",
        )(x)
        norm = self.norm(name="1")
        if self.activation is relu:
            return norm(x, relu=True)
        return norm(x) if self.activation is None else self.activation(norm(x))


class ConvNormRelu(nn.Module):
    """A convolution (`conv`), its norm (`bn`) and a ReLU: the unit of the Inception networks.

    Without `padding` the convolution keeps the size of the map up to its stride.
    """

    features: int
    kernel_size: Size = 1
    stride: Size = 1
    padding: Size | None = None
    conv: Callable[..., nn.Module] = Conv
    norm: Callable[..., nn.Module] = BatchNorm

    @nn.compact
    def __call__(self, x: Array) -> Array:
        padding = _half(self.kernel_size) if self.padding is None else self.padding
        x = self.conv(self.features, self.kernel_size, self.stride, padding, name="conv")(x)
        return self.norm(name="bn")(x, relu=True)


def branch(unit: Callable[..., nn.Module], name: str, *layers: Any) -> Callable[[Array], Array]:
    """Return a branch of an Inception module: one layer under `name`, or several in sequence.

    A tuple gives the arguments of `unit`. Any other layer, such as a pool, is used as it is.
    """
    first, *rest = layers
    if rest:
        units = [unit(*layer) if isinstance(layer, tuple) else layer for layer in layers]
        return Sequential(units, name=name)
    return unit(*first, name=name) if isinstance(first, tuple) else first


def concatenated(x: Array, branches: tuple, unit: Callable[..., nn.Module]) -> Array:
    """Return the outputs of `branches`, each a name and its layers, concatenated by channels."""
    return joined([branch(unit, *row)(x) for row in branches])


class Mixed(nn.Module):
    """An Inception module: `branches` of a table, concatenated."""

    branches: tuple
    unit: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return concatenated(x, self.branches, self.unit)


class SqueezeExcitation(nn.Module):
    """A factor for each channel, which two layers compute from the means of all channels: Hu et al.
    2017, "Squeeze-and-Excitation Networks" (arXiv:1709.01507), section 3.

    Input and output are maps (N, H, W, C). The first layer has `features` outputs.
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
    """Return the stochastic depth rates of `count` blocks, linear from zero to `last` (Huang et al.
    2016, arXiv:1603.09382, section 3, "survival probability").
    """
    return [last * block / max(count - 1, 1) for block in range(count)]


class StochasticDepth(nn.Module):
    """Skip a residual branch in training, for a share `rate` of the images: Huang et al. 2016,
    "Deep Networks with Stochastic Depth" (arXiv:1603.09382).

    Each image draws from the stream "dropout" (torchvision's mode "row"). Branches that are kept
    are divided by the share that keeps them.
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
        option: "A" has no parameters: it takes every `stride`-th pixel and appends zeros for new
            channels. "B" projects where the shape changes, "C" in every block. "none" is the
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
