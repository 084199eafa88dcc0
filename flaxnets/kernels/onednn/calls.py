"""Calls of oneDNN from compiled programs: a handler of XLA's foreign function interface in ctypes.

XLA's own convolutions on CPUs are up to six times slower than oneDNN's, which torch uses there, the
filter gradients on large maps above all; batch norms with their ReLU and gradients, three to six
times; max pools and their gradients too, in bfloat16 above all. Where the library is missing, or
with FLAXNETS_ONEDNN=0 in the environment, `available()` is False and XLA's operations stay.

    python -m flaxnets.kernels.onednn  # prints whether it is used here, and the versions

**How a call happens.** `convolution`, `normalization` and `pooling` bind a jax primitive, which on
CPUs is lowered to a `stablehlo.custom_call` of `CONVOLUTION`, `BATCH_NORM` or `MAX_POOL` with an
attribute, an array of int64 named "description", of the shapes. `jax.ffi.register_ffi_target` told
XLA the address of a C function under that name, here a ctypes callback of `_answer`. XLA calls it
with one argument, a *call frame*: pointers to the operands' and results' memory, and the
attributes. `_answer` reads these, finds or makes the computation of that description, runs it, and
returns None, or a pointer to an error that XLA has made of a message. A ctypes callback takes
Python's lock, and ctypes gives it back while oneDNN computes.

**What is copied.** The structs below, from jaxlib's include/xla/ffi/api/c_api.h (in the folder
`jax.ffi.include_dir()`), under its names without "XLA_FFI_". A struct may end earlier here, as
fields are only ever added at the end. Versions 0.2 to 0.4 of the interface, in jaxlib 0.8.1 to
0.11.2, agree; only `InternalExtension` was called `Extension_Base` before 0.4.

**What breaks if it changes.** The header says that XLA supports every version of the interface for
at least twelve months, and that fields move only when XLA_FFI_API_MAJOR does. The handler claims
whatever version its caller has, since what is read here has kept its place since the first one: a
new version is not refused at registration, and moved fields would be read at wrong places.
`tests/unit/test_onednn.py` compares the structs with the installed jaxlib's header, field by field;
run it with each new jaxlib.
"""

import atexit
import contextlib
import ctypes
import functools
import itertools
import math
import pathlib
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.kernels.onednn import library as dnnl
from flaxnets.kernels.onednn import operations
from flaxnets.kernels.onednn.library import Shape
from flaxnets.kernels.onednn.operations import EXTRAS, ROLES

CONVOLUTION = "flaxnets_onednn_convolution"
BATCH_NORM = "flaxnets_onednn_batch_norm"
MAX_POOL = "flaxnets_onednn_max_pool"


@functools.cache
def available() -> bool:
    """Return whether this machine has the library; the first call loads it and tells XLA of it."""
    if dnnl.library() is None:
        return False
    for target, handler in _HANDLERS.items():
        jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(handler), platform="cpu")
    atexit.register(_finish)
    return True


def _finish() -> None:
    """Wait for what is under way: a call that begins while Python ends waits for ever, or crashes.

    jax does not tell what is under way for results that nobody holds any more. So this waits until
    no other thread has run in five looks, or for a minute without a call: one may run for ever.
    """
    for array in jax.live_arrays():
        with contextlib.suppress(Exception):  # whoever asked for the array has seen its error
            array.block_until_ready()
    start, quiet = time.monotonic(), 0
    while quiet < 5:
        time.sleep(0.02)
        with dnnl.lock:  # not while one is computed
            idle = time.monotonic() - max(start, _last_call[0])
        quiet = 0 if idle < 60 and _other_threads_run() else quiet + 1


def _other_threads_run() -> bool:
    """Return whether another thread of this process runs, or waits for a core or a disk."""
    for file in pathlib.Path("/proc/self/task").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            state = file.read_text().rpartition(")")[2].split()[0]
            if state in "RD" and file.parent.name != str(threading.get_native_id()):
                return True
    return False


