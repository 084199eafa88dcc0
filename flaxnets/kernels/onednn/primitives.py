"""Primitives of jax that are calls of oneDNN on CPUs, with a call for their gradient."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

import flaxnets.kernels.onednn.calls as onednn

Array = jax.Array


def differentiable(
    name: str,
    count: int,
    formula: Callable[..., list[Array]],
    abstractly: Callable[..., Sequence[Any]],
    target: str,
    describe: Callable[..., np.ndarray],
) -> Primitive:
    """Return a primitive whose value and gradient are calls of oneDNN in programs for CPUs.

    Tangents, second derivatives, `jax.vmap` and other platforms use a formula instead.

    There are two more primitives. The tangent is linear in the operands' tangents. The gradient is
    its transpose; its operands are the cotangent of the result, the operands of the primitive, and
    the primitive's further results.

    Args:
        name: name in programs.
        count: number of operands, all of which it is differentiated by.
        formula: `(*operands, **params) -> [result, *further]` in operations of XLA. Further
            results are constants for differentiation. Params are hashable.
        abstractly: shapes and types of the formula's results from those of the operands.
        target: the call's name.
        describe: `(shape, dtype, gradient, **params)` of the first operand -> its description.
    """
    value, tangent, gradient = (Primitive(name + end) for end in ("", "_tangent", "_gradient"))
    value.multiple_results = gradient.multiple_results = True

    def result(*operands: Array, **params) -> Array:
        return formula(*operands, **params)[0]

    def tangent_by_xla(*operands: Array, **params) -> Array:
        function = functools.partial(result, **params)
        return jax.jvp(function, operands[count : 2 * count], operands[:count])[1]

    def gradient_by_xla(cotangent: Array, *operands: Array, **params) -> list[Array]:
        function = functools.partial(result, **params)
        return list(jax.vjp(function, *operands[:count])[1](cotangent))

    def value_and_tangent(primals, tangents, **params):
        found = value.bind(*primals, **params)
        tangents = map(ad.instantiate_zeros, tangents)
        change = tangent.bind(*tangents, *primals, *found[1:], **params)
        constant = [ad.Zero(jax.typeof(each).to_tangent_aval()) for each in found[1:]]
        return found, [change, *constant]

    def tangent_transposed(cotangent: Array, *operands, **params):
        gradients = gradient.bind(cotangent, *operands[count:], **params)
        asked = map(ad.is_undefined_primal, operands[:count])
        known = [None] * len(operands[count:])
        return [
            g if is_asked else None for g, is_asked in zip(gradients, asked, strict=True)
        ] + known

    value.def_abstract_eval(abstractly)
    tangent.def_abstract_eval(
        lambda *avals, **params: abstractly(*avals[count : 2 * count], **params)[0]
    )
    gradient.def_abstract_eval(lambda cotangent, *avals, **params: list(avals[:count]))
    ad.primitive_jvps[value] = value_and_tangent
    ad.primitive_transposes[tangent] = tangent_transposed
    ad.primitive_jvps[tangent] = _differentiated(tangent, tangent_by_xla, 2 * count)
    ad.primitive_jvps[gradient] = _differentiated(gradient, gradient_by_xla, 1 + count)
    for primitive, by_xla in (
        (value, formula), (tangent, tangent_by_xla), (gradient, gradient_by_xla),
    ):  # fmt: skip
        primitive.def_impl(_eagerly(primitive))
        batching.primitive_batchers[primitive] = _mapped(by_xla)
        lowered = mlir.lower_fun(by_xla, multiple_results=primitive.multiple_results)
        mlir.register_lowering(primitive, lowered)
    for primitive, is_gradient in ((value, False), (gradient, True)):
        lowered = _lowered(target, functools.partial(describe, gradient=is_gradient), is_gradient)
        mlir.register_lowering(primitive, lowered, platform="cpu")
    return value


def _differentiated(primitive: Primitive, function: Callable, count: int) -> Callable:
    """Return the rule for tangents of a primitive whose operands after the first `count` follow
    from those.
    """

    def rule(primals, tangents, **params):
        changes = tuple(ad.instantiate_zeros(each) for each in tangents[:count])
        partial = functools.partial(function, **params)
        found = primitive.bind(*primals, **params)
        return found, jax.jvp(partial, tuple(primals[:count]), changes)[1]

    return rule


def _eagerly(primitive: Primitive) -> Callable:
    @functools.cache
    def compiled(**params) -> Callable:
        return jax.jit(functools.partial(primitive.bind, **params))

    def call(*operands: Array, **params):
        with jax.disable_jit(False):  # which would call the primitive, which calls this
            return compiled(**params)(*operands)

    return call


def _mapped(function: Callable) -> Callable:
    def rule(operands, axes, **params):
        found = jax.vmap(functools.partial(function, **params), in_axes=axes)(*operands)
        return found, jax.tree.map(lambda _: 0, found)

    return rule


def _lowered(target: str, describe: Callable[..., np.ndarray], is_gradient: bool) -> Callable:
    def rule(context, *operands, **params):
        assert onednn.available()  # it registers the call
        first = context.avals_in[int(is_gradient)]  # after the cotangent
        description = describe(first.shape, first.dtype, **params)
        return jax.ffi.ffi_lowering(target)(context, *operands, description=description)

    return rule
