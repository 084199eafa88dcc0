"""Kill a training run repeatedly, and compare its end with that of an uninterrupted run.

    python tools/kill_and_resume.py --kills 20

Both runs are train.py with dropout and augmentation, in their own processes. One of them gets
SIGKILL at random moments, during its start, a step or a save, and is started again with the same
command. Every array of the last checkpoints (parameters, statistics, the optimiser's) must have the
same bits, and every row of metrics except its speed the same values. If not, the status is 1.
"""

if __name__ == "__main__":  # first, because the other imports take seconds
    from flaxnets.terminal import quiet

    quiet()

import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tyro
from jax import tree_util

from child_process import check_status
from flaxnets.runs.files import json_text
from flaxnets.runs.progress import TIMED
from flaxnets.terminal import arguments, one_sentence_errors

ROOT = pathlib.Path(__file__).parent.parent
# A network with two dropouts, on digits of 8 x 8 pixels.
SMALL = ("--arch", "nin_cifar", "--image-size", "8", "--resize", "8", "--pad", "1", "--epochs", "6",
         "--batch-size", "16", "--learning-rate", "0.02", "--schedule", "plateau",
         "--patience", "1", "--checkpoint-steps", "7")  # fmt: skip


def start(workdir: pathlib.Path, arguments: tuple[str, ...]) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "experiments/train.py"), "--workdir", str(workdir)]
    return subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL)


def saved_step(workdir: pathlib.Path) -> int:
    """Return the step of the newest complete checkpoint; 0 if there is none."""
    names = [path.name for path in workdir.glob("checkpoints/*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def wait_for_change(value: Callable[[], Any], run: subprocess.Popen) -> None:
    """Wait until a value changes, or the run has ended."""
    before = value()
    while run.poll() is None and value() == before:
        time.sleep(0.02)


def check(run: subprocess.Popen) -> None:
    check_status("experiments/train.py", run.wait())


def arrays(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Return all arrays of the newest checkpoint."""
    path = workdir.absolute() / "checkpoints" / str(saved_step(workdir)) / "state"
    restored = tree_util.tree_leaves_with_path(ocp.PyTreeCheckpointer().restore(path))
    return {tree_util.keystr(key): np.asarray(leaf) for key, leaf in restored}


def rows(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Return the run's metrics without measured times."""
    logged = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if k not in TIMED} for row in logged]


def main(
    arguments: tyro.conf.Positional[tuple[str, ...]] = SMALL,
    kills: int = 20,
    seed: int = 0,
    directory: pathlib.Path | None = None,
    out: pathlib.Path | None = None,
) -> None:
    """Kill a run `kills` times and compare it with an uninterrupted one.

    Args:
        arguments: options of train.py, after "--".
        kills: number of kills.
        seed: seed of the moments of the kills.
        directory: directory of both runs; by default a temporary one.
        out: JSON file for the result.
    """
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary:
        whole, killed = ((directory or pathlib.Path(temporary)) / n for n in ("whole", "killed"))
        run = start(whole, arguments)
        wait_for_change(lambda: saved_step(whole), run)
        begin = time.perf_counter()
        check(run)
        seconds, total = time.perf_counter() - begin, saved_step(whole)
        print(f"uninterrupted: {total} steps in {seconds:.1f} s")

        print(f"{'kill':>4} {'while':>11} {'after s':>8} {'saved step':>10}")
        history = []
        for number in range(kills):
            phase = moments.choices(("starting", "first steps", "training"), (1, 1, 3))[0]
            # The remaining kills share the rest of the run.
            left = seconds * (1 - saved_step(killed) / total) / (kills - number)
            moment = moments.uniform(0, left if phase == "training" else 5)
            run = start(killed, arguments)
            if phase == "first steps":  # the log is opened before the first step
                wait_for_change(lambda: len(list(killed.glob("tensorboard/*"))), run)
            elif phase == "training":
                wait_for_change(lambda: saved_step(killed), run)
            try:
                run.wait(moment)
                print(f"the run ended before kill {number + 1}; give more --epochs after --")
                break
            except subprocess.TimeoutExpired:
                run.kill()
                run.wait()
            step = saved_step(killed)
            history.append({"while": phase, "seconds": round(moment, 2), "saved_step": step})
            print(f"{number + 1:4} {phase:>11} {moment:8.2f} {step:10}", flush=True)
        check(start(killed, arguments))

        ours, theirs = arrays(killed), arrays(whole)
        different = sorted(ours.keys() ^ theirs.keys())
        different += [
            k for k in ours.keys() & theirs.keys() if ours[k].tobytes() != theirs[k].tobytes()
        ]
        same_rows = rows(killed) == rows(whole)
        result = {
            "arguments": arguments,
            "steps": total,
            "kills": history,
            "arrays": len(ours),
            "different_arrays": different,
            "same_metrics": same_rows,
        }
    if out is not None:
        out.write_text(json_text(result, indent=2) + "\n")
    print(f"{len(ours) - len(different)} of {len(ours)} arrays have the same bits; the "
          f"{'metrics are the same' if same_rows else 'metrics differ'}")  # fmt: skip
    if different or not same_rows:
        sys.exit(1)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    with one_sentence_errors():
        tyro.cli(main, args=arguments(), description=__doc__)