def describe_convolution(
    result: str,
    shapes: Sequence[Shape],
    geometry: Sequence[int],
    narrow: bool,
    extras: Sequence[str],
    relu: bool,
) -> np.ndarray:
    """Return the arguments of `operations.Convolution` as the numbers that `CONVOLUTION` takes for
    its attribute `description`.
    """
    flags = (narrow, relu, *(name in extras for name in EXTRAS))
    return np.array([ROLES.index(result), *sum(shapes, ()), *geometry, *flags], np.int64)


@functools.cache
def _convolution(description: bytes) -> operations.Convolution:
    result, *numbers = struct.unpack("26q", description)
    shapes = [tuple(numbers[first : first + 4]) for first in (0, 4, 8)]
    narrow, relu, *given = map(bool, numbers[19:])
    extras = list(itertools.compress(EXTRAS, given))
    return operations.Convolution(ROLES[result], shapes, numbers[12:19], narrow, extras, relu)


def takes(*arrays: jax.Array) -> bool:
    """Return whether what is computed of these, here, can be a call of the library: float32, or
    bfloat16 where the CPU multiplies it.
    """
    return (
        all(
            (each.dtype == np.float32 or (each.dtype == jnp.bfloat16 and dnnl.computes_bfloat16()))
            and all(isinstance(n, int) and n > 0 for n in each.shape)  # not symbolic: jax.export
            and not _is_mapped(each)
            for each in arrays
        )
        and available()
    )


def _is_mapped(x: jax.Array) -> bool:
    """Return whether this is inside `jax.shard_map` in a way that a foreign call cannot be.

    With `check_vma=True` types name the mapped axes, and it has no rule for those. On several
    virtual CPU devices, which are for tests, XLA's threads for the devices wait for each other in
    collectives, and some were left waiting for ever once others stood in a foreign call.
    """
    mesh = jax.sharding.get_abstract_mesh()
    kind = jax.typeof(x)
    kind = getattr(kind, "manual_axis_type", kind)  # JAX 0.10; `vma` was its own attribute before
    checked = getattr(kind, "varying", None) or getattr(kind, "vma", None)
    return bool(checked) or (bool(mesh.manual_axes) and mesh.size > 1)


@functools.cache
def masks(shape: Shape, narrow: bool) -> list[tuple[int]]:
    """Return the shapes of the masks, uint8, that `operations.BatchNorm` with a ReLU finds: one."""
    return [(operations.BatchNorm(shape, 1.0, True, narrow, False).mask_bytes,)]


def describe_batch_norm(
    shape: Shape, dtype: Any, gradient: bool, epsilon: float, relu: bool
) -> np.ndarray:
    """Return the arguments of `operations.BatchNorm` as numbers, as `describe_convolution` does."""
    bits = np.float64(epsilon).view(np.int64)
    return np.array([*shape, bits, relu, dtype == jnp.bfloat16, gradient], np.int64)


@functools.cache
def _batch_norm(description: bytes) -> operations.BatchNorm:
    *shape, epsilon, relu, narrow, gradient = struct.unpack("4qd3q", description)
    return operations.BatchNorm(tuple(shape), epsilon, bool(relu), bool(narrow), bool(gradient))


@functools.cache
def places(shapes: tuple[Shape, Shape], geometry: tuple[int, ...], narrow: bool) -> tuple[int]:
    """Return the shape of the places, uint8, that `operations.MaxPool` finds."""
    return (operations.MaxPool(shapes, geometry, narrow, False).places_bytes,)


def describe_max_pool(
    shapes: tuple[Shape, Shape], geometry: tuple[int, ...], dtype: Any, gradient: bool
) -> np.ndarray:
    """Return the arguments of `operations.MaxPool` as numbers, as `describe_convolution` does."""
    return np.array([*sum(shapes, ()), *geometry, dtype == jnp.bfloat16, gradient], np.int64)


@functools.cache
def _max_pool(description: bytes) -> operations.MaxPool:
    *numbers, narrow, gradient = struct.unpack("18q", description)
    shapes = tuple(numbers[:4]), tuple(numbers[4:8])
    return operations.MaxPool(shapes, numbers[8:], bool(narrow), bool(gradient))


# --------------------------------------------------------------------------- c_api.h


def _struct(name: str, **fields: Any) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields.items())})


