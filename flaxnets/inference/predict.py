"""Class probabilities over a data set, of one network or averaged over several.

The average over networks is that of Ciresan et al. 2012 (arXiv:1202.2745), section 2, over the
columns of a multi-column network, and of the ensembles in He et al. 2015, Table 5.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flaxnets.inference.views import mean_probabilities, view_logits
from flaxnets.training.parallel import DataParallel
from flaxnets.training.step import AXIS, normalize, scores


def make_predict_step(
    model: nn.Module, statistics: tuple[Sequence[float], Sequence[float]]
) -> Callable[[Any, dict[str, jax.Array]], dict[str, jax.Array]]:
    """`(variables, batch with "mask") -> {"probabilities": (N, classes), "label", "mask"}` of the
    whole batch, on every device.

    The batch has images (N, H, W, C), or views (N, V, H, W, C) under one key or several that start
    with "image"; probabilities are averaged over all of them (`views.mean_probabilities`).
    """

    def predict_step(variables: Any, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        images = [value for key, value in batch.items() if key.startswith("image")]
        views = [normalize(x if x.ndim == 5 else x[:, None], *statistics) for x in images]
        probabilities = mean_probabilities([view_logits(model, variables, x) for x in views])
        own = {"probabilities": probabilities, "label": batch["label"], "mask": batch["mask"]}
        return lax.all_gather(own, AXIS, tiled=True)

    return predict_step


def predict(
    model: nn.Module,
    variables: Any,
    batches: Iterable[dict[str, np.ndarray]],
    statistics: tuple[Sequence[float], Sequence[float]],
    parallel: DataParallel,
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (N, classes), float32, and labels (N,), int32, of every example once, in the
    order of `batches` (of `data.eval_batches`, which masks what pads the last one).
    """
    step = parallel.map(make_predict_step(model, statistics))
    variables = parallel.replicate(variables)
    probabilities, labels = [], []
    for batch in batches:
        result = jax.device_get(step(variables, parallel.shard(batch)))
        examples = result["mask"] == 1
        probabilities.append(result["probabilities"][examples])
        labels.append(result["label"][examples])
    return np.concatenate(probabilities), np.concatenate(labels)


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Means over all examples: "top1", "top5" and "loss" (cross entropy)."""
    values = scores(jnp.log(probabilities), jnp.asarray(labels))
    return {name: float(np.asarray(value).mean(dtype=np.float64)) for name, value in values.items()}
