"""Eight virtual CPU devices for the data-parallel tests, compiled programs that all processes of
the run share, and the parity table at the end.
"""

import functools
import gc
import importlib
import os
import shutil
import tempfile
from importlib import metadata

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Programs are compiled more often than they run here: LLVM's level 0 takes a quarter of the time,
# and half of that with the older emitters of fusions, which jaxlib 0.11 no longer has. A process
# has one core, so that splitting a program among compiling threads would cost a tenth.
# `XLA_FLAGS= pytest`, as CI does once a week, compiles them as users do.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    + " --xla_cpu_use_fusion_emitters=false"
    * (tuple(map(int, metadata.version("jaxlib").split(".")[:2])) < (0, 11)),
)

import jax
import pytest

from flaxnets import terminal

worker = os.environ.get("PYTEST_XDIST_WORKER")  # "gw0", "gw1", ...
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)) > 1 and hasattr(os, "sched_setaffinity"):
    # A core to each of pytest-xdist's processes: the threads of JAX and torch, one for each core
    # that they see, are otherwise too many and wait for each other.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(str(worker).removeprefix("gw")) % len(cores)]})

MEMORY = 3 * 2**30  # bytes of a process of pytest-xdist: torch, TensorFlow, and two networks


def pytest_xdist_auto_num_workers() -> int:
    """Return how many processes `-n auto` starts: one for each core, if memory allows."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(cores or 1, memory // MEMORY))


def pytest_configure(config) -> None:
    """Give the run a directory for compiled programs and other caches, empty at its start, which
    the processes of pytest-xdist and those that tests start inherit.
    """
    if worker is None:
        directory = tempfile.mkdtemp(prefix="flaxnets-tests-")
        config.add_cleanup(lambda: shutil.rmtree(directory, ignore_errors=True))
        os.environ["XDG_CACHE_HOME"] = directory
    terminal.compilation_cache()


def pytest_collection_finish() -> None:
    """Collect garbage less often than Python does by default.

    The imported modules have millions of objects, and tracing makes more of them. Looking through
    all of them took a sixth of the time.
    """
    gc.freeze()
    gc.set_threshold(50_000)


jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture
def train_here(monkeypatch):
    """`train_here("--arch", "mlp", "--epochs", 1)` runs train.py's main in this process, on one
    device. It takes much less time than a process of its own.
    """
    from flaxnets import train
    from flaxnets.training import parallel

    importlib.import_module("flaxnets.runs.assembly")  # its annotations need the class itself
    # train.py imports both when it is called.
    on_one = functools.partial(parallel.DataParallel, devices=jax.devices()[:1])
    monkeypatch.setattr(parallel, "DataParallel", on_one)
    monkeypatch.setattr("flaxnets.runs.processes.join", lambda processes: None)
    return lambda *arguments: train.main([str(argument) for argument in arguments])


@pytest.fixture
def short_turns(monkeypatch):
    """A measurement calls each contender for 10 ms; no test looks at a time."""
    monkeypatch.setattr("benchmarking.common.TURN", 0.01)


@pytest.fixture
def record_parity(request):
    """`record_parity(name, "logits", error)`: a cell of the table that pytest prints at the end."""

    def record(name: str, column: str, value: float) -> None:
        request.node.user_properties.append(("parity", (name, column, value)))

    return record


def pytest_terminal_summary(terminalreporter):
    table: dict[str, dict[str, float]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:  # the tests may have run in another process (pytest-xdist)
            for key, (name, column, value) in getattr(report, "user_properties", ()):
                if key == "parity":
                    table.setdefault(name, {})[column] = value
    if not table:
        return
    columns = sorted({column for row in table.values() for column in row})
    terminalreporter.section("parity: max error / max value")
    terminalreporter.write_line(f"{'network':32}" + "".join(f"{c:>18}" for c in columns))
    for name, row in sorted(table.items()):
        cells = (
            format(row[c], ",d" if c == "parameters" else ".1e") if c in row else ""
            for c in columns
        )
        terminalreporter.write_line(f"{name:32}" + "".join(f"{cell:>18}" for cell in cells))
