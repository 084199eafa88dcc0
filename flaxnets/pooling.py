"""Maxima and sums over windows of a map, in the formulation that is fastest where it runs.

Each is made of strided slices, one for a cell of the window, where that is faster than XLA's own
operation: on CPUs first along rows, then along columns, which takes fewer operations; maxima on
GPUs from all cells at once, which reads the map once. Values and gradients are the same.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Pair = tuple[int, int]


def window_maxima(x: Array, window: Pair, stride: Pair) -> Array:
    """Of each channel of `x` (N, H, W, C), without padding; NaN where there is one. The gradient
    goes to the first of equal values in reading order, as in torch.

    XLA's gradient takes 4 to 18 times as long on CPUs. On GPUs it is a scatter, and the maxima come
    with four maps of int32 that say where they were: with it VGG-19's training step moves 1.6 times
    the bytes (`tools/benchmark.py --mode traffic`).
    """
    how = {"window": window, "stride": stride}
    by_xla = functools.partial(_by_xla, start=-jnp.inf, of=lax.max, **how)
    by_cells = functools.partial(_by_cells, combine=_first_maximum, **how)
    return lax.platform_dependent(
        x,
        cpu=functools.partial(_by_axes, combine=_first_maximum, **how),
        # Asked here, since a third branch would be traced and differentiated too.
        default=by_cells if jax.default_backend() == "gpu" else by_xla,
    )


def window_sums(x: Array, window: Pair, stride: Pair) -> Array:
    """Of each channel of `x` (N, H, W, C), without padding."""
    return lax.platform_dependent(
        x,
        cpu=functools.partial(_by_axes, window=window, stride=stride, combine=lax.add),
        default=functools.partial(_by_xla, window=window, stride=stride, start=0.0, of=lax.add),
    )


def _by_xla(x: Array, window: Pair, stride: Pair, start: float, of: Callable) -> Array:
    return lax.reduce_window(x, start, of, (1, *window, 1), (1, *stride, 1), "VALID")


def _by_axes(x: Array, window: Pair, stride: Pair, combine: Callable) -> Array:
    for axis in (2, 1):
        x = functools.reduce(combine, _slices(x, axis, window, stride))
    return x


def _by_cells(x: Array, window: Pair, stride: Pair, combine: Callable) -> Array:
    rows = _slices(x, 1, window, stride)
    return functools.reduce(
        combine, (cell for row in rows for cell in _slices(row, 2, window, stride))
    )


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
