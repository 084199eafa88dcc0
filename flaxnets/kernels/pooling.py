"""Maxima and means over windows of a map, in the formulation that is fastest where it runs.

Each is made of strided slices, one for a cell of the window, where that is faster than XLA's own
operation: on CPUs first along rows, then along columns, which takes fewer operations; maxima on
GPUs from all cells at once, which reads the map once. Maxima of float32 and bfloat16 on CPUs are
calls of oneDNN where it is installed (`flaxnets.kernels.onednn.calls`): GoogLeNet's training step
takes 0.94 of the time of slices in float32 (8 images), and ResNet-18's pool 0.4 ms instead of 43 in
bfloat16. Values and gradients are the same, but that oneDNN rounds each addition of a gradient
where windows overlap.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import flaxnets.kernels.onednn.calls as onednn
from flaxnets.kernels.geometry import Pair, check_fits
from flaxnets.kernels.onednn.primitives import differentiable
from flaxnets.kernels.platform import formulation
from flaxnets.kernels.precision import widened

Array = jax.Array
MAX_CELLS = 25  # of a window whose cells are an operation each


def window_maxima(
    x: Array, window: Pair, stride: Pair, padding: Pair = (0, 0), *, ceil_mode: bool = False
) -> Array:
    """Return the maximum of each channel of `x` (N, H, W, C) in each window; NaN where there is
    one. The gradient goes to the first of equal values in reading order, as in torch.

    `padding` counts pixels on both sides, which are below every value. With `ceil_mode` a last
    window may extend beyond the edge as long as it starts inside.

    XLA's gradient takes 4 to 18 times as long on CPUs. On GPUs it is a scatter, and the maxima come
    with four maps of int32 that say where they were: with it VGG-19's training step moves 1.6 times
    the bytes (`tools/benchmark.py --mode traffic`).

    Raises InputError if no window fits the padded map.
    """
    check_fits(x, window, padding, (stride[0] - 1, stride[1] - 1) if ceil_mode else (0, 0))
    rows, columns = (
        (before, _padding_after(size, span, step, before, ceil_mode))
        for size, span, step, before in zip(x.shape[1:3], window, stride, padding, strict=True)
    )
    config: Any = jax.config
    if config.jax_debug_infs:  # which would find the padding; XLA's operation has it inside
        return _maxima_by_xla(x, window, stride, (rows, columns))
    chosen = formulation("pooling")
    if chosen == "cpu" and onednn.takes(x):
        return _max_pool.bind(x, window=window, stride=stride, padding=(rows, columns))[0]
    x = _padded(x, (rows, columns))
    if chosen == "cpu":
        return _maxima_by_axes(x, window, stride)
    if chosen == "gpu" and math.prod(window) <= MAX_CELLS:
        return _maxima_of_cells(x, window, stride)
    return _maxima_by_xla(x, window, stride)


def window_means(
    x: Array, window: Pair, stride: Pair, padding: Pair = (0, 0), *, count_include_pad: bool = True
) -> Array:
    """Return the mean of each channel of `x` (N, H, W, C) in each window, rounded once.

    `padding` counts pixels on both sides. They are zeros, which count unless `count_include_pad` is
    False.

    Raises InputError if no window fits the padded map.
    """
    check_fits(x, window, padding)

    def sums(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (padding[0],) * 2, (padding[1],) * 2, (0, 0)))
        if formulation("pooling") == "cpu":
            return _by_axes(x, window, stride, lax.add)
        return lax.reduce_window(x, 0.0, lax.add, (1, *window, 1), (1, *stride, 1), "VALID")

    wide = widened(x)
    if count_include_pad:
        y = sums(wide) / math.prod(window)
    else:
        y = sums(wide) / sums(jnp.ones((1, *x.shape[1:3], 1), wide.dtype))
    return y.astype(x.dtype)


def bin_means(x: Array, size: Pair) -> Array:
    """Return the means of `x` (N, H, W, C) over `size` bins, which overlap or repeat pixels where
    the map does not divide evenly.
    """

    def bins(n_in: int, n_out: int, dtype: Any) -> Array:
        rows = []
        for i in range(n_out):
            start, end = i * n_in // n_out, -(-(i + 1) * n_in // n_out)
            rows.append([(start <= j < end) / (end - start) for j in range(n_in)])
        return jnp.array(rows, dtype)

    if size == x.shape[1:3]:
        return x
    if size == (1, 1):
        return x.mean((1, 2), keepdims=True)
    wide = widened(x)
    rows, columns = (bins(*pair, wide.dtype) for pair in zip(x.shape[1:3], size, strict=True))
    return jnp.einsum("ih,nhwc,jw->nijc", rows, wide, columns, precision="highest").astype(x.dtype)


def _padding_after(size: int, window: int, stride: int, before: int, ceil_mode: bool) -> int:
    """Return the padding at the far end of an axis, negative where torch's rounding leaves pixels
    unread.
    """
    steps = size + 2 * before - window
    last = -(-steps // stride) if ceil_mode else steps // stride
    if ceil_mode and last * stride >= size + before:  # the window would start in the padding
        last -= 1
    return last * stride + window - size - before


def _maxima_by_xla(
    x: Array, window: Pair, stride: Pair, padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
) -> Array:
    """Return the maxima by XLA's own operation, which loses NaN on CPUs where the map has many
    channels (found with 64, jaxlib 0.10).
    """
    margins = ((0, 0), *padding, (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *stride, 1), margins)


def _padded(x: Array, padding: tuple[Pair, Pair]) -> Array:
    lowest = jnp.array(-jnp.inf, x.dtype)
    return lax.pad(x, lowest, [(0, 0, 0), *((*each, 0) for each in padding), (0, 0, 0)])


def _maxima_by_axes(x: Array, window: Pair, stride: Pair) -> Array:
    return _by_axes(x, window, stride, _first_maximum)


def _by_axes(x: Array, window: Pair, stride: Pair, combine: Callable) -> Array:
    for axis in (2, 1):
        x = functools.reduce(combine, _slices(x, axis, window, stride))
    return x


def _slices(x: Array, axis: int, window: Pair, stride: Pair) -> list[Array]:
    """Return what the first, second, ... cell of the window meets along an axis."""
    span, step = window[axis - 1], stride[axis - 1]
    last = (x.shape[axis] - span) // step * step
    return [lax.slice_in_dim(x, i, i + last + 1, step, axis) for i in range(span)]


@jax.custom_jvp
def _first_maximum(a: Array, b: Array) -> Array:
    """Return the larger one, which has all of the gradient where they are equal; a NaN stays."""
    return lax.max(a, b)


@_first_maximum.defjvp
def _first_maximum_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]):
    # One selection for both; lax.max's own rule would share the gradient between equal values.
    a, b = primals
    takes_first = (a >= b) | (a != a)
    return jnp.where(takes_first, a, b), jnp.where(takes_first, *tangents)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _maxima_of_cells(x: Array, window: Pair, stride: Pair) -> Array:
    return functools.reduce(lax.max, _cells(x, window, stride))


@_maxima_of_cells.defjvp
def _maxima_of_cells_jvp(window: Pair, stride: Pair, primals: tuple[Array], tangents: tuple[Array]):
    # One map of a byte a pixel says where each maximum was.
    first, *others = _cells(*primals, window, stride)
    y, place = first, jnp.zeros(first.shape, jnp.uint8)
    for index, cell in enumerate(others, 1):
        stays = (y >= cell) | (y != y)
        y, place = jnp.where(stays, y, cell), jnp.where(stays, place, jnp.uint8(index))
    # Without the barrier XLA:GPU computes all of it again in several readers of the output.
    y, place = lax.optimization_barrier((y, place))
    change, *changes = _cells(*tangents, window, stride)
    for index, cell in enumerate(changes, 1):
        change = jnp.where(place == index, cell, change)
    return y, change


def _cells(x: Array, window: Pair, stride: Pair) -> list[Array]:
    """Return what each cell of the window meets, in reading order."""
    rows = _slices(x, 1, window, stride)
    return [cell for row in rows for cell in _slices(row, 2, window, stride)]


# --------------------------------------------------------------------------- oneDNN


def _maxima(x: Array, *, window: Pair, stride: Pair, padding: tuple[Pair, Pair]) -> list[Array]:
    y = _maxima_by_axes(_padded(x, padding), window, stride)
    # The places are oneDNN's; this formula finds them in `x`.
    return [y, jnp.zeros(_places(x, window, stride, padding), jnp.uint8)]


def _maxima_abstractly(x, *, window: Pair, stride: Pair, padding: tuple[Pair, Pair]):
    places = _places(x, window, stride, padding)
    return [
        x.update(shape=_shapes_and_geometry(x.shape, window, stride, padding)[0][1]),
        x.update(shape=places, dtype=jnp.dtype(jnp.uint8)),
    ]


def _shapes_and_geometry(
    shape: tuple[int, ...], window: Pair, stride: Pair, padding: tuple[Pair, Pair]
) -> tuple[tuple, tuple[int, ...]]:
    """Return the shapes of input and output, and window, stride and padding as oneDNN takes it,
    which rounds the number of windows down: pixels left unread are no padding below zero.
    """
    sizes = zip(shape[1:3], window, stride, padding, strict=True)
    rows, columns = ((n + sum(pads) - span) // step + 1 for n, span, step, pads in sizes)
    before, after = zip(*padding, strict=True)
    geometry = (*window, *stride, *before, *(max(each, 0) for each in after))
    return (shape, (shape[0], rows, columns, shape[3])), geometry


def _places(x: Any, *numbers: Any) -> tuple[int]:
    return onednn.places(*_shapes_and_geometry(x.shape, *numbers), x.dtype == jnp.bfloat16)


def _describe(shape: tuple[int, ...], dtype: Any, gradient: bool, **params) -> Any:
    return onednn.describe_max_pool(*_shapes_and_geometry(shape, **params), dtype, gradient)


_max_pool = differentiable("max_pool", 1, _maxima, _maxima_abstractly, onednn.MAX_POOL, _describe)
