"""Convolutions, batch norms and max pools of oneDNN, made of what `library` binds.

Images are float32, or bfloat16 where an operation says `narrow`.
"""

import contextlib
import ctypes
from collections.abc import Iterator, Sequence

import ml_dtypes
import numpy as np

from flaxnets.kernels.onednn import library as dnnl
from flaxnets.kernels.onednn.library import DNNL, Shape

# What a convolution relates, in this order: each of the three follows from the two others.
ROLES = ("input", "kernel", "output")
# What may follow it in one call, in this order: vectors (O,) in float32 that are added, multiplied
# by and added, and an array of the output's shape and type that is added.
EXTRAS = ("bias", "factor", "shift", "addend")

_ARGUMENTS = {  # by result: of input, kernel and output
    "output": (DNNL.ARG_SRC, DNNL.ARG_WEIGHTS, DNNL.ARG_DST),
    "input": (DNNL.ARG_DIFF_SRC, DNNL.ARG_WEIGHTS, DNNL.ARG_DIFF_DST),
    "kernel": (DNNL.ARG_SRC, DNNL.ARG_DIFF_WEIGHTS, DNNL.ARG_DIFF_DST),
}
_WIDEST_BLOCK = 64  # features that one of oneDNN's layouts of kernels keeps together
_KERNEL_QUERY = {
    "output": DNNL.query_weights_md,
    "input": DNNL.query_weights_md,
    "kernel": DNNL.query_diff_weights_md,
}


