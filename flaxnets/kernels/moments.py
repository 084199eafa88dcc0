"""Mean and variance of each channel over a batch, which batch norms divide by.

On CPUs they take two passes over the map, elsewhere one. Those of a matrix product's output can be
found without the output.
"""

import math
from typing import TypeGuard

import jax
import jax.numpy as jnp
from jax import lax

from flaxnets.kernels.folding import Product
from flaxnets.kernels.platform import formulation
from flaxnets.kernels.precision import is_narrow, widened

Array = jax.Array
Moments = tuple[Array, Array]  # of each channel (C,): mean and biased variance

WIDE = 2  # A product's output is wide if it has this many times the channels of its input.
TILE, TILES = 128, 128  # rows and columns of a tile of a product on GPUs, and tiles at once


def moments(x: Array, axis_name: str | None = None) -> Moments:
    """Return mean and biased variance (C,) of `x` (N, ..., C), in float32 at least, over the batch
    of this device or of all devices of the mapped axis.
    """
    x = widened(x)
    in_turn = formulation("normalization") == "cpu"  # where it takes 0.9 of the other's bytes
    return (_moments_in_turn if in_turn else _moments_at_once)(x, axis_name)


def _moments_in_turn(x: Array, axis_name: str | None) -> Moments:
    mean = _mean(x, axis_name)
    center = lax.stop_gradient(mean)
    distance = x - beside(x, center)
    return mean, _mean(jnp.square(distance), axis_name) - jnp.square(mean - center)


def _moments_at_once(x: Array, axis_name: str | None) -> Moments:
    """Find both in one pass over the map, so the variance need not wait for the mean: they are sums
    of distances from the mean of one pixel of each image, the middle one. As that is within the
    range of the values, hardly a digit cancels out.
    """
    middle = x[:, *(size // 2 for size in x.shape[1:-1])]
    center = lax.stop_gradient(_mean(middle, axis_name))
    distance = x - beside(x, center)
    shift = _mean(distance, axis_name)
    return center + shift, _mean(jnp.square(distance), axis_name) - jnp.square(shift)


def _mean(x: Array, axis_name: str | None) -> Array:
    """Return the mean of each channel, over the mapped axis too."""
    mean = x.mean(tuple(range(x.ndim - 1)))
    return mean if axis_name is None else lax.pmean(mean, axis_name)


def beside(x: Array, vector: Array) -> Array:
    """Return a vector (C,) in the rank of `x` (..., C), as strict rank promotion asks."""
    return lax.broadcast_to_rank(vector, x.ndim)


# --------------------------------------------------------------------------- of a matrix product


def has_wide_output(product: Product | None) -> TypeGuard[Product]:
    """Return whether a product is in 16 bits and its output so wide that its moments are found in
    its input.
    """
    if product is None:
        return False
    channels, features = product.weights.shape
    return is_narrow(product.x) and features >= WIDE * channels


def moments_of_product(product: Product, axis_name: str | None = None) -> Moments:
    """Return the `moments` (O,) of a matrix product's output, without the output.

    They follow from mean and covariance of the input's channels: the variance of an output is a
    quadratic form of its weights. As they are known before the product is computed, a norm's factor
    can be multiplied into the weights, and the output is written once, normalised. The gradient
    needs no output before the norm, and no passes over it. In a residual network's bottleneck the
    input has a quarter of the channels: ResNet-50's training step moves 0.8 of the bytes.

    The covariance loses as many digits as the square of a channel's mean has more than its
    variance: none that matter after a norm, a ReLU or a sum of them.
    """
    mean, products = _mean(widened(product.x), axis_name), _mean_products(product.x, axis_name)
    covariance, weights = products - jnp.outer(mean, mean), product.weights
    mean = jnp.matmul(mean, weights, precision="highest")  # not as TF32
    variance = (weights * jnp.matmul(covariance, weights, precision="highest")).sum(0)
    if product.bias is not None:
        mean += product.bias
    return mean, jnp.maximum(variance, 0)  # rounding makes some zeros negative


def _mean_products(x: Array, axis_name: str | None) -> Array:
    """Return the means (C, C) of the products of two channels, over the mapped axis too."""
    means = _sums_of_products(x) / math.prod(x.shape[:-1])
    return means if axis_name is None else lax.pmean(means, axis_name)


@jax.custom_jvp
def _sums_of_products(x: Array) -> Array:
    """Return the sums (C, C) of the products of two channels of `x` (N, ..., C), in float32 at
    least.

    They are added up in parts, which have tiles for all cores of a GPU. Without the barrier XLA
    would multiply all positions at once.
    """
    tiles = math.ceil(x.shape[-1] / TILE) ** 2
    parts = math.gcd(math.prod(x.shape[:-1]), max(1, TILES // tiles))
    rows = x.reshape(parts, -1, x.shape[-1])
    wide = jnp.promote_types(x.dtype, jnp.float32)
    sums = jnp.einsum("npi,npj->nij", rows, rows, preferred_element_type=wide)
    return lax.optimization_barrier(sums).sum(0)


@_sums_of_products.defjvp
def _sums_of_products_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # One product for both factors. Transposed, it is in the type of `x`.
    half = widened(jnp.einsum("...i,...j->ij", *primals, *tangents))
    return _sums_of_products(*primals), half + half.T
