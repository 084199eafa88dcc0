"""Kills a training run again and again, and compares its end with that of one left alone.

    python tools/kill_and_resume.py --kills 20

Both are runs of experiments/train.py with dropout and augmentation, in processes of their own. One
is sent SIGKILL at random moments, in its start, in a step, while it saves, and started again with
the same command. Every array of the last checkpoints (parameters, statistics, the optimiser's) and
every row of metrics but its speed must be the same bits. Exit status 1 if one is not.
"""

import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tyro
from jax import tree_util

from flaxnets.errors import InputError
from flaxnets.terminal import one_sentence_errors, quiet

ROOT = pathlib.Path(__file__).parent.parent
# Dropout twice, on digits of their own 8 x 8 pixels.
SMALL = ("--arch", "nin_cifar", "--image-size", "8", "--resize", "8", "--pad", "1", "--epochs", "6",
         "--batch-size", "16", "--learning-rate", "0.02", "--schedule", "plateau",
         "--patience", "1", "--checkpoint-steps", "7")  # fmt: skip


def start(workdir: pathlib.Path, arguments: tuple[str, ...]) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "experiments/train.py"), "--workdir", str(workdir)]
    return subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL)


def saved_step(workdir: pathlib.Path) -> int:
    """Of the newest complete checkpoint; 0 if there is none."""
    names = [path.name for path in workdir.glob("checkpoints/*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def check(run: subprocess.Popen) -> None:
    if run.wait():
        raise InputError("experiments/train.py failed; its message stands above")


def arrays(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """All of the newest checkpoint."""
    path = workdir.absolute() / "checkpoints" / str(saved_step(workdir)) / "state"
    restored = tree_util.tree_leaves_with_path(ocp.PyTreeCheckpointer().restore(path))
    return {tree_util.keystr(key): np.asarray(leaf) for key, leaf in restored}


def rows(workdir: pathlib.Path) -> list[dict[str, Any]]:
    found = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in found]


def main(
    arguments: tyro.conf.Positional[tuple[str, ...]] = SMALL,
    kills: int = 20,
    seed: int = 0,
    directory: pathlib.Path | None = None,
    out: pathlib.Path | None = None,
) -> None:
    """Kills a run `kills` times and compares it with an uninterrupted one.

    Args:
        arguments: of experiments/train.py, behind a "--".
        kills: how often.
        seed: of the moments.
        directory: for the two runs; a temporary one unless given.
        out: the result as JSON.
    """
    moments = random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary:
        whole, killed = ((directory or pathlib.Path(temporary)) / n for n in ("whole", "killed"))
        begin = time.perf_counter()
        run = start(whole, arguments)
        while run.poll() is None and not saved_step(whole):
            time.sleep(0.02)
        startup = time.perf_counter() - begin
        check(run)
        seconds = time.perf_counter() - begin
        total = saved_step(whole)
        print(f"uninterrupted: {total} steps, {startup:.1f} s to the first checkpoint, then "
              f"{seconds - startup:.1f} s")  # fmt: skip

        print(f"{'kill':>4} {'after s':>8} {'saved step':>10}")
        history = []
        for number in range(kills):
            # What is left of the run is shared among the kills that are left.
            left = (seconds - startup) * (1 - saved_step(killed) / total) / (kills - number)
            moment = moments.uniform(0, startup + 1.5 * left)
            run = start(killed, arguments)
            try:
                run.wait(moment)
                raise InputError(f"the run ended before kill {number + 1}; give it more --epochs")
            except subprocess.TimeoutExpired:
                run.kill()
                run.wait()
            history.append({"seconds": round(moment, 2), "saved_step": saved_step(killed)})
            print(f"{number + 1:4} {moment:8.2f} {history[-1]['saved_step']:10}", flush=True)
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
        out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{len(ours) - len(different)} of {len(ours)} arrays have the same bits; the "
          f"{'metrics are the same' if same_rows else 'metrics differ'}")  # fmt: skip
    if different or not same_rows:
        sys.exit(1)


if __name__ == "__main__":
    quiet()
    jax.config.update("jax_platforms", "cpu")
    with one_sentence_errors():
        tyro.cli(main, description=__doc__)
