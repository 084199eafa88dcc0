"""Scripts run as a user runs them: a process each, without a terminal."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def command(name: str, *arguments: object) -> list[str]:
    """Of a script by its path below the root, such as "experiments/train.py"."""
    return [sys.executable, str(ROOT / name), *map(str, arguments)]


def script(name: str, *arguments: object, **options) -> subprocess.CompletedProcess[str]:
    """Its exit status and what it printed; `options` are those of subprocess.run."""
    return subprocess.run(
        command(name, *arguments), capture_output=True, text=True, timeout=300, **options
    )
