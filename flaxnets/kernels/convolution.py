"""The convolution of NHWC images, in the formulation that is fastest on the platform.

GPU and TPU keep XLA's own operation. XLA's CPU backend has no operation that is fast at every
shape, so there the shape decides when the program is traced:

- An output of one pixel is a matrix product.
- Other shapes are a call of oneDNN (`flaxnets.kernels.onednn.calls`).
- Without oneDNN they are matrix products, or dense convolutions in place of a grouped one.

Values and derivatives of any order are the same.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

import flaxnets.kernels.onednn.calls as onednn
from flaxnets.kernels.folding import Affine, Output, remember
from flaxnets.kernels.geometry import Pair, check_fits
from flaxnets.kernels.platform import formulation
from flaxnets.kernels.precision import is_narrow, plus_bias, widened

Array = jax.Array
Geometry = tuple[Pair, Pair, Pair, int]  # stride, padding, dilation, groups


def conv2d(
    x: Array,
    kernel: Array,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    bias: Array | None = None,
) -> Array:
    """Return the convolution of `x` (N, H, W, C) with `kernel` (h, w, C / groups, O), as in torch,
    plus `bias` (O,).

    The kernel is rounded to the floating-point type of `x`, which is also that of the result. Where
    that type has less than 32 bits, the sum of products and bias is rounded once. Inside
    `folded_norms` what follows can be fused in.

    Raises InputError if the kernel does not fit the padded map.
    """
    geometry = (stride, padding, dilation, groups)
    height, width = ((n - 1) * step + 1 for n, step in zip(kernel.shape[:2], dilation, strict=True))
    check_fits(x, (height, width), padding)

    traced_for = formulation("convolution")
    is_narrow_call = traced_for == "cpu" and is_narrow(x) and _is_for_onednn(x, kernel, geometry)

    def make(affine: Affine | None, addend: Array | None, relu: bool) -> Array:
        if is_narrow_call:
            factor, shift = affine or (None, None)
            vectors = {"bias": bias, "factor": factor, "shift": shift}
            extras = {k: widened(v) for k, v in vectors.items() if v is not None}
            if addend is not None:
                extras["addend"] = addend.astype(x.dtype)
            return _fused(x, widened(kernel), extras, geometry, relu)
        if affine is None:
            return _convolve(x, kernel, bias, geometry, traced_for)
        factor, shift = affine
        shift = shift if bias is None else bias * factor + shift
        return _convolve(x, kernel * factor, shift, geometry, traced_for)

    y = make(None, None, False)
    if traced_for == "gpu" or is_narrow_call:
        remember(y, Output(make))
    return y


def _convolve(
    x: Array, kernel: Array, bias: Array | None, geometry: Geometry, traced_for: str
) -> Array:
    kernel = kernel.astype(x.dtype)
    if traced_for != "cpu":
        if traced_for == "gpu" and _is_narrow_stem(x, geometry):
            return plus_bias(conv_of_blocks(x, kernel, geometry), bias)
        # On GPUs XLA makes one call of cuDNN of this, for narrow types too, and adds the bias in
        # float32. If asked for a float32 result, it would first convert the images (4.5 times the
        # bytes).
        return plus_bias(xla_convolution(x, kernel, geometry), bias)
    y = _on_cpu(widened(x), widened(kernel), geometry)
    return plus_bias(y, bias).astype(x.dtype)


def _on_cpu(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Return the convolution in the formulation that is fastest on CPUs at this shape."""
    stride, padding, dilation, groups = geometry
    if _is_for_onednn(x, kernel, geometry):
        return _conv_by_onednn(x, kernel, geometry)
    if groups == 1 and _output_map(x, kernel, geometry) == (1, 1):
        return _conv_to_one_pixel(x, kernel, padding, dilation)
    if groups > 1:
        if kernel.shape[2:] == (1, groups):
            return _conv_by_taps(x, kernel, geometry)
        return _conv_by_bundles(x, kernel, geometry)
    if math.prod(x.shape[1:3]) <= 16 and kernel.shape[:2] != (1, 1):
        return _conv_by_taps(x, kernel, geometry)
    if kernel.shape[:2] == (1, 1) and padding == (0, 0):
        return _conv_pointwise(x, kernel, stride)
    return xla_convolution(x, kernel, geometry)


def _is_narrow_stem(x: Array, geometry: Geometry) -> bool:
    stride, _, dilation, groups = geometry
    is_narrow = jnp.finfo(x.dtype).bits < 32
    return is_narrow and x.shape[3] <= 4 and min(stride) > 1 and (dilation, groups) == ((1, 1), 1)


