"""The state that a training run carries from step to step, and its first value."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import tree_util

from flaxnets.initializers import drawn, variance_scaling
from flaxnets.recipes import Recipe
from flaxnets.types import PyTree as PyTree

Average = PyTree  # {"params", "model_state"}, as in the state

he_normal = variance_scaling(2.0, "fan_in", "truncated_normal")


class TrainState(flax.struct.PyTreeNode):
    """Everything that a checkpoint holds."""

    step: jax.Array  # int32, steps taken
    params: PyTree
    model_state: PyTree  # the other collections: running statistics of batch norm
    opt_state: optax.OptState
    plateau: Any  # optax's ReduceLROnPlateauState; its `scale` multiplies every update
    average: Average | None = None  # moving averages, if the recipe has them

    @property
    def variables(self) -> PyTree:
        """The current variables, as `model.apply` takes them."""
        return {"params": self.params, **self.model_state}

    @property
    def average_variables(self) -> PyTree:
        """The averaged variables, as `model.apply` takes them."""
        assert self.average is not None
        return {"params": self.average["params"], **self.average["model_state"]}


def he_normal_everywhere(params: PyTree, key: jax.Array) -> PyTree:
    """Return fresh kernels and zero biases as in He et al. 2015; norms keep their values.

    Kernels come from a truncated normal distribution with the variance 2 / fan_in.
    """

    def leaf(path, value):
        name = path[-1].key
        if name not in ("kernel", "patch_kernel", "bias"):
            return value
        if name == "bias":
            return jnp.zeros_like(value)
        # The key is derived from the parameter's path, so that the tree's order does not matter.
        own = functools.reduce(jax.random.fold_in, map(ord, tree_util.keystr(path)), key)
        return he_normal(own, value.shape, value.dtype)

    return tree_util.tree_map_with_path(leaf, params)


def fresh_variables(
    model: nn.Module, input_shape: tuple[int, int, int], recipe: Recipe, seed: int
) -> PyTree:
    """Return fresh variables for images (H, W, C).

    Their values are the network's own, or those of He et al. 2015 if the recipe says so.
    """
    key = jax.random.key(seed)
    variables = model.init(key, jnp.zeros((1, *input_shape)))
    if recipe.initialization == "he_normal":
        variables = {**variables, "params": he_normal_everywhere(variables["params"], key)}
    return variables


def init_variables(
    model: nn.Module, input_shape: tuple[int, int, int], recipe: Recipe, seed: int
) -> PyTree:
    """Return fresh variables without compiling a program for all of them."""
    return drawn(lambda: fresh_variables(model, input_shape, recipe, seed))()


def create_state(
    variables: PyTree, optimizer: optax.GradientTransformation, recipe: Recipe
) -> TrainState:
    """Return the state before the first step: `variables` and an optimiser without history."""
    params = variables["params"]
    model_state = {name: tree for name, tree in variables.items() if name != "params"}
    start = {"params": params, "model_state": model_state}
    # optax starts with an infinite error, which JAX_DEBUG_INFS would report.
    like: Any = jax.eval_shape(optax.contrib.reduce_on_plateau().init, params)
    plateau = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)._replace(
        scale=jnp.ones((), like.scale.dtype),
        best_value=jnp.array(jnp.finfo(like.best_value.dtype).max),
    )
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=model_state,
        opt_state=optimizer.init(params),
        plateau=plateau,
        # A copy, because a buffer that is donated to the step must not occur twice.
        average=jax.tree.map(jnp.copy, start) if recipe.ema_decay else None,
    )


Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
StepFunction = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
