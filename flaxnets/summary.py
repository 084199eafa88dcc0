"""Summarise a network layer by layer: output shapes, parameters, multiply-adds. Nothing is
computed.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.attention import Attention
from flaxnets.layers import Array

# leaves whose values are multiplied with the input
KERNELS = {"kernel", "patch_kernel", "in_proj_weight"}


@dataclasses.dataclass(frozen=True)
class Layer:
    """A module with parameters, or the products of an attention. All sizes are for one image."""

    name: str  # path of the module, joined by dots: its torch name
    kind: str
    output_shape: tuple[int, ...]  # (H, W, C), or (C,)
    parameters: int
    multiply_adds: int
    neurons: int
    auxiliary: bool = False


def _layer(module: nn.Module, output: Array, inputs: tuple[Any, ...]) -> Layer:
    leaves = _own_parameters(module)
    neurons = multiply_adds = 0
    if isinstance(module, Attention):  # queries times keys, and weights times values
        query, key = inputs[:2]
        multiply_adds = 2 * math.prod(query.shape[1:]) * key.shape[-3]
    kernels = [leaf for name, leaf in leaves.items() if name in KERNELS]
    if kernels:
        neurons = math.prod(output.shape[1:])
        multiply_adds = math.prod(output.shape[1:-1]) * sum(leaf.size for leaf in kernels)
    parameters = sum(leaf.size for leaf in leaves.values())
    kind, name = type(module).__name__, ".".join(module.path)
    return Layer(name, kind, output.shape[1:], parameters, multiply_adds, neurons)


def _own_parameters(module: nn.Module) -> dict[str, Array]:
    """Return the parameters of a module itself, without those of its submodules."""
    return {k: v for k, v in module.variables.get("params", {}).items() if hasattr(v, "shape")}


def summarize(model: nn.Module, input_shape: tuple[int, ...]) -> list[Layer]:
    """Return the layers of `model` that own parameters, in the order of their calls.

    Args:
        model: a network or a part of one, made of flaxnets.layers.
        input_shape: of one image, (H, W, C), or of one row of features, (C,).
    """
    calls: list[Layer] = []
    created: list[Layer] = []

    def record(next_fun, args, kwargs, context):
        output = next_fun(*args, **kwargs)
        is_call = context.method_name == "__call__"
        is_layer = isinstance(context.module, Attention) or _own_parameters(context.module)
        if is_call and is_layer:
            calls.append(_layer(context.module, output, args))
        return output

    # a new function for each call, because JAX would not trace the same function again
    def forward():
        x = jnp.zeros((1, *input_shape))
        variables = model.init(jax.random.key(0), x)
        created.extend(calls)
        # other networks call the same layers in `init` and `apply`
        if hasattr(model, "aux_logits"):
            calls.clear()
            model.apply(variables, x)
        return variables["params"]

    with nn.intercept_methods(record):
        params = jax.eval_shape(forward)
    called = {layer.name for layer in calls}
    layers = [
        layer
        if layer.name in called
        else dataclasses.replace(layer, multiply_adds=0, neurons=0, auxiliary=True)
        for layer in created
    ]
    if totals(layers)["parameters"] != sum(leaf.size for leaf in jax.tree.leaves(params)):
        raise ValueError(f"{type(model).__name__} has parameters outside of the counted layers")
    return layers


def totals(layers: list[Layer]) -> dict[str, int]:
    """Return the sums over all layers, and the parameters without auxiliary classifiers."""
    return {
        "parameters": sum(layer.parameters for layer in layers),
        "parameters_without_auxiliary": sum(x.parameters for x in layers if not x.auxiliary),
        "multiply_adds": sum(layer.multiply_adds for layer in layers),
        "neurons": sum(layer.neurons for layer in layers),
    }


def footers(layers: list[Layer]) -> list[dict[str, Any]]:
    """Return the last rows of a table of layers: the sums."""
    sums = totals(layers)
    rows: list[dict[str, Any]] = [{"name": "total", **sums}]
    if any(layer.auxiliary for layer in layers):
        parameters = sums["parameters_without_auxiliary"]
        rows.append({"name": "without auxiliary classifiers", "parameters": parameters})
    return rows
