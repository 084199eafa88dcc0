"""What linen lacks: torch's layers, exactly, in NHWC.

Names are chosen so that the path of a parameter, joined by dots, is its torch `state_dict` key
(see `flaxnets.convert`). Arguments keep torch's meaning: padding is given in pixels, the momentum
of a batch norm is the weight of the new value.

Where XLA is slow, above all on CPUs, a layer has a second formulation with equal values and
gradients, chosen by platform and shape when the program is traced.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from flaxnets.errors import InputError
from flaxnets.kernels.convolution import conv2d, linear
from flaxnets.kernels.folding import recall, remember
from flaxnets.kernels.normalization import as_affine, batch_norm, moments, normalized
from flaxnets.kernels.pooling import window_maxima, window_sums

Array = jax.Array
Dtype = Any
Initializer = Callable[..., Array]
Size = int | tuple[int, int]

# torch's default for convolutions and linear layers: uniform in +-1/sqrt(fan_in)
# (torch/nn/modules/conv.py, `reset_parameters`).
torch_default = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# He et al. 2015 (arXiv:1502.01852), equation 10: zero mean, variance 2 / fan_in.
he_normal_fan_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
# The same with torch's mode="fan_out", as torchvision uses it.
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _at_least_float32(dtype: Dtype) -> Dtype:
    return jnp.promote_types(dtype, jnp.float32)


def _check_fits(
    window: tuple[int, int],
    x: Array,
    padding: tuple[int, int] = (0, 0),
    overhang: tuple[int, int] = (0, 0),
) -> None:
    """One sentence instead of an empty feature map."""
    height, width = x.shape[1:3]
    rows, columns = height + 2 * padding[0] + overhang[0], width + 2 * padding[1] + overhang[1]
    if rows < window[0] or columns < window[1]:
        raise InputError(
            f"the images are too small for this network: a window of {window[0]}x{window[1]} does "
            f"not fit a feature map of {height}x{width}; use larger images"
        )


class Sequential(nn.Module):
    """Applies `layers` in turn; a module among them is named by its index in the list, as in torch.

    Plain functions (`relu`, `max_pool(3, 2)`) take an index too, so that the list reads like
    the printed torch module and its parameters carry the same numbers.

    With `remat` the backward pass recomputes the layers in segments of the square root of their
    number, at whose ends alone the forward pass stores its results (Chen et al. 2016,
    arXiv:1604.06174, section 4.1).
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
                    module.sow("intermediates", str(index), x)  # for those who ask for it
            return x

        if not self.remat:
            return segment(self, x, 0, len(self.layers))
        step = math.isqrt(len(self.layers))
        for first in range(0, len(self.layers), step):
            x = nn.remat(segment, static_argnums=(2, 3))(self, x, first, first + step)
        return x


