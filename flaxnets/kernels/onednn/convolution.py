"""The convolution as a call of oneDNN: a primitive with derivatives of any order."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

import flaxnets.kernels.onednn.calls as onednn
from flaxnets.kernels.precision import plus_bias, widened
from flaxnets.kernels.xla import Geometry, output_map, xla_convolution

Array = jax.Array

# In bfloat16 a norm by running averages (`flaxnets.kernels.folding`), a residual sum and the ReLU
# are post-operations of the call. In float32 they are not. They were tried: inference of five
# networks took 1.00 to 1.15 times as long. XLA fuses most of them into passes that remain (pads and
# maxima of pools, concatenations, the sum, which reads the shortcut).


def is_for_onednn(x: Array, kernel: Array, geometry: Geometry) -> bool:
    """Return whether a convolution is a call of oneDNN; one to a single pixel is not."""
    to_one_pixel = geometry[-1] == 1 and output_map(x, kernel, geometry) == (1, 1)
    return not to_one_pixel and onednn.takes(x, kernel)


def conv_by_onednn(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Return the convolution of `x`, float32 or bfloat16, with a float32 kernel, in the type of
    `x`.
    """
    return _bound(x, kernel, {}, geometry, relu=False)


def _bound(
    x: Array, kernel: Array, extras: dict[str, Array], geometry: Geometry, relu: bool
) -> Array:
    output = (len(x), *output_map(x, kernel, geometry), kernel.shape[3])
    names = tuple(name for name in onednn.EXTRAS if name in extras)
    return _convolution.bind(
        x, kernel, *(extras[name] for name in names),
        result="output", shapes=(x.shape, kernel.shape, output), geometry=geometry, dtype=x.dtype,
        extras=names, relu=relu,
    )  # fmt: skip


def fused(
    x: Array, kernel: Array, extras: dict[str, Array], geometry: Geometry, relu: bool
) -> Array:
    """Return the convolution of `x`, bfloat16, with a float32 kernel and what follows, rounded
    once.

    What follows are the `extras`, some of `onednn.EXTRAS`, and then with `relu` the ReLU.
    """
    if not extras and not relu:
        return conv_by_onednn(x, kernel, geometry)
    return _fused_once(x, kernel, extras, geometry, relu)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _fused_once(
    x: Array, kernel: Array, extras: dict[str, Array], geometry: Geometry, relu: bool
) -> Array:
    return _bound(x, kernel, extras, geometry, relu)


@_fused_once.defjvp
def _fused_jvp(geometry: Geometry, relu: bool, primals: tuple, tangents: tuple):
    def rounded_often(x: Array, kernel: Array, extras: dict[str, Array]) -> Array:
        y = conv_by_onednn(x, kernel, geometry)
        return lax.optimization_barrier(_finished(y, extras, relu))

    # The gradients of image, kernel and bias read the same array. Without the barrier XLA:CPU would
    # store it in float32 as well (4 images of 224x224 pixels, 64 channels, on one core: 55 -> 22
    # ms).
    return _fused_once(*primals, geometry, relu), jax.jvp(rounded_often, primals, tangents)[1]


def _finished(y: Array, extras: dict[str, Array], relu: bool) -> Array:
    """Return a convolution's output `y` with what follows, in the type of `y`."""
    y = plus_bias(y, extras.get("bias"))
    if "factor" in extras:
        factor, shift = (lax.broadcast_to_rank(extras[k], y.ndim) for k in ("factor", "shift"))
        y = (widened(y) * factor + shift).astype(y.dtype)
    if "addend" in extras:
        y = y + extras["addend"].astype(y.dtype)
    return jax.nn.relu(y) if relu else y


# This primitive computes one of onednn.ROLES from the other two: input and output have the type
# `dtype`, the kernel is float32. It is linear in each operand. Its transpose with respect to an
# operand is the same primitive with that operand as its result, so derivatives of any order exist.
# CPUs call oneDNN for it. Programs traced for other platforms do not contain it. If one traced for
# a CPU is lowered elsewhere, it becomes XLA's convolution or its transpose.
_convolution = Primitive("convolution")


_STATIC = ("result", "shapes", "geometry", "dtype", "extras", "relu")


@functools.partial(jax.jit, static_argnames=_STATIC)
def _compiled(*operands: Array, **params) -> Array:
    return _convolution.bind(*operands, **params)


def _eagerly(*operands: Array, **params) -> Array:
    with jax.disable_jit(False):  # with jit disabled, the primitive would call this function again
        return _compiled(*operands, **params)


def _abstractly(*operands, result, shapes, geometry, dtype, extras, relu):
    if result == "kernel":
        dtype = jnp.dtype(jnp.float32)
    return operands[0].update(shape=shapes[onednn.ROLES.index(result)], dtype=dtype)


