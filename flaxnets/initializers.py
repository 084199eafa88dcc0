"""Initial values of parameters, drawn without a compiled program for each shape.

A jitted `model.init` compiles every draw separately on XLA's CPU backend, thousands of them in a
deep network (264 s for resnet1202_cifar on two cores). Here a draw is a primitive. Evaluated alone,
it calls a program that draws of all shapes share, and `drawn` evaluates the draws of a network one
by one.

The values are those of the initializers of the same names in `flax.linen`. flax's initializers work
here as well, but compile a program for each shape.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import eval_jaxpr
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir, partial_eval

Array = jax.Array
Shape = tuple[int, ...]
# "uniform" lies between -1 and 1; "truncated_normal" is a normal distribution between -2 and 2.
Distribution: TypeAlias = Literal["normal", "truncated_normal", "uniform"]
DEVIATIONS = {"normal": 1.0, "truncated_normal": 0.87962566103423978}


@dataclasses.dataclass(frozen=True)
class Draw:
    """An initializer: (key, shape, dtype) to independent numbers of a distribution, times a factor
    that depends on shape and dtype.
    """

    distribution: Distribution
    factor: Callable[[Shape, np.dtype], Any]

    def __call__(self, key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        shape, dtype = tuple(shape), np.dtype(dtype)
        factor = float(self.factor(shape, dtype))
        return _draw.bind(
            key, distribution=self.distribution, factor=factor, shape=shape, dtype=dtype
        )


def normal(deviation: float) -> Draw:
    """Return an initializer of zero mean and the standard deviation `deviation`."""
    return Draw("normal", lambda *_: deviation)


def uniform(bound: float) -> Draw:
    """Return an initializer that is uniform in +-`bound`."""
    return Draw("uniform", lambda *_: bound)


def variance_scaling(
    scale: float, mode: Literal["fan_in", "fan_out"], distribution: Distribution
) -> Draw:
    """Return an initializer of zero mean and variance `scale` / fan, for kernels (..., channels,
    features).

    The fan is the size of the kernel divided by its features, or with "fan_out" by its channels.
    """

    def factor(shape: Shape, dtype: np.dtype) -> Any:
        fan = math.prod(shape[:-1] if mode == "fan_in" else (*shape[:-2], shape[-1]))
        variance = dtype.type(scale / fan)
        if distribution == "uniform":
            return np.sqrt(3 * variance)
        return np.sqrt(variance) / dtype.type(DEVIATIONS[distribution])

    return Draw(distribution, factor)


class Drawing:
    """`init(*arguments)` traced once: the `shapes` of its values, and the values themselves."""

    def __init__(self, init: Callable[..., Any], *arguments: Any):
        self._closed, self.shapes = jax.make_jaxpr(init, return_shape=True)(*arguments)
        self._leaves = jax.tree.leaves(arguments)

    def values(self) -> Any:
        """Return the values, evaluated one operation after another.

        Operations that the values do not depend on are skipped. Of `model.init` only the draws
        remain.
        """
        closed = self._closed
        jaxpr, is_used = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.out_avals))
        used = zip(self._leaves, is_used, strict=True)
        operands = [leaf for leaf, needed in used if needed]
        leaves = eval_jaxpr(jaxpr, closed.consts, *operands)
        return jax.tree.unflatten(jax.tree.structure(self.shapes), leaves)


def drawn(init: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that gives the values of `init`, as `Drawing` evaluates them."""
    return lambda *arguments: Drawing(init, *arguments).values()


_draw = Primitive("draw")


def _numbers(key: Array, distribution: Distribution, count: int, dtype: np.dtype) -> Array:
    if distribution == "normal":
        return jax.random.normal(key, (count,), dtype)
    if distribution == "truncated_normal":
        return jax.random.truncated_normal(key, -2, 2, (count,), dtype)
    return jax.random.uniform(key, (count,), dtype, -1, 1)


_compiled_numbers = jax.jit(_numbers, static_argnums=(1, 2, 3))


def _draw_eagerly(
    key: Array, *, distribution: Distribution, factor: float, shape: Shape, dtype: np.dtype
) -> Array:
    """Draw a power of two of numbers and drop the surplus.

    Each number depends only on the key and its index, so that shapes can share programs. Few
    kernels of a DenseNet have equal shapes.
    """
    count = math.prod(shape)
    with jax.disable_jit(False):
        numbers = _compiled_numbers(key, distribution, 1 << (count - 1).bit_length(), dtype)
    return jnp.asarray(np.asarray(numbers)[:count].reshape(shape) * dtype.type(factor))


def _draw_traced(
    key: Array, *, distribution: Distribution, factor: float, shape: Shape, dtype: np.dtype
) -> Array:
    numbers = _numbers(key, distribution, math.prod(shape), dtype)
    # Without the barrier XLA would merge this factor with one of the distribution, which rounds
    # differently.
    return lax.optimization_barrier(numbers).reshape(shape) * dtype.type(factor)


def _draw_mapped(
    operands: Sequence[Array], axes: Sequence[int], **params: Any
) -> tuple[Array, int]:
    return jax.vmap(functools.partial(_draw_traced, **params), in_axes=axes)(*operands), 0


@_draw.def_abstract_eval
def _draw_abstract(key: Any, *, shape: Shape, dtype: np.dtype, **_: Any) -> Any:
    return key.update(shape=shape, dtype=dtype)


_draw.def_impl(_draw_eagerly)
mlir.register_lowering(_draw, mlir.lower_fun(_draw_traced, multiple_results=False))
batching.primitive_batchers[_draw] = _draw_mapped
