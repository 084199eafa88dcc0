"""Compile the functions of a run, mapped onto the devices, and measure the memory they need."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from flaxnets.initializers import Drawing
from flaxnets.recipes import Recipe, RunViews, Statistics
from flaxnets.training.guard import skipping_non_finite
from flaxnets.training.optimizer import averaging_rule, learning_rate_schedule, make_optimizer
from flaxnets.training.parallel import DataParallel
from flaxnets.training.state import PyTree, TrainState, create_state, fresh_variables
from flaxnets.training.step import make_eval_step, make_train_step
from flaxnets.training.whitening import whitening, with_values

HostBatch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Feed:
    """What a run needs to know of its data, and how it gets batches."""

    train: Callable[[int], Iterator[HostBatch]]  # this process's batches from a step on, endless
    test: Callable[[], Iterator[HostBatch]]  # one masked pass
    train_size: int  # examples of an epoch, over all processes
    input_shape: tuple[int, int, int]  # (height, width, channels) of network input
    statistics: Statistics  # mean and deviation by which images are normalised
    class_names: tuple[str, ...] = ()  # empty if labels are numbers

    @property
    def pictures(self) -> bool:
        """Return whether the images can be drawn: grey or RGB pixels, and classes with names."""
        return bool(self.class_names) and self.input_shape[0] > 1 and self.input_shape[2] in (1, 3)


@dataclasses.dataclass(frozen=True)
class Program:
    """Everything that the training loop runs: recipe, data, devices and compiled functions."""

    recipe: Recipe
    feed: Feed
    parallel: DataParallel
    steps_per_epoch: int
    steps: int  # in the whole run
    schedule: optax.Schedule
    train_step: Any  # compiled: (state, batch) -> (state, metrics); donates the state
    eval_step: Any  # compiled: (variables, batch) -> (sums, examples)
    last_eval_step: Any  # eval_step with the recipe's views, after the last epoch; None if centre
    create: Callable[[PyTree | None], TrainState]  # from variables; from fresh ones if None
    initial: PyTree | None  # variables to start from; None for fresh ones
    skips_non_finite: bool  # whether steps that are not finite are skipped

    @functools.cached_property
    def _creation(self) -> Drawing:
        return Drawing(self.create, self.initial)

    def initial_state(self) -> TrainState:
        """Return the state before the first step, on all devices.

        No program is compiled for it: compiling one would take longer than compiling the training
        step of a deep network.
        """
        state = self._creation.values()
        return self.parallel.replicate(state, copied=True)  # steps overwrite it

    def state_shapes(self) -> TrainState:
        """Return the shapes, dtypes and shardings of the state."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=self.parallel.replicated
            ),
            self._creation.shapes,
        )

    def compile_step(self, batch: HostBatch) -> Any:
        """Return the step compiled for such a batch of this process. Calls of `train_step` find it
        compiled.
        """
        shapes_suffice = self.parallel.mapping != "pmap" or jax.process_count() == 1
        state = self.state_shapes() if shapes_suffice else self.initial_state()
        return self.train_step.lower(state, self.parallel.shard(batch)).compile()

    def memory(self, batch: HostBatch, data_set: int = 0) -> dict[str, int]:
        """Return the bytes that training needs on each device, by purpose. Compiles the step.

        They are the parts of the state, the images that are kept there (`data_set` bytes), and the
        temporary memory of the compiled step, which includes the images of one step.
        """
        state = self.state_shapes()
        analysis = self.compile_step(batch).memory_analysis()
        parts = {
            "parameters": state.params,
            "running statistics": state.model_state,
            "optimiser": state.opt_state,
            "moving average": state.average,
        }
        sizes = {
            name: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
            for name, tree in parts.items()
        }
        sizes["data set"] = data_set
        sizes["training step"] = analysis.temp_size_in_bytes
        return sizes | {"in all": sum(sizes.values())}


def make_program(
    model: nn.Module,
    recipe: Recipe,
    feed: Feed,
    parallel: DataParallel,
    *,
    seed: int = 0,
    initial: PyTree | None = None,
    skip_non_finite: bool = False,
    examples: Callable[[], np.ndarray] | None = None,
) -> Program:
    """Return the program that trains `model` by `recipe`.

    Args:
        model: the network.
        recipe: the values of the run.
        feed: the data.
        parallel: the devices.
        seed: seed of initial values, augmentation and dropout.
        initial: variables to start from instead of fresh ones.
        skip_non_finite: let steps whose loss or update is not finite change nothing.
        examples: gives training images as network input, uint8 (N, H, W, C). Needed if the recipe
            whitens their patches.

    Raises:
        InputError: the batch does not divide over the devices, or the key to whiten is not that of
            a convolution's kernel.
    """
    parallel.check_batch_size(recipe.batch_size, recipe.gradient_accumulation)
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
    if skip_non_finite:
        train_step = skipping_non_finite(train_step)

    def eval_step(views: RunViews) -> Any:
        return parallel.map(make_eval_step(model, feed.statistics, loss=recipe.loss, views=views))

    whitened = {}
    if recipe.whiten and initial is None:
        shapes = jax.eval_shape(lambda: fresh_variables(model, feed.input_shape, recipe, seed))
        whitened = whitening(shapes, recipe.whiten, examples, feed.statistics)

    def create(variables: PyTree | None) -> TrainState:
        if variables is None:
            variables = fresh_variables(model, feed.input_shape, recipe, seed)
            variables = with_values(variables, whitened)
        return create_state(variables, optimizer, recipe)

    return Program(
        recipe=recipe,
        feed=feed,
        parallel=parallel,
        steps_per_epoch=steps_per_epoch,
        steps=recipe.epochs * steps_per_epoch,
        schedule=schedule,
        train_step=parallel.map(train_step, donate_state=True),
        eval_step=eval_step("center"),
        last_eval_step=None if recipe.views == "center" else eval_step(recipe.views),
        create=create,
        initial=initial,
        skips_non_finite=skip_non_finite,
    )
