"""Read what `torch.save` wrote, with NumPy alone, without running anything that the file names.

There are two formats: the zip of torch 1.6 and later, whose members are stored uncompressed, and
the older chain of pickles. In both, a pickle describes the objects, and the numbers of the tensors
lie outside of it. They are mapped into memory and read when they are used.

`torch_pickle.Machine` executes the pickle. It has the instructions of protocols 2 to 5 and cannot
import. A global must be known to `torch_objects.named_global`; any other stops the reading, and the
message names it.
"""

import mmap
import pathlib
import re
import struct
import zipfile
from typing import Any

import numpy as np

from flaxnets.errors import InputError
from flaxnets.weights.torch_pickle import Machine
from flaxnets.weights.torch_tensors import Malformed, Refused, Storage, is_index

ZIP = b"PK\x03\x04"
# The first pickle of the older format: protocol 2 and the number 0x1950a86a20f9469cfc6c.
CHAIN = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
PROTOCOL_VERSION = 1001  # of the older format

# What the machine and the zip reader raise on bytes that were not written by torch.save.
MALFORMED = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError,
    NotImplementedError, RecursionError, RuntimeError, TypeError, ValueError, OSError,
    struct.error, zipfile.BadZipFile,
)  # fmt: skip


def is_torch_file(start: bytes) -> bool:
    """Tell from the first bytes of a file whether `torch.save` may have written it."""
    return start.startswith((ZIP, CHAIN))


def read_torch_file(path: pathlib.Path) -> Any:
    """Return what was saved, with a `Tensor` for each tensor and a `Record` for other objects.

    Dictionaries, lists, tuples, numbers, strings, and NumPy's scalars and arrays are returned as
    they are. Subclasses of `dict` become dictionaries.

    Raises InputError if the file is incomplete or damaged, or holds objects of other kinds.
    """
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if mapped[: len(ZIP)] == ZIP:
            return _read_zip(path, mapped)
        return _read_chain(mapped)
    except InputError:
        raise
    except Refused as error:
        raise InputError(f"{path} holds {error}") from None
    except MALFORMED as error:
        raise InputError(
            f"{path} is not a complete file of torch weights; download or save it again"
        ) from error


def _read_zip(path: pathlib.Path, file: mmap.mmap) -> Any:
    """Return what was saved in the format of torch 1.6 and later."""
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
    pickles = [name for name in members if re.fullmatch("[^/]+/data.pkl", name)]
    if len(pickles) != 1:
        raise InputError(
            f"{path} is a zip file that torch.save did not write; give a file of weights"
        )
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in members:
        raise InputError(f"{path} holds a TorchScript program; save model.state_dict() instead")

    def place(name: str) -> tuple[int, int]:
        """Return the positions in the file where a member's bytes begin and end."""
        member = members[root + name]
        header = member.header_offset
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise Malformed("a member is compressed or encrypted")
        if header < 0 or file[header : header + 4] != ZIP:
            raise Malformed("a member is not at its place")
        start = header + 30 + sum(struct.unpack("<HH", file[header + 26 : header + 30]))
        end = start + member.file_size
        if member.compress_size != member.file_size or end > len(file):
            raise Malformed("a member is longer than the file")
        return start, end

    if f"{root}byteorder" in members:
        start, end = place("byteorder")
        if file[start : min(end, start + 6)] != b"little":
            raise InputError(
                f"{path} was written on a big-endian machine; save it on a little-endian one"
            )

    storages: dict[str, Storage] = {}

    def storage(dtype: np.dtype, key: str, size: int, view: Any) -> Storage:
        if key not in storages:
            start, end = place(f"data/{key}")
            storages[key] = Storage(dtype, size, start, file)
            if storages[key].nbytes != end - start or view is not None:
                raise Malformed("a storage has another size")
        return _same(storages[key], dtype, size)

    start, end = place("data.pkl")
    return Machine(file, start, end, storage).run()


def _read_chain(file: mmap.mmap) -> Any:
    """Return what was saved in the older format: five pickles, of which the fourth describes the
    object, then the numbers of each storage.
    """
    storages: dict[str, Storage] = {}
    views: list[tuple[Storage, Storage, int]] = []

    def storage(dtype: np.dtype, key: str, size: int, view: Any) -> Storage:
        whole = _same(storages.setdefault(key, Storage(dtype, size, file=file)), dtype, size)
        if view is None:
            return whole
        _, offset, view_size = view  # in files of torch before 0.4: a storage inside another one
        if not (is_index(offset, view_size) and offset + view_size <= size):
            raise Malformed("a view reaches beyond its storage")
        part = Storage(dtype, view_size, file=file)
        views.append((part, whole, offset))
        return part

    position, objects = 0, []
    for _ in range(5):
        machine = Machine(file, position, len(file), storage)
        objects.append(machine.run())
        position = machine.position
    _, version, system, saved, keys = objects
    if version != PROTOCOL_VERSION or not system["little_endian"]:
        raise Malformed("the version is another one, or the machine was big-endian")
    for key in dict.fromkeys(keys):
        whole = storages.pop(key)
        (size,) = struct.unpack("<q", file[position : position + 8])
        whole.start = position + 8
        position = whole.start + whole.nbytes
        if size != whole.size or position > len(file):
            raise Malformed("a storage has another size")
    if storages:
        raise Malformed("a storage is not in the file")
    for part, whole, offset in views:
        assert whole.start is not None
        part.start = whole.start + offset * part.dtype.itemsize
    return saved


def _same(storage: Storage, dtype: np.dtype, size: int) -> Storage:
    """Return the storage. Raises Malformed if it was named with another type or size before."""
    if (storage.dtype, storage.size) != (dtype, size):
        raise Malformed("a storage has two types or sizes")
    return storage
