"""Set up the terminal for a script, so that only the script's own output appears.

A script imports this module and calls `quiet` before its other imports, which take seconds. This
module therefore imports nothing slow.
"""

import contextlib
import ctypes
import errno
import gc
import importlib.metadata
import io
import logging
import os
import pathlib
import pwd
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import NoReturn

from flaxnets.errors import InputError, InputWarning

PACKAGES = (
    "flaxnets", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow",
    "onednn-cpu-gomp",
)  # fmt: skip
# Environment variables that name a directory of the user.
DIRECTORIES = (
    "HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TFDS_DATA_DIR", "MPLCONFIGDIR", "HF_HOME",
    "TORCH_HOME", "JAX_COMPILATION_CACHE_DIR",
)  # fmt: skip
# The HOME of packages if no home directory is known: nothing can be written below it. Without any
# they create a directory named "~" (Keras) or fail.
NO_HOME = os.devnull
INTERRUPTED = 130  # exit status after Ctrl-C


def cache_directory() -> pathlib.Path | None:
    """Return the directory for caches (programs, weights), below `XDG_CACHE_HOME` or `~/.cache`.

    None if neither is known. An empty or relative `XDG_CACHE_HOME` is ignored.
    """
    root = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(root):
        home = _home()
        if home is None:
            return None
        root = os.path.join(home, ".cache")
    return pathlib.Path(root) / "flaxnets"


def _home() -> str | None:
    home = os.environ.get("HOME")
    with contextlib.suppress(KeyError):  # the user is not in the list of users
        home = home or pwd.getpwuid(os.getuid()).pw_dir
    return None if home in (None, NO_HOME) else home


def quiet() -> None:
    """Silence TensorFlow, XLA, absl and the warnings of libraries.

    Errors still raise. Our own warnings are printed, one sentence each. Ctrl-C ends the process
    with one line and status 130. From now on Python collects garbage rarely.

    Compiled code that prints at every log level, as TensorFlow's decoders do, prints to
    `native.log` in the user's cache directory. The cause of a crash can be read there.
    """
    _collect_rarely()
    for name in DIRECTORIES:
        if os.environ.get(name) == "":
            del os.environ[name]
    if _home() is None:
        os.environ["HOME"] = NO_HOME
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", InputWarning)
    warnings.showwarning = _show_warning
    threading.excepthook = _thread_failed
    signal.signal(signal.SIGINT, _interrupted)
    _open_standard_streams()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    os.dup2(_native_log(), 2)


def _collect_rarely() -> None:
    """Let Python look for unreachable cycles after 100,000 new objects instead of 700.

    Tracing makes objects that stay, millions for resnet1202_cifar. Looking through them again and
    again took 40% of its seconds.
    """
    gc.set_threshold(100_000, 20, 20)


def _open_standard_streams() -> None:
    """Open closed standard streams. Otherwise the next opened file gets their number and output."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Characters that the terminal's encoding lacks are escaped, as in standard error.
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    elif sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)


def _native_log() -> int:
    with contextlib.suppress(OSError):
        directory = cache_directory()
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            return os.open(directory / "native.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    return os.open(os.devnull, os.O_WRONLY)


def _show_warning(message, *_) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    if failure.exc_value is None or not _is_disk_full(failure.exc_value):
        threading.__excepthook__(failure)


def reuse_memory() -> None:
    """Make glibc's allocator keep freed memory; do nothing with another allocator.

    XLA's CPU backend allocates its intermediate results again in every call, and glibc returns
    large blocks to the system each time. The page faults took a quarter of a training step of
    ResNet-50. One arena is used, because the others cannot hold blocks of more than 64 MiB.

    Kept blocks are not always used again, so that a process needs up to four times its intermediate
    results. With FLAXNETS_KEEP_MEMORY=0 in the environment nothing is kept.

    Call this before the first thread starts. `one_sentence_errors` and TensorFlow's import start
    threads.
    """
    if os.environ.get("FLAXNETS_KEEP_MEMORY") == "0":
        return
    arena_max, mmap_max, trim_threshold = -8, -4, -1  # malloc.h
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(arena_max, 1)
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)


def compilation_cache() -> None:
    """Keep compiled programs between runs, in the user's cache directory; warn if there is none."""
    import jax

    directory = cache_directory()
    try:
        if directory is None:
            raise OSError(errno.ENOENT, "neither XDG_CACHE_HOME nor HOME names one")
        programs = directory / "xla"
        programs.mkdir(parents=True, exist_ok=True)
        if not os.access(programs, os.W_OK):
            raise OSError(errno.EACCES, f"cannot write to {programs}")
    except OSError as error:
        where = "" if error.filename is None else f": {error.filename}"
        warnings.warn(
            f"no cache directory ({error.strerror}{where}); every start compiles its programs "
            f"again until XDG_CACHE_HOME names a directory that can be written",
            InputWarning,
            stacklevel=2,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(programs))
    # Keep small programs too: a start has many.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def arguments() -> list[str]:
    """Return the arguments of the command line, with `~` expanded where shells do not expand it.

    That is after `--option=` and after the kind of a data set (`folder:~/pictures`).

    Raises InputError if no home directory is known.
    """
    return [
        re.sub(r"^((?:--[\w-]+=)?(?:\w+:)?)(~[^/]*)(?=/|$)", _expanded, argument)
        for argument in sys.argv[1:]
    ]


