"""oneDNN's convolutions, batch norms and pools, called by its C interface with ctypes.

The wheel `onednn-cpu-gomp` (Linux on x86-64) brings the shared library; nothing is compiled.

**What is copied.** Of oneDNN 3's include/oneapi/dnnl/dnnl_types.h the constants `DNNL`, under the
header's names without "dnnl_" or "DNNL_", the struct `dnnl_exec_arg_t` as `_Argument`, and the
length of `dnnl_dims_t` in `_numbers`. The functions are called as include/oneapi/dnnl/dnnl.h
declares them; handles (engine, stream, memory, memory_desc, primitive_desc, primitive) are opaque
pointers.

**What breaks if it changes.** Within major version 3 oneDNN keeps these values and signatures. The
library is opened as libdnnl.so.3, so that another major version is not found and XLA's operations
stay. `test_onednn.py` compares the constants with a header of oneDNN 3 (torch's wheel has one);
wrong ones would end in a status, which is raised as RuntimeError, or in wrong results, which the
comparisons with XLA in `test_convolution.py` and `test_normalization.py` find.

How a computation is made: a *descriptor* of the primitive from the shapes and layouts of its
arrays (`dnnl_..._primitive_desc_create`), from that the primitive, which holds compiled code, and
for each array a *memory*, whose address is set before each call. oneDNN is told NHWC by strides,
in its order of axes NCHW.
"""

import contextlib
import ctypes
import functools
import importlib.metadata
import os
import threading
import types
from collections.abc import Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np

Shape = tuple[int, ...]

# What a convolution relates, in this order: each of the three follows from the two others.
ROLES = ("input", "kernel", "output")
# What may follow it in one call, in this order: vectors (O,) in float32 that are added, multiplied
# by and added, and an array of the output's shape and type that is added.
EXTRAS = ("bias", "factor", "shift", "addend")

# dnnl_types.h
DNNL = types.SimpleNamespace(
    cpu=1, stream_in_order=1, bf16=2, f32=3, format_tag_any=1, convolution_direct=1,
    cpu_isa_avx512_core_bf16=0xE7, pooling_max=0x1FF, pooling_avg_include_padding=0x2FF,
    forward_inference=96, forward_training=64, backward=128,
    use_scale=2, use_shift=4, fuse_norm_relu=8,
    binary_add=0x1FFF0, binary_mul=0x1FFF1, scratchpad_mode_user=1,
    query_weights_md=131, query_diff_weights_md=132,
    query_workspace_md=135, query_scratchpad_md=136,
    # Arguments of a primitive: arrays, and the gradients (DIFF) of them.
    ARG_FROM=1, ARG_TO=17, ARG_SRC=1, ARG_WEIGHTS=33, ARG_BIAS=41, ARG_DST=17, ARG_MEAN=49,
    ARG_VARIANCE=50, ARG_SCALE=51, ARG_SHIFT=52, ARG_WORKSPACE=64, ARG_SCRATCHPAD=80,
    ARG_DIFF_SRC=129, ARG_DIFF_WEIGHTS=161, ARG_DIFF_DST=145, ARG_DIFF_SCALE=255,
    ARG_DIFF_SHIFT=256, ARG_SRC_1=2, ARG_ATTR_MULTIPLE_POST_OP_BASE=32768,
    MAX_NDIMS=12,
)  # fmt: skip
_ARGUMENTS = {  # by result: of input, kernel and output
    "output": (DNNL.ARG_SRC, DNNL.ARG_WEIGHTS, DNNL.ARG_DST),
    "input": (DNNL.ARG_DIFF_SRC, DNNL.ARG_WEIGHTS, DNNL.ARG_DIFF_DST),
    "kernel": (DNNL.ARG_SRC, DNNL.ARG_DIFF_WEIGHTS, DNNL.ARG_DIFF_DST),
}
_ALIGNMENT = 64  # bytes, a cache line
_WIDEST_BLOCK = 64  # features that one of oneDNN's layouts of kernels keeps together
_KERNEL_QUERY = {
    "output": DNNL.query_weights_md,
    "input": DNNL.query_weights_md,
    "kernel": DNNL.query_diff_weights_md,
}


class _Argument(ctypes.Structure):
    """`dnnl_exec_arg_t` of dnnl_types.h."""

    _fields_ = [("arg", ctypes.c_int), ("memory", ctypes.c_void_p)]