def _describe_kernels(
    shape: Shape, groups: int, dtype: int
) -> tuple[ctypes.c_void_p, ctypes.c_void_p]:
    """Describe row-major HWIO, float32, in oneDNN's order (G)OIHW, and the same axes in a layout of
    its choice and the type `dtype`.
    """
    height, width, channels, features = shape
    axes = (features // groups, channels, height, width)
    strides = (1, features, width * channels * features, channels * features)
    if groups > 1:
        axes, strides = (groups, *axes), (features // groups, *strides)
    chosen = dnnl.create(
        "dnnl_memory_desc_create_with_tag",
        len(axes), dnnl.dims(axes), dtype, DNNL.format_tag_any,
    )  # fmt: skip
    return dnnl.describe(axes, strides), chosen


class Convolution(dnnl.Computation):
    """One of ROLES from the two others, at fixed shapes. Images stay in their layout; kernels are
    reordered into oneDNN's and back, unless that is the same.

    `result` names the member of ROLES that is computed; `shapes` are those of input (N, H, W, C),
    kernel (h, w, C / groups, O) and output (N, H', W', O); `geometry` is stride, padding and
    dilation, each for rows and columns, and the number of groups.

    All are float32 unless `narrow`: then input and output are bfloat16 and the kernel is rounded to
    it; products are added up in float32. An output that is the result may be followed by `extras`
    (`EXTRAS`), which the call takes as well, and by a ReLU; it is rounded after them. What is not a
    number stays.

    Raises RuntimeError with oneDNN's status where it refuses.
    """

    def __init__(
        self,
        result: str,
        shapes: Sequence[Shape],
        geometry: Sequence[int],
        narrow: bool = False,
        extras: Sequence[str] = (),
        relu: bool = False,
    ):
        (engine, _), direct = dnnl.engine_and_stream(), DNNL.convolution_direct
        *window, (groups,) = geometry[:2], geometry[4:6], geometry[2:4], geometry[2:4], geometry[6:]
        window[1] = [step - 1 for step in window[1]]  # dilation counts the holes
        window = [dnnl.dims(each) for each in window]
        dtype = DNNL.bf16 if narrow else DNNL.f32
        images, outputs = (dnnl.describe_images(shape, dtype) for shape in shapes[::2])
        bias = dnnl.describe(shapes[1][3:], (1,)) if "bias" in extras else None
        following, added, fixed = _post_operations(extras, relu, shapes[1][3], outputs)
        ours, theirs = _describe_kernels(shapes[1], groups, dtype)
        descriptor = forward = dnnl.create(
            "dnnl_convolution_forward_primitive_desc_create",
            engine, DNNL.forward_training, direct, images, theirs, bias, outputs, *window,
            dnnl.attributes(following),
        )  # fmt: skip
        if result == "input":
            descriptor = dnnl.create(
                "dnnl_convolution_backward_data_primitive_desc_create",
                engine, direct, images, theirs, outputs, *window, forward, dnnl.attributes(),
            )  # fmt: skip
        elif result == "kernel":
            _, theirs = _describe_kernels(shapes[1], groups, DNNL.f32)  # a sum over all positions
            descriptor = dnnl.create(
                "dnnl_convolution_backward_weights_primitive_desc_create",
                engine, direct, images, theirs, bias, outputs, *window, forward, dnnl.attributes(),
            )  # fmt: skip
        theirs = dnnl.Primitive.description(descriptor, _KERNEL_QUERY[result])
        memories = [dnnl.new_memory(images), dnnl.new_memory(ours), dnnl.new_memory(outputs)]
        inside = [memories[0], dnnl.new_memory(theirs), memories[2]]
        arguments = dict(zip(_ARGUMENTS[result], inside, strict=True))
        if bias is not None:
            arguments[DNNL.ARG_BIAS] = dnnl.new_memory(bias)
        arguments |= added
        convolution = dnnl.Primitive(descriptor, arguments | fixed)
        ends = [(ours, memories[1]), (theirs, inside[1])]
        if result == "kernel":
            ends.reverse()
        reorder = dnnl.Reorder(*ends)
        if shapes[1][3] <= _WIDEST_BLOCK and reorder.changes_nothing():
            # The kernel is then one of `self.arrays`, whose addresses are set after `inside`.
            memories, steps = inside, [convolution]
        else:
            steps = [convolution, reorder] if result == "kernel" else [reorder, convolution]
        position = ROLES.index(result)
        arrays = [*memories[:position], *memories[position + 1 :], *list(arguments.values())[3:]]
        arrays.append(memories[position])
        super().__init__(steps, arrays, (inside[1], dnnl.aligned_bytes(theirs)))


_Memories = dict[int, ctypes.c_void_p]  # by argument
_ZERO = np.zeros(1, np.float32)


def _post_operations(
    extras: Sequence[str], relu: bool, channels: int, outputs: ctypes.c_void_p
) -> tuple[ctypes.c_void_p, _Memories, _Memories]:
    """Return the post-operations that follow a convolution, the memories of the extras, and those
    that have their content already.
    """
    operations, extra, fixed = dnnl.create("dnnl_post_ops_create"), {}, {}
    names = [name for name in extras if name != "bias"]

    def argument(index: int, role: int) -> int:
        return DNNL.ARG_ATTR_MULTIPLE_POST_OP_BASE * (index + 1) | role

    for index, name in enumerate(names):
        algorithm = DNNL.binary_mul if name == "factor" else DNNL.binary_add
        description = outputs if name == "addend" else dnnl.describe_images((1, 1, 1, channels))
        dnnl.call("dnnl_post_ops_append_binary", operations, algorithm, description)
        extra[argument(index, DNNL.ARG_SRC_1)] = dnnl.new_memory(description)
    if relu:  # as a PReLU with a slope of zero: what is not a number stays, in a ReLU it is zero
        dnnl.call("dnnl_post_ops_append_prelu", operations, 0)
        slope = dnnl.new_memory(dnnl.describe_images((1, 1, 1, 1)))
        dnnl.place(slope, _ZERO.ctypes.data)
        fixed[argument(len(names), DNNL.ARG_WEIGHTS)] = slope
    return operations, extra, fixed


@contextlib.contextmanager
def _half_of_the_threads() -> Iterator[None]:
    """Make primitives inside that use half of the threads. Batch norm is memory-bound: half of them
    saturate it, and as threads wait for each other several times in a call, one descheduled thread
    stalls the rest.
    """
    omp = dnnl.library()
    threads = omp.omp_get_max_threads()
    omp.omp_set_num_threads(max(threads // 2, 1))
    try:
        yield
    finally:
        omp.omp_set_num_threads(threads)


class BatchNorm(dnnl.Computation):
    """Batch norm of images (N, H, W, C), float32 or `narrow`, which is bfloat16, with its ReLU if
    `relu`; or its `gradient`. Vectors are float32.

    The norm takes images, scale and shift. It finds the result, the batch's mean and biased
    variance and, with `relu`, the mask of what is positive, of `mask_bytes` bytes. The gradient
    takes that of the result, then what the norm took, then what it found after the result. It
    finds the gradients of images, scale and shift.

    Raises RuntimeError with oneDNN's status where it refuses.
    """

    def __init__(self, shape: Shape, epsilon: float, relu: bool, narrow: bool, gradient: bool):
        engine, _ = dnnl.engine_and_stream()
        images = dnnl.describe_images(shape, DNNL.bf16 if narrow else DNNL.f32)
        channels = dnnl.describe(shape[-1:], (1,))
        flags = DNNL.use_scale | DNNL.use_shift | (DNNL.fuse_norm_relu if relu else 0)
        settings = (ctypes.c_float(epsilon), ctypes.c_uint(flags))
        taken = {DNNL.ARG_SRC: images, DNNL.ARG_SCALE: channels, DNNL.ARG_SHIFT: channels}
        found = {DNNL.ARG_DST: images, DNNL.ARG_MEAN: channels, DNNL.ARG_VARIANCE: channels}
        with _half_of_the_threads():
            descriptor = dnnl.create(
                "dnnl_batch_normalization_forward_primitive_desc_create",
                engine, DNNL.forward_training, images, images, *settings, dnnl.attributes(),
            )  # fmt: skip
            if relu:
                mask = dnnl.Primitive.description(descriptor, DNNL.query_workspace_md)
                self.mask_bytes = dnnl.library().dnnl_memory_desc_get_size(mask)
                found[DNNL.ARG_WORKSPACE] = mask
            if gradient:
                descriptor = dnnl.create(
                    "dnnl_batch_normalization_backward_primitive_desc_create",
                    engine, DNNL.backward, images, images, images, *settings, descriptor,
                    dnnl.attributes(),
                )  # fmt: skip
        if gradient:
            del found[DNNL.ARG_DST]
            taken = {DNNL.ARG_DIFF_DST: images} | taken | found
            found = {
                DNNL.ARG_DIFF_SRC: images,
                DNNL.ARG_DIFF_SCALE: channels,
                DNNL.ARG_DIFF_SHIFT: channels,
            }
        memories = {index: dnnl.new_memory(each) for index, each in (taken | found).items()}
        arrays = list(memories.values())
        if gradient:
            del memories[DNNL.ARG_SHIFT]  # which it does not depend on, and refuses
        super().__init__([dnnl.Primitive(descriptor, memories)], arrays)
        self._hides_nan, self._shape, self._narrow = relu and not gradient, shape, narrow

    def finish(self, addresses: Sequence[int]) -> None:
        if self._hides_nan:  # oneDNN's ReLU of what is not a number is zero
            _, scale, shift, _, mean, variance, _ = addresses
            vectors = [_array(each, self._shape[-1:]) for each in (scale, shift, mean, variance)]
            channels = np.isnan(sum(vectors))
            if channels.any():
                _array(addresses[3], self._shape, self._narrow)[..., channels] = np.nan


def _array(address: int, shape: Shape, narrow: bool = False) -> np.ndarray:
    """Return the float32 or bfloat16 array at that address."""
    kind = ctypes.c_uint16 if narrow else ctypes.c_float
    numbers = np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(kind)), shape)
    return numbers.view(ml_dtypes.bfloat16) if narrow else numbers


class MaxPool(dnnl.Computation):
    """Maxima over windows of images (N, H, W, C), float32 or `narrow`, which is bfloat16; or their
    `gradient`.

    `shapes` are those of input and output; `geometry` is window, stride, and the padding before and
    after the image, each for rows and columns. The pool takes images. It finds the maxima and, in
    `places_bytes` bytes, where in its window each one was. The gradient takes that of the maxima,
    then the images, which it does not read, and these bytes. A maximum is not a number where there
    is one in its window.

    Raises RuntimeError with oneDNN's status where it refuses.
    """

    def __init__(
        self, shapes: Sequence[Shape], geometry: Sequence[int], narrow: bool, gradient: bool
    ):
        engine, _ = dnnl.engine_and_stream()
        x, y = (dnnl.describe_images(shape, DNNL.bf16 if narrow else DNNL.f32) for shape in shapes)
        window, stride, before, after = (tuple(geometry[i : i + 2]) for i in (0, 2, 4, 6))
        numbers = [dnnl.dims(each) for each in (stride, window, (0, 0), before, after)]
        descriptor = dnnl.create(
            "dnnl_pooling_forward_primitive_desc_create",
            engine, DNNL.forward_training, DNNL.pooling_max, x, y, *numbers, dnnl.attributes(),
        )  # fmt: skip
        places = dnnl.Primitive.description(descriptor, DNNL.query_workspace_md)
        self.places_bytes = dnnl.library().dnnl_memory_desc_get_size(places)
        described = {DNNL.ARG_SRC: x, DNNL.ARG_DST: y, DNNL.ARG_WORKSPACE: places}
        if gradient:
            described = {
                DNNL.ARG_DIFF_DST: y, DNNL.ARG_SRC: x, DNNL.ARG_WORKSPACE: places,
                DNNL.ARG_DIFF_SRC: x,
            }  # fmt: skip
            descriptor = dnnl.create(
                "dnnl_pooling_backward_primitive_desc_create",
                engine, DNNL.pooling_max, x, y, *numbers, descriptor, dnnl.attributes(),
            )  # fmt: skip
        memories = {index: dnnl.new_memory(each) for index, each in described.items()}
        arrays = list(memories.values())
        if gradient:
            del memories[DNNL.ARG_SRC]
        steps: list[dnnl.Primitive] = [dnnl.Primitive(descriptor, memories)]
        self._means = None
        if not gradient:
            count, _, _, channels = shapes[0]
            self._means = np.zeros((count, 1, 1, channels), ml_dtypes.bfloat16 if narrow else "f4")
            steps.append(_image_means(shapes[0], (x, arrays[0]), self._means))
        super().__init__(steps, arrays)
        self._shapes, self._geometry, self._narrow = shapes, (window, stride, before), narrow

    def finish(self, addresses: Sequence[int]) -> None:
        # oneDNN's maximum passes over what is not a number; a mean does not.
        if self._means is not None and np.isnan(self._means).any():
            x, y = (
                _array(address, shape, self._narrow)
                for address, shape in zip(addresses, self._shapes, strict=False)
            )
            y[_has_any(np.isnan(x), y.shape, *self._geometry)] = np.nan


def _image_means(
    shape: Shape, images: tuple[ctypes.c_void_p, ctypes.c_void_p], means: np.ndarray
) -> dnnl.Primitive:
    """Return the primitive for the mean of each channel of each image, in `means` (N, 1, 1, C),
    given the description of images (N, H, W, C) and their memory.
    """
    engine, _ = dnnl.engine_and_stream()
    description, memory = images
    found = dnnl.describe_images(means.shape, DNNL.f32 if means.dtype == np.float32 else DNNL.bf16)
    window, zeros = dnnl.dims(shape[1:3]), dnnl.dims((0, 0))
    descriptor = dnnl.create(
        "dnnl_pooling_forward_primitive_desc_create",
        engine, DNNL.forward_inference, DNNL.pooling_avg_include_padding, description, found,
        window, window, zeros, zeros, zeros, dnnl.attributes(),
    )  # fmt: skip
    result = dnnl.new_memory(found)
    dnnl.place(result, means.ctypes.data)
    return dnnl.Primitive(descriptor, {DNNL.ARG_SRC: memory, DNNL.ARG_DST: result})


def _has_any(
    marks: np.ndarray, shape: Shape, window: Sequence[int], stride: Sequence[int],
    before: Sequence[int],
) -> np.ndarray:  # fmt: skip
    """Return which windows (N, H', W', C) have one of the `marks` (N, H, W, C)."""
    after = [n * step + span for n, step, span in zip(shape[1:3], stride, window, strict=True)]
    marks = np.pad(marks, [(0, 0), *zip(before, after, strict=True), (0, 0)])
    found = np.zeros(shape, bool)
    for row, column in np.ndindex(*window):
        cells = marks[:, row :: stride[0], column :: stride[1]]
        found |= cells[:, : shape[1], : shape[2]]
    return found
