"""What every script of the project does to its terminal: nothing on it that is not ours."""

import contextlib
import ctypes
import errno
import importlib.metadata
import logging
import os
import pathlib
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from flaxnets.errors import InputError, InputWarning

PACKAGES = (
    "flaxnets", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow",
    "onednn-cpu-gomp",
)  # fmt: skip


def cache_directory() -> pathlib.Path:
    root = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
    return root / "flaxnets"


def quiet() -> None:
    """Silences TensorFlow, XLA, absl and library warnings; errors still raise, and our own
    warnings are a sentence each.

    What compiled code writes past every log level (TensorFlow's decoders do) goes to `native.log`
    in the user's cache directory, where the cause of a crash can be read.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", InputWarning)
    warnings.showwarning = _show_warning
    threading.excepthook = _thread_failed
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    try:
        cache_directory().mkdir(parents=True, exist_ok=True)
        log = os.open(cache_directory() / "native.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    except OSError:
        log = os.open(os.devnull, os.O_WRONLY)
    os.dup2(log, 2)


def _show_warning(message, *_) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    if failure.exc_value is None or not _is_disk_full(failure.exc_value):
        threading.__excepthook__(failure)


def reuse_memory() -> None:
    """Lets glibc keep the memory that is freed, where glibc is what allocates.

    XLA's CPU backend asks for its intermediate results anew in every call, and glibc gives large
    blocks back to the system each time: their page faults were a quarter of the time of a training
    step of ResNet-50. One arena, because the others cannot hold blocks of more than 64 MiB; so
    this comes before TensorFlow, whose import starts threads with arenas of their own.
    """
    arena_max, mmap_max, trim_threshold = -8, -4, -1  # malloc.h
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(arena_max, 1)
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)


def compilation_cache() -> None:
    """Keeps compiled programs between runs, in the user's cache directory."""
    jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "xla"))
    # Small ones too: a start has many.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@contextlib.contextmanager
def one_sentence_errors() -> Iterator[None]:
    """Bad input ends the script with one sentence and status 2, no traceback."""
    try:
        yield
        sys.stdout.flush()
    except InputError as error:
        _say(str(error))
        sys.exit(2)
    except BrokenPipeError:  # the reader had enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or flushing at the end fails once more
        sys.exit(1)
    except Exception as error:
        if not _is_disk_full(error):
            raise
        _say("the disk is full; what was saved before is intact: make room and run again")
        os._exit(2)  # a usual exit would let background writers fail once more, with tracebacks


def _say(sentence: str) -> None:
    print(f"error: {sentence}", file=sys.stderr, flush=True)


def _is_disk_full(error: BaseException) -> bool:
    # tensorstore, below Orbax, reports the errno of its writes in the message alone.
    full = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in full or any(os.strerror(e) in str(error) for e in full)


def versions(others: Sequence[str] = ()) -> dict[str, str]:
    """Of Python and the packages that matter to a result, as far as they are installed."""
    found = {"python": sys.version.split()[0]}
    for package in (*PACKAGES, *others):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def print_table(
    title: str, rows: list[dict[str, Any]], footer: Sequence[dict[str, Any]] = ()
) -> None:
    """Rows under the keys of the first one that have a value anywhere."""

    def cell(value: Any) -> str:
        if isinstance(value, tuple):
            return "x".join(map(str, value))
        return f"{value:,}" if type(value) is int else "yes" if value is True else value or ""

    table = Table(title=title)
    keys = [key for key in rows[0] if any(row.get(key) for row in rows)]
    for key in keys:
        number = type(rows[0][key]) is int
        table.add_column(key.replace("_", " "), justify="right" if number else "left")
    for group in (rows, footer):
        for row in group:
            table.add_row(*(cell(row.get(key)) for key in keys))
        table.add_section()
    # Where the output is no terminal, rich would fold the columns at 80 characters.
    Console(width=None if sys.stdout.isatty() else 160).print(table)
