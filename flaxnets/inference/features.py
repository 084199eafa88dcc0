"""Activations inside a network, by the torch name of the layer that gives them."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict

from flaxnets.errors import one_of

BEFORE_RELU = "before_relu"  # of a norm


def feature_names(model: nn.Module, variables: Any, x: jax.Array) -> list[str]:
    """The names that `features` accepts: modules, and functions in a Sequential by their index."""
    shapes = jax.eval_shape(lambda: _capture(model, variables, x, lambda *_: True))
    return list(shapes)


def features(
    model: nn.Module, variables: Any, x: jax.Array, names: Sequence[str]
) -> dict[str, jax.Array]:
    """The outputs of the layers `names` in evaluation, such as "layer3.1.conv2" or "features.28".

    Args:
        x: images (N, H, W, C), normalised as for `model.apply`.
        names: of modules, joined by dots as in torch.

    Returns:
        Activations in the order of `names`, (N, H', W', C') of most layers.

    Raises:
        InputError: a name is unknown; the message has the nearest one.
    """
    known = feature_names(model, variables, x)
    for name in names:
        one_of(known, name, "layer")
    wanted = set(names)
    found = _capture(model, variables, x, lambda module, _: ".".join(module.path) in wanted)
    return {name: found[name] for name in names}


def _capture(model, variables, x, capture) -> dict[str, jax.Array]:
    def sow_before_relu(next_function, args, kwargs, context):
        """In torch the ReLU that a norm takes along is a layer of its own."""
        if not kwargs.get("relu"):
            return next_function(*args, **kwargs)
        y = next_function(*args, **kwargs | {"relu": False})
        context.module.sow("intermediates", BEFORE_RELU, y)
        return nn.relu(y)

    with nn.intercept_methods(sow_before_relu):
        _, state = model.apply(
            variables, x, capture_intermediates=capture, mutable=["intermediates"]
        )
    captured: dict[Any, Any] = flatten_dict(state["intermediates"])
    found = {}
    for path, outputs in captured.items():
        name = ".".join(part for part in path if part not in ("__call__", BEFORE_RELU))
        if name and (name not in found or path[-1] == BEFORE_RELU):  # the network has no name
            found[name] = outputs[-1]
    return found
