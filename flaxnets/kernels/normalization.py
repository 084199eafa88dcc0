"""Batch normalisation over the images of a batch, in the formulation that is fastest where it runs,
layer normalisation, and response normalisation over channels.

XLA's CPU backend takes a dozen operations for a norm with its ReLU and their gradient, each of them
compiled, and several over the whole map; there they become two calls of oneDNN
(`flaxnets.kernels.onednn.calls`). GPU and TPU keep XLA's operations; on GPUs a norm can be a part
of the convolution before it (`flaxnets.kernels.folding`). Values and derivatives of any order are
the same.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import flaxnets.kernels.onednn.calls as onednn
from flaxnets.kernels.activation import relu as rectify
from flaxnets.kernels.folding import Output, recall
from flaxnets.kernels.moments import Moments, beside, has_wide_output, moments, moments_of_product
from flaxnets.kernels.onednn.primitives import differentiable
from flaxnets.kernels.platform import formulation
from flaxnets.kernels.precision import is_narrow, widened

Array = jax.Array
# Channels; oneDNN's norm is slow for other than multiples (densenet_bc_100_12's step: 1.5 times).
VECTOR = 16


def batch_norm(
    x: Array,
    scale: Array,
    bias: Array,
    epsilon: float,
    relu: bool,
    known: Moments | None = None,
    axis_name: str | None = None,
) -> tuple[Array, Moments]:
    """Return `x` (..., C) normalised by the moments of its channels, then scaled and shifted, and
    with `relu` its ReLU, computed in float32 at least and rounded to the type of `x`; and those
    moments, constants of differentiation.

    They cover the batch of this device, or of all devices of the mapped axis. Where they are
    `known`, as those of joined maps can be, XLA's operations take them; oneDNN recomputes them,
    which is faster.
    """
    if axis_name is None and _is_for_onednn(x, scale, bias, joined=known is not None):
        return _norm_of_whole_vectors(x, scale, bias, epsilon, relu)
    convolution = recall(x)
    if convolution is not None and known is None and has_wide_output(convolution.product):
        found = moments_of_product(convolution.product, axis_name)
        y = _folded(convolution, found, scale, bias, epsilon, relu)
    else:
        found = known or moments(x, axis_name)
        y = normalized(widened(x), found, scale, bias, epsilon, relu).astype(x.dtype)
    return y, lax.stop_gradient(found)


def averaged_norm(
    x: Array, averages: Moments, scale: Array, bias: Array, epsilon: float, relu: bool
) -> Array:
    """Return `batch_norm` of `x` (..., C) by running averages instead of the batch's moments; with
    `folded_norms` as part of the convolution that `x` is the output of, in its type.
    """
    convolution = recall(x)
    if convolution is None:
        return normalized(widened(x), averages, scale, bias, epsilon, relu)
    return _folded(convolution, averages, scale, bias, epsilon, relu)


def _folded(
    convolution: Output, by: Moments, scale: Array, bias: Array, epsilon: float, relu: bool
) -> Array:
    """Return the norm of a convolution's output as a part of the convolution."""
    y = convolution.normed(as_affine(by, scale, bias, epsilon))
    return rectify(y) if relu else y


def normalized(
    x: Array, by: Moments, scale: Array, bias: Array, epsilon: float, relu: bool
) -> Array:
    """Return `x` normalised by given moments, then scaled and shifted, and with `relu` its ReLU.

    The formula is written, as that of `moments`, around a constant `center` with the mean's value.
    Its value is the same for any constant, and so is any derivative, but the mean's own gradient
    then needs no sum over the map: XLA:CPU runs a batch norm with its ReLU forward and back in 0.4
    times the time.
    """
    mean, var = by
    center = lax.stop_gradient(mean)
    factor, shift = as_affine((mean - center, var), scale, bias, epsilon)
    center, factor, shift = (beside(x, each) for each in (center, factor, shift))
    if relu and formulation("normalization") == "gpu":
        return _rectified_affine(x - center, factor, shift)
    y = (x - center) * factor + shift
    return jax.nn.relu(y) if relu else y


@jax.custom_jvp
def _rectified_affine(x: Array, factor: Array, shift: Array) -> Array:
    """Return the ReLU of `x * factor + shift`; the gradient finds in `x` where that is positive."""
    return jax.nn.relu(x * factor + shift)


@_rectified_affine.defjvp
def _rectified_affine_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]):
    x, factor, shift = primals
    change, change_of_factor, change_of_shift = tangents
    change_of_sum = change * factor + x * change_of_factor + change_of_shift
    # The condition is `x * factor + shift > 0`, written so that XLA does not store it, a byte for
    # each number, when it computes the output.
    return _rectified_affine(*primals), jnp.where(x * factor > -shift, change_of_sum, 0)


def as_affine(by: Moments, scale: Array, bias: Array, epsilon: float) -> tuple[Array, Array]:
    """Return the norm by given moments as a factor and a shift (C,): `x * factor + shift`."""
    mean, var = by
    factor = scale * lax.rsqrt(var + epsilon)
    return factor, bias - mean * factor


