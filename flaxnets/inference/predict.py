"""Compute class probabilities over a data set, for one network or averaged over several.

Ciresan et al. 2012 (arXiv:1202.2745), section 2, average over networks in this way, as the columns
of a multi-column network; so do the ensembles of He et al. 2015, Table 5.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flaxnets.recipes import Statistics
from flaxnets.training.on_device import normalize
from flaxnets.training.parallel import AXIS, DataParallel
from flaxnets.training.views import mean_log_probabilities, view_logits


def predict_views(
    model: nn.Module,
    variables: Any,
    views: Sequence[jax.Array],
    statistics: Any,
    shares: Sequence[float] | None = None,
) -> tuple[list[jax.Array], jax.Array]:
    """Return a network's answers for views of pictures. Every prediction is made here.

    Args:
        model: a network.
        variables: the network's variables.
        views: uint8 (N, V, H, W, C) for each size of view.
        statistics: mean and deviation of each channel, by which views are normalised.
        shares: weight of each view in the mean; equal by default.

    Returns:
        For each size of view, logits (N, V, classes) or maps of them (`view_logits`); and the
        logarithms (N, classes) of the probabilities averaged over all views.
    """
    logits = [view_logits(model, variables, normalize(x, *statistics)) for x in views]
    return logits, mean_log_probabilities(logits, shares)


def make_predict_step(
    model: nn.Module, statistics: Statistics, shares: Sequence[float] | None = None
) -> Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]]:
    """Return a function that predicts a batch: `(variables, batch) -> results`.

    The batch has "label" and "mask" (N,), and images (N, H, W, C) or views (N, V, H, W, C) under
    one or several keys that start with "image". Probabilities are averaged over all views
    (`mean_log_probabilities`).

    The results are "log_probabilities" (N, classes), "label" (N,) and "mask" (N,). Every device has
    those of the whole batch.
    """

    def predict_step(variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        images = [value for key, value in batch.items() if key.startswith("image")]
        views = [x if x.ndim == 5 else x[:, None] for x in images]
        _, means = predict_views(model, variables, views, statistics, shares)
        own = {"log_probabilities": means, "label": batch["label"], "mask": batch["mask"]}
        return lax.all_gather(own, AXIS, tiled=True)

    return predict_step


def predict(
    model: nn.Module,
    variables: Any,
    batches: Iterable[dict[str, np.ndarray]],
    statistics: Statistics,
    parallel: DataParallel,
    shares: Sequence[float] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return log-probabilities (N, classes), float32, and labels (N,), int32.

    Every example occurs once, in the order of `batches`. They come from `data.eval_batches`, which
    pads the last batch and masks the padding.
    """
    step = parallel.map(make_predict_step(model, statistics, shares))
    variables = parallel.replicate(variables)
    log_probabilities, labels = [], []
    for batch in batches:
        result = jax.device_get(step(variables, parallel.shard(batch)))
        examples = result["mask"] == 1
        log_probabilities.append(result["log_probabilities"][examples])
        labels.append(result["label"][examples])
    return np.concatenate(log_probabilities), np.concatenate(labels)


def mean_of_members(log_probabilities: Sequence[np.ndarray]) -> np.ndarray:
    """Return the logarithms (N, classes), float32, of the probabilities averaged over networks."""
    members = np.stack(log_probabilities).astype(np.float64)
    with np.errstate(invalid="ignore"):  # NaN of a network stays NaN
        sums = np.logaddexp.reduce(members)
    return (sums - np.log(len(members))).astype(np.float32)


def accuracy(log_probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return means over all examples: "top1" and "top5", 0..1, and "loss" (cross entropy).

    Ties are broken as in training (`training.objective.scores`).
    """
    from flaxnets.training.objective import scores  # it imports optax

    values = scores(jnp.asarray(log_probabilities), jnp.asarray(labels))
    return {name: float(np.asarray(value).mean(dtype=np.float64)) for name, value in values.items()}
