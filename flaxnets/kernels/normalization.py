"""Batch normalisation over the images of a batch, in the formulation that is fastest where it runs,
layer normalisation, and response normalisation over channels.

XLA's CPU backend takes a dozen operations for a norm with its ReLU and their gradient, each of them
compiled, and several over the whole map; there they become two calls of oneDNN
(`flaxnets.kernels.onednn.calls`). GPU and TPU keep XLA's operations; on GPUs a norm by running
averages is a part of the convolution before it (`flaxnets.kernels.folding`). Values and derivatives
of any order are the same.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

import flaxnets.kernels.onednn.calls as onednn
from flaxnets.kernels.folding import recall
from flaxnets.kernels.platform import formulation
from flaxnets.kernels.precision import is_narrow, widened

Array = jax.Array
Moments = tuple[Array, Array]  # of each channel (C,): mean and biased variance


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
    with `relu` its ReLU, in float32 at least; and those moments, constants of differentiation.

    They cover the batch of this device, or of all devices of the mapped axis. Where they are
    `known`, XLA's operations take them; oneDNN recomputes them, which is faster.
    """
    x = widened(x)
    if axis_name is None and _is_for_onednn(x, scale, bias):
        y, mean, var, *_ = _batch_norm.bind(x, scale, bias, epsilon=epsilon, relu=relu)
        return y, (mean, var)
    found = known or moments(x, axis_name)
    return normalized(x, found, scale, bias, epsilon, relu), lax.stop_gradient(found)


def averaged_norm(
    x: Array, averages: Moments, scale: Array, bias: Array, epsilon: float, relu: bool
) -> Array:
    """Return `batch_norm` of `x` (..., C) by running averages instead of the batch's moments; with
    `folded_norms` as part of the convolution that `x` is the output of, in its type.
    """
    convolution = recall(x)
    if convolution is None:
        return normalized(widened(x), averages, scale, bias, epsilon, relu)
    y = convolution(*as_affine(averages, scale, bias, epsilon))
    return jax.nn.relu(y) if relu else y


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
    center, factor, shift = (_beside(x, each) for each in (center, factor, shift))
    y = (x - center) * factor + shift
    return jax.nn.relu(y) if relu else y


def as_affine(by: Moments, scale: Array, bias: Array, epsilon: float) -> tuple[Array, Array]:
    """Return the norm by given moments as a factor and a shift (C,): `x * factor + shift`."""
    mean, var = by
    factor = scale * lax.rsqrt(var + epsilon)
    return factor, bias - mean * factor


def _beside(x: Array, vector: Array) -> Array:
    """Return a vector (C,) in the rank of `x` (..., C), as strict rank promotion asks."""
    return lax.broadcast_to_rank(vector, x.ndim)


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
    distance = x - _beside(x, center)
    return mean, _mean(jnp.square(distance), axis_name) - jnp.square(mean - center)


