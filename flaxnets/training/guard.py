"""Detect steps whose result is not finite, and skip them."""

from functools import reduce

import jax
import jax.numpy as jnp

from flaxnets.training.state import Metrics, PyTree, StepFunction, TrainState


def all_finite(tree: PyTree) -> jax.Array:
    """Return whether every value of every array is finite."""
    return reduce(jnp.logical_and, [jnp.isfinite(x).all() for x in jax.tree.leaves(tree)])


def skipping_non_finite(train_step: StepFunction) -> StepFunction:
    """Return `train_step`, changed so that steps with a loss or result that is not finite are
    skipped.

    A skipped step changes only the step counter, and its metric "skipped" is 1. For other steps the
    metric is 0 and the result is bit-equal to that of `train_step`.
    """

    def guarded(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, Metrics]:
        new, metrics = train_step(state, batch)
        finite = all_finite((metrics["loss"], new.params, new.model_state, new.opt_state))
        kept = jax.tree.map(lambda old, new: jnp.where(finite, new, old), state, new)
        return kept.replace(step=new.step), {**metrics, "skipped": 1.0 - finite}

    return guarded
