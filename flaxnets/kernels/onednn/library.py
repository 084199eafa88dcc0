"""oneDNN's C interface in ctypes: its functions, descriptors, memories and primitives.

The wheel `onednn-cpu-gomp` (Linux on x86-64) brings the shared library; nothing is compiled.

**What is copied.** Of oneDNN 3's include/oneapi/dnnl/dnnl_types.h the constants `DNNL`, under the
header's names without "dnnl_" or "DNNL_", the struct `dnnl_exec_arg_t` as `_Argument`, and the
length of `dnnl_dims_t` in `dims`. The functions are called as include/oneapi/dnnl/dnnl.h
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

import ctypes
import functools
import importlib.metadata
import os
import threading
import types
from collections.abc import Sequence
from typing import Any

import numpy as np

Shape = tuple[int, ...]

# dnnl_types.h
DNNL = types.SimpleNamespace(
    cpu=1, stream_in_order=1, bf16=2, f32=3, format_tag_any=1, convolution_direct=1,
    cpu_isa_avx512_core=0x27, cpu_isa_avx512_core_bf16=0xE7,
    pooling_max=0x1FF, pooling_avg_include_padding=0x2FF,
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
_ALIGNMENT = 64  # bytes, a cache line


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


def computes_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 (avx512_bf16 or AMX) and the library is here."""
    return _has_instructions(DNNL.cpu_isa_avx512_core_bf16)


def has_avx512() -> bool:
    """Return whether this CPU has AVX-512 and the library is here."""
    return _has_instructions(DNNL.cpu_isa_avx512_core)


@functools.cache
def _has_instructions(needed: int) -> bool:
    """Return whether the library uses all the instructions `needed`, a bit for each set."""
    return library() is not None and library().dnnl_get_effective_cpu_isa() & needed == needed


def call(function: str, *arguments) -> None:
    """Call a function of the library, which returns a status.

    Raises RuntimeError with the status where it is not 0.
    """
    status = getattr(library(), function)(*arguments)
    if status:
        raise RuntimeError(f"{function} of oneDNN failed with status {status}")


def create(function: str, *arguments) -> ctypes.c_void_p:
    """Return the handle that a function of the library writes to its first argument."""
    made = ctypes.c_void_p()
    call(function, ctypes.byref(made), *arguments)
    return made


def dims(values: Sequence[int]) -> ctypes.Array:
    """Return `values` as a `dnnl_dims_t`."""
    return (ctypes.c_int64 * DNNL.MAX_NDIMS)(*values)


@functools.cache
def engine_and_stream() -> tuple[ctypes.c_void_p, ctypes.c_void_p]:
    """Return the CPU's engine and the stream that all primitives are executed in."""
    engine = create("dnnl_engine_create", DNNL.cpu, ctypes.c_size_t(0))
    return engine, create("dnnl_stream_create", engine, DNNL.stream_in_order)


def describe(shape: Shape, strides: Shape, dtype: int = DNNL.f32) -> ctypes.c_void_p:
    """Describe an array of that shape; strides count elements."""
    return create(
        "dnnl_memory_desc_create_with_strides",
        len(shape), dims(shape), dtype, dims(strides),
    )  # fmt: skip


def describe_images(shape: Shape, dtype: int = DNNL.f32) -> ctypes.c_void_p:
    """Describe row-major NHWC in oneDNN's order of axes, NCHW."""
    n, height, width, channels = shape
    row = width * channels
    return describe((n, channels, height, width), (height * row, 1, row, channels), dtype)


def attributes(following: ctypes.c_void_p | None = None) -> ctypes.c_void_p:
    """Return the attributes of a primitive, with the post-operations that follow it."""
    # oneDNN's own scratchpads belong to the thread that made the primitive; XLA has many threads.
    attributes = create("dnnl_primitive_attr_create")
    call("dnnl_primitive_attr_set_scratchpad_mode", attributes, DNNL.scratchpad_mode_user)
    if following is not None:
        call("dnnl_primitive_attr_set_post_ops", attributes, following)
    return attributes


