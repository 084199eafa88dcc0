"""What every script of the project does to its terminal: nothing on it that is not ours."""

import contextlib
import errno
import importlib.metadata
import logging
import os
import pathlib
import sys
import warnings
from collections.abc import Iterator

import jax

from flaxnets.errors import InputError

PACKAGES = ("flaxnets", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow")


def quiet() -> None:
    """Silences TensorFlow, XLA, absl and library warnings; errors still raise."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


def compilation_cache() -> None:
    """Keeps compiled programs between runs, in the user's cache directory."""
    root = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
    jax.config.update("jax_compilation_cache_dir", str(root / "flaxnets" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


@contextlib.contextmanager
def one_sentence_errors() -> Iterator[None]:
    """Bad input ends the script with one sentence and status 2, no traceback."""
    try:
        yield
    except InputError as error:
        _fail(str(error))
    except Exception as error:
        if not _is_disk_full(error):
            raise
        _fail("the disk is full; what was saved before is intact: make room and run again")


def _fail(sentence: str) -> None:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


def _is_disk_full(error: BaseException) -> bool:
    # tensorstore, below Orbax, reports the errno of its writes in the message alone.
    return getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error)


def versions() -> dict[str, str]:
    """Of Python and the packages that matter to a result."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
