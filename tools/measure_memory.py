"""Measure whether the resident memory of a long training run grows.

    python tools/measure_memory.py --steps 20000 --out memory

It runs the training loop on the bundled digits with evaluations, checkpoints and logs, and reads
the resident memory of the process (VmRSS of Linux) every --every steps. It writes memory.csv and
memory.png, and prints the slope of a line through the second half. The slope that remains is
tensorstore's: each checkpoint costs about 20 KiB, which it does not free when Orbax asks it for
metrics (20,000 steps with 312 checkpoints: 7 MiB).
"""

if __name__ == "__main__":  # first, because the other imports take seconds
    from flaxnets.terminal import quiet

    quiet()

import contextlib
import csv
import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Iterator

import matplotlib.figure
import numpy as np
import tyro

from flaxnets import create_model, data
from flaxnets.recipes import recipe_for
from flaxnets.runs.feed import feed_from_source
from flaxnets.runs.loop import fit
from flaxnets.runs.options import RunOptions
from flaxnets.runs.workdir import Workdir
from flaxnets.terminal import arguments, compilation_cache, one_sentence_errors, reuse_memory
from flaxnets.training.parallel import DataParallel
from flaxnets.training.program import HostBatch, make_program


def resident_mebibytes() -> float:
    """Return the resident memory of this process, in MiB."""
    _, pages, *_ = pathlib.Path("/proc/self/statm").read_text().split()
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20


def main(
    steps: int = 20_000,
    arch: str = "softmax_regression",
    batch_size: int = 8,
    every: int = 50,
    checkpoint_steps: int = 100,
    out: pathlib.Path = pathlib.Path("memory"),
) -> None:
    """Measure the resident memory of a run.

    Args:
        steps: steps of the run, rounded up to whole epochs.
        arch: name of a network.
        batch_size: images per step.
        every: steps between two measurements.
        checkpoint_steps: steps between extra checkpoints, as for train.py.
        out: name of the files without their suffix.
    """
    source = data.open_source("digits")
    recipe = recipe_for(arch, source.kind)
    per_epoch = source.sizes["train"] // batch_size
    recipe = dataclasses.replace(recipe, batch_size=batch_size, epochs=-(-steps // per_epoch))
    parallel = DataParallel()
    feed = feed_from_source(source, recipe, parallel, test_batch_size=source.sizes["test"])
    measured: list[tuple[int, float]] = []

    def watched(step: int) -> Iterator[HostBatch]:
        for number, batch in enumerate(feed.train(step), step):
            if number % every == 0:
                measured.append((number, resident_mebibytes()))
            yield batch

    model = create_model(arch, num_classes=len(source.class_names))
    with (
        tempfile.TemporaryDirectory() as directory,
        Workdir(pathlib.Path(directory), {}) as workdir,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        options = RunOptions(checkpoint_steps=checkpoint_steps)
        program = make_program(model, recipe, dataclasses.replace(feed, train=watched), parallel)
        fit(program, workdir, options=options)

    with out.with_suffix(".csv").open("w", newline="") as file:
        csv.writer(file).writerows([("step", "resident_mebibytes"), *measured])
    x, y = np.array(measured).T
    figure = matplotlib.figure.Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(x, y)
    axes.set_xlabel("step")
    axes.set_ylabel("resident memory (MiB)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.set_title(f"{arch} on digits, batch {batch_size}")
    figure.savefig(out.with_suffix(".png"), dpi=120)
    later = slice(len(x) // 2, None)
    slope = 1000 * np.polyfit(x[later], y[later], 1)[0]
    tenth, half, end = y[len(y) // 10], y[len(y) // 2], y[-1]
    print(
        f"{x[-1]:.0f} steps: {tenth:.0f} MiB after a tenth, {half:.0f} after a half, {end:.0f} at "
        f"the end; {slope:+.2f} MiB in 1000 steps of the second half"
    )


if __name__ == "__main__":
    reuse_memory()
    with one_sentence_errors():
        compilation_cache()
        tyro.cli(main, args=arguments(), description=__doc__)