def conv_of_blocks(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Return the convolution of a network's first layer, whose stride is above one, over blocks of
    pixels.

    A block of stride x stride pixels becomes one pixel with that many times the channels. The
    kernel is padded with zeros to whole blocks and gets a stride of one.

    A tensor core multiplies eight channels or more at once, which three colours leave mostly idle.
    On an H100 in bfloat16 ResNet-50's inference takes 0.87 of the time, its training step 0.96.
    """
    stride, padding, _, _ = geometry
    n_out = _output_map(x, kernel, geometry)
    cells = [-(-span // step) for span, step in zip(kernel.shape[:2], stride, strict=True)]
    blocks = [n + count - 1 for n, count in zip(n_out, cells, strict=True)]
    margins = [
        (pad, count * step - size - pad)  # negative where pixels stay unread
        for pad, count, step, size in zip(padding, blocks, stride, x.shape[1:3], strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*m, 0) for m in margins), (0, 0, 0)])
    channels, features = kernel.shape[2:]
    folded = x.reshape(len(x), blocks[0], stride[0], blocks[1], stride[1], channels)
    folded = folded.transpose(0, 1, 3, 2, 4, 5).reshape(len(x), *blocks, -1)
    missing = [
        (0, count * step - span)
        for count, step, span in zip(cells, stride, kernel.shape[:2], strict=True)
    ]
    kernel = jnp.pad(kernel, [*missing, (0, 0), (0, 0)])
    kernel = kernel.reshape(cells[0], stride[0], cells[1], stride[1], channels, features)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(*cells, -1, features)
    return xla_convolution(folded, kernel, ((1, 1), (0, 0), (1, 1), 1))


def xla_convolution(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Return the convolution in XLA's own operation."""
    stride, padding, dilation, groups = geometry
    return lax.conv_general_dilated(
        x,
        kernel,
        stride,
        [(pad, pad) for pad in padding],
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def _output_map(x: Array, kernel: Array, geometry: Geometry) -> Pair:
    """Return the height and width of the convolution's output."""
    sizes = zip(x.shape[1:3], kernel.shape[:2], *geometry[:3], strict=True)
    height, width = (
        (n + 2 * pad - (cells - 1) * spread - 1) // step + 1
        for n, cells, step, pad, spread in sizes
    )
    return height, width


def _conv_to_one_pixel(x: Array, kernel: Array, padding: Pair, dilation: Pair) -> Array:
    """Return a convolution whose output is one pixel, such as LeNet-5's C5: a fully connected
    layer.

    It is one matrix product of the pixels and the kernel cells that they meet. oneDNN also
    multiplies the padding (3x3 on one pixel, 512 channels, with gradients: 4 -> 1 ms).
    """
    pixels, cells = [], []
    for axis in range(2):
        # Cell c meets pixel c * spread - pad.
        pad, spread = padding[axis], dilation[axis]
        first = -(-pad // spread)
        last = min(kernel.shape[axis] - 1, (x.shape[axis + 1] - 1 + pad) // spread)
        # Where nothing is met the end could be negative, which would count from the other side.
        pixels.append(slice(first * spread - pad, max(last * spread - pad + 1, 0), spread))
        cells.append(slice(first, last + 1))
    weights = kernel[*cells]
    fan_in = math.prod(weights.shape[:3])
    seen = x[:, *pixels].reshape(x.shape[0], fan_in)
    return (seen @ weights.reshape(fan_in, kernel.shape[3]))[:, None, None]


def _conv_pointwise(x: Array, kernel: Array, stride: Pair) -> Array:
    """Return a 1x1 convolution as a product over channels (its filter gradient: 37 -> 24 ms)."""
    return x[:, :: stride[0], :: stride[1]] @ kernel[0, 0]


def _conv_by_taps(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Return a convolution on a tiny map: one matrix product for each cell of the kernel, over the
    pixels that it meets. Cells that meet only padding cost nothing (3x3 on 2x2 pixels: 587 -> 5
    ms).

    A depthwise convolution, with one group per channel, may have a map of any size. Each product is
    then a pixel times the weight of its channel. Compared with dense convolutions (5x5 on 4x4
    pixels, 672 channels, with gradients) it takes 147 -> 21 ms, and compiles in 7 -> 0.3 s.
    """
    stride, padding, dilation, groups = geometry
    n_out = _output_map(x, kernel, geometry)
    y = jnp.zeros((x.shape[0], *n_out, kernel.shape[3]), x.dtype)
    for row in range(kernel.shape[0]):
        for column in range(kernel.shape[1]):
            read, write = [], []
            for axis, cell in enumerate((row, column)):
                # Output r reads input r * step + shift.
                step, shift = stride[axis], cell * dilation[axis] - padding[axis]
                first = max(0, -(shift // step))
                last = min(n_out[axis] - 1, (x.shape[axis + 1] - 1 - shift) // step)
                read.append(slice(first * step + shift, last * step + shift + 1, step))
                write.append((first, n_out[axis] - 1 - last, last - first + 1))
            if all(count > 0 for *_, count in write):
                seen, weights = x[:, *read], kernel[row, column]
                product = seen @ weights if groups == 1 else seen * weights
                margins = [(before, after) for before, after, _ in write]
                y += jnp.pad(product, ((0, 0), *margins, (0, 0)))
    return y


def _conv_by_bundles(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Return a grouped convolution as a few dense ones. Each covers a bundle of groups at least 32
    channels wide, and its kernel is block-diagonal (filter gradient, 32 groups of 4: 4055 -> 14
    ms).
    """
    stride, padding, dilation, groups = geometry
    width, features = kernel.shape[2], kernel.shape[3] // groups
    widest = min(32, x.shape[3])
    size = next(n for n in range(1, groups + 1) if groups % n == 0 and n * width >= widest)
    outputs = []
    for first in range(0, groups, size):
        part = x[..., first * width : (first + size) * width]
        blocks = kernel[..., first * features : (first + size) * features]
        blocks = blocks.reshape(*kernel.shape[:3], size, features)
        block_diagonal = jnp.einsum("hwcgf,gk->hwkcgf", blocks, jnp.eye(size, dtype=kernel.dtype))
        dense = block_diagonal.reshape(*kernel.shape[:2], size * width, size * features)
        outputs.append(_on_cpu(part, dense, (stride, padding, dilation, 1)))
    return jnp.concatenate(outputs, -1)


# --------------------------------------------------------------------------- oneDNN

# In bfloat16 a norm by running averages (`flaxnets.kernels.folding`), a residual sum and the ReLU
# are post-operations of the call. In float32 they are not. They were tried: inference of five
# networks took 1.00 to 1.15 times as long. XLA fuses most of them into passes that remain (pads and
# maxima of pools, concatenations, the sum, which reads the shortcut).


def _is_for_onednn(x: Array, kernel: Array, geometry: Geometry) -> bool:
    to_one_pixel = geometry[-1] == 1 and _output_map(x, kernel, geometry) == (1, 1)
    return not to_one_pixel and onednn.takes(x, kernel)


def _conv_by_onednn(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Return the convolution of `x`, float32 or bfloat16, with a float32 kernel, in the type of
    `x`.
    """
    return _bound(x, kernel, {}, geometry, relu=False)


def _bound(
    x: Array, kernel: Array, extras: dict[str, Array], geometry: Geometry, relu: bool
) -> Array:
    output = (len(x), *_output_map(x, kernel, geometry), kernel.shape[3])
    names = tuple(name for name in onednn.EXTRAS if name in extras)
    return _convolution.bind(
        x, kernel, *(extras[name] for name in names),
        result="output", shapes=(x.shape, kernel.shape, output), geometry=geometry, dtype=x.dtype,
        extras=names, relu=relu,
    )  # fmt: skip


def _fused(
    x: Array, kernel: Array, extras: dict[str, Array], geometry: Geometry, relu: bool
) -> Array:
    """Return the convolution of `x`, bfloat16, with a float32 kernel and what follows, rounded
    once.

    What follows are the `extras`, some of `onednn.EXTRAS`, and then with `relu` the ReLU.
    """
    if not extras and not relu:
        return _conv_by_onednn(x, kernel, geometry)
    return _fused_once(x, kernel, extras, geometry, relu)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _fused_once(
    x: Array, kernel: Array, extras: dict[str, Array], geometry: Geometry, relu: bool
) -> Array:
    return _bound(x, kernel, extras, geometry, relu)


@_fused_once.defjvp
def _fused_jvp(geometry: Geometry, relu: bool, primals: tuple, tangents: tuple):
    def rounded_often(x: Array, kernel: Array, extras: dict[str, Array]) -> Array:
        y = _conv_by_onednn(x, kernel, geometry)
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
        its = by_role | {"input": read.shape, "kernel": (height, columns, *rest)}
        strip = _convolution.bind(
            *({"output": output, "input": read}[role] for role in onednn.ROLES if role != "kernel"),
            result="kernel",
            shapes=tuple(its[role] for role in onednn.ROLES),
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
