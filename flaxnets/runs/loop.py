"""Repeat the training step, with epochs, evaluation, checkpoints and a way to stop.

During a step only the batch is transferred to the devices, by `DataParallel.shard`. Any other
transfer is an error (`jax.transfer_guard`).
"""

import concurrent.futures
import contextlib
import dataclasses
import itertools
import math
import time
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from flaxnets.errors import InputError, InputWarning
from flaxnets.runs.checkpoints import Checkpoints
from flaxnets.runs.evaluation import Example, draw_worst, evaluate
from flaxnets.runs.figures import draw_batch
from flaxnets.runs.options import RunOptions
from flaxnets.runs.processes import agreed, signals_as_flag
from flaxnets.runs.progress import Clock, profiler, terminal_progress
from flaxnets.runs.workdir import EpochRow, Workdir
from flaxnets.training.guard import all_finite
from flaxnets.training.optimizer import after_epoch
from flaxnets.training.program import Program
from flaxnets.training.state import PyTree


@dataclasses.dataclass
class Counts:
    """The counts of a run besides its state. A checkpoint's position holds them as JSON."""

    sums: dict[str, float]  # sums of metrics over the `sums["steps"]` steps of this epoch
    skipped: int = 0  # skipped steps of the run
    skipped_in_a_row: int = 0


MAX_SKIPPED_IN_A_ROW = 100
PICTURE_SECONDS = 60  # least time between pictures of an evaluation; each takes a second to draw


class Interrupted(Exception):
    """The user stopped the run, and it is saved."""


def fit(
    program: Program,
    workdir: Workdir,
    *,
    title: str = "",
    options: RunOptions | None = None,
) -> EpochRow:
    """Train to the recipe's last epoch, from the workdir's newest checkpoint if it has one.

    Args:
        program: the compiled functions of the run.
        workdir: the directory of the run.
        title: name of the run beside the progress bar.
        options: how the run is saved and watched.

    Returns:
        The row of the last epoch with the totals of the run.

    Raises:
        Interrupted: on SIGINT or SIGTERM, after saving.
        InputError: every checkpoint is damaged, or the loss is not finite.
    """
    options = options or RunOptions()
    options.check()
    loop = _Loop(program, workdir, options)
    trace = profiler(workdir.path / "profile", loop.step, options.profile)
    progress = terminal_progress(title, program.steps, loop.step)
    saving = _completed_at_exit(loop.checkpoints)
    with saving, progress as show, trace, signals_as_flag() as stopped:
        loop.begin()
        while loop.step < program.steps:
            trace(loop.step)
            loop.take_step()
            stop = stopped(loop.step)
            pause = stop or loop.save_is_due()
            loop.count_steps(ahead=0 if pause else loop.steps_ahead)
            show(loop.step, loop.counts.sums, loop.clock.images_per_second)
            if not pause:
                continue
            loop.check_parameters()
            if loop.ends_epoch:
                show.epoch(loop.end_epoch(), program.recipe.epochs)
            else:
                loop.save()
            if stop and loop.step < program.steps:
                loop.checkpoints.close()
                raise Interrupted(f"stopped and saved at step {loop.step} of {program.steps}")
    loop.checkpoints.close()
    return {
        **workdir.rows()[-1],
        "steps": loop.step,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(loop.state.params)),
        "skipped_steps": loop.counts.skipped,
    }


@contextlib.contextmanager
def _completed_at_exit(checkpoints: Checkpoints) -> Iterator[None]:
    """Complete the checkpoint that is being written if the block ends the process.

    rich does so when the reader of its output has left. Orbax's threads would otherwise outlive
    their event loop and print tracebacks.
    """
    try:
        yield
    except SystemExit:
        checkpoints.close()
        raise


