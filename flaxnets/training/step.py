"""The one training step and the one evaluation step, as functions of one device.

Both run under a mapped axis named `AXIS`: each device sees its part of the batch, and what
leaves the function is reduced over the axis, hence the same on every device.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from flaxnets.convert import torch_keys
from flaxnets.layers import BatchNorm
from flaxnets.recipes import Loss
from flaxnets.training.state import Metrics, PyTree, StepFunction, TrainState, is_frozen

AXIS = "batch"


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """(x - mean) / std a channel, in float32; uint8 images, as they were decoded, are divided by
    255 first, measured features have the units of the statistics.
    """
    shift, scale = jnp.array(mean, jnp.float32), jnp.array(std, jnp.float32)
    unit = 255 if images.dtype == jnp.uint8 else 1
    return (images.astype(jnp.float32) / unit - shift) / scale


def losses(
    outputs: jax.Array, labels: jax.Array, kind: Loss, label_smoothing: float = 0.0
) -> jax.Array:
    """Of each example, (N,): `outputs` (N, K) against classes (N,), or against numbers (N,) where
    labels are floating point and K is 1. Smoothing of the target is spread over all classes.
    """
    outputs = outputs.astype(jnp.float32)
    if jnp.issubdtype(labels.dtype, jnp.floating):
        targets = labels[:, None]
    else:
        targets = optax.smooth_labels(jax.nn.one_hot(labels, outputs.shape[1]), label_smoothing)
    if kind == "squared_error":
        return optax.squared_error(outputs, targets).sum(1)
    return optax.softmax_cross_entropy(outputs, targets)


def scores(logits: jax.Array, labels: jax.Array, loss: Loss = "cross_entropy") -> Metrics:
    """Per example: the loss and, of classes, whether the label is best or among the five best."""
    found = {"loss": losses(logits, labels, loss)}
    if jnp.issubdtype(labels.dtype, jnp.floating):
        return found
    logits = logits.astype(jnp.float32)
    right = jnp.take_along_axis(logits, labels[:, None], 1)
    better = (logits > right).sum(1)
    # Equal logits count by position, as in a stable sort: a constant network is not always right.
    index = jnp.arange(logits.shape[1])
    better += ((logits == right) & (index < labels[:, None])).sum(1)
    better = jnp.where(jnp.isnan(right[:, 0]), logits.shape[1], better)
    return found | {
        "top1": (better < 1).astype(jnp.float32),
        "top5": (better < 5).astype(jnp.float32),
    }


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    statistics: tuple[Sequence[float], Sequence[float]],
    *,
    loss: Loss = "cross_entropy",
    aux_weight: float = 0.0,
    label_smoothing: float = 0.0,
    freeze: Sequence[str] = (),
    seed: int = 0,
) -> StepFunction:
    """`(state, {"image": uint8, "label": int32}) -> (state, metrics)`, metrics averaged over the
    batch: "loss" of the main classifier and, of classes, "top1" and "top5".

    Gradients, and the running statistics that each device computes on its own images (as in torch's
    DistributedDataParallel), are averaged over devices. Auxiliary classifiers `sow` their logits
    into "aux_logits"; `aux_weight` times their losses joins the objective. What the patterns
    `freeze` match keeps its bits: parameters, and batch norms, which use their running statistics.
    """

    def unless_frozen(old: PyTree, new: PyTree) -> PyTree:
        def choose(key: str, old: jax.Array, new: jax.Array) -> jax.Array:
            return old if is_frozen(freeze, key) else new

        return jax.tree.map(choose, torch_keys(old), old, new)

    def frozen_norms(next_function, args, kwargs, context):
        module = context.module
        if isinstance(module, BatchNorm):
            key = ".".join((*module.path, "running_mean"))
            if is_frozen(freeze, key):  # linen forbids to assign a field of a bound module
                object.__setattr__(module, "use_running_average", True)
        return next_function(*args, **kwargs)

    def train_step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        key = jax.random.fold_in(key, lax.axis_index(AXIS))
        images, labels = normalize(batch["image"], *statistics), batch["label"]

        def mean_loss(outputs: jax.Array) -> jax.Array:
            return losses(outputs, labels, loss, label_smoothing).mean()

        def total_loss(params: PyTree) -> tuple[jax.Array, tuple[PyTree, Metrics]]:
            constant = {"params": lax.stop_gradient(params)}
            variables = unless_frozen(constant, {"params": params}) | state.model_state
            with nn.intercept_methods(frozen_norms):
                logits, new_state = model.apply(
                    variables,
                    images,
                    train=True,
                    mutable=[*state.model_state, "aux_logits"],
                    rngs={"dropout": key},
                )
            new_state = dict(new_state)
            aux_logits = jax.tree.leaves(new_state.pop("aux_logits", {}))
            objective = mean_loss(logits) + aux_weight * sum(map(mean_loss, aux_logits))
            metrics = jax.tree.map(jnp.mean, scores(logits, labels, loss))
            return objective, (new_state, metrics)

        grads, (model_state, metrics) = jax.grad(total_loss, has_aux=True)(state.params)
        grads, model_state, metrics = lax.pmean((grads, model_state, metrics), AXIS)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        updates = jax.tree.map(lambda u: (state.plateau.scale * u).astype(u.dtype), updates)
        new = {"params": optax.apply_updates(state.params, updates), **model_state}
        kept = unless_frozen({"params": state.params, **state.model_state}, new)
        state = state.replace(
            step=state.step + 1,
            params=kept.pop("params"),
            model_state=kept,
            opt_state=opt_state,
        )
        return state, metrics

    return train_step


def make_eval_step(
    model: nn.Module,
    statistics: tuple[Sequence[float], Sequence[float]],
    *,
    loss: Loss = "cross_entropy",
) -> Callable[[PyTree, dict[str, jax.Array]], Metrics]:
    """`(variables, batch with "mask") -> sums` of the training step's metrics and "count" over the
    examples whose mask is one, over all devices.
    """

    def eval_step(variables: PyTree, batch: dict[str, jax.Array]) -> Metrics:
        logits: Any = model.apply(variables, normalize(batch["image"], *statistics))
        mask = batch["mask"]
        values = scores(logits, batch["label"], loss)
        sums = {name: jnp.where(mask > 0, value, 0).sum() for name, value in values.items()}
        return lax.psum({**sums, "count": mask.sum()}, AXIS)

    return eval_step
