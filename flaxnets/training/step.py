"""The one training step and the one evaluation step, as functions of one device.

Both run under a mapped axis named `AXIS`: each device sees its part of the batch, and what
leaves the function is reduced over the axis, hence the same on every device.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from flaxnets.training.state import Metrics, PyTree, StepFunction, TrainState

AXIS = "batch"


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """uint8 images, as they were decoded, to float32: ((x / 255) - mean) / std, a channel."""
    shift, scale = jnp.array(mean, jnp.float32), jnp.array(std, jnp.float32)
    return (images.astype(jnp.float32) / 255 - shift) / scale


def scores(logits: jax.Array, labels: jax.Array) -> Metrics:
    """Per example: cross entropy, and whether the label is the best or among the five best."""
    logits = logits.astype(jnp.float32)
    right = jnp.take_along_axis(logits, labels[:, None], 1)
    better = (logits > right).sum(1)
    # Equal logits count by position, as in a stable sort: a constant network is not always right.
    index = jnp.arange(logits.shape[1])
    better += ((logits == right) & (index < labels[:, None])).sum(1)
    better = jnp.where(jnp.isnan(right[:, 0]), logits.shape[1], better)
    return {
        "loss": optax.softmax_cross_entropy_with_integer_labels(logits, labels),
        "top1": (better < 1).astype(jnp.float32),
        "top5": (better < 5).astype(jnp.float32),
    }


def _loss(logits: jax.Array, labels: jax.Array, smoothing: float) -> jax.Array:
    """Mean cross entropy; `smoothing` of the target is spread over all classes."""
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[1]), smoothing)
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets).mean()


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    statistics: tuple[Sequence[float], Sequence[float]],
    *,
    aux_weight: float = 0.0,
    label_smoothing: float = 0.0,
    seed: int = 0,
) -> StepFunction:
    """`(state, {"image": uint8, "label": int32}) -> (state, metrics)`, metrics averaged over the
    batch: "loss" of the main classifier, "top1", "top5".

    Gradients, and the running statistics that each device computes on its own images (as in torch's
    DistributedDataParallel), are averaged over devices. Auxiliary classifiers `sow` their logits
    into "aux_logits"; `aux_weight` times their losses joins the objective.
    """

    def train_step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        key = jax.random.fold_in(key, lax.axis_index(AXIS))
        images = normalize(batch["image"], *statistics)

        def total_loss(params: PyTree) -> tuple[jax.Array, tuple[PyTree, Metrics]]:
            logits, new_state = model.apply(
                {"params": params, **state.model_state},
                images,
                train=True,
                mutable=[*state.model_state, "aux_logits"],
                rngs={"dropout": key},
            )
            new_state = dict(new_state)
            aux_logits = jax.tree.leaves(new_state.pop("aux_logits", {}))
            loss = functools.partial(_loss, labels=batch["label"], smoothing=label_smoothing)
            objective = loss(logits) + aux_weight * sum(map(loss, aux_logits))
            metrics = jax.tree.map(jnp.mean, scores(logits, batch["label"]))
            return objective, (new_state, metrics)

        grads, (model_state, metrics) = jax.grad(total_loss, has_aux=True)(state.params)
        grads, model_state, metrics = lax.pmean((grads, model_state, metrics), AXIS)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        updates = jax.tree.map(lambda u: (state.plateau.scale * u).astype(u.dtype), updates)
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            model_state=model_state,
            opt_state=opt_state,
        )
        return state, metrics

    return train_step


def make_eval_step(
    model: nn.Module, statistics: tuple[Sequence[float], Sequence[float]]
) -> Callable[[PyTree, dict[str, jax.Array]], Metrics]:
    """`(variables, batch with "mask") -> sums` of "loss", "top1", "top5" and "count" over the
    examples whose mask is one, over all devices.
    """

    def eval_step(variables: PyTree, batch: dict[str, jax.Array]) -> Metrics:
        logits: Any = model.apply(variables, normalize(batch["image"], *statistics))
        mask = batch["mask"]
        sums = {
            k: jnp.where(mask > 0, v, 0).sum() for k, v in scores(logits, batch["label"]).items()
        }
        return lax.psum({**sums, "count": mask.sum()}, AXIS)

    return eval_step
