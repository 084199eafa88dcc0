"""oneDNN for XLA's CPU backend: the library behind torch's convolutions on CPUs.

XLA's own convolutions are up to six times slower there, the filter gradients on large maps above
all; batch norms with their ReLU and gradients, three to six times. Compiled programs call the
library (`flaxnets.kernels.onednn.library`) by a handler of XLA's foreign function interface
(xla/ffi/api/c_api.h in jaxlib), in ctypes. Where the library is missing, or with
FLAXNETS_ONEDNN=0 in the environment,
`available()` is False and XLA's operations stay.
"""

import atexit
import contextlib
import ctypes
import functools
import math
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

import flaxnets.kernels.onednn.library as dnnl
from flaxnets.kernels.onednn.library import ROLES, Shape

CONVOLUTION = "flaxnets_onednn_convolution"
BATCH_NORM = "flaxnets_onednn_batch_norm"


@functools.cache
def available() -> bool:
    """Whether this machine has the library; the first call loads it and tells XLA of it."""
    if dnnl.library() is None:
        return False
    for target, handler in _HANDLERS.items():
        jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(handler), platform="cpu")
    atexit.register(_finish)
    return True


def _finish() -> None:
    """Waits for what is under way: a convolution that begins while Python ends waits for ever."""
    for array in jax.live_arrays():
        with contextlib.suppress(Exception):  # whoever asked for the array has seen its error
            array.block_until_ready()
    idle = 0.0
    while idle < 0.2:  # seconds, for results that nobody holds any more
        time.sleep(0.05)
        with dnnl.lock:  # not while one is computed
            idle = time.monotonic() - _last_call[0]


def describe_convolution(
    result: str, shapes: Sequence[Shape], geometry: Sequence[int]
) -> np.ndarray:
    """The arguments of `library.Convolution` as the numbers that `CONVOLUTION` takes for its
    attribute `description`.
    """
    return np.array([ROLES.index(result), *sum(shapes, ()), *geometry], np.int64)


@functools.cache
def _convolution(description: bytes) -> dnnl.Convolution:
    result, *numbers = struct.unpack("20q", description)
    shapes = [tuple(numbers[first : first + 4]) for first in (0, 4, 8)]
    return dnnl.Convolution(ROLES[result], shapes, numbers[12:])


def takes(*arrays: jax.Array) -> bool:
    """Whether what is computed of these, here, can be a call of the library."""
    return (
        all(
            each.dtype == np.float32
            and all(isinstance(n, int) and n > 0 for n in each.shape)  # not symbolic: jax.export
            and not _is_mapped(each)
            for each in arrays
        )
        and available()
    )


def _is_mapped(x: jax.Array) -> bool:
    """Whether this is inside `jax.shard_map` in a way that a foreign call cannot be.

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
def masks(shape: Shape, relu: bool) -> list[Shape]:
    """Of the masks, uint8, that `library.BatchNorm` finds of such images: one or none."""
    return [(dnnl.BatchNorm(shape, 1.0, relu, False).mask_bytes,)] if relu else []


def describe_batch_norm(shape: Shape, epsilon: float, relu: bool, gradient: bool) -> np.ndarray:
    """The arguments of `flaxnets.kernels.onednn.library.BatchNorm`, for `BATCH_NORM`."""
    bits = np.float64(epsilon).view(np.int64)
    return np.array([*shape, bits, relu, gradient], np.int64)


@functools.cache
def _batch_norm(description: bytes) -> dnnl.BatchNorm:
    *shape, epsilon, relu, gradient = struct.unpack("4qd2q", description)
    return dnnl.BatchNorm(tuple(shape), epsilon, bool(relu), bool(gradient))


# --------------------------------------------------------------------------- c_api.h


def _structure(name: str, **fields) -> type[ctypes.Structure]:
    """One of XLA's, which all begin with their size and a list of extensions."""
    head = [("struct_size", ctypes.c_size_t), ("extension", ctypes.c_void_p)]
    return type(name, (ctypes.Structure,), {"_fields_": head + list(fields.items())})


_INT, _LONG, _POINTER = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
_Buffer = _structure("Buffer", dtype=_INT, data=_POINTER, rank=_LONG, dims=_POINTER)
_Buffers = _structure(
    "Buffers", size=_LONG, types=_POINTER, items=ctypes.POINTER(ctypes.POINTER(_Buffer))
)
_Version = _structure("Version", major=_INT, minor=_INT)
_ErrorCreate = _structure("ErrorCreate", message=ctypes.c_char_p, code=_INT)
_Api = _structure(
    "Api", version=_Version, internal=_POINTER,
    error_create=ctypes.CFUNCTYPE(_POINTER, ctypes.POINTER(_ErrorCreate)),
)  # fmt: skip


class _Array(ctypes.Structure):
    _fields_ = [("dtype", _INT), ("size", ctypes.c_size_t), ("data", _POINTER)]


class _Metadata(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("version", _Version), ("traits", _INT)]


class _MetadataRequest(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t), ("type", _INT), ("next", _POINTER),
        ("metadata", ctypes.POINTER(_Metadata)),
    ]  # fmt: skip


_Attributes = _structure(
    "Attributes", size=_LONG, types=_POINTER, names=_POINTER,
    items=ctypes.POINTER(ctypes.POINTER(_Array)),
)  # fmt: skip
_CallFrame = _structure(
    "CallFrame", api=ctypes.POINTER(_Api), context=_POINTER, stage=_INT,
    operands=_Buffers, results=_Buffers, attributes=_Attributes,
)  # fmt: skip

_METADATA, _INTERNAL_ERROR = 1, 13
_last_call = [-math.inf]  # seconds of time.monotonic()


def _answer(pointer: Any, made: Callable[[bytes], dnnl.Computation]) -> int | None:
    """What XLA calls: first for the handler's version, then for each computation."""
    frame = pointer.contents
    if frame.extension:
        request = _MetadataRequest.from_address(frame.extension)
        if request.type == _METADATA:
            # What is read here has kept its place since the interface's first version.
            request.metadata.contents.version = frame.api.contents.version
            return None
    _last_call[0] = time.monotonic()
    try:
        description = frame.attributes.items[0].contents
        compute = made(ctypes.string_at(description.data, 8 * description.size))
        arrays = [
            several.items[i].contents.data
            for several in (frame.operands, frame.results)
            for i in range(several.size)
        ]
        compute(arrays)
    except Exception as failure:  # into XLA's hands: nothing can be raised through its frames
        message = f"{type(failure).__name__}: {failure}".encode()
        error = _ErrorCreate(ctypes.sizeof(_ErrorCreate), None, message, _INTERNAL_ERROR)
        return frame.api.contents.error_create(ctypes.byref(error))
    return None


_Handler = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_CallFrame))
_HANDLERS = {
    CONVOLUTION: _Handler(lambda pointer: _answer(pointer, _convolution)),
    BATCH_NORM: _Handler(lambda pointer: _answer(pointer, _batch_norm)),
}