class Primitive:
    """A primitive of oneDNN and the memory that each of its arguments lies in."""

    def __init__(self, descriptor: ctypes.c_void_p, memories: dict[int, ctypes.c_void_p]):
        self.primitive = create("dnnl_primitive_create", descriptor)
        scratchpad = self.description(descriptor, DNNL.query_scratchpad_md)
        self.scratchpad = new_memory(scratchpad)
        self.scratchpad_bytes = aligned_bytes(scratchpad)
        memories = memories | {DNNL.ARG_SCRATCHPAD: self.scratchpad}
        self.arguments = (_Argument * len(memories))(*memories.items())

    @staticmethod
    def description(descriptor: ctypes.c_void_p, query: int) -> ctypes.c_void_p:
        return ctypes.c_void_p(library().dnnl_primitive_desc_query_md(descriptor, query, 0))

    def __call__(self, scratchpad: int) -> None:
        _, stream = engine_and_stream()
        place(self.scratchpad, scratchpad)
        arguments = self.arguments
        call("dnnl_primitive_execute", self.primitive, stream, len(arguments), arguments)


def aligned_bytes(description: ctypes.c_void_p) -> int:
    """Return the bytes of an array, rounded up to whole cache lines."""
    return -(-library().dnnl_memory_desc_get_size(description) // _ALIGNMENT) * _ALIGNMENT


def new_memory(description: ctypes.c_void_p) -> ctypes.c_void_p:
    """Return a memory of that shape and layout, without an address yet."""
    return create("dnnl_memory_create", description, engine_and_stream()[0], None)


def place(memory: ctypes.c_void_p, address: int) -> None:
    """Tell oneDNN where the array of a memory lies."""
    call("dnnl_memory_set_data_handle", memory, ctypes.c_void_p(address))


class Reorder(Primitive):
    """Copy of an array into another layout or type; an end is a description and a memory."""

    def __init__(self, *ends: tuple[ctypes.c_void_p, ctypes.c_void_p]):
        engine, _ = engine_and_stream()
        (source, self.source), (target, self.target) = ends
        descriptor = create(
            "dnnl_reorder_primitive_desc_create", source, engine, target, engine, attributes()
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
        place(self.source, numbers.ctypes.data)
        place(self.target, result.ctypes.data)
        with lock:
            self(workspace(self.scratchpad_bytes))
        return np.array_equal(numbers, result)


class Computation:
    """Primitives in turn, on arrays whose addresses are given with each call.

    `inside` is a memory between two of them, and its bytes.
    """

    def __init__(
        self,
        steps: Sequence[Primitive],
        arrays: Sequence[ctypes.c_void_p],
        inside: tuple[ctypes.c_void_p, int] | None = None,
    ):
        self.steps, self.arrays, self.inside = steps, arrays, inside

    def __call__(self, addresses: Sequence[int]) -> None:
        """Compute, given the addresses of the operands and then of the results."""
        scratchpad = max(step.scratchpad_bytes for step in self.steps)
        memory, size = self.inside or (None, 0)
        with lock:
            room = workspace(size + scratchpad)
            if memory is not None:
                place(memory, room)
            for memory, address in zip(self.arrays, addresses, strict=True):
                place(memory, address)
            for step in self.steps:
                step(room + size)
            self.finish(addresses)

    def finish(self, addresses: Sequence[int]) -> None:
        """Mend the results, while no other computation runs."""


# One computation at a time: the workspace and the memories are shared by the
# threads of all devices.
lock = threading.Lock()
_rooms = [np.empty(0, np.uint8)]


def workspace(size: int) -> int:
    """Return the address of memory for `size` bytes, which only the holder of the lock uses."""
    if _rooms[0].size < size + _ALIGNMENT:
        _rooms[0] = np.empty(size + _ALIGNMENT, np.uint8)
    return -(-_rooms[0].ctypes.data // _ALIGNMENT) * _ALIGNMENT
