"""torch's layers, exactly, in NHWC: what linen lacks.

Names are chosen so that the path of a parameter, joined by dots, is its torch `state_dict` key (see
`flaxnets.convert`). Arguments keep torch's meaning: padding is given in pixels, and the momentum of
a batch norm weighs the new value. `flaxnets.kernels` computes the layers and knows the platforms.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from flaxnets.initializers import uniform, variance_scaling
from flaxnets.kernels.activation import relu as relu  # torch's layer `ReLU`
from flaxnets.kernels.activation import relu_of_sum as relu_of_sum
from flaxnets.kernels.concatenation import joined as joined
from flaxnets.kernels.convolution import conv2d
from flaxnets.kernels.matmul import linear
from flaxnets.kernels.moments import moments
from flaxnets.kernels.normalization import averaged_norm, batch_norm, response_norm
from flaxnets.kernels.pooling import bin_means, window_maxima, window_means
from flaxnets.kernels.residual import residual_sum as residual_sum

Array = jax.Array
Dtype = Any
Initializer = Callable[..., Array]
Size = int | tuple[int, int]

# torch's default for convolutions and linear layers: uniform in +-1/sqrt(fan_in)
# (torch/nn/modules/conv.py, `reset_parameters`).
torch_default = variance_scaling(1 / 3, "fan_in", "uniform")
# He et al. 2015 (arXiv:1502.01852), equation 10: zero mean, variance 2 / fan_in.
he_normal_fan_in = variance_scaling(2.0, "fan_in", "normal")
# Variance 2 / fan_out: torch's mode="fan_out", as torchvision uses it.
he_normal_fan_out = variance_scaling(2.0, "fan_out", "normal")


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


class Sequential(nn.Module):
    """Apply `layers` in sequence. A module among them is named by its index in the list, as in
    torch.

    Plain functions (`relu`, `max_pool(3, 2)`) count too, so that the list reads like the printed
    torch module and its parameters have the same numbers.

    With `remat` the layers form segments, as many as the square root of their number. The forward
    pass stores only the outputs of segments, and the backward pass recomputes the rest (Chen et al.
    2016, arXiv:1604.06174, section 4.1).
    """

    layers: Sequence[Callable[..., Array]]
    remat: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def segment(module: nn.Module, x: Array, first: int, last: int) -> Array:
            for index, layer in list(enumerate(self.layers))[first:last]:
                if isinstance(layer, nn.Module):
                    x = layer.clone(parent=module, name=str(index))(x)
                else:
                    x = layer(x)
                    # readable on request (inference.features)
                    module.sow("intermediates", str(index), x)
            return x

        if not self.remat:
            return segment(self, x, 0, len(self.layers))
        step = math.isqrt(len(self.layers))
        for first in range(0, len(self.layers), step):
            x = nn.remat(segment, static_argnums=(2, 3))(self, x, first, first + step)
        return x


def _bias_default(fan_in: int) -> Initializer:
    """Return torch's default bias, uniform in +-1/sqrt(fan_in) with the fan of the kernel."""
    return uniform(1 / math.sqrt(fan_in))


class Conv(nn.Module):
    """2-D convolution with torch's arguments: `(N, H, W, C) -> (N, H', W', features)`.

    The kernel is `(height, width, C / groups, features)`. Padding counts pixels on both sides, and
    may be a pair for height and width. XLA's "SAME" would differ from torch at stride 2.

    Without `features` it returns its input: the head of a network with `num_classes=0`.

    Raises InputError if the kernel does not fit the padded input.
    """

    features: int
    kernel_size: Size
    stride: Size = 1
    padding: Size = 0
    dilation: Size = 1
    groups: int = 1
    use_bias: bool = True
    kernel_init: Initializer = torch_default
    bias_init: Initializer | None = None  # None: torch's default
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if not self.features:
            return x.astype(self.dtype)
        size, padding, dilation = map(_pair, (self.kernel_size, self.padding, self.dilation))
        channels = x.shape[-1] // self.groups
        kernel = self.param(
            "kernel", self.kernel_init, (*size, channels, self.features), jnp.float32
        )
        bias = None
        if self.use_bias:
            bias_init = self.bias_init or _bias_default(math.prod(size) * channels)
            bias = self.param("bias", bias_init, (self.features,), jnp.float32)
        x, stride = x.astype(self.dtype), _pair(self.stride)
        return conv2d(x, kernel, stride, padding, dilation, self.groups, bias)


class Linear(nn.Module):
    """A fully connected layer that acts at every position of a feature map.

    Without `patch` it maps `(..., C) -> (..., features)`. With `patch=(h, w)` it is the first layer
    after the convolutions. Its kernel `(h, w, C, features)` then covers a patch of the map:
    `(N, h, w, C) -> (N, 1, 1, features)`, and a larger map gives one vector for each position.
    torch flattens the same patch to `C * h * w` numbers; `flaxnets.convert` moves the axes. With
    `dilation` the patch samples every `dilation`-th position. Without `features` it returns its
    input, as `Conv` does.

    Raises InputError if the map is smaller than the patch.
    """

    features: int
    patch: tuple[int, int] | None = None
    dilation: int = 1
    use_bias: bool = True
    kernel_init: Initializer = torch_default
    bias_init: Initializer | None = None  # None: torch's default
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if not self.features:
            return x.astype(self.dtype)
        # A patch kernel has its own name because it has a convolution's rank. Without the name the
        # converter to torch could not tell them apart.
        leaf = "patch_kernel" if self.patch else "kernel"
        shape = (*(self.patch or ()), x.shape[-1], self.features)
        kernel = self.param(leaf, self.kernel_init, shape, jnp.float32)
        x = x.astype(self.dtype)
        bias = None
        if self.use_bias:
            bias_init = self.bias_init or _bias_default(math.prod(shape[:-1]))
            bias = self.param("bias", bias_init, (self.features,), jnp.float32)
        if self.patch is not None:
            if x.shape[1:3] != self.patch:
                return conv2d(x, kernel, dilation=_pair(self.dilation), bias=bias)
            x = x.reshape(x.shape[0], 1, 1, -1)  # 9 times faster than a convolution on CPUs
            kernel = kernel.reshape(-1, self.features)
        return linear(x, kernel, bias)