def _moments_at_once(x: Array, axis_name: str | None) -> Moments:
    """Find both in one pass over the map, so the variance need not wait for the mean: they are sums
    of distances from the mean of one pixel of each image, the middle one. As that is within the
    range of the values, hardly a digit cancels out.
    """
    middle = x[:, *(size // 2 for size in x.shape[1:-1])]
    center = lax.stop_gradient(_mean(middle, axis_name))
    distance = x - _beside(x, center)
    shift = _mean(distance, axis_name)
    return center + shift, _mean(jnp.square(distance), axis_name) - jnp.square(shift)


def _mean(x: Array, axis_name: str | None) -> Array:
    """Return the mean of each channel, over the mapped axis too."""
    mean = x.mean(tuple(range(x.ndim - 1)))
    return mean if axis_name is None else lax.pmean(mean, axis_name)


def layer_norm(
    x: Array, scale: Array, bias: Array, epsilon: float, variance: Array | None = None
) -> Array:
    """Return `x` (..., C) less the mean of its channels, divided by their deviation, or by the root
    of a given `variance` (..., 1), then scaled and shifted, in float32 at least.
    """
    x = widened(x)
    x = x - x.mean(-1, keepdims=True)
    if variance is None:
        variance = jnp.square(x).mean(-1, keepdims=True)
    return x * lax.rsqrt(variance + epsilon) * _beside(x, scale) + _beside(x, bias)


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


def _is_for_onednn(x: Array, scale: Array, bias: Array) -> bool:
    return (
        formulation("normalization") == "cpu"
        and x.ndim == 4
        and x.dtype == scale.dtype == bias.dtype == jnp.float32
        and x.shape[-1] % 16 == 0  # whole vectors: else densenet_bc_100_12's step takes 1.5 times
        and onednn.takes(x, scale, bias)
    )


# Three primitives: the norm; its tangent, which is linear in the operands' tangents; and the
# transpose of that, the gradient. CPUs call oneDNN for the norm and its gradient. All the rest
# (tangents, second derivatives, jax.vmap, other platforms) is made of the formulas above.
_batch_norm = Primitive("batch_norm")
_tangent = Primitive("batch_norm_tangent")
_gradient = Primitive("batch_norm_gradient")
for _primitive in (_batch_norm, _gradient):
    _primitive.multiple_results = True


def _norm(x: Array, scale: Array, bias: Array, *, epsilon: float, relu: bool) -> list[Array]:
    found = moments(x)
    y = normalized(x, found, scale, bias, epsilon, relu)
    # The mask of what is positive is oneDNN's; these formulas find it in `x`.
    return [y, *found, *(jnp.zeros(shape, jnp.uint8) for shape in onednn.masks(x.shape, relu))]


def _norm_alone(*operands: Array, **params) -> Array:
    return _norm(*operands, **params)[0]


def _tangent_by_xla(*operands: Array, **params) -> Array:
    """Return the norm's tangent, given those of x, scale and bias, then these three, then what the
    norm found.
    """
    function = functools.partial(_norm_alone, **params)
    return jax.jvp(function, tuple(operands[3:6]), tuple(operands[:3]))[1]


def _gradient_by_xla(cotangent: Array, *operands: Array, **params) -> list[Array]:
    """Return the gradients of x, scale and bias, given that of the norm, then these three, then
    what the norm found.
    """
    function = functools.partial(_norm_alone, **params)
    return list(jax.vjp(function, *operands[:3])[1](cotangent))


def _norm_and_tangent(primals, tangents, **params):
    found = _batch_norm.bind(*primals, **params)
    tangents = map(ad.instantiate_zeros, tangents)
    change = _tangent.bind(*tangents, *primals, *found[1:], **params)
    constant = [ad.Zero(jax.typeof(each).to_tangent_aval()) for each in found[1:]]
    return found, [change, *constant]


def _tangent_transposed(cotangent: Array, *operands, **params):
    unknown = [ad.is_undefined_primal(each) for each in operands[:3]]
    gradients = _gradient.bind(cotangent, *operands[3:], **params)
    known = [None] * len(operands[3:])
    return [g if asked else None for g, asked in zip(gradients, unknown, strict=True)] + known


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


def _eagerly(primitive):
    compiled = jax.jit(primitive.bind, static_argnames=("epsilon", "relu"))

    def call(*operands: Array, **params):
        with jax.disable_jit(False):  # which would call the primitive, which calls this
            return compiled(*operands, **params)

    return call


def _mapped(function):
    def rule(operands, axes, **params):
        found = jax.vmap(functools.partial(function, **params), in_axes=axes)(*operands)
        return found, jax.tree.map(lambda _: 0, found)

    return rule


def _lowered(gradient: bool) -> Callable:
    def rule(context, *operands, epsilon: float, relu: bool):
        assert onednn.available()  # it registers the call
        shape = context.avals_in[0].shape
        description = onednn.describe_batch_norm(shape, epsilon, relu, gradient)
        return jax.ffi.ffi_lowering(onednn.BATCH_NORM)(context, *operands, description=description)

    return rule


@_batch_norm.def_abstract_eval
def _norm_abstractly(x, scale, bias, *, epsilon, relu):
    masks = [
        x.update(shape=shape, dtype=jnp.dtype(jnp.uint8)) for shape in onednn.masks(x.shape, relu)
    ]
    return [x, scale, scale, *masks]


@_gradient.def_abstract_eval
def _gradient_abstractly(cotangent, x, scale, bias, *_, **__):
    return [x, scale, bias]


_tangent.def_abstract_eval(lambda x, *_, **__: x)
for _primitive, _by_xla in (
    (_batch_norm, _norm),
    (_tangent, _tangent_by_xla),
    (_gradient, _gradient_by_xla),
):
    _primitive.def_impl(_eagerly(_primitive))
    batching.primitive_batchers[_primitive] = _mapped(_by_xla)
    mlir.register_lowering(
        _primitive, mlir.lower_fun(_by_xla, multiple_results=_primitive.multiple_results)
    )
ad.primitive_jvps[_batch_norm] = _norm_and_tangent
ad.primitive_transposes[_tangent] = _tangent_transposed
ad.primitive_jvps[_tangent] = _differentiated(_tangent, _tangent_by_xla, 6)
ad.primitive_jvps[_gradient] = _differentiated(_gradient, _gradient_by_xla, 4)
mlir.register_lowering(_batch_norm, _lowered(gradient=False), platform="cpu")
mlir.register_lowering(_gradient, _lowered(gradient=True), platform="cpu")