@functools.cache
def library() -> Any:
    """Return the shared object, or None where it is missing or FLAXNETS_ONEDNN is 0."""
    if os.environ.get("FLAXNETS_ONEDNN") == "0":
        return None
    try:
        files = importlib.metadata.files("onednn-cpu-gomp") or ()
        path = next(file.locate() for file in files if file.name == "libdnnl.so.3")
        library = ctypes.CDLL(str(path))
    except (importlib.metadata.PackageNotFoundError, StopIteration, OSError):
        return None
    library.dnnl_primitive_desc_query_md.restype = ctypes.c_void_p
    library.dnnl_memory_desc_get_size.restype = ctypes.c_size_t
    library.dnnl_version.restype = ctypes.c_void_p
    return library


def library_version() -> str:
    """Return the version of the shared object, such as "3.2.0" (the first fields of the struct
    `dnnl_version_t`).
    """
    return ".".join(map(str, (ctypes.c_int * 3).from_address(library().dnnl_version())))


@functools.cache
def computes_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 (avx512_bf16 or AMX) and the library is here."""
    needed = DNNL.cpu_isa_avx512_core_bf16  # a bit for each set of instructions
    return library() is not None and library().dnnl_get_effective_cpu_isa() & needed == needed


def _call(function: str, *arguments) -> None:
    status = getattr(library(), function)(*arguments)
    if status:
        raise RuntimeError(f"{function} of oneDNN failed with status {status}")


def _create(function: str, *arguments) -> ctypes.c_void_p:
    made = ctypes.c_void_p()
    _call(function, ctypes.byref(made), *arguments)
    return made


def _numbers(values: Sequence[int]) -> ctypes.Array:
    return (ctypes.c_int64 * DNNL.MAX_NDIMS)(*values)  # dnnl_dims_t


@functools.cache
def _engine_and_stream() -> tuple[ctypes.c_void_p, ctypes.c_void_p]:
    engine = _create("dnnl_engine_create", DNNL.cpu, ctypes.c_size_t(0))
    return engine, _create("dnnl_stream_create", engine, DNNL.stream_in_order)


def _strided(shape: Shape, strides: Shape, dtype: int = DNNL.f32) -> ctypes.c_void_p:
    return _create(
        "dnnl_memory_desc_create_with_strides",
        len(shape), _numbers(shape), dtype, _numbers(strides),
    )  # fmt: skip


def _images(shape: Shape, dtype: int = DNNL.f32) -> ctypes.c_void_p:
    """Describe row-major NHWC in oneDNN's order of axes, NCHW."""
    n, height, width, channels = shape
    row = width * channels
    return _strided((n, channels, height, width), (height * row, 1, row, channels), dtype)


