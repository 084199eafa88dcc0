"""Adapt weights to another number of classes or input channels."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxnets.convert import fits, torch_keys
from flaxnets.initializers import drawn
from flaxnets.weights.files import StateDict


def trace_shapes(model: Any, input_shape: tuple[int, ...]) -> Any:
    """Return the shapes of a network's variables for images (height, width, channels)."""
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *input_shape)))


def shapes_by_key(like: Any) -> dict[str, tuple[int, ...]]:
    """Return Flax's shapes under torch's keys."""
    leaves, keys = jax.tree.leaves(like), jax.tree.leaves(torch_keys(like))
    return {key: leaf.shape for key, leaf in zip(keys, leaves, strict=True)}


def changed_keys(shapes: dict[str, tuple], others: dict[str, tuple]) -> list[str]:
    """Return the keys whose shapes differ."""
    return [key for key, shape in shapes.items() if others[key] != shape]


def missing_head(
    state_dict: StateDict, shapes: dict[str, tuple], head: list[str], unused: list[str]
) -> list[str]:
    """Return the keys of the last layers that the weights lack, if they have no head.

    Weights have no head if both are true: keys of the head are missing or have shapes that no
    number of classes gives; and all that does not fit stands under the head's first name, such as
    "classifier" or "fc", or under a name that the network does not have. Otherwise the weights are
    those of another network, and the list is empty.

    Args:
        state_dict: the weights.
        shapes: Flax's shapes, without those of auxiliary heads and of the layers that read the
            image.
        head: keys of the last layer.
        unused: keys of the weights that the network does not have.
    """

    def is_wrong(key: str) -> bool:
        value, shape = state_dict.get(key), shapes[key]
        if value is None or value.ndim == 0:
            return True
        return not fits(key, value, (*shape[:-1], len(value)) if key in head else shape)

    if not any(map(is_wrong, head)):
        return []
    layers = {key.rpartition(".")[0] for key in shapes if is_wrong(key)}
    wrong = [key for key in shapes if key.rpartition(".")[0] in layers]
    root = {key.partition(".")[0] for key in head}
    body = {key.partition(".")[0] for key in shapes} - root
    is_in_head = {key.partition(".")[0] for key in wrong} <= root
    is_in_body = not body.isdisjoint(key.partition(".")[0] for key in unused)
    return wrong if is_in_head and not is_in_body and len(wrong) < len(shapes) else []


def initial_values(init: Callable[[], Any], wanted: set[str]) -> dict[Any, Any]:
    """Return the initial values of the variables with the torch keys `wanted`, by their paths.

    They are those of `init`, a call of `model.init`. Only they are drawn.
    """

    def chosen() -> dict[Any, Any]:
        variables = init()
        keys: dict[Any, Any] = flatten_dict(torch_keys(variables))
        values: dict[Any, Any] = flatten_dict(variables)
        return unflatten_dict({p: v for p, v in values.items() if keys[p] in wanted})

    return flatten_dict(drawn(chosen)())


def with_fresh_head(
    model: Any, variables: Any, input_shape: tuple[int, ...], num_classes: int, key: jax.Array
) -> tuple[Any, Any]:
    """Return the network and its variables with a new head of `num_classes` outputs.

    The head is drawn with `key`; the other variables are kept.
    """
    model = model.clone(num_classes=num_classes)
    shapes = shapes_by_key(trace_shapes(model, input_shape))
    wider = shapes_by_key(trace_shapes(model.clone(num_classes=num_classes + 1), input_shape))
    init = functools.partial(model.init, key, jnp.zeros((1, *input_shape)))
    head = initial_values(init, set(changed_keys(shapes, wider)))
    return model, unflatten_dict(flatten_dict(variables) | head)


def adapt_input_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Return a convolution's kernel (O, C, h, w) for images of another number of channels.

    For one channel, the kernel is summed over C, so that a grey image gives the same output as
    three equal channels did. For other numbers, the channels are repeated in turn and scaled by
    C / `channels`, which keeps the size of their sum. So does timm (timm/models/_manipulate.py,
    `adapt_input_conv`).
    """
    own = kernel.shape[1]
    if channels == own:
        return kernel
    if channels == 1:
        return kernel.sum(1, keepdims=True)
    repeated = np.tile(kernel, (1, math.ceil(channels / own), 1, 1))[:, :channels]
    return repeated * kernel.dtype.type(own / channels)
