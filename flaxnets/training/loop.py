"""The loop around the step: epochs, evaluation, checkpoints, and a way to stop."""

import dataclasses
import heapq
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from flaxnets.errors import InputError, InputWarning
from flaxnets.training.augmentation import cropped
from flaxnets.training.checkpoints import Checkpoints
from flaxnets.training.distributed import agreed, signals_as_flag
from flaxnets.training.guard import all_finite
from flaxnets.training.optimizer import after_epoch
from flaxnets.training.parallel import DataParallel
from flaxnets.training.pictures import draw_grid
from flaxnets.training.program import Feed, HostBatch, Program
from flaxnets.training.progress import Clock, profiler, terminal_progress
from flaxnets.training.state import PyTree
from flaxnets.training.workdir import Row, Workdir


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
PICTURED = 16  # images of a picture


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
    recipe, feed, parallel = program.recipe, program.feed, program.parallel
    checkpoints = Checkpoints(workdir.checkpoints, options.keep)
    if checkpoints.latest_step is None:
        state, position = program.initial_state(), Position({"steps": 0.0})
    else:
        state, saved = checkpoints.restore(program.state_shapes())
        position = Position(**saved)
    step = int(state.step)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    workdir.forget_after(step)

    def rate(step: int) -> float:
        """Of the step numbered from one; the optimiser has not seen those that were left out."""
        taken = step - 1 - position.skipped
        return float(np.asarray(program.schedule(taken))) * float(state.plateau.scale)

    def diverged(what: str, step: int) -> InputError:
        checkpoints.close()
        last = checkpoints.latest_step
        rest = "no checkpoint was saved before"
        if last is not None:
            rest = f"the checkpoint of step {last} in {workdir.checkpoints} is intact"
        return InputError(
            f"{what} step {step} (learning rate {rate(step):.3g}); {rest}: lower --learning-rate "
            f"in another --workdir, or go on with --on-nan skip"
        )

    def count(values: dict[str, float], step: int) -> None:
        """Into the position, the metrics of one step."""
        if values.pop("skipped", 0.0):
            warnings.warn(
                f"step {step} is left out: its loss is {values['loss']:.4g}, or its update is not "
                f"finite (learning rate {rate(step):.3g})",
                InputWarning,
                stacklevel=2,
            )
            position.skipped += 1
            position.skipped_in_a_row += 1
            if position.skipped_in_a_row == min(MAX_SKIPPED_IN_A_ROW, program.steps_per_epoch):
                raise diverged(
                    f"{position.skipped_in_a_row} steps in a row were left out up to", step
                )
            return
        position.skipped_in_a_row = 0
        if not math.isfinite(values["loss"]):
            raise diverged(f"the loss is {values['loss']} after", step)
        for name, value in (values | {"steps": 1.0}).items():
            position.sums[name] = position.sums.get(name, 0.0) + value
        if step % options.log_every == 0:
            workdir.scalar("step_loss", values["loss"], step)
            workdir.scalar("step_learning_rate", rate(step), step)
            workdir.scalar("step_images_per_second", clock.images_per_second, step)

    def end_epoch() -> Row:
        """The row of the epoch that ends with this step."""
        nonlocal drawn_at
        steps = position.sums.pop("steps")
        test, worst = evaluate(program.eval_step, state.variables, feed, parallel)
        row = {
            "epoch": step // program.steps_per_epoch,
            "step": step,
            "learning_rate": rate(step),
            **{f"train_{name}": value / steps for name, value in position.sums.items()},
            **{f"test_{name}": value for name, value in test.items()},
        }
        if state.average is not None:
            of_average, worst = evaluate(program.eval_step, state.average_variables, feed, parallel)
            row |= {f"ema_{name}": value for name, value in of_average.items()}
        row["images_per_second"] = round(clock.images_per_second, 1)
        row["waiting_for_input"] = round(clock.waiting, 3)
        if program.skips_non_finite:
            row["skipped_steps"] = position.skipped
        if feed.pictures and (
            step == program.steps or time.monotonic() - drawn_at > PICTURE_SECONDS
        ):
            workdir.picture("worst_predictions", draw_worst(worst, feed.class_names), step)
            drawn_at = time.monotonic()
        position.sums = {"steps": 0.0}
        return row

    def save(error: float | None = None) -> None:
        nonlocal saved_at
        checkpoints.save(state, dataclasses.asdict(position), error)
        saved_at = time.monotonic()

    clock = Clock(recipe.batch_size)
    batches = feed.train(step)
    drawn_at = saved_at = time.monotonic()
    is_finite = jax.jit(all_finite)
    trace = profiler(workdir.path / "profile", step, options.profile)
    # Many steps in flight on virtual CPU devices can hang in an all-reduce.
    ahead = 0 if parallel.devices[0].platform == "cpu" else 1
    progress = terminal_progress(title, program.steps, step)
    with progress as show, trace, signals_as_flag() as stopped:
        pending: list[dict[str, jax.Array]] = []
        while step < program.steps:
            trace(step)
            with clock.waits():
                batch = next(batches)
            state, metrics = program.train_step(state, parallel.shard(batch))
            if step == 1 and feed.pictures:  # behind the first step, while the device works
                pad = recipe.preprocessing.pad
                workdir.picture("training_images", draw_batch(batch, feed.class_names, pad), step)
            step += 1
            pending.append(metrics)
            end_of_epoch = step % program.steps_per_epoch == 0
            stop = stopped(step)
            by_steps = options.checkpoint_steps and step % options.checkpoint_steps == 0
            minutes = (time.monotonic() - saved_at) / 60
            by_clock = options.checkpoint_minutes and agreed(minutes >= options.checkpoint_minutes)
            pause = bool(end_of_epoch or by_steps or by_clock or stop)
            while len(pending) > (0 if pause else ahead):
                values = {name: float(v) for name, v in jax.device_get(pending.pop(0)).items()}
                clock.tick()
                count(values, step - len(pending))
            show(step, position.sums, clock.images_per_second)
            if not pause:
                continue
            # The loss of this step is that of the parameters before it.
            if not is_finite((state.params, state.model_state)):
                raise diverged("the parameters are not finite after", step)
            if end_of_epoch:
                row = end_epoch()
                # What people use is the average, where there is one.
                split = "test" if state.average is None else "ema"
                top1 = row.get(f"{split}_top1")
                error = row[f"{split}_loss"] if top1 is None else 1 - top1
                state = after_epoch(state, recipe, error)
                workdir.log(row)
                save(error)
                show.epoch(row, recipe.epochs)
                clock.restart()
            else:
                save()
            if stop and step < program.steps:
                checkpoints.close()
                raise Interrupted(f"stopped and saved at step {step} of {program.steps}")
    checkpoints.close()
    last = workdir.rows()[-1]
    return {**last, "steps": step, "parameters": parameters, "skipped_steps": position.skipped}