def program() -> list[str]:
    """Return the words that start this script, without arguments: `python -m flaxnets.train`."""
    spec = sys.modules["__main__"].__spec__
    name = "" if spec is None else spec.name
    return ["python", *(["-m", name] if name.startswith("flaxnets.") else sys.argv[:1])]


def command_line() -> list[str]:
    """Return the words of the command that started this process."""
    return [*program(), *sys.argv[1:]]


def _expanded(match: re.Match[str]) -> str:
    before, user = match.groups()
    home = _home() if user == "~" else os.path.expanduser(user)
    if home is None:
        raise InputError(
            f"cannot expand {match.string}: no home directory is known; set HOME, or give the path "
            f"without ~"
        )
    return before + home


_main_began = False  # until then Ctrl-C ends the process at once
_ending = False  # whether a thread is writing the last line


@contextlib.contextmanager
def one_sentence_errors() -> Iterator[None]:
    """End a script without a traceback.

    Bad input ends it with one sentence and status 2, Ctrl-C with one line and status 130. A second
    Ctrl-C ends it at once.
    """
    global _main_began
    _main_began = True
    if signal.getsignal(signal.SIGINT) is _interrupted:
        _watch_interrupts()
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except InputError as error:
        say_error(str(error))
        sys.exit(2)
    except BrokenPipeError:  # the reader closed the pipe, as `head` does
        # Otherwise the flush at exit fails again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        time.sleep(0.2)  # after a second Ctrl-C the watching thread prints its own line first
        _end("interrupted")
    except Exception as error:
        if not _is_disk_full(error):
            raise
        say_error(
            "the disk is full; what was saved before is intact, so free some space and run the "
            "same command again"
        )
        os._exit(2)  # at a normal exit background writers fail once more, with tracebacks


def say_error(sentence: str) -> None:
    """Print `error: ` and the sentence on standard error."""
    print(f"error: {sentence}", file=sys.stderr, flush=True)


def _interrupted(number, frame) -> None:
    """Handle Ctrl-C. During imports, where libraries swallow the exception, end at once."""
    if not _main_began:
        _end("interrupted")
    raise KeyboardInterrupt


def _watch_interrupts() -> None:
    """End the process at the second Ctrl-C, even while compiled code occupies the main thread."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def watch() -> None:
        count = 0
        while count < 2:
            count += os.read(reading, 1)[0] == signal.SIGINT
        _end("interrupted twice: ended at once; what was saved before is intact")

    threading.Thread(target=watch, name="interrupts", daemon=True).start()


def _end(sentence: str) -> NoReturn:
    """Print one line and end with status 130, without waiting for background writers."""
    global _ending
    if _ending:  # another thread is writing the line
        time.sleep(1)
    else:
        _ending = True
        show_cursor = "\r\n\x1b[?25h" if os.isatty(sys.stderr.fileno()) else ""
        with contextlib.suppress(OSError):
            os.write(sys.stderr.fileno(), f"{show_cursor}{sentence}\n".encode())
    os._exit(INTERRUPTED)


def _is_disk_full(error: BaseException) -> bool:
    # tensorstore, which Orbax uses, reports the errno of a failed write only in its message.
    full = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in full or any(os.strerror(e) in str(error) for e in full)


def versions(others: Sequence[str] = ()) -> dict[str, str]:
    """Return the versions of Python and of the installed packages that matter to a result."""
    installed = {"python": sys.version.split()[0]}
    for package in (*PACKAGES, *others):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[package] = importlib.metadata.version(package)
    return installed