def layer_norm(
    x: Array, scale: Array, bias: Array, epsilon: float, variance: Array | None = None
) -> Array:
    """Return `x` (..., C) less the mean of its channels, divided by their deviation, or by the root
    of a given `variance` (..., 1), then scaled and shifted, in float32 at least.
    """
    if variance is None and formulation("normalization") == "gpu":
        y = _standardized_on_gpu(x, epsilon)
    else:
        y = _standardized(x, epsilon, variance)
    return y * beside(y, scale) + beside(y, bias)


def _standardized(x: Array, epsilon: float, variance: Array | None = None) -> Array:
    x = widened(x)
    x = x - x.mean(-1, keepdims=True)
    if variance is None:
        variance = jnp.square(x).mean(-1, keepdims=True)
    return x * lax.rsqrt(variance + epsilon)


_standardized_on_gpu = jax.custom_jvp(_standardized, nondiff_argnums=(1,))


@_standardized_on_gpu.defjvp
def _standardized_jvp(epsilon: float, primals: tuple[Array], tangents: tuple[Array]):
    # Without the barriers XLA:GPU finds mean and deviation again in each pass that needs them, and
    # stores the gradient of `x`, and its product with `y`, in float32: 19 reads and writes of a map
    # in bfloat16, now 10.
    wide, change = widened(primals[0]), widened(lax.optimization_barrier(tangents[0]))
    mean = wide.mean(-1, keepdims=True)
    factor = lax.rsqrt(jnp.square(wide - mean).mean(-1, keepdims=True) + epsilon)
    mean, factor = lax.optimization_barrier((mean, factor))
    y = (wide - mean) * factor
    along_y = (y * change).mean(-1, keepdims=True)
    return y, factor * (change - change.mean(-1, keepdims=True) - y * along_y)


def response_norm(x: Array, size: int, alpha: float, beta: float, k: float) -> Array:
    """Return x / (k + alpha * sum of x^2 over `size` neighbouring channels) ** beta, of `x`
    (..., C); narrow types are computed in float32 and rounded once.
    """

    def norm(x: Array) -> Array:
        squares = jnp.pad(jnp.square(x), [(0, 0)] * (x.ndim - 1) + [(size // 2, (size - 1) // 2)])
        channels = x.shape[-1]
        total = sum(squares[..., i : i + channels] for i in range(size))
        return x * (k + alpha * total) ** -beta

    @jax.checkpoint  # stores `x` for the gradient, and nothing in float32
    def narrow_norm(x: Array) -> Array:
        return norm(widened(x)).astype(x.dtype)

    return (narrow_norm if is_narrow(x) else norm)(x)


# --------------------------------------------------------------------------- oneDNN


def _norm_of_whole_vectors(
    x: Array, scale: Array, bias: Array, epsilon: float, relu: bool
) -> tuple[Array, Moments]:
    """Return `batch_norm` by oneDNN, with channels of zeros up to a multiple of `VECTOR`, which are
    cut off again.
    """
    channels = x.shape[-1]
    missing = -channels % VECTOR
    if missing:
        x, scale, bias = (
            jnp.concatenate([each, jnp.zeros((*each.shape[:-1], missing), each.dtype)], -1)
            for each in (x, scale, bias)
        )
    y, mean, var, *_ = _batch_norm.bind(x, scale, bias, epsilon=epsilon, relu=relu)
    if missing:
        y, mean, var = (each[..., :channels] for each in (y, mean, var))
    return y, (mean, var)


def _is_for_onednn(x: Array, scale: Array, bias: Array, joined: bool) -> bool:
    """Return whether oneDNN takes the norm. Zeros beside joined maps are one more map, which costs
    little; elsewhere they are a copy, and RegNetY-400MF's training step takes 1.06 times as long.
    """
    return (
        formulation("normalization") == "cpu"
        and x.ndim == 4
        and x.dtype in (jnp.float32, jnp.bfloat16)
        and scale.dtype == bias.dtype == jnp.float32
        and (joined or x.shape[-1] % VECTOR == 0)
        and onednn.takes(x, scale, bias)
    )


def _norm(x: Array, scale: Array, bias: Array, *, epsilon: float, relu: bool) -> list[Array]:
    found = moments(x)
    y = normalized(widened(x), found, scale, bias, epsilon, relu).astype(x.dtype)
    # The mask of what is positive is oneDNN's; these formulas find it in `x`.
    return [y, *found, *(jnp.zeros(shape, jnp.uint8) for shape in _masks(x, relu))]


def _norm_abstractly(x, scale, bias, *, epsilon: float, relu: bool):
    masks = [x.update(shape=shape, dtype=jnp.dtype(jnp.uint8)) for shape in _masks(x, relu)]
    return [x, scale, scale, *masks]


def _masks(x: Any, relu: bool) -> list[tuple[int]]:
    return onednn.masks(x.shape, x.dtype == jnp.bfloat16) if relu else []


_batch_norm = differentiable(
    "batch_norm", 3, _norm, _norm_abstractly, onednn.BATCH_NORM, onednn.describe_batch_norm
)