@dataclasses.dataclass(frozen=True, order=True)
class Example:
    """An evaluated image, ordered by its loss."""

    loss: float
    image: np.ndarray = dataclasses.field(compare=False)
    label: int = dataclasses.field(compare=False)
    output: int = dataclasses.field(compare=False)  # the class that was scored best


def evaluate(
    eval_step: Callable, variables: PyTree, feed: Feed, parallel: DataParallel
) -> tuple[dict[str, float], list[Example]]:
    """Means over the whole test split, every example counted once, and the `PICTURED` examples of
    this process with the largest losses, those first.
    """
    totals: dict[str, float] = {}
    worst: list[Example] = []
    for batch in feed.test():
        sums, examples = jax.device_get(eval_step(variables, parallel.shard(batch)))
        for name, value in sums.items():
            totals[name] = totals.get(name, 0.0) + float(value)
        local = len(batch["label"])
        own = slice(jax.process_index() * local, (jax.process_index() + 1) * local)
        losses, outputs = examples["loss"][own], examples["output"][own]
        for i in np.argsort(-losses)[:PICTURED]:
            if losses[i] >= 0:  # masked examples have -1
                image, label = batch["image"][i].copy(), int(batch["label"][i])
                worst.append(Example(float(losses[i]), image, label, int(outputs[i])))
        worst = heapq.nlargest(PICTURED, worst)
    count = totals.pop("count")
    return {name: value / count for name, value in totals.items()}, worst


def draw_worst(worst: list[Example], class_names: tuple[str, ...]) -> Any:
    """A figure of wrong predictions: what was seen instead of what, and the loss."""
    captions = [
        f"{class_names[example.output]}\nnot {class_names[example.label]} ({example.loss:.1f})"
        if example.output != example.label
        else f"{class_names[example.label]} ({example.loss:.1f})"
        for example in worst
    ]
    return draw_grid([example.image for example in worst], captions)


def draw_batch(batch: HostBatch, class_names: tuple[str, ...], pad: int) -> Any:
    """A figure of training images, augmented but for what blends or erases."""
    images = batch["image"]
    if isinstance(images, jax.Array):
        images = images.addressable_shards[0].data  # the first of this process
    few = {name: values[: min(PICTURED, len(images))] for name, values in batch.items()}
    few["image"] = images[:PICTURED]
    captions = [class_names[label] for label in few["label"]]
    return draw_grid(list(np.asarray(cropped(few, pad))), captions)