def _bias_default(fan_in: int) -> Initializer:
    """torch's default bias: uniform in +-1/sqrt(fan_in) of the kernel beside it."""
    bound = 1 / math.sqrt(fan_in)

    def init(key: Array, shape: Sequence[int], dtype: Dtype = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Conv(nn.Module):
    """2-D convolution with torch's arguments: `(N, H, W, C) -> (N, H', W', features)`.

    The kernel is `(height, width, C / groups, features)`. Padding counts pixels on both sides, or
    is a pair for height and width: XLA's "SAME" differs from torch at stride 2.

    Without `features` it gives its input: where the head of a network was (`num_classes=0`).

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
        reach = ((size[0] - 1) * dilation[0] + 1, (size[1] - 1) * dilation[1] + 1)
        _check_fits(reach, x, padding)
        channels = x.shape[-1] // self.groups
        kernel = self.param(
            "kernel", self.kernel_init, (*size, channels, self.features), jnp.float32
        )
        geometry = (_pair(self.stride), padding, dilation, self.groups)
        dtype = self.dtype  # what is remembered must not hold `self`
        bias = None
        if self.use_bias:
            bias_init = self.bias_init or _bias_default(math.prod(size) * channels)
            bias = self.param("bias", bias_init, (self.features,), jnp.float32)

        def output(kernel: Array, bias: Array | None) -> Array:
            return conv2d(x.astype(dtype), kernel.astype(dtype), *geometry, bias=bias)

        def affine(factor: Array, shift: Array) -> Array:
            return output(kernel * factor, shift if bias is None else bias * factor + shift)

        y = output(kernel, bias)
        remember(y, affine)
        return y


class Linear(nn.Module):
    """A fully connected layer that acts at every position of a feature map.

    Without `patch` it maps `(..., C) -> (..., features)`. With `patch=(h, w)` it is the first
    layer after the convolutions: its kernel `(h, w, C, features)` covers a patch of the map, so
    `(N, h, w, C) -> (N, 1, 1, features)` and a larger map gives one vector a position. torch
    flattens the same patch to `C * h * w` numbers; `flaxnets.convert` moves the axes. With
    `dilation` the patch takes every so many-th position. Without `features` it gives its input, as
    `Conv`.

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
        # The two leaves have two names because a patch kernel has a convolution's rank: the
        # converter could not tell them apart on the way back to torch.
        leaf = "patch_kernel" if self.patch else "kernel"
        shape = (*(self.patch or ()), x.shape[-1], self.features)
        kernel = self.param(leaf, self.kernel_init, shape, jnp.float32).astype(self.dtype)
        x = x.astype(self.dtype)
        bias = None
        if self.use_bias:
            bias_init = self.bias_init or _bias_default(math.prod(shape[:-1]))
            bias = self.param("bias", bias_init, (self.features,), jnp.float32)
        if self.patch is not None:
            height, width = ((n - 1) * self.dilation + 1 for n in self.patch)
            _check_fits((height, width), x)
            if x.shape[1:3] == self.patch:  # a product: 9 times faster than a convolution on CPU
                x = x.reshape(x.shape[0], 1, 1, -1)
                kernel = kernel.reshape(-1, self.features)
            else:
                dilation = (self.dilation, self.dilation)
                return conv2d(x, kernel, dilation=dilation, bias=bias)
        return linear(x, kernel, bias)


class BatchNorm(nn.Module):
    """Batch normalisation with torch's running statistics (Ioffe & Szegedy 2015).

    Differs from `nn.BatchNorm` as torch does: `momentum` weighs the new value, and the running
    variance is the unbiased one (n / (n - 1)). Statistics are at least float32 whatever `dtype` is;
    they cover this device's batch, or all devices of the mapped axis `axis_name`.

    With `relu` the ReLU behind it is taken along, which is faster on CPUs than `relu` of it.

    Where several norms see the same channels, the `moments` of those can be found once and given to
    each call.
    """

    use_running_average: bool
    momentum: float = 0.1
    epsilon: float = 1e-5
    axis_name: str | None = None
    scale_init: Initializer = nn.initializers.ones
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, moments: tuple[Array, Array] | None = None, *, relu: bool = False
    ) -> Array:
        features = x.shape[-1]
        scale = self.param("scale", self.scale_init, (features,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (features,), jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (features,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (features,), jnp.float32)

        convolution = recall(x)
        x = x.astype(_at_least_float32(x.dtype))
        if self.use_running_average:
            by = running_mean.value, running_var.value
            if convolution is None:
                y = normalized(x, by, scale, bias, self.epsilon, relu)
            else:
                y = convolution(*as_affine(by, scale, bias, self.epsilon))
                y = nn.relu(y) if relu else y
            return y.astype(self.dtype)
        y, (mean, var) = batch_norm(
            x, scale, bias, self.epsilon, relu, known=moments, axis_name=self._mapped_axis
        )
        if not self.is_initializing():
            devices = 1 if self.axis_name is None else lax.axis_size(self.axis_name)
            count = math.prod(x.shape[:-1]) * devices
            unbiased = var * (count / max(count - 1, 1))
            keep = 1 - self.momentum
            running_mean.value = keep * running_mean.value + self.momentum * mean
            running_var.value = keep * running_var.value + self.momentum * unbiased
        return y.astype(self.dtype)

    def moments(self, x: Array) -> tuple[Array, Array]:
        """Mean and biased variance (C,) of the batch `x` (..., C), as training normalises by."""
        return moments(x.astype(_at_least_float32(x.dtype)), self._mapped_axis)

    @property
    def _mapped_axis(self) -> str | None:
        return None if self.is_initializing() else self.axis_name  # nothing is mapped by `init`


def max_pool(
    window: Size, stride: Size | None = None, padding: Size = 0, *, ceil_mode: bool = False
) -> Callable[[Array], Array]:
    """torch's `MaxPool2d`; `stride` is the window unless given.

    With `ceil_mode` a last window may hang over the edge as long as it starts inside. The gradient
    goes to the first of equal values in reading order, as in torch.
    """
    window, stride, padding = _pair(window), _pair(stride or window), _pair(padding)

    def pool(x: Array) -> Array:
        overhang = (stride[0] - 1, stride[1] - 1) if ceil_mode else (0, 0)
        _check_fits(window, x, padding, overhang)
        rows, columns = (
            (before, _pad_after(size, span, step, before, ceil_mode))
            for size, span, step, before in zip(x.shape[1:3], window, stride, padding, strict=True)
        )
        return window_maxima(x, window, stride, (rows, columns))

    return pool


def _pad_after(size: int, window: int, stride: int, before: int, ceil_mode: bool) -> int:
    """Padding at the far end of an axis; negative where torch's rounding leaves pixels unread."""
    steps = size + 2 * before - window
    last = -(-steps // stride) if ceil_mode else steps // stride
    if ceil_mode and last * stride >= size + before:  # the window would start in the padding
        last -= 1
    return last * stride + window - size - before


def avg_pool(
    window: Size, stride: Size | None = None, padding: Size = 0, *, count_include_pad: bool = True
) -> Callable[[Array], Array]:
    """torch's `AvgPool2d`; the zeros of the padding count unless `count_include_pad` is False."""
    window, stride, padding = _pair(window), _pair(stride or window), _pair(padding)

    def sums(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)))
        return window_sums(x, window, stride)

    def pool(x: Array) -> Array:
        _check_fits(window, x, padding)
        wide = x.astype(_at_least_float32(x.dtype))  # rounded once, not with every pixel
        if count_include_pad:
            y = sums(wide) / math.prod(window)
        else:
            y = sums(wide) / sums(jnp.ones((1, *x.shape[1:3], 1), wide.dtype))
        return y.astype(x.dtype)

    return pool


def adaptive_avg_pool(size: Size) -> Callable[[Array], Array]:
    """torch's `AdaptiveAvgPool2d`: the map is divided into `size` bins, which overlap or repeat
    pixels where it does not divide evenly.
    """

    def bins(n_in: int, n_out: int, dtype: Dtype) -> Array:
        rows = []
        for i in range(n_out):
            start, end = i * n_in // n_out, -(-(i + 1) * n_in // n_out)
            rows.append([(start <= j < end) / (end - start) for j in range(n_in)])
        return jnp.array(rows, dtype)

    def pool(x: Array) -> Array:
        height, width = _pair(size)
        if (height, width) == x.shape[1:3]:
            return x
        if (height, width) == (1, 1):
            return x.mean((1, 2), keepdims=True)
        dtype = _at_least_float32(x.dtype)
        rows, columns = bins(x.shape[1], height, dtype), bins(x.shape[2], width, dtype)
        y = jnp.einsum("ih,nhwc,jw->nijc", rows, x.astype(dtype), columns, precision="highest")
        return y.astype(x.dtype)

    return pool


def average_positions(x: Array) -> Array:
    """Class scores `(N, H, W, classes) -> (N, classes)`: the mean over positions.

    With one position these are the network's logits; with more it is the evaluation of Simonyan &
    Zisserman 2014, section 3.2, and of networks that end in global average pooling.
    """
    return x.mean((1, 2))


def imagenet_to_unit_range(x: Array, dtype: Dtype = jnp.float32) -> Array:
    """RGB images normalised by ImageNet's mean and deviation, brought to [-1, 1].

    torchvision's `transform_input`, for weights that were trained on images in that range.
    """
    if x.shape[-1] != 3:
        raise ValueError(f"transform_input is for RGB images; these have {x.shape[-1]} channels")
    x = x.astype(_at_least_float32(dtype))
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    shape = (1,) * (x.ndim - 1) + (3,)
    factor, shift = (jnp.array(each, x.dtype).reshape(shape) for each in (deviation, mean))
    return (x * factor + shift - 0.5) / 0.5


def _differentiated_by_output(rectify: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Zero where the output is: then the backward pass needs no input. The output is there, for
    the layer that it goes to, so that the input need not be stored: on GPUs a convolution takes its
    bias and ReLU along, and VGG-19's training step moves 0.9 of the bytes.
    """
    differentiated = jax.custom_jvp(rectify)

    @differentiated.defjvp
    def jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        y = differentiated(*primals)
        # XLA would make `y > 0` a comparison of the input again.
        return y, jnp.where(y == 0, 0, *tangents)

    @functools.wraps(rectify)
    def function(x: Array) -> Array:  # a field of a network: pickled and copied by its name
        return differentiated(x)

    return function


@_differentiated_by_output
def relu(x: Array) -> Array:
    """max(x, 0), whose gradient at zero is zero; NaN stays."""
    return jnp.maximum(x, 0)


@_differentiated_by_output
def relu_of_sum(x: Array) -> Array:
    """ReLU behind a residual sum, which XLA:CPU then computes once.

    It would fuse a maximum, and the sum with it, into both of its readers, the next convolution
    and the next sum, so that every block adds up all blocks before it anew (1202 layers did not
    compile in ten minutes). A choice between two arrays is stored. On GPUs a convolution takes sum
    and maximum along.
    """
    return jnp.maximum(x, 0) if jax.default_backend() == "gpu" else jnp.where(x <= 0, 0, x)


def local_response_norm(
    size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0
) -> Callable[[Array], Array]:
    """x / (k + alpha * sum of x^2 over `size` channels) ** beta (Krizhevsky et al. 2012, 3.3).

    The paper multiplies the sum by alpha; torch's `LocalResponseNorm` multiplies the mean.
    """

    def norm(x: Array) -> Array:
        squares = jnp.pad(jnp.square(x), [(0, 0)] * (x.ndim - 1) + [(size // 2, (size - 1) // 2)])
        channels = x.shape[-1]
        total = sum(squares[..., i : i + channels] for i in range(size))
        return x * (k + alpha * total) ** -beta

    @jax.checkpoint  # stores `x` for the gradient, and nothing in float32
    def narrow_norm(x: Array) -> Array:
        return norm(x.astype(jnp.float32)).astype(x.dtype)

    return lambda x: (narrow_norm if jnp.finfo(x.dtype).bits < 32 else norm)(x)
