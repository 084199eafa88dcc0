"""Measure the seconds from the command to the first training step, in separate processes."""

import contextlib
import os
import pathlib
import pty
import subprocess
import sys
import tempfile
import time

from benchmarking.common import Options, Row
from child_process import check_status
from flaxnets.errors import InputError

ROOT = pathlib.Path(__file__).parents[2]
# Run train.py, print which of these it imported, and end as soon as a step is complete.
# All are imported after the command line is parsed, the last one (TensorFlow) for its data sets.
LATE = (
    "flaxnets.runs.assembly", "flaxnets.runs.loop", "flaxnets.runs.report", "flaxnets.data.tfds",
)  # fmt: skip
UNTIL_THE_FIRST_STEP = f"""
import os, runpy, sys
import flaxnets.train as train
aside = os.dup(2)  # the script and its progress bar replace sys.stderr
def end(clock):
    os.write(aside, " ".join(name for name in {LATE} if name in sys.modules).encode())
    os._exit(0)
parse = train.parse
def parse_and_watch(arguments):
    parsed = parse(arguments)
    from flaxnets.runs.progress import Clock
    Clock.tick = end
    return parsed
train.parse = parse_and_watch
sys.argv = ["train.py", *sys.argv[1:]]
runpy.run_path("experiments/train.py", run_name="__main__")
"""
IMPORTS = """
import importlib, runpy, sys
runpy.run_path("experiments/train.py", run_name="imported")
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def measure_start(arch: str, options: Options) -> Row:
    """Return the seconds of train.py's imports, and to its first output and first step.

    The first start has an empty cache of compiled programs; the second has the cache of the first.
    """
    row: Row = {"dataset": options.dataset}
    imported: list[str] = []
    with tempfile.TemporaryDirectory() as directory:
        environment = os.environ | {"XDG_CACHE_HOME": directory}
        for name in ("first", "second"):
            workdir = f"{directory}/{name}"
            arguments = ["--arch", arch, "--dataset", options.dataset, "--workdir", workdir]
            if options.batch_size is not None:
                arguments += ["--batch-size", str(options.batch_size)]
            if options.data_dir is not None:
                arguments += ["--data-dir", options.data_dir]
            command = ["-c", UNTIL_THE_FIRST_STEP, *arguments]
            output, step, errors = _seconds(command, environment)
            imported = [name for name in LATE if name in errors.split()]
            row[f"{name}_start_output_seconds"] = output
            row[f"{name}_start_step_seconds"] = step
    imports = min(_seconds(["-c", IMPORTS, *imported], os.environ)[1] for _ in range(2))
    row["imports_seconds"] = imports
    row["second_start_step_beyond_imports"] = row["second_start_step_seconds"] - imports
    return row


def _seconds(command: list[str], environment: os._Environ | dict) -> tuple[float, float, str]:
    """Return the seconds to a command's first output and to its end, and its standard error.

    Its standard output is a terminal. Raises InputError with the command's own message if it fails.
    """
    start = time.perf_counter()
    terminal, command_end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=dict(environment),
        stdout=command_end,
        stderr=subprocess.PIPE,
    )
    os.close(command_end)
    marks = []
    with contextlib.suppress(OSError):  # the other end is closed
        while os.read(terminal, 4096):
            marks.append(time.perf_counter() - start)
    os.close(terminal)
    _, errors = process.communicate()
    end = time.perf_counter() - start
    if process.returncode > 0:
        raise InputError(errors.decode().strip().removeprefix("error: "))
    check_status("train.py", process.returncode)
    return (marks[0] if marks else end), end, errors.decode()
