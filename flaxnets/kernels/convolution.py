"""The convolution of NHWC images, in the formulation that is fastest on the platform.

TPU keeps XLA's own operation. Elsewhere the shape decides when the program is traced. XLA's CPU
backend has no operation that is fast at every shape:

- An output of one pixel is a matrix product.
- Other shapes are a call of oneDNN (`flaxnets.kernels.onednn.convolution`).
- Without oneDNN they are matrix products, or dense convolutions in place of a grouped one.

On GPUs XLA calls cuDNN, with two exceptions: a first layer in bfloat16, and depthwise convolutions
with large kernels on small maps.

Values and derivatives of any order are the same.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flaxnets.kernels.folding import Affine, Output, Product, remember
from flaxnets.kernels.geometry import Pair, check_fits
from flaxnets.kernels.onednn.convolution import conv_by_onednn, fused, is_for_onednn
from flaxnets.kernels.onednn.library import has_avx512
from flaxnets.kernels.platform import formulation
from flaxnets.kernels.precision import is_narrow, plus_bias, widened
from flaxnets.kernels.xla import Geometry, output_map, xla_convolution

Array = jax.Array

VECTOR = 8  # float32 numbers in a vector of AVX2
# Where a depthwise convolution is matrix products on GPUs: cells of the kernel, pixels of the map.
WIDE, SMALL = 7 * 7, 10 * 10


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
    is_narrow_call = traced_for == "cpu" and is_narrow(x) and is_for_onednn(x, kernel, geometry)

    def make(affine: Affine | None, addend: Array | None, relu: bool) -> Array:
        if is_narrow_call:
            factor, shift = affine or (None, None)
            vectors = {"bias": bias, "factor": factor, "shift": shift}
            extras = {k: widened(v) for k, v in vectors.items() if v is not None}
            if addend is not None:
                extras["addend"] = addend.astype(x.dtype)
            return fused(x, widened(kernel), extras, geometry, relu)
        if affine is None:
            return _convolve(x, kernel, bias, geometry, traced_for)
        factor, shift = affine
        shift = shift if bias is None else bias * factor + shift
        return _convolve(x, kernel * factor, shift, geometry, traced_for)

    y = make(None, None, False)
    if traced_for == "gpu" or is_narrow_call:
        is_product = kernel.shape[:2] == (1, 1) and (stride, padding, groups) == ((1, 1), (0, 0), 1)
        product = Product(x, kernel[0, 0], bias) if is_product else None
        remember(y, Output(make, product=product))
    return y


def _convolve(
    x: Array, kernel: Array, bias: Array | None, geometry: Geometry, traced_for: str
) -> Array:
    kernel = kernel.astype(x.dtype)
    if traced_for == "cpu":
        y = _on_cpu(widened(x), widened(kernel), geometry)
        return plus_bias(y, bias).astype(x.dtype)
    convolve = _on_gpu if traced_for == "gpu" else xla_convolution
    return plus_bias(convolve(x, kernel, geometry), bias)


def _on_gpu(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Return the convolution in the formulation that is fastest on GPUs at this shape."""
    if _is_narrow_stem(x, geometry):
        return conv_of_blocks(x, kernel, geometry)
    if _is_for_positions(x, kernel, geometry):
        return conv_by_positions(x, kernel, geometry)
    # XLA makes one call of cuDNN of this, for narrow types too, and adds the bias in float32. If
    # asked for a float32 result, it would first convert the images (4.5 times the bytes).
    return xla_convolution(x, kernel, geometry)


