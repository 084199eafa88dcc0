"""The loop around the step: epochs, evaluation, checkpoints, and a way to stop."""

import dataclasses
import math
import time
import warnings

import jax
import numpy as np

from flaxnets.errors import InputError, InputWarning
from flaxnets.runs.checkpoints import Checkpoints
from flaxnets.runs.evaluation import Example, draw_worst, evaluate
from flaxnets.runs.figures import draw_batch
from flaxnets.runs.processes import agreed, signals_as_flag
from flaxnets.runs.progress import Clock, profiler, terminal_progress
from flaxnets.runs.workdir import Row, Workdir
from flaxnets.training.guard import all_finite
from flaxnets.training.optimizer import after_epoch
from flaxnets.training.program import Program
from flaxnets.training.state import PyTree


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How a run is saved and watched; what it learns is the program's."""

    checkpoint_steps: int = 0
    """Steps between checkpoints besides those at the end of every epoch; 0 for none."""
    checkpoint_minutes: float = 0.0
    """The same by the clock."""
    keep: int = 2
    """Newest checkpoints that are kept, besides the one with the smallest validation error."""
    log_every: int = 10
    """Steps between the values that TensorBoard is given of single steps."""
    profile: int = 0
    """Steps to trace with JAX's profiler, behind the first ten, for TensorBoard and Perfetto."""

    def check(self) -> None:
        """Raises InputError for values that no run can have."""
        for name in ("checkpoint_steps", "checkpoint_minutes", "profile"):
            if not getattr(self, name) >= 0:
                raise InputError(
                    f"{name.replace('_', ' ')} is {getattr(self, name)}; expected zero or more"
                )
        for name, unit in (("keep", "checkpoint"), ("log_every", "step")):
            if getattr(self, name) < 1:
                what = name.replace("_", " ")
                raise InputError(f"{what} is {getattr(self, name)}; expected at least 1 {unit}")


@dataclasses.dataclass
class Position:
    """What a run carries beside its state; a checkpoint holds it as JSON."""

    sums: dict[str, float]  # of the metrics of `sums["steps"]` steps since the epoch began
    skipped: int = 0  # steps of the run that were left out
    skipped_in_a_row: int = 0


MAX_SKIPPED_IN_A_ROW = 100
PICTURE_SECONDS = 60  # between pictures of an evaluation, which take a second to draw


class Interrupted(Exception):
    """The user stopped the run; it was saved."""


def fit(
    program: Program,
    workdir: Workdir,
    *,
    title: str = "",
    options: RunOptions | None = None,
) -> Row:
    """Trains to the recipe's last epoch, from the workdir's newest checkpoint if it has one.

    Returns:
        The last epoch's row with the run's totals.

    Raises:
        Interrupted: on SIGINT or SIGTERM, after saving.
        InputError: every checkpoint is damaged, or the loss is not finite.
    """
    options = options or RunOptions()
    options.check()
    run = _Run(program, workdir, options)
    trace = profiler(workdir.path / "profile", run.step, options.profile)
    progress = terminal_progress(title, program.steps, run.step)
    with progress as show, trace, signals_as_flag() as stopped:
        while run.step < program.steps:
            trace(run.step)
            run.take_step()
            stop = stopped(run.step)
            pause = stop or run.save_is_due()
            run.count_steps(behind=0 if pause else run.steps_ahead)
            show(run.step, run.position.sums, run.clock.images_per_second)
            if not pause:
                continue
            run.check_parameters()
            if run.ends_epoch:
                show.epoch(run.end_epoch(), program.recipe.epochs)
            else:
                run.save()
            if stop and run.step < program.steps:
                run.checkpoints.close()
                raise Interrupted(f"stopped and saved at step {run.step} of {program.steps}")
    run.checkpoints.close()
    return {
        **workdir.rows()[-1],
        "steps": run.step,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(run.state.params)),
        "skipped_steps": run.position.skipped,
    }


