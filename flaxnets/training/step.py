"""The one training step and the one evaluation step, as functions of one device.

Both run under a mapped axis named `AXIS`. Each device sees its part of the batch. Results are
reduced over the axis, so they are equal on every device.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from flaxnets.kernels.folding import folded_norms
from flaxnets.recipes import Loss, Recipe, RunViews
from flaxnets.training.batch_augmentation import augmented
from flaxnets.training.objective import Objective, make_objective, scores
from flaxnets.training.on_device import normalize
from flaxnets.training.optimizer import unless_frozen
from flaxnets.training.parallel import AXIS
from flaxnets.training.state import Average, Batch, Metrics, PyTree, StepFunction, TrainState
from flaxnets.training.views import (
    MIRROR_AND_SHIFT,
    mean_log_probabilities,
    mirror_and_shift,
    view_logits,
)

# (params, model_state, batch, key) -> (gradients, new model_state, metrics)
Gradients = Callable[[PyTree, PyTree, Batch, jax.Array], tuple[PyTree, PyTree, Metrics]]


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    statistics: tuple[Sequence[float], Sequence[float]],
    recipe: Recipe,
    *,
    average: Callable[[Average, Average, jax.Array], Average] | None = None,
    seed: int = 0,
) -> StepFunction:
    """Return `(state, {"image": uint8, "label": int32}) -> (state, metrics)`.

    The step augments the batch (`batch_augmentation.augmented`), computes the gradients of the
    objective (`objective.make_objective`) and updates the state (`updated`). If the recipe
    accumulates gradients, they are computed part by part (`accumulated`). Gradients and running
    statistics are averaged over devices.

    The metrics are means over the batch: "loss" of the main classifier and, for classes, "top1" and
    "top5". If images are mixed, the likelier class counts as the label.

    - What the patterns of `freeze` match keeps its bits: parameters and running statistics. Batch
      norms with frozen running statistics normalise by them.
    - Without `sync_batch_norm` each device uses the batch statistics of its own images, as torch's
      DistributedDataParallel does.

    Args:
        model: the network.
        optimizer: the recipe's update rule (`optimizer.make_optimizer`).
        statistics: mean and deviation of each channel, by which images are normalised.
        recipe: the values of the run.
        average: updates the state's average (`optimizer.averaging_rule`).
        seed: seed of augmentation and dropout; each step and each device draws its own values.
    """
    gradients = accumulated(make_objective(model, recipe), recipe.gradient_accumulation)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        key = jax.random.fold_in(key, lax.axis_index(AXIS))
        # Dropout uses `key` itself, or with gradient accumulation the keys 0 to parts - 1 of it.
        key_of_batch = jax.random.fold_in(key, recipe.gradient_accumulation)
        classes = getattr(model, "num_classes", 0)  # needed if images are mixed
        batch = batch | augmented(batch, key_of_batch, statistics, recipe, classes)
        result = gradients(state.params, state.model_state, batch, key)
        # XLA:CPU would copy the gradients of one device.
        grads, model_state, metrics = lax.pmean(result, AXIS) if lax.axis_size(AXIS) > 1 else result
        return updated(state, grads, model_state, optimizer, recipe, average), metrics

    return train_step


def accumulated(objective: Objective, parts: int) -> Gradients:
    """Return a function that computes the gradients of `objective` in `parts` of the batch.

    The parts are computed one after another, which needs less memory. The mean of their gradients
    is the gradient of the whole batch. Each part draws its own dropout.
    """

    def gradients(params: PyTree, model_state: PyTree, batch: Batch, key: jax.Array):
        grad = jax.grad(objective, has_aux=True)
        grads, (model_state, metrics) = grad(params, model_state, batch, key)
        return grads, model_state, metrics

    if parts == 1:
        return gradients

    def gradients_in_parts(params: PyTree, model_state: PyTree, batch: Batch, key: jax.Array):
        def add(carry, part):
            index, part = part
            total, model_state = carry
            own = jax.random.fold_in(key, index)
            grads, model_state, metrics = gradients(params, model_state, part, own)
            total = jax.tree.map(lambda sum_, new: sum_ + new / parts, total, grads)
            return (total, model_state), metrics

        batch = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
        start = (jax.tree.map(jnp.zeros_like, params), model_state)
        (grads, model_state), metrics = lax.scan(add, start, (jnp.arange(parts), batch))
        return grads, model_state, jax.tree.map(jnp.mean, metrics)

    return gradients_in_parts


def updated(
    state: TrainState,
    grads: PyTree,
    model_state: PyTree,
    optimizer: optax.GradientTransformation,
    recipe: Recipe,
    average: Callable[[Average, Average, jax.Array], Average] | None,
) -> TrainState:
    """Return the state after the optimiser's step, with the new running statistics `model_state`.

    What the recipe freezes keeps its bits.
    """
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    updates = jax.tree.map(lambda u: (state.plateau.scale * u).astype(u.dtype), updates)
    new = {"params": optax.apply_updates(state.params, updates), **model_state}
    kept = unless_frozen(recipe, {"params": state.params, **state.model_state}, new)
    newest = {"params": kept.pop("params"), "model_state": kept}
    return state.replace(
        step=state.step + 1,
        opt_state=opt_state,
        average=average and average(state.average, newest, state.step),
        **newest,
    )


def make_eval_step(
    model: nn.Module,
    statistics: tuple[Sequence[float], Sequence[float]],
    *,
    loss: Loss = "cross_entropy",
    views: RunViews = "center",
) -> Callable[[PyTree, Batch], tuple[Metrics, Metrics]]:
    """Return `(variables, batch with "mask") -> (sums, examples)`, both over all devices.

    `sums` has the sums of "loss", "top1" and "top5" over the examples whose mask is one, and their
    "count". `examples` has for every example, in the order of the batch, its "loss" (-1 if it is
    masked) and its "output", the class with the best score. The probabilities of several `views` of
    an image are averaged.
    """

    def eval_step(variables: PyTree, batch: Batch) -> tuple[Metrics, Metrics]:
        images = normalize(batch["image"], *statistics)
        if views == "mirror-and-shift":
            of_views = view_logits(model, variables, mirror_and_shift(images))
            logits: Any = mean_log_probabilities([of_views], MIRROR_AND_SHIFT)
        else:
            with folded_norms():
                logits = model.apply(variables, images)
        mask = batch["mask"]
        values = scores(logits, batch["label"], loss)
        sums = {name: jnp.where(mask > 0, value, 0).sum() for name, value in values.items()}
        sums = lax.psum({**sums, "count": mask.sum()}, AXIS)
        own = {"loss": jnp.where(mask > 0, values["loss"], -1.0), "output": logits.argmax(1)}
        return sums, lax.all_gather(own, AXIS, tiled=True)

    return eval_step