def _lowered(context, *operands, result, shapes, geometry, dtype, extras, relu):
    assert onednn.available()  # `available` also registers the call
    stride, padding, dilation, groups = geometry
    numbers = (*stride, *padding, *dilation, groups)
    narrow = dtype == jnp.bfloat16
    description = onednn.describe_convolution(result, shapes, numbers, narrow, extras, relu)
    return jax.ffi.ffi_lowering(onednn.CONVOLUTION)(context, *operands, description=description)


def _transposed(position: int, cotangent: Array, *operands, result: str, **params) -> Array:
    """Return the gradient of the unknown operand at `position`. The other operand is an array."""
    roles = [role for role in onednn.ROLES if role != result]
    known = {result: cotangent, roles[1 - position]: operands[1 - position]}
    if roles[position] == "kernel" and _is_wide_and_depthwise(params["shapes"], params["geometry"]):
        return _kernel_by_strips(known["output"], known["input"], **params)
    pair = [known[role] for role in onednn.ROLES if role in known]
    return _convolution.bind(*pair, result=roles[position], **params)


STRIP = 3  # columns


def _is_wide_and_depthwise(shapes: tuple[tuple[int, ...], ...], geometry: Geometry) -> bool:
    _, width, channels, features = shapes[onednn.ROLES.index("kernel")]
    *_, dilation, groups = geometry
    return width > STRIP and channels == 1 and features == groups and dilation[1] == 1


def _kernel_by_strips(
    output: Array,
    x: Array,
    *,
    shapes: tuple[tuple[int, ...], ...],
    geometry: Geometry,
    **others: Any,
) -> Array:
    """Return the gradient of a depthwise kernel in strips of its columns. Each strip reads the
    columns of the images that it meets.

    oneDNN is fast up to three columns (5x5, 28x28 pixels, 120 channels: 4.4 -> 0.7 ms).
    """
    by_role = dict(zip(onednn.ROLES, shapes, strict=True))
    height, width, *rest = by_role["kernel"]
    stride, padding, dilation, groups = geometry
    strips = []
    for first in range(0, width, STRIP):
        columns = min(STRIP, width - first)
        left = padding[1] - first  # negative where columns stay unread
        right = (output.shape[2] - 1) * stride[1] + columns - left - x.shape[2]
        nothing = (0, 0, 0)
        read = lax.pad(x, jnp.zeros((), x.dtype), [nothing, nothing, (left, right, 0), nothing])
        of_strip = by_role | {"input": read.shape, "kernel": (height, columns, *rest)}
        strip = _convolution.bind(
            *({"output": output, "input": read}[role] for role in onednn.ROLES if role != "kernel"),
            result="kernel",
            shapes=tuple(of_strip[role] for role in onednn.ROLES),
            geometry=(stride, (padding[0], 0), dilation, groups),
            **others,
        )
        strips.append(strip)
    return jnp.concatenate(strips, 1)


def _by_xla(
    first: Array,
    second: Array,
    *following: Array,
    result: str,
    shapes: tuple[tuple[int, ...], ...],
    geometry: Geometry,
    dtype: Any,
    extras: tuple[str, ...],
    relu: bool,
) -> Array:
    """Return the primitive in XLA's own operations, computed in float32: the convolution, or its
    transpose.
    """
    roles = [role for role in onednn.ROLES if role != result]
    known = {  # this rounds the kernel
        role: widened(operand.astype(dtype))
        for role, operand in zip(roles, (first, second), strict=True)
    }
    if result == "output":
        y = xla_convolution(known["input"], known["kernel"], geometry)
        return _finished(y, dict(zip(extras, following, strict=True)), relu).astype(dtype)

    def output(array: Array) -> Array:
        arrays = known | {result: array}
        return xla_convolution(arrays["input"], arrays["kernel"], geometry)

    unknown = jax.ShapeDtypeStruct(shapes[onednn.ROLES.index(result)], jnp.float32)
    (gradient,) = jax.linear_transpose(output, unknown)(known["output"])
    return gradient if result == "kernel" else gradient.astype(dtype)


def _mapped(operands, axes, **params):
    """Map the primitive (`jax.vmap`). XLA's convolution, or its transpose, takes one more axis."""
    return jax.vmap(functools.partial(_by_xla, **params), in_axes=axes)(*operands), 0


_convolution.def_impl(_eagerly)
_convolution.def_abstract_eval(_abstractly)
mlir.register_lowering(_convolution, mlir.lower_fun(_by_xla, multiple_results=False))
mlir.register_lowering(_convolution, _lowered, platform="cpu")
ad.defbilinear(_convolution, functools.partial(_transposed, 0), functools.partial(_transposed, 1))
batching.primitive_batchers[_convolution] = _mapped