class _Run:
    """A run under way, from its newest checkpoint on if it has one."""

    def __init__(self, program: Program, workdir: Workdir, options: RunOptions):
        self.program, self.workdir, self.options = program, workdir, options
        self.checkpoints = Checkpoints(workdir.checkpoints, options.keep)
        # `step` counts the steps taken, of which the last may still be computed.
        if self.checkpoints.latest_step is None:
            self.step, self.position = 0, Position({"steps": 0.0})
            self.batches = program.feed.train(self.step)
            # Last, and not waited for: the step is traced while the values are drawn.
            self.state = program.initial_state()
        else:
            self.state, saved = self.checkpoints.restore(program.state_shapes())
            self.step, self.position = int(self.state.step), Position(**saved)
            self.batches = program.feed.train(self.step)
        workdir.forget_after(self.step)
        # Many steps in flight on virtual CPU devices can hang in an all-reduce.
        self.steps_ahead = 0 if program.parallel.devices[0].platform == "cpu" else 1
        self.clock = Clock(program.recipe.batch_size)
        self._uncounted: list[dict[str, jax.Array]] = []  # metrics of the last steps
        self._all_finite = jax.jit(all_finite)
        self._drawn_at = self._saved_at = time.monotonic()

    def take_step(self) -> None:
        feed = self.program.feed
        with self.clock.waits():
            batch = next(self.batches)
        batch_on_devices = self.program.parallel.shard(batch)
        self.state, metrics = self.program.train_step(self.state, batch_on_devices)
        self._uncounted.append(metrics)
        if self.step == 1 and feed.pictures:  # behind the first step, while the device works
            pad = self.program.recipe.preprocessing.pad
            picture = draw_batch(batch, feed.class_names, pad)
            self.workdir.picture("training_images", picture, self.step)
        self.step += 1

    def count_steps(self, behind: int) -> None:
        """The metrics of all steps but the last ones, `behind` of them, once they are there."""
        while len(self._uncounted) > behind:
            metrics = jax.device_get(self._uncounted.pop(0))
            self.clock.tick()
            values = {name: float(value) for name, value in metrics.items()}
            self._count(values, self.step - len(self._uncounted))

    def _count(self, values: dict[str, float], step: int) -> None:
        position = self.position
        if values.pop("skipped", 0.0):
            warnings.warn(
                f"step {step} is left out: its loss is {values['loss']:.4g}, or its update is not "
                f"finite (learning rate {self._rate(step):.3g})",
                InputWarning,
                stacklevel=3,
            )
            position.skipped += 1
            position.skipped_in_a_row += 1
            limit = min(MAX_SKIPPED_IN_A_ROW, self.program.steps_per_epoch)
            if position.skipped_in_a_row == limit:
                raise self._diverged(f"{limit} steps in a row were left out up to", step)
            return
        position.skipped_in_a_row = 0
        if not math.isfinite(values["loss"]):
            raise self._diverged(f"the loss is {values['loss']} after", step)
        for name, value in (values | {"steps": 1.0}).items():
            position.sums[name] = position.sums.get(name, 0.0) + value
        if step % self.options.log_every == 0:
            self.workdir.scalar("step_loss", values["loss"], step)
            self.workdir.scalar("step_learning_rate", self._rate(step), step)
            self.workdir.scalar("step_images_per_second", self.clock.images_per_second, step)

    def _rate(self, step: int) -> float:
        """Of the step numbered from one; the optimiser has not seen those that were left out."""
        taken = step - 1 - self.position.skipped
        return float(np.asarray(self.program.schedule(taken))) * float(self.state.plateau.scale)

    def _diverged(self, what: str, step: int) -> InputError:
        self.checkpoints.close()
        last = self.checkpoints.latest_step
        rest = "no checkpoint was saved before"
        if last is not None:
            rest = f"the checkpoint of step {last} in {self.workdir.checkpoints} is intact"
        return InputError(
            f"{what} step {step} (learning rate {self._rate(step):.3g}); {rest}: lower "
            f"--learning-rate in another --workdir, or go on with --on-nan skip"
        )

    def check_parameters(self) -> None:
        """The loss of the last step is that of the parameters before it."""
        if not self._all_finite((self.state.params, self.state.model_state)):
            raise self._diverged("the parameters are not finite after", self.step)

    @property
    def ends_epoch(self) -> bool:
        return self.step % self.program.steps_per_epoch == 0

    def save_is_due(self) -> bool:
        """Behind this step; all processes ask, and have the same answer."""
        steps, minutes = self.options.checkpoint_steps, self.options.checkpoint_minutes
        if self.ends_epoch or (steps and self.step % steps == 0):
            return True
        return bool(minutes) and agreed(time.monotonic() - self._saved_at >= 60 * minutes)

    def save(self, error: float | None = None) -> None:
        self.checkpoints.save(self.state, dataclasses.asdict(self.position), error)
        self._saved_at = time.monotonic()

    def end_epoch(self) -> Row:
        """Evaluates, logs and saves; the row of the epoch."""
        row = self._row()
        # What people use is the average, where there is one.
        split = "test" if self.state.average is None else "ema"
        top1 = row.get(f"{split}_top1")
        error = row[f"{split}_loss"] if top1 is None else 1 - top1
        self.position.sums = {"steps": 0.0}
        self.state = after_epoch(self.state, self.program.recipe, error)
        self.workdir.log(row)
        self.save(error)
        self.clock.restart()
        return row

    def _row(self) -> Row:
        program, position = self.program, self.position
        test, worst = self._evaluated(self.state.variables)
        steps = position.sums["steps"]
        sums = {name: value for name, value in position.sums.items() if name != "steps"}
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
        row["images_per_second"] = round(self.clock.images_per_second, 1)
        row["waiting_for_input"] = round(self.clock.waiting, 3)
        if program.skips_non_finite:
            row["skipped_steps"] = position.skipped
        is_last = self.step == program.steps
        if program.feed.pictures and (
            is_last or time.monotonic() - self._drawn_at > PICTURE_SECONDS
        ):
            picture = draw_worst(worst, program.feed.class_names)
            self.workdir.picture("worst_predictions", picture, self.step)
            self._drawn_at = time.monotonic()
        return row

    def _evaluated(self, variables: PyTree) -> tuple[dict[str, float], list[Example]]:
        program = self.program
        return evaluate(program.eval_step, variables, program.feed, program.parallel)
