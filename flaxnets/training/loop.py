"""The loop around the step: epochs, evaluation, checkpoints, progress, and a way to stop."""

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import flax.linen as nn
import jax
import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from flaxnets.errors import InputError, InputWarning
from flaxnets.recipes import Recipe
from flaxnets.training.checkpoints import Checkpoints
from flaxnets.training.distributed import signals_as_flag
from flaxnets.training.guard import all_finite, skipping_non_finite
from flaxnets.training.optimizer import (
    after_epoch,
    averaging_rule,
    learning_rate_schedule,
    make_optimizer,
)
from flaxnets.training.parallel import DataParallel
from flaxnets.training.state import TrainState, create_state, init_variables
from flaxnets.training.step import make_eval_step, make_train_step
from flaxnets.training.workdir import Row, Workdir

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Feed:
    """What the loop needs of the data."""

    train: Callable[[int], Iterator[Batch]]  # endless batches of this process, from a step on
    test: Callable[[], Iterator[Batch]]  # one masked pass
    train_size: int  # examples of an epoch, over all processes
    input_shape: tuple[int, int, int]  # (height, width, channels) that the network is fed
    statistics: tuple[tuple[float, ...], tuple[float, ...]]  # mean, std of pixels in 0..1


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How a run is saved and guarded, which changes nothing while all is well."""

    checkpoint_steps: int = 0
    """Steps between checkpoints besides those at the end of every epoch; 0 for none."""
    checkpoint_minutes: float = 0.0
    """The same by the clock."""
    keep: int = 2
    """Newest checkpoints that are kept, besides the one with the smallest validation error."""
    on_nan: Literal["stop", "skip"] = "stop"
    """Where the loss or an update is not finite: stop, or leave that step out."""
    max_bad_images: int = 0
    """Pictures of a folder that may be unreadable: each is named and skipped."""

    def check(self) -> None:
        """Raises InputError for values that no run can have."""
        for name in ("checkpoint_steps", "checkpoint_minutes", "max_bad_images"):
            if not getattr(self, name) >= 0:
                raise InputError(
                    f"{name.replace('_', ' ')} is {getattr(self, name)}; expected zero or more"
                )
        if self.keep < 1:
            raise InputError(f"keep is {self.keep}; expected at least 1 checkpoint")


@dataclasses.dataclass
class Position:
    """What a run carries beside its state; a checkpoint holds it as JSON."""

    sums: dict[str, float]  # of the metrics of `sums["steps"]` steps since the epoch began
    skipped: int = 0  # steps of the run that were left out
    skipped_in_a_row: int = 0


MAX_SKIPPED_IN_A_ROW = 100


class Interrupted(Exception):
    """The user stopped the run; it was saved."""


def fit(
    model: nn.Module,
    recipe: Recipe,
    feed: Feed,
    workdir: Workdir,
    parallel: DataParallel,
    *,
    seed: int = 0,
    initial: Any = None,
    title: str = "",
    options: RunOptions | None = None,
) -> Row:
    """Trains to the recipe's last epoch, from the workdir's newest checkpoint if it has one.

    Args:
        initial: variables to start from instead of fresh ones.
        options: how it is saved and guarded.

    Returns:
        The last epoch's row with the run's totals.

    Raises:
        Interrupted: on SIGINT or SIGTERM, after saving.
        InputError: the batch does not divide over the devices, every checkpoint is damaged, or the
            loss is not finite.
    """
    options = options or RunOptions()
    options.check()
    parallel.check_batch_size(recipe.batch_size)
    steps_per_epoch = max(1, feed.train_size // recipe.batch_size)
    schedule = learning_rate_schedule(recipe, steps_per_epoch)
    optimizer = make_optimizer(recipe, schedule)

    train_step = make_train_step(
        model,
        optimizer,
        feed.statistics,
        recipe,
        average=averaging_rule(recipe, steps_per_epoch),
        seed=seed,
    )
    if options.on_nan == "skip":
        train_step = skipping_non_finite(train_step)
    train_step = parallel.map(train_step, donate_state=True)
    eval_step = parallel.map(make_eval_step(model, feed.statistics, loss=recipe.loss))

    def fresh() -> TrainState:
        variables = initial
        if variables is None:
            variables = init_variables(model, feed.input_shape, recipe, seed)
        return create_state(variables, optimizer, recipe)

    checkpoints = Checkpoints(workdir.checkpoints, options.keep)
    position = Position({"steps": 0.0})
    if checkpoints.latest_step is None:
        state = parallel.replicate(fresh())
    else:
        like = jax.eval_shape(fresh)
        like = jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=parallel.replicated), like
        )
        state, saved = checkpoints.restore(like)
        position = Position(**saved)
    step = int(state.step)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    workdir.forget_after(step)

    def rate(step: int) -> float:
        """Of the step numbered from one; the optimiser has not seen those that were left out."""
        taken = step - 1 - position.skipped
        return float(np.asarray(schedule(taken))) * float(state.plateau.scale)

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
            if position.skipped_in_a_row == min(MAX_SKIPPED_IN_A_ROW, steps_per_epoch):
                raise diverged(
                    f"{position.skipped_in_a_row} steps in a row were left out up to", step
                )
            return
        position.skipped_in_a_row = 0
        if not math.isfinite(values["loss"]):
            raise diverged(f"the loss is {values['loss']} after", step)
        for name, value in (values | {"steps": 1.0}).items():
            position.sums[name] = position.sums.get(name, 0.0) + value
        workdir.scalar("step_loss", values["loss"], step)

    def save(error: float | None = None) -> None:
        nonlocal saved_at
        checkpoints.save(state, dataclasses.asdict(position), error)
        saved_at = time.monotonic()

    total = recipe.epochs * steps_per_epoch
    clock = Clock(recipe.batch_size)
    batches = feed.train(step)
    saved_at = time.monotonic()
    is_finite = jax.jit(all_finite)
    # Many steps in flight on virtual CPU devices can hang in an all-reduce.
    ahead = 0 if parallel.devices[0].platform == "cpu" else 1
    with terminal_progress(title, total, step) as show, signals_as_flag() as stopped:
        pending: list[dict[str, jax.Array]] = []
        while step < total:
            state, metrics = train_step(state, parallel.shard(next(batches)))
            step += 1
            pending.append(metrics)
            end_of_epoch = step % steps_per_epoch == 0
            stop = stopped(step)
            by_steps = options.checkpoint_steps and step % options.checkpoint_steps == 0
            minutes = (time.monotonic() - saved_at) / 60
            by_clock = options.checkpoint_minutes and minutes >= options.checkpoint_minutes
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
                steps = position.sums.pop("steps")
                test = evaluate(eval_step, state, feed, parallel)
                row = {
                    "epoch": step // steps_per_epoch,
                    "step": step,
                    "learning_rate": rate(step),
                    **{f"train_{name}": value / steps for name, value in position.sums.items()},
                    **{f"test_{name}": value for name, value in test.items()},
                    "images_per_second": round(clock.images_per_second, 1),
                }
                if options.on_nan == "skip":
                    row["skipped_steps"] = position.skipped
                error = 1 - test["top1"] if "top1" in test else test["loss"]
                state = after_epoch(state, recipe, error)
                position.sums = {"steps": 0.0}
                workdir.log(row)
                save(error)
                show.epoch(row, recipe.epochs)
                clock.restart()
            else:
                save()
            if stop and step < total:
                checkpoints.close()
                raise Interrupted(f"stopped and saved at step {step} of {total}")
    checkpoints.close()
    last = workdir.rows()[-1]
    return {**last, "steps": step, "parameters": parameters, "skipped_steps": position.skipped}


def evaluate(
    eval_step: Callable, state: TrainState, feed: Feed, parallel: DataParallel
) -> dict[str, float]:
    """Means over the whole test split, every example counted once."""
    variables = {"params": state.params, **state.model_state}
    totals: dict[str, float] = {}
    for batch in feed.test():
        for name, value in jax.device_get(eval_step(variables, parallel.shard(batch))).items():
            totals[name] = totals.get(name, 0.0) + float(value)
    count = totals.pop("count")
    return {name: value / count for name, value in totals.items()}


class Clock:
    """Images per second of the current epoch, without the first step (it compiles)."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._ticks = 0
        self._first = self._last = 0.0
        self._rate = 0.0

    def restart(self) -> None:
        self._ticks = 0

    def tick(self) -> None:
        self._last = time.perf_counter()
        if self._ticks == 0:
            self._first = self._last
        self._ticks += 1

    @property
    def images_per_second(self) -> float:
        if self._ticks > 1:
            self._rate = self._batch_size * (self._ticks - 1) / (self._last - self._first)
        return self._rate


