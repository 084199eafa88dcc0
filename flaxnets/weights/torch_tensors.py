"""Storages and tensors of a torch file, without torch: where their numbers lie, and their type."""

import dataclasses
import math
import mmap
from typing import Any

import ml_dtypes
import numpy as np

LACKING = "numbers of a type that NumPy lacks; save the weights in float32"
MAX_DIMENSIONS = 64  # of a tensor, in torch and in NumPy


class Malformed(ValueError):
    """The bytes are not those of torch.save."""


class Refused(ValueError):
    """The file holds something that is not read here; the message completes "FILE holds "."""

    def __init__(
        self, name: str, reason: str = "which is not plain data; save model.state_dict() instead"
    ):
        super().__init__(f"{name[:100]!r}, {reason}")


def _extended(*names: str) -> dict[str, np.dtype]:
    """Return the number types that NumPy itself lacks, as far as ml_dtypes has them."""
    return {name: np.dtype(getattr(ml_dtypes, name)) for name in names if hasattr(ml_dtypes, name)}


# torch's number types, and those of its classes of storages. `torch.float4_e2m1fn_x2`, bits and
# quantised numbers have no counterpart.
DTYPES = {
    **{name: np.dtype(name) for name in (
        "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
        "float16", "float32", "float64", "complex64", "complex128",
    )},
    **_extended(
        "bfloat16", "complex32", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2",
        "float8_e5m2fnuz", "float8_e8m0fnu",
    ),
}  # fmt: skip
STORAGES = {
    "BoolStorage": "bool", "ByteStorage": "uint8", "CharStorage": "int8", "ShortStorage": "int16",
    "IntStorage": "int32", "LongStorage": "int64", "HalfStorage": "float16",
    "FloatStorage": "float32", "DoubleStorage": "float64", "BFloat16Storage": "bfloat16",
    "ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128",
}  # fmt: skip
UNTYPED = "torch.storage.UntypedStorage"  # its size is in bytes


@dataclasses.dataclass(eq=False)
class Storage:
    """`size` numbers of `dtype` that lie in the file from byte `start` on."""

    dtype: np.dtype
    size: int
    start: int | None = None
    file: mmap.mmap | None = None

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.size * self.dtype.itemsize


@dataclasses.dataclass(eq=False)
class Tensor:
    """A view of a storage. Offset and strides count elements, not bytes."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        """Return a read-only array on the file's pages."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        assert self.storage.start is not None
        itemsize = self.dtype.itemsize
        return np.ndarray(
            self.shape,
            self.dtype,
            self.storage.file,
            self.storage.start + self.offset * itemsize,
            tuple(stride * itemsize for stride in self.strides),
        )


def is_index(*values: Any) -> bool:
    """Return whether all values are integers from 0 to below 2**63."""
    return all(type(value) is int and 0 <= value < 2**63 for value in values)


def checked_tensor(
    storage: Storage, offset: int, shape: tuple, strides: tuple, dtype: np.dtype | None = None
) -> Tensor:
    """Return a tensor that lies within its storage, whose type it has unless `dtype` is given.

    Raises Malformed if a value is of another type, or the tensor reaches beyond its storage.
    """
    dtype = storage.dtype if dtype is None else dtype
    if not (isinstance(dtype, np.dtype) and isinstance(storage, Storage)):
        raise Malformed("a tensor has no storage")
    if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
        raise Malformed("a tensor has strides for another number of dimensions")
    if not is_index(offset, *shape, *strides):
        raise Malformed("an offset, size or stride is not a natural number")
    if math.prod(size or 1 for size in shape) * dtype.itemsize >= 2**63:
        raise Malformed("a tensor is larger than any memory")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 not in shape and (last + 1) * dtype.itemsize > storage.nbytes:
        raise Malformed("a tensor reaches beyond its storage")
    # The strides of dimensions of one element are arbitrary.
    strides = tuple(s if size > 1 else 0 for size, s in zip(shape, strides, strict=True))
    return Tensor(storage, dtype, offset, tuple(shape), strides)
