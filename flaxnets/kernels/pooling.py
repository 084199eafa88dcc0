"""Maxima and sums over windows of a map, in the formulation that is fastest where it runs.

Each is made of strided slices, one for a cell of the window, where that is faster than XLA's own
operation: on CPUs first along rows, then along columns, which takes fewer operations; maxima on
GPUs from all cells at once, which reads the map once. Values and gradients are the same.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Pair = tuple[int, int]
MAX_CELLS = 25  # of a window whose cells are an operation each


def window_maxima(
    x: Array, window: Pair, stride: Pair, padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
) -> Array:
    """Return the maximum of each channel of `x` (N, H, W, C) in each window; NaN where there is
    one. The gradient goes to the first of equal values in reading order, as in torch.

    `padding` has the pixels before and after rows and columns, which are below every value; a
    negative number leaves out pixels.

    XLA's gradient takes 4 to 18 times as long on CPUs. On GPUs it is a scatter, and the maxima come
    with four maps of int32 that say where they were: with it VGG-19's training step moves 1.6 times
    the bytes (`tools/benchmark.py --mode traffic`).
    """
    config: Any = jax.config
    if config.jax_debug_infs:  # which would find the padding; XLA's operation has it inside
        return _maxima_by_xla(x, window, stride, padding)
    rows, columns = padding
    lowest = jnp.array(-jnp.inf, x.dtype)
    x = lax.pad(x, lowest, [(0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0)])
    # Asked here, since a third branch would be traced and differentiated too.
    by_cells = jax.default_backend() == "gpu" and math.prod(window) <= MAX_CELLS
    return lax.platform_dependent(
        x,
        cpu=lambda x: _maxima_by_axes(x, window, stride),
        default=lambda x: (_maxima_of_cells if by_cells else _maxima_by_xla)(x, window, stride),
    )


def window_sums(x: Array, window: Pair, stride: Pair) -> Array:
    """Of each channel of `x` (N, H, W, C), without padding."""
    return lax.platform_dependent(
        x,
        cpu=lambda x: _by_axes(x, window, stride, lax.add),
        default=lambda x: lax.reduce_window(
            x, 0.0, lax.add, (1, *window, 1), (1, *stride, 1), "VALID"
        ),
    )


def _maxima_by_xla(
    x: Array, window: Pair, stride: Pair, padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
) -> Array:
    margins = ((0, 0), *padding, (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *stride, 1), margins)


def _maxima_by_axes(x: Array, window: Pair, stride: Pair) -> Array:
    return _by_axes(x, window, stride, _first_maximum)


def _by_axes(x: Array, window: Pair, stride: Pair, combine: Callable) -> Array:
    for axis in (2, 1):
        x = functools.reduce(combine, _slices(x, axis, window, stride))
    return x


def _slices(x: Array, axis: int, window: Pair, stride: Pair) -> list[Array]:
    """What the first, second, ... cell of the window meets along an axis."""
    span, step = window[axis - 1], stride[axis - 1]
    last = (x.shape[axis] - span) // step * step
    return [lax.slice_in_dim(x, i, i + last + 1, step, axis) for i in range(span)]


@jax.custom_jvp
def _first_maximum(a: Array, b: Array) -> Array:
    """The larger one, with all of its gradient where they are equal; a NaN stays."""
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
    change, *changes = _cells(*tangents, window, stride)
    for index, cell in enumerate(changes, 1):
        change = jnp.where(place == index, cell, change)
    return y, change


def _cells(x: Array, window: Pair, stride: Pair) -> list[Array]:
    """What each cell of the window meets, in reading order."""
    rows = _slices(x, 1, window, stride)
    return [cell for row in rows for cell in _slices(row, 2, window, stride)]