class BatchNorm(nn.Module):
    """Batch normalisation with torch's running statistics (Ioffe & Szegedy 2015, arXiv:1502.03167,
    section 3.1).

    It differs from `nn.BatchNorm` as torch does: `momentum` weighs the new value, and the running
    variance is unbiased (n / (n - 1)). Statistics are at least float32 whatever `dtype` is. They
    cover this device's batch, or the batches of all devices of the mapped axis `axis_name`.

    With `relu=True` the following ReLU is fused in, which is faster on CPUs than a separate `relu`.

    Where several norms read the same channels, `moments` computes their moments once, and each call
    takes them. A call may override the fields `use_running_average` and `axis_name`. An interceptor
    (`nn.intercept_methods`) can thus freeze or synchronise the norms of a finished network.
    """

    use_running_average: bool
    momentum: float = 0.1
    epsilon: float = 1e-5
    axis_name: str | None = None
    scale_init: Initializer = nn.initializers.ones
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        moments: tuple[Array, Array] | None = None,
        *,
        relu: bool = False,
        use_running_average: bool | None = None,
        axis_name: str | None = None,
    ) -> Array:
        if use_running_average is None:
            use_running_average = self.use_running_average
        features = x.shape[-1]
        scale = self.param("scale", self.scale_init, (features,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (features,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (features,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (features,), jnp.float32)

        if use_running_average:
            averages = running_mean.value, running_var.value
            return averaged_norm(x, averages, scale, bias, self.epsilon, relu).astype(self.dtype)
        axis = self._mapped_axis(axis_name)
        y, (mean, var) = batch_norm(
            x, scale, bias, self.epsilon, relu, known=moments, axis_name=axis
        )
        if not self.is_initializing():
            devices = 1 if axis is None else lax.axis_size(axis)
            count = math.prod(x.shape[:-1]) * devices
            unbiased = var * (count / max(count - 1, 1))
            keep = 1 - self.momentum
            running_mean.value = keep * running_mean.value + self.momentum * mean
            running_var.value = keep * running_var.value + self.momentum * unbiased
        return y.astype(self.dtype)

    def moments(self, x: Array, *, axis_name: str | None = None) -> tuple[Array, Array]:
        """Return mean and biased variance (C,) of the batch `x` (..., C), as used in training."""
        return moments(x, self._mapped_axis(axis_name))

    def _mapped_axis(self, override: str | None) -> str | None:
        # No axis is mapped in `init`.
        return None if self.is_initializing() else override or self.axis_name


def max_pool(
    window: Size, stride: Size | None = None, padding: Size = 0, *, ceil_mode: bool = False
) -> Callable[[Array], Array]:
    """Return torch's `MaxPool2d`; the default `stride` is the window.

    With `ceil_mode` a last window may extend beyond the edge if it starts inside. The gradient goes
    to the first of equal values in reading order, as in torch.
    """
    window, stride, padding = _pair(window), _pair(stride or window), _pair(padding)

    return lambda x: window_maxima(x, window, stride, padding, ceil_mode=ceil_mode)


def avg_pool(
    window: Size, stride: Size | None = None, padding: Size = 0, *, count_include_pad: bool = True
) -> Callable[[Array], Array]:
    """Return torch's `AvgPool2d`. With `count_include_pad` the zeros of the padding count."""
    window, stride, padding = _pair(window), _pair(stride or window), _pair(padding)

    return lambda x: window_means(x, window, stride, padding, count_include_pad=count_include_pad)


def adaptive_avg_pool(size: Size) -> Callable[[Array], Array]:
    """Return torch's `AdaptiveAvgPool2d`: the means of `size` bins, which overlap or repeat pixels
    where the map does not divide evenly.
    """
    return lambda x: bin_means(x, _pair(size))


def local_response_norm(
    size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0
) -> Callable[[Array], Array]:
    """Return x / (k + alpha * sum of x^2 over `size` channels) ** beta (Krizhevsky et al. 2012,
    section 3.3).

    The paper multiplies the sum by alpha; torch's `LocalResponseNorm` multiplies the mean.
    """
    return lambda x: response_norm(x, size, alpha, beta, k)


def average_positions(x: Array) -> Array:
    """Return class scores `(N, H, W, classes) -> (N, classes)`, the mean over positions.

    With one position these are the network's logits. With more it is the evaluation of Simonyan &
    Zisserman 2014 (arXiv:1409.1556), section 3.2, and the global average pooling of many networks.
    """
    return x.mean((1, 2))


def imagenet_to_unit_range(x: Array, dtype: Dtype = jnp.float32) -> Array:
    """Bring RGB images (..., 3), normalised by ImageNet's mean and deviation, to [-1, 1].

    It is torchvision's `transform_input`, for weights that were trained on images in that range.
    """
    if x.shape[-1] != 3:
        raise ValueError(f"transform_input is for RGB images; these have {x.shape[-1]} channels")
    x = x.astype(jnp.promote_types(dtype, jnp.float32))
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    shape = (1,) * (x.ndim - 1) + (3,)
    factor, shift = (jnp.array(row, x.dtype).reshape(shape) for row in (deviation, mean))
    return (x * factor + shift - 0.5) / 0.5