def _on_cpu(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Return the convolution in the formulation that is fastest on CPUs at this shape."""
    stride, padding, dilation, groups = geometry
    if is_for_onednn(x, kernel, geometry):
        size = 1 if has_avx512() else _groups_of_a_vector(kernel, groups)
        kernel = _block_diagonal(kernel, groups, size)
        return conv_by_onednn(x, kernel, (stride, padding, dilation, groups // size))
    if groups == 1 and output_map(x, kernel, geometry) == (1, 1):
        return _conv_to_one_pixel(x, kernel, padding, dilation)
    if groups > 1:
        if kernel.shape[2:] == (1, groups):
            return conv_by_taps(x, kernel, geometry)
        return _conv_by_bundles(x, kernel, geometry)
    if math.prod(x.shape[1:3]) <= 16 and kernel.shape[:2] != (1, 1):
        return conv_by_taps(x, kernel, geometry)
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
    n_out = output_map(x, kernel, geometry)
    cells = [-(-span // step) for span, step in zip(kernel.shape[:2], stride, strict=True)]
    blocks = [n + count - 1 for n, count in zip(n_out, cells, strict=True)]
    margins = [
        (pad, count * step - size - pad)  # negative where pixels stay unread
        for pad, count, step, size in zip(padding, blocks, stride, x.shape[1:3], strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*m, 0) for m in margins), (0, 0, 0)])
    channels, features = kernel.shape[2:]
    folded = x.reshape(x.shape[0], blocks[0], stride[0], blocks[1], stride[1], channels)
    folded = folded.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape[0], *blocks, -1)
    missing = [
        (0, count * step - span)
        for count, step, span in zip(cells, stride, kernel.shape[:2], strict=True)
    ]
    kernel = jnp.pad(kernel, [*missing, (0, 0), (0, 0)])
    kernel = kernel.reshape(cells[0], stride[0], cells[1], stride[1], channels, features)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5).reshape(*cells, -1, features)
    return xla_convolution(folded, kernel, ((1, 1), (0, 0), (1, 1), 1))


def _is_for_positions(x: Array, kernel: Array, geometry: Geometry) -> bool:
    is_depthwise = kernel.shape[2:] == (1, geometry[-1])
    cells, pixels = math.prod(kernel.shape[:2]), math.prod(x.shape[1:3])
    return is_depthwise and cells >= WIDE and pixels <= SMALL


def conv_by_positions(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Return a depthwise convolution of a small map: for each channel one matrix product, whose
    matrix has for each position of the input and of the output the weight with which they meet.

    On 7x7 pixels cuDNN has no fast gradient of a 7x7 kernel (4.07 -> 0.08 ms; 256 images, 768
    channels, bfloat16, H100). On 12x12 products take 0.8 of its time, on 14x14 1.2. The matrices
    grow with the square of the pixels (12x12: 32 MB), which a call for one image has to write, too.
    """
    strides, paddings, dilations, _ = geometry
    size, n_out = x.shape[1:3], output_map(x, kernel, geometry)
    meets = []  # for each axis, 1 where input position p meets output position q in cell c
    for axis in range(2):
        p, q, c = np.ogrid[: size[axis], : n_out[axis], : kernel.shape[axis]]
        meets.append(p == q * strides[axis] + c * dilations[axis] - paddings[axis])
    rows, columns = (jnp.asarray(m, jnp.float32) for m in meets)
    weights = jnp.einsum("hik,wjl,klc->chwij", rows, columns, widened(kernel[:, :, 0]))
    return jnp.einsum("nhwc,chwij->nijc", x, weights.astype(x.dtype))


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


def conv_by_taps(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Return a convolution on a tiny map: one matrix product for each cell of the kernel, over the
    pixels that it meets. Cells that meet only padding cost nothing (3x3 on 2x2 pixels: 587 -> 5
    ms).

    A depthwise convolution, with one group per channel, may have a map of any size. Each product is
    then a pixel times the weight of its channel. Compared with dense convolutions (5x5 on 4x4
    pixels, 672 channels, with gradients) it takes 147 -> 21 ms, and compiles in 7 -> 0.3 s.
    """
    stride, padding, dilation, groups = geometry
    n_out = output_map(x, kernel, geometry)
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


def _groups_of_a_vector(kernel: Array, groups: int) -> int:
    """Return how many groups fill a vector of AVX2, or 1 if no whole number of them does.

    oneDNN 3.2 has no AVX2 kernel for groups narrower than a vector (32 groups of 4 as 16 of 8,
    56x56 pixels, 4 images: 18 -> 6 ms, both gradients 11 -> 9).
    """
    width, features = kernel.shape[2], kernel.shape[3] // groups
    size = VECTOR // width
    fits = 1 < width == features and size * width == VECTOR and groups % size == 0
    return size if fits else 1


def _block_diagonal(kernel: Array, groups: int, size: int) -> Array:
    """Return the kernel of the same convolution with `size` groups in one."""
    if size == 1:
        return kernel
    height, width, channels, features = kernel.shape
    blocks = kernel.reshape(height, width, channels, groups // size, size, -1)
    blocks = jnp.einsum("hwcbgf,gk->hwkcbgf", blocks, jnp.eye(size, dtype=kernel.dtype))
    return blocks.reshape(height, width, size * channels, features)


def _conv_by_bundles(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Return a grouped convolution as a few dense ones. Each covers a bundle of groups at least 32
    channels wide, and its kernel is block-diagonal (filter gradient, 32 groups of 4: 4055 -> 14
    ms).
    """
    stride, padding, dilation, groups = geometry
    width, features = kernel.shape[2], kernel.shape[3] // groups
    widest = min(32, x.shape[3])
    size = next(n for n in range(1, groups + 1) if groups % n == 0 and n * width >= widest)
    kernel = _block_diagonal(kernel, groups, size)
    outputs = []
    for first in range(0, groups, size):
        part = x[..., first * width : (first + size) * width]
        dense = kernel[..., first * features : (first + size) * features]
        outputs.append(_on_cpu(part, dense, (stride, padding, dilation, 1)))
    return jnp.concatenate(outputs, -1)
