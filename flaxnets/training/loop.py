"""The loop around the step: epochs, evaluation, checkpoints, progress, and a way to stop."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from flaxnets.errors import InputError
from flaxnets.recipes import Recipe
from flaxnets.training.checkpoints import Checkpoints
from flaxnets.training.distributed import signals_as_flag
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
) -> Row:
    """Trains to the recipe's last epoch, from the workdir's newest checkpoint if it has one.

    Args:
        initial: variables to start from instead of fresh ones.

    Returns:
        The last epoch's row with the run's totals.

    Raises:
        Interrupted: on SIGINT or SIGTERM, after saving.
        InputError: the batch does not divide over the devices, or the loss is not finite.
    """
    parallel.check_batch_size(recipe.batch_size)
    steps_per_epoch = max(1, feed.train_size // recipe.batch_size)
    schedule = learning_rate_schedule(recipe, steps_per_epoch)
    optimizer = make_optimizer(recipe, schedule)

    def rate(step: int) -> float:
        return float(np.asarray(schedule(step)))

    train_step = parallel.map(
        make_train_step(
            model,
            optimizer,
            feed.statistics,
            recipe,
            average=averaging_rule(recipe, steps_per_epoch),
            seed=seed,
        ),
        donate_state=True,
    )
    eval_step = parallel.map(make_eval_step(model, feed.statistics, loss=recipe.loss))

    def fresh() -> TrainState:
        variables = initial
        if variables is None:
            variables = init_variables(model, feed.input_shape, recipe, seed)
        return create_state(variables, optimizer, recipe)

    checkpoints = Checkpoints(workdir.checkpoints)
    sums: dict[str, float] = {"steps": 0.0}  # since the epoch began
    if checkpoints.latest_step is None:
        state = parallel.replicate(fresh())
    else:
        like = jax.eval_shape(fresh)
        like = jax.tree.map(
            lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=parallel.replicated), like
        )
        state, sums = checkpoints.restore(like)
    step = int(state.step)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    workdir.forget_after(step)

    total = recipe.epochs * steps_per_epoch
    clock = Clock(recipe.batch_size)
    batches = feed.train(step)
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
            while len(pending) > (0 if end_of_epoch or stop else ahead):
                values = jax.device_get(pending.pop(0))
                for name, value in values.items():
                    sums[name] = sums.get(name, 0.0) + float(value)
                sums["steps"] += 1
                _check_finite(float(values["loss"]), step, rate(step))
                clock.tick()
                workdir.scalar("step_loss", float(values["loss"]), step - len(pending))
            show(step, sums, clock.images_per_second)
            if end_of_epoch:
                steps = sums.pop("steps")
                test = evaluate(eval_step, state, feed, parallel)
                row = {
                    "epoch": step // steps_per_epoch,
                    "step": step,
                    "learning_rate": rate(step - 1) * float(state.plateau.scale),
                    **{f"train_{name}": summed / steps for name, summed in sums.items()},
                    **{f"test_{name}": value for name, value in test.items()},
                    "images_per_second": round(clock.images_per_second, 1),
                }
                error = 1 - test["top1"] if "top1" in test else test["loss"]
                state = after_epoch(state, recipe, error)
                sums = {"steps": 0.0}
                workdir.log(row)
                checkpoints.save(state, sums, error=error)
                show.epoch(row, recipe.epochs)
                clock.restart()
            if stop and step < total:
                checkpoints.save(state, sums)
                checkpoints.close()
                raise Interrupted(f"stopped and saved at step {step} of {total}")
    checkpoints.close()
    rows = workdir.rows()
    return {**rows[-1], "steps": step, "parameters": parameters}


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


def _check_finite(loss: float, step: int, learning_rate: float) -> None:
    if not math.isfinite(loss):
        raise InputError(
            f"the loss is {loss} after step {step} (learning rate {learning_rate:.3g}); "
            f"lower --learning-rate or start from a checkpoint"
        )


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