def _kernels(shape: Shape, groups: int, dtype: int) -> tuple[ctypes.c_void_p, ctypes.c_void_p]:
    """Describe row-major HWIO, float32, in oneDNN's order (G)OIHW, and the same axes in a layout of
    its choice and the type `dtype`.
    """
    height, width, channels, features = shape
    axes = (features // groups, channels, height, width)
    strides = (1, features, width * channels * features, channels * features)
    if groups > 1:
        axes, strides = (groups, *axes), (features // groups, *strides)
    chosen = _create(
        "dnnl_memory_desc_create_with_tag", len(axes), _numbers(axes), dtype, DNNL.format_tag_any
    )
    return _strided(axes, strides), chosen


def _attributes(following: ctypes.c_void_p | None = None) -> ctypes.c_void_p:
    """Return the attributes of a primitive, with the post-operations that follow it."""
    # oneDNN's own scratchpads belong to the thread that made the primitive; XLA has many threads.
    attributes = _create("dnnl_primitive_attr_create")
    _call("dnnl_primitive_attr_set_scratchpad_mode", attributes, DNNL.scratchpad_mode_user)
    if following is not None:
        _call("dnnl_primitive_attr_set_post_ops", attributes, following)
    return attributes


class _Primitive:
    """A primitive of oneDNN and the memory that each of its arguments lies in."""

    def __init__(self, descriptor: ctypes.c_void_p, memories: dict[int, ctypes.c_void_p]):
        self.primitive = _create("dnnl_primitive_create", descriptor)
        scratchpad = self.description(descriptor, DNNL.query_scratchpad_md)
        self.scratchpad = _memory(scratchpad)
        self.scratchpad_bytes = _bytes(scratchpad)
        memories = memories | {DNNL.ARG_SCRATCHPAD: self.scratchpad}
        self.arguments = (_Argument * len(memories))(*memories.items())

    @staticmethod
    def description(descriptor: ctypes.c_void_p, query: int) -> ctypes.c_void_p:
        return ctypes.c_void_p(library().dnnl_primitive_desc_query_md(descriptor, query, 0))

    def __call__(self, scratchpad: int) -> None:
        _, stream = _engine_and_stream()
        _place(self.scratchpad, scratchpad)
        arguments = self.arguments
        _call("dnnl_primitive_execute", self.primitive, stream, len(arguments), arguments)


def _bytes(description: ctypes.c_void_p) -> int:
    return -(-library().dnnl_memory_desc_get_size(description) // _ALIGNMENT) * _ALIGNMENT


def _memory(description: ctypes.c_void_p) -> ctypes.c_void_p:
    """Return a memory of that shape and layout, without an address yet."""
    return _create("dnnl_memory_create", description, _engine_and_stream()[0], None)


def _place(memory: ctypes.c_void_p, address: int) -> None:
    _call("dnnl_memory_set_data_handle", memory, ctypes.c_void_p(address))


class _Reorder(_Primitive):
    """From one memory, given with its description, to another."""

    def __init__(self, *ends: tuple[ctypes.c_void_p, ctypes.c_void_p]):
        engine, _ = _engine_and_stream()
        (source, self.source), (target, self.target) = ends
        descriptor = _create(
            "dnnl_reorder_primitive_desc_create", source, engine, target, engine, _attributes()
        )
        super().__init__(descriptor, {DNNL.ARG_FROM: self.source, DNNL.ARG_TO: self.target})
        sizes = [library().dnnl_memory_desc_get_size(each) for each in (source, target)]
        self.count = sizes[0] // 4 if sizes[0] == sizes[1] else None  # where neither is padded

    def changes_nothing(self) -> bool:
        """Return whether both layouts have the numbers in the same order, found by a trial."""
        if self.count is None:
            return False
        numbers = np.arange(self.count, dtype=np.float32)
        result = np.zeros_like(numbers)
        _place(self.source, numbers.ctypes.data)
        _place(self.target, result.ctypes.data)
        with lock:
            self(_workspace(self.scratchpad_bytes))
        return np.array_equal(numbers, result)


class Computation:
    """Primitives in turn, on arrays whose addresses are given with each call.

    `inside` is a memory between two of them, and its bytes.
    """

    def __init__(
        self,
        steps: Sequence[_Primitive],
        arrays: Sequence[ctypes.c_void_p],
        inside: tuple[ctypes.c_void_p, int] | None = None,
    ):
        self.steps, self.arrays, self.inside = steps, arrays, inside

    def __call__(self, addresses: Sequence[int]) -> None:
        """Compute, given the addresses of the operands and then of the results."""
        scratchpad = max(step.scratchpad_bytes for step in self.steps)
        memory, size = self.inside or (None, 0)
        with lock:
            room = _workspace(size + scratchpad)
            if memory is not None:
                _place(memory, room)
            for memory, address in zip(self.arrays, addresses, strict=True):
                _place(memory, address)
            for step in self.steps:
                step(room + size)
            self.finish(addresses)

    def finish(self, addresses: Sequence[int]) -> None:
        """Mend the results, while no other computation runs."""


class Convolution(Computation):
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
        (engine, _), direct = _engine_and_stream(), DNNL.convolution_direct
        *window, (groups,) = geometry[:2], geometry[4:6], geometry[2:4], geometry[2:4], geometry[6:]
        window[1] = [step - 1 for step in window[1]]  # dilation counts the holes
        window = [_numbers(each) for each in window]
        dtype = DNNL.bf16 if narrow else DNNL.f32
        images, outputs = _images(shapes[0], dtype), _images(shapes[2], dtype)
        bias = _strided(shapes[1][3:], (1,)) if "bias" in extras else None
        following, added, fixed = _post_operations(extras, relu, shapes[1][3], outputs)
        ours, theirs = _kernels(shapes[1], groups, dtype)
        descriptor = forward = _create(
            "dnnl_convolution_forward_primitive_desc_create",
            engine, DNNL.forward_training, direct, images, theirs, bias, outputs, *window,
            _attributes(following),
        )  # fmt: skip
        if result == "input":
            descriptor = _create(
                "dnnl_convolution_backward_data_primitive_desc_create",
                engine, direct, images, theirs, outputs, *window, forward, _attributes(),
            )  # fmt: skip
        elif result == "kernel":
            _, theirs = _kernels(shapes[1], groups, DNNL.f32)  # a sum over all positions
            descriptor = _create(
                "dnnl_convolution_backward_weights_primitive_desc_create",
                engine, direct, images, theirs, bias, outputs, *window, forward, _attributes(),
            )  # fmt: skip
        theirs = _Primitive.description(descriptor, _KERNEL_QUERY[result])
        memories = [_memory(images), _memory(ours), _memory(outputs)]
        inside = [memories[0], _memory(theirs), memories[2]]
        arguments = dict(zip(_ARGUMENTS[result], inside, strict=True))
        if bias is not None:
            arguments[DNNL.ARG_BIAS] = _memory(bias)
        arguments |= added
        convolution = _Primitive(descriptor, arguments | fixed)
        ends = [(ours, memories[1]), (theirs, inside[1])]
        if result == "kernel":
            ends.reverse()
        reorder = _Reorder(*ends)
        if shapes[1][3] <= _WIDEST_BLOCK and reorder.changes_nothing():
            # The kernel is then one of `self.arrays`, which are placed behind the workspace's.
            memories, steps = inside, [convolution]
        else:
            steps = [convolution, reorder] if result == "kernel" else [reorder, convolution]
        position = ROLES.index(result)
        arrays = [*memories[:position], *memories[position + 1 :], *list(arguments.values())[3:]]
        arrays.append(memories[position])
        super().__init__(steps, arrays, (inside[1], _bytes(theirs)))


_Memories = dict[int, ctypes.c_void_p]  # by argument
_ZERO = np.zeros(1, np.float32)


def _post_operations(
    extras: Sequence[str], relu: bool, channels: int, outputs: ctypes.c_void_p
) -> tuple[ctypes.c_void_p, _Memories, _Memories]:
    """Return the post-operations that follow a convolution, the memories of the extras, and those
    that have their content already.
    """
    operations, extra, fixed = _create("dnnl_post_ops_create"), {}, {}
    names = [name for name in extras if name != "bias"]

    def argument(index: int, role: int) -> int:
        return DNNL.ARG_ATTR_MULTIPLE_POST_OP_BASE * (index + 1) | role

    for index, name in enumerate(names):
        algorithm = DNNL.binary_mul if name == "factor" else DNNL.binary_add
        description = outputs if name == "addend" else _images((1, 1, 1, channels))
        _call("dnnl_post_ops_append_binary", operations, algorithm, description)
        extra[argument(index, DNNL.ARG_SRC_1)] = _memory(description)
    if relu:  # as a PReLU with a slope of zero: what is not a number stays, in a ReLU it is zero
        _call("dnnl_post_ops_append_prelu", operations, 0)
        slope = _memory(_images((1, 1, 1, 1)))
        _place(slope, _ZERO.ctypes.data)
        fixed[argument(len(names), DNNL.ARG_WEIGHTS)] = slope
    return operations, extra, fixed


@contextlib.contextmanager
def _half_of_the_threads() -> Iterator[None]:
    """Make primitives inside that use half of the threads. Batch norm is memory-bound: half of them
    saturate it, and as threads wait for each other several times in a call, one descheduled thread
    stalls the rest.
    """
    omp = library()
    threads = omp.omp_get_max_threads()
    omp.omp_set_num_threads(max(threads // 2, 1))
    try:
        yield
    finally:
        omp.omp_set_num_threads(threads)


class BatchNorm(Computation):
    """Batch norm of images (N, H, W, C), float32 or `narrow`, which is bfloat16, with its ReLU if
    `relu`; or its `gradient`. Vectors are float32.

    The norm takes images, scale and shift. It finds the result, the batch's mean and biased
    variance and, with `relu`, the mask of what is positive, of `mask_bytes` bytes. The gradient
    takes that of the result, then what the norm took, then what it found after the result. It
    finds the gradients of images, scale and shift.

    Raises RuntimeError with oneDNN's status where it refuses.
    """

    def __init__(self, shape: Shape, epsilon: float, relu: bool, narrow: bool, gradient: bool):
        engine, _ = _engine_and_stream()
        images = _images(shape, DNNL.bf16 if narrow else DNNL.f32)
        channels = _strided(shape[-1:], (1,))
        flags = DNNL.use_scale | DNNL.use_shift | (DNNL.fuse_norm_relu if relu else 0)
        settings = (ctypes.c_float(epsilon), ctypes.c_uint(flags))
        taken = {DNNL.ARG_SRC: images, DNNL.ARG_SCALE: channels, DNNL.ARG_SHIFT: channels}
        found = {DNNL.ARG_DST: images, DNNL.ARG_MEAN: channels, DNNL.ARG_VARIANCE: channels}
        with _half_of_the_threads():
            descriptor = _create(
                "dnnl_batch_normalization_forward_primitive_desc_create",
                engine, DNNL.forward_training, images, images, *settings, _attributes(),
            )  # fmt: skip
            if relu:
                mask = _Primitive.description(descriptor, DNNL.query_workspace_md)
                self.mask_bytes = library().dnnl_memory_desc_get_size(mask)
                found[DNNL.ARG_WORKSPACE] = mask
            if gradient:
                descriptor = _create(
                    "dnnl_batch_normalization_backward_primitive_desc_create",
                    engine, DNNL.backward, images, images, images, *settings, descriptor,
                    _attributes(),
                )  # fmt: skip
        if gradient:
            del found[DNNL.ARG_DST]
            taken = {DNNL.ARG_DIFF_DST: images} | taken | found
            found = {
                DNNL.ARG_DIFF_SRC: images,
                DNNL.ARG_DIFF_SCALE: channels,
                DNNL.ARG_DIFF_SHIFT: channels,
            }
        memories = {index: _memory(each) for index, each in (taken | found).items()}
        arrays = list(memories.values())
        if gradient:
            del memories[DNNL.ARG_SHIFT]  # which it does not depend on, and refuses
        super().__init__([_Primitive(descriptor, memories)], arrays)
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


class MaxPool(Computation):
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
        engine, _ = _engine_and_stream()
        x, y = (_images(shape, DNNL.bf16 if narrow else DNNL.f32) for shape in shapes)
        window, stride, before, after = (tuple(geometry[i : i + 2]) for i in (0, 2, 4, 6))
        numbers = [_numbers(each) for each in (stride, window, (0, 0), before, after)]
        descriptor = _create(
            "dnnl_pooling_forward_primitive_desc_create",
            engine, DNNL.forward_training, DNNL.pooling_max, x, y, *numbers, _attributes(),
        )  # fmt: skip
        places = _Primitive.description(descriptor, DNNL.query_workspace_md)
        self.places_bytes = library().dnnl_memory_desc_get_size(places)
        described = {DNNL.ARG_SRC: x, DNNL.ARG_DST: y, DNNL.ARG_WORKSPACE: places}
        if gradient:
            described = {
                DNNL.ARG_DIFF_DST: y, DNNL.ARG_SRC: x, DNNL.ARG_WORKSPACE: places,
                DNNL.ARG_DIFF_SRC: x,
            }  # fmt: skip
            descriptor = _create(
                "dnnl_pooling_backward_primitive_desc_create",
                engine, DNNL.pooling_max, x, y, *numbers, descriptor, _attributes(),
            )  # fmt: skip
        memories = {index: _memory(each) for index, each in described.items()}
        arrays = list(memories.values())
        if gradient:
            del memories[DNNL.ARG_SRC]
        steps: list[_Primitive] = [_Primitive(descriptor, memories)]
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
) -> _Primitive:
    """Return the primitive for the mean of each channel of each image, in `means` (N, 1, 1, C),
    given the description of images (N, H, W, C) and their memory.
    """
    engine, _ = _engine_and_stream()
    description, memory = images
    found = _images(means.shape, DNNL.f32 if means.dtype == np.float32 else DNNL.bf16)
    window, zeros = _numbers(shape[1:3]), _numbers((0, 0))
    descriptor = _create(
        "dnnl_pooling_forward_primitive_desc_create",
        engine, DNNL.forward_inference, DNNL.pooling_avg_include_padding, description, found,
        window, window, zeros, zeros, zeros, _attributes(),
    )  # fmt: skip
    result = _memory(found)
    _place(result, means.ctypes.data)
    return _Primitive(descriptor, {DNNL.ARG_SRC: memory, DNNL.ARG_DST: result})


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


# One computation at a time: the workspace and the memories are shared by the
# threads of all devices.
lock = threading.Lock()
_rooms = [np.empty(0, np.uint8)]


def _workspace(size: int) -> int:
    """Return the address of memory for `size` bytes, which only the holder of the lock uses."""
    if _rooms[0].size < size + _ALIGNMENT:
        _rooms[0] = np.empty(size + _ALIGNMENT, np.uint8)
    return -(-_rooms[0].ctypes.data // _ALIGNMENT) * _ALIGNMENT
