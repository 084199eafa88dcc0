"""Read, write and lock the files of a run; a file is written completely or not at all."""

import fcntl
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from flaxnets.errors import InputError

MAX_JSON = 2**24  # bytes; a config with the names of 22,000 classes has half a million


def read_json(path: pathlib.Path) -> Any:
    """Return the content of a run's JSON file. Raises InputError if it is too large or not JSON."""
    if path.stat().st_size > MAX_JSON:
        raise InputError(
            f"{path} is larger than {MAX_JSON >> 20} MiB, so no training run wrote it; choose the "
            f"workdir of a run"
        )
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise InputError(
            f"{path} is damaged: it is not JSON; restore it from a backup, or choose another "
            f"workdir"
        ) from error


def json_text(value: Any, indent: int | None = None) -> str:
    """Return `value` as JSON, with null for NaN and infinity, which JSON does not have."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_whole(path: pathlib.Path, content: str | bytes) -> None:
    """Write a file completely or not at all: if the run is killed meanwhile, the old file stays."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(new, path)


def locked(path: pathlib.Path) -> int:
    """Lock a directory and return the descriptor of its lock file.

    Closing the descriptor releases the lock; the kernel closes it when the process is killed.

    Raises InputError if another process holds the lock.
    """
    descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InputError(
            f"another process is training in {path}; wait for it, or choose another workdir"
        ) from None
    except OSError:
        pass  # a file system without locks
    return descriptor
