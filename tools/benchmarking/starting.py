"""Seconds from the command to the first training step, in processes of their own."""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

from benchmarking.common import Options, Row

ROOT = pathlib.Path(__file__).parents[2]
# Runs train.py, writes a mark as soon as a step is complete, and ends.
UNTIL_THE_FIRST_STEP = """
import os, runpy, sys
from flaxnets.training.progress import Clock
def tick(clock):
    print("first step", flush=True)
    os._exit(0)
Clock.tick = tick
sys.argv = ["train.py", *sys.argv[1:]]
runpy.run_path("experiments/train.py", run_name="__main__")
"""
IMPORTS = """
import runpy
runpy.run_path("experiments/train.py", run_name="imported")
import flaxnets.data.pipeline
"""


def measure_start(arch: str, options: Options) -> Row:
    """The imports of train.py and, with no cache of compiled programs and with the one that this
    leaves, its first output and its first step.
    """
    imports = min(_seconds(["-c", IMPORTS], os.environ)[-1] for _ in range(2))
    row: Row = {"dataset": options.dataset, "imports_seconds": imports}
    with tempfile.TemporaryDirectory() as directory:
        environment = os.environ | {"XDG_CACHE_HOME": directory}
        for name in ("first", "second"):
            workdir = f"{directory}/{name}"
            asked = ["--arch", arch, "--dataset", options.dataset, "--workdir", workdir]
            if options.data_dir is not None:
                asked += ["--data-dir", options.data_dir]
            marks = _seconds(["-c", UNTIL_THE_FIRST_STEP, *asked], environment)
            row[f"{name}_start_output_seconds"] = marks[0]
            row[f"{name}_start_step_seconds"] = marks[-2]
    row["second_start_step_beyond_imports"] = row["second_start_step_seconds"] - imports
    return row


def _seconds(command: list[str], environment: os._Environ | dict) -> list[float]:
    """Until each line that the command prints, and until its end."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=dict(environment), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    marks = [time.perf_counter() - start for _ in process.stdout]
    if process.wait():
        raise RuntimeError(f"{command} ended with status {process.returncode}")
    return [*marks, time.perf_counter() - start]