class _Loop:
    """A run in progress, started from its newest checkpoint if it has one."""

    def __init__(self, program: Program, workdir: Workdir, options: RunOptions):
        self.program, self.workdir, self.options = program, workdir, options
        self.checkpoints = Checkpoints(workdir.checkpoints, options.keep)
        # `step` counts the steps that were started; the last ones may still be computing.
        if self.checkpoints.latest_step is None:
            self.step, self.counts = 0, Counts({"steps": 0.0})
            self.state: Any = None  # `begin` draws it
            self.batches = program.feed.train(self.step)
        else:
            self.state, position = self.checkpoints.restore(program.state_shapes())
            self.step, self.counts = int(self.state.step), Counts(**position)
            self.batches = program.feed.train(self.step)
        workdir.forget_after(self.step)
        # Many steps in flight on virtual CPU devices can hang in an all-reduce.
        self.steps_ahead = 0 if program.parallel.devices[0].platform == "cpu" else 1
        self.clock = Clock(program.recipe.batch_size)
        self._uncounted: list[dict[str, jax.Array]] = []  # metrics not yet in `counts`
        self._all_finite = jax.jit(all_finite)
        self._drawn_at = self._saved_at = time.monotonic()

    def begin(self) -> None:
        """Draw the initial values of a new run while XLA compiles its step, which keeps one core
        busy.
        """
        if self.state is not None:
            return
        with jax.transfer_guard("disallow"):
            batch = next(self.batches)
        self.batches = itertools.chain([batch], self.batches)
        with concurrent.futures.ThreadPoolExecutor(1) as beside:
            state = beside.submit(self.program.initial_state)
            self.program.compile_step(batch)
            self.state = state.result()

    def take_step(self) -> None:
        """Start one training step, without waiting for its result."""
        feed = self.program.feed
        with jax.transfer_guard("disallow"):
            with self.clock.waits():
                batch = next(self.batches)
            batch_on_devices = self.program.parallel.shard(batch)
            self.state, metrics = self.program.train_step(self.state, batch_on_devices)
        self._uncounted.append(metrics)
        if self.step == 1 and feed.pictures:  # the second batch, while the device is busy
            preprocessing = self.program.recipe.preprocessing
            picture = draw_batch(batch, feed.class_names, preprocessing)
            self.workdir.picture("training_images", picture, self.step)
        self.step += 1

    def count_steps(self, ahead: int) -> None:
        """Wait for the metrics of all steps except the last `ahead`, and count them."""
        while len(self._uncounted) > ahead:
            metrics = jax.device_get(self._uncounted.pop(0))
            self.clock.tick()
            values = {name: float(value) for name, value in metrics.items()}
            self._count(values, self.step - len(self._uncounted))

    def _count(self, values: dict[str, float], step: int) -> None:
        counts = self.counts
        if values.pop("skipped", 0.0):
            warnings.warn(
                f"step {step} is skipped, because its loss ({values['loss']:.4g}) or its update is "
                f"not finite (learning rate {self._rate(step):.3g})",
                InputWarning,
                stacklevel=3,
            )
            counts.skipped += 1
            counts.skipped_in_a_row += 1
            limit = min(MAX_SKIPPED_IN_A_ROW, self.program.steps_per_epoch)
            if counts.skipped_in_a_row == limit:
                raise self._diverged(f"{limit} steps in a row were skipped up to", step)
            return
        counts.skipped_in_a_row = 0
        if not math.isfinite(values["loss"]):
            raise self._diverged(f"the loss is {values['loss']} after", step)
        for name, value in (values | {"steps": 1.0}).items():
            counts.sums[name] = counts.sums.get(name, 0.0) + value
        if step % self.options.log_every == 0:
            self.workdir.scalar("step_loss", values["loss"], step)
            self.workdir.scalar("step_learning_rate", self._rate(step), step)
            self.workdir.scalar("step_images_per_second", self.clock.images_per_second, step)

    def _rate(self, step: int) -> float:
        """Return the learning rate of step `step`, counted from 1. Skipped steps do not advance the
        schedule.
        """
        taken = step - 1 - self.counts.skipped
        return float(np.asarray(self.program.schedule(taken))) * float(self.state.plateau.scale)

    def _diverged(self, what: str, step: int) -> InputError:
        self.checkpoints.close()
        last = self.checkpoints.latest_step
        rest = "no checkpoint was saved before"
        if last is not None:
            rest = f"the checkpoint of step {last} in {self.workdir.checkpoints} is intact"
        return InputError(
            f"{what} step {step} (learning rate {self._rate(step):.3g}), and {rest}; train with a "
            f"lower learning rate in another workdir, or skip such steps (on nan skip)"
        )

    def check_parameters(self) -> None:
        """Raise InputError unless the parameters are finite.

        The last step's loss does not tell, because it is the loss before that step's update.
        """
        if not self._all_finite((self.state.params, self.state.model_state)):
            raise self._diverged("the parameters are not finite after", self.step)

    @property
    def ends_epoch(self) -> bool:
        """Return whether the step just taken ends an epoch."""
        return self.step % self.program.steps_per_epoch == 0

    def save_is_due(self) -> bool:
        """Return whether to save after this step. All processes call this and agree."""
        steps, minutes = self.options.checkpoint_steps, self.options.checkpoint_minutes
        if self.ends_epoch or (steps and self.step % steps == 0):
            return True
        return bool(minutes) and agreed(time.monotonic() - self._saved_at >= 60 * minutes)

    def save(self, error: float | None = None) -> None:
        """Save a checkpoint; `error` is the validation error at the end of an epoch."""
        self.checkpoints.save(self.state, dataclasses.asdict(self.counts), error)
        self._saved_at = time.monotonic()

    def end_epoch(self) -> EpochRow:
        """Evaluate, log and save; return the row of the epoch."""
        row = self._row()
        # The average, if there is one, decides: it is what users get.
        split = "test" if self.state.average is None else "ema"
        top1 = row.get(f"{split}_top1")
        error = row[f"{split}_loss"] if top1 is None else 1 - top1
        self.counts.sums = {"steps": 0.0}
        self.state = after_epoch(self.state, self.program.recipe, error)
        self.workdir.log(row)
        self.save(error)
        self.clock.restart()
        return row

    def _row(self) -> EpochRow:
        program, counts = self.program, self.counts
        test, worst = self._evaluated(self.state.variables)
        steps = counts.sums["steps"]
        sums = {name: value for name, value in counts.sums.items() if name != "steps"}
        row = {
            "epoch": self.step // program.steps_per_epoch,
            "step": self.step,
            "learning_rate": self._rate(self.step),
            **{f"train_{name}": value / steps for name, value in sums.items()},
            **{f"test_{name}": value for name, value in test.items()},
        }
        if self.state.average is not None:
            of_average, worst = self._evaluated(self.state.average_variables)
            row |= {f"ema_{name}": value for name, value in of_average.items()}
        if self.step == program.steps and program.last_eval_step is not None:
            row |= {f"views_{name}": value for name, value in self._evaluated_in_views().items()}
        row["images_per_second"] = round(self.clock.images_per_second, 1)
        row["waiting_for_input"] = round(self.clock.waiting, 3)
        if program.skips_non_finite:
            row["skipped_steps"] = counts.skipped
        is_last = self.step == program.steps
        if program.feed.pictures and (
            is_last or time.monotonic() - self._drawn_at > PICTURE_SECONDS
        ):
            picture = draw_worst(worst, program.feed.class_names)
            self.workdir.picture("worst_predictions", picture, self.step)
            self._drawn_at = time.monotonic()
        return row

    def _evaluated_in_views(self) -> dict[str, float]:
        program, state = self.program, self.state
        variables = state.variables if state.average is None else state.average_variables
        return evaluate(program.last_eval_step, variables, program.feed, program.parallel)[0]

    def _evaluated(self, variables: PyTree) -> tuple[dict[str, float], list[Example]]:
        program = self.program
        return evaluate(program.eval_step, variables, program.feed, program.parallel)
