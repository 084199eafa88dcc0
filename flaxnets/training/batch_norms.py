"""Freeze or synchronise batch norms as a recipe says, and check that each sees several values."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.errors import InputError
from flaxnets.layers import BatchNorm
from flaxnets.recipes import Recipe
from flaxnets.training.optimizer import matches
from flaxnets.training.parallel import AXIS
from flaxnets.training.state import PyTree


def norms_of(recipe: Recipe) -> Any:
    """Return a context for `model.apply` in training.

    In it, batch norms that the recipe freezes use their running statistics. If the recipe
    synchronises batch norms, the others compute statistics over all devices.
    """

    def configure(next_function, args, kwargs, context):
        module, method = context.module, context.method_name
        if isinstance(module, BatchNorm) and method in ("__call__", "moments"):
            if method == "__call__" and is_frozen(module, recipe):
                kwargs = kwargs | {"use_running_average": True}
            if recipe.sync_batch_norm:
                kwargs = kwargs | {"axis_name": AXIS}
        return next_function(*args, **kwargs)

    return nn.intercept_methods(configure)


def is_frozen(norm: BatchNorm, recipe: Recipe) -> bool:
    """Return whether the recipe freezes the running statistics of a bound batch norm."""
    return matches(recipe.freeze, ".".join((*norm.path, "running_mean")))


def check_batch_norms(
    model: nn.Module, variables: PyTree, recipe: Recipe, image_shape: tuple[int, ...], devices: int
) -> None:
    """Raise InputError if a batch norm would see a single value of each channel in a training step.

    Its output would be its bias, whatever the image. torch refuses this too.

    Args:
        model: the network.
        variables: the network's variables, or their shapes.
        recipe: the recipe of the run.
        image_shape: (height, width, channels) of training images.
        devices: number of devices over which the batch is split.
    """
    parts = recipe.gradient_accumulation
    if recipe.batch_size > devices * parts or (recipe.sync_batch_norm and devices > 1):
        return

    def refuse(next_function, args, kwargs, context):
        module = context.module
        if isinstance(module, BatchNorm) and context.method_name == "__call__":
            by_batch = not module.use_running_average and not is_frozen(module, recipe)
            if by_batch and args[0].size == args[0].shape[-1]:
                path = ".".join(module.path)
                place = " on each device" if devices > 1 else ""
                part = f" in each of the {parts} parts of a step" if parts > 1 else ""
                sync = ", sync batch norm" if devices > 1 else ""
                raise InputError(
                    f"batch norm {path} would see one value of each channel in training (one image"
                    f"{place}{part}, a map of 1x1 pixels); expected several: try batch size "
                    f"{2 * devices * parts}, larger images{sync}, or freeze {path + '.*'!r}"
                )
        return next_function(*args, **kwargs)

    def forward(variables: PyTree, images: jax.Array, key: jax.Array) -> Any:
        mutable = [name for name in (*variables, "aux_logits") if name != "params"]
        return model.apply(variables, images, train=True, mutable=mutable, rngs={"dropout": key})

    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with nn.intercept_methods(refuse):
        jax.eval_shape(forward, variables, images, jax.random.key(0))