def described(values: dict[str, Any], prefix: str = "") -> str:
    """The loss and, where there are classes, the accuracy."""
    text = f"loss {values[prefix + 'loss']:.4f}"
    top1 = values.get(prefix + "top1")
    return text if top1 is None else f"{text}  top-1 {top1:6.2%}"


class terminal_progress:
    """A bar with loss, accuracy, images/s and time left; where the output is no terminal, a line an
    epoch.
    """

    def __init__(self, title: str, total: int, completed: int):
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
        )
        self._is_terminal = self._bar.console.is_terminal
        self._task = self._bar.add_task(title, total=total, completed=completed, text="")

    def __enter__(self):
        if self._is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_):
        self._bar.stop() if self._is_terminal else None

    def __call__(self, step: int, sums: dict[str, float], images_per_second: float) -> None:
        if self._is_terminal and sums["steps"]:
            means = {name: summed / sums["steps"] for name, summed in sums.items()}
            text = f"{described(means)}  {images_per_second:.0f} images/s"
            self._bar.update(self._task, completed=step, text=text)

    def epoch(self, row: Row, epochs: int) -> None:
        self._bar.console.print(
            f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}"
            f"  train {described(row, 'train_')}  test {described(row, 'test_')}"
            f"  {row['images_per_second']:.0f} images/s",
            highlight=False,
            soft_wrap=True,
        )
