"""Losses, scores, and the objective that training minimises."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from flaxnets.kernels.folding import folded_norms
from flaxnets.recipes import Loss, Recipe
from flaxnets.training.batch_norms import norms_of
from flaxnets.training.optimizer import unless_frozen
from flaxnets.training.state import Batch, Metrics, PyTree

# (params, model_state, batch, key) -> (loss, (new model_state, metrics))
Objective = Callable[[PyTree, PyTree, Batch, jax.Array], tuple[jax.Array, tuple[PyTree, Metrics]]]


def losses(
    outputs: jax.Array, labels: jax.Array, kind: Loss, label_smoothing: float = 0.0
) -> jax.Array:
    """Return the loss of each example, (N,).

    Args:
        outputs: the network's outputs, (N, K).
        labels: classes (N,), integers; or probabilities of classes (N, K); or numbers (N,).
        kind: name of the loss.
        label_smoothing: share of the target that is spread over all classes.
    """
    outputs = outputs.astype(jnp.float32)
    if _are_numbers(labels):
        targets = labels[:, None]
    else:
        classes = outputs.shape[1]
        targets = labels if labels.ndim == 2 else jax.nn.one_hot(labels, classes)
        targets = optax.smooth_labels(targets, label_smoothing)
    if kind == "squared_error":
        return optax.squared_error(outputs, targets).sum(1)
    return optax.softmax_cross_entropy(outputs, targets)


def _are_numbers(labels: jax.Array) -> bool:
    return labels.ndim == 1 and jnp.issubdtype(labels.dtype, jnp.floating)


def scores(logits: jax.Array, labels: jax.Array, loss: Loss = "cross_entropy") -> Metrics:
    """Return the "loss" of each example and, for classes, its "top1" and "top5".

    These are 1.0 if the label has the best score, or one of the five best, and 0.0 otherwise. If
    labels are probabilities, the likeliest class is the label.
    """
    metrics = {"loss": losses(logits, labels, loss)}
    if _are_numbers(labels):
        return metrics
    logits = logits.astype(jnp.float32)
    labels = labels if labels.ndim == 1 else labels.argmax(1)
    right = jnp.take_along_axis(logits, labels[:, None], 1)
    better = (logits > right).sum(1)
    # Equal logits are ranked by position, as in a stable sort; otherwise a network with constant
    # output would always be right.
    index = jnp.arange(logits.shape[1])[None]
    better += ((logits == right) & (index < labels[:, None])).sum(1)
    better = jnp.where(jnp.isnan(right[:, 0]), logits.shape[1], better)
    return metrics | {
        "top1": (better < 1).astype(jnp.float32),
        "top5": (better < 5).astype(jnp.float32),
    }


def make_objective(model: nn.Module, recipe: Recipe) -> Objective:
    """Return the function that training minimises.

    It takes the parameters, the running statistics, a batch of normalised images and a key. It
    gives the mean loss, the new running statistics and the mean scores.

    Auxiliary classifiers `sow` their logits into "aux_logits"; their losses are weighted by
    `aux_weight`. Frozen parameters have no gradient, and frozen batch norms use their running
    statistics.
    """

    def objective(
        params: PyTree, model_state: PyTree, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, tuple[PyTree, Metrics]]:
        images, labels = batch["image"], batch["label"]

        def mean_loss(outputs: jax.Array) -> jax.Array:
            return losses(outputs, labels, recipe.loss, recipe.label_smoothing).mean()

        constant = {"params": lax.stop_gradient(params)}
        variables = unless_frozen(recipe, constant, {"params": params}) | model_state
        with norms_of(recipe), folded_norms("gpu"):
            logits, new_state = model.apply(
                variables,
                images,
                train=True,
                mutable=[*model_state, "aux_logits"],
                rngs={"dropout": key},
            )
        new_state = dict(new_state)
        aux_logits = jax.tree.leaves(new_state.pop("aux_logits", {}))
        total = mean_loss(logits) + recipe.aux_weight * sum(map(mean_loss, aux_logits))
        metrics = jax.tree.map(jnp.mean, scores(logits, labels, recipe.loss))
        return total, (new_state, metrics)

    return objective