_INT, _LONG, _SIZE, _POINTER = ctypes.c_int, ctypes.c_int64, ctypes.c_size_t, ctypes.c_void_p
_HEAD: dict[str, Any] = {"struct_size": _SIZE, "extension_start": _POINTER}  # of most structs
_METADATA = 1  # XLA_FFI_Extension_Metadata
_INTERNAL = 13  # XLA_FFI_Error_Code_INTERNAL

Buffer = _struct("Buffer", **_HEAD, dtype=_INT, data=_POINTER, rank=_LONG, dims=_POINTER)
_BUFFERS = ctypes.POINTER(ctypes.POINTER(Buffer))
Args = _struct("Args", **_HEAD, size=_LONG, types=_POINTER, args=_BUFFERS)
Rets = _struct("Rets", **_HEAD, size=_LONG, types=_POINTER, rets=_BUFFERS)
Array = _struct("Array", dtype=_INT, size=_SIZE, data=_POINTER)
Attrs = _struct(
    "Attrs", **_HEAD, size=_LONG, types=_POINTER, names=_POINTER,
    attrs=ctypes.POINTER(ctypes.POINTER(Array)),
)  # fmt: skip
Api_Version = _struct("Api_Version", **_HEAD, major_version=_INT, minor_version=_INT)
Error_Create_Args = _struct("Error_Create_Args", **_HEAD, message=ctypes.c_char_p, errc=_INT)
Error_Create = ctypes.CFUNCTYPE(_POINTER, ctypes.POINTER(Error_Create_Args))
Api = _struct(
    "Api", **_HEAD, api_version=Api_Version, internal_api=_POINTER,
    XLA_FFI_Error_Create=Error_Create,
)  # fmt: skip
CallFrame = _struct(
    "CallFrame", **_HEAD, api=ctypes.POINTER(Api), ctx=_POINTER, stage=_INT,
    args=Args, rets=Rets, attrs=Attrs,
)  # fmt: skip
# What XLA hangs on a call frame to ask for the handler's version, instead of calling it.
InternalExtension = _struct("InternalExtension", struct_size=_SIZE, type=_INT, next=_POINTER)
Metadata = _struct("Metadata", struct_size=_SIZE, api_version=Api_Version, traits=ctypes.c_uint32)
Metadata_Extension = _struct(
    "Metadata_Extension", extension_base=InternalExtension, metadata=ctypes.POINTER(Metadata)
)

_last_call = [-math.inf]  # seconds of time.monotonic()
version: list[int] = []  # of the interface, major and minor, once XLA has asked for the handler's


def _answer(pointer: Any, made: Callable[[bytes], dnnl.Computation]) -> int | None:
    """Answer a call of XLA: the first one asks for the handler's version, the others compute."""
    frame = pointer.contents
    if frame.extension_start:
        request = Metadata_Extension.from_address(frame.extension_start)
        if request.extension_base.type == _METADATA:
            its = frame.api.contents.api_version
            request.metadata.contents.api_version = its
            version[:] = its.major_version, its.minor_version
            return None
    _last_call[0] = time.monotonic()
    try:
        description = frame.attrs.attrs[0].contents
        compute = made(ctypes.string_at(description.data, 8 * description.size))
        operands = [frame.args.args[i].contents.data for i in range(frame.args.size)]
        results = [frame.rets.rets[i].contents.data for i in range(frame.rets.size)]
        compute(operands + results)
    except Exception as failure:  # returned to XLA: nothing can be raised through its frames
        message = f"{type(failure).__name__}: {failure}".encode()
        error = Error_Create_Args(ctypes.sizeof(Error_Create_Args), None, message, _INTERNAL)
        return frame.api.contents.XLA_FFI_Error_Create(ctypes.byref(error))
    return None


_Handler = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(CallFrame))
_HANDLERS = {
    CONVOLUTION: _Handler(lambda pointer: _answer(pointer, _convolution)),
    BATCH_NORM: _Handler(lambda pointer: _answer(pointer, _batch_norm)),
    MAX_POOL: _Handler(lambda pointer: _answer(pointer, _max_pool)),
}
