"""Run scripts as a user does, each in a process without a terminal, or call their `main` in this
one.

Calling `main` takes a tenth of the time; it is for tests of the sentence alone.
"""

import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import IO

import pytest

from flaxnets import InputError

ROOT = pathlib.Path(__file__).parents[2]


def command(name: str, *arguments: object) -> list[str]:
    """Return the command of a script by its path below the root, such as "experiments/train.py"."""
    return [sys.executable, str(ROOT / name), *map(str, arguments)]


def script(name: str, *arguments: object, **options) -> subprocess.CompletedProcess[str]:
    """Run a script and return its exit status and what it printed; `options` are those of
    subprocess.run.
    """
    return subprocess.run(
        command(name, *arguments), capture_output=True, text=True, timeout=300, **options
    )


def output(process: subprocess.Popen[str]) -> IO[str]:
    """Return the reader of the standard output of a process that was started with a pipe."""
    assert process.stdout is not None
    return process.stdout


def errors(process: subprocess.Popen[str]) -> IO[str]:
    """Return the reader of the standard error of a process that was started with a pipe."""
    assert process.stderr is not None
    return process.stderr


def refusal(main: Callable[..., object], *arguments: object, **options: object) -> str:
    """Return the sentence with which a script's `main` refuses its input, in this process."""
    with pytest.raises(InputError) as raised:
        main(*arguments, **options)
    sentence = str(raised.value)
    assert "\n" not in sentence
    return sentence
