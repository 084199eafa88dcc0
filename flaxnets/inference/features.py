"""Return activations inside a network, by the torch name of their layer or by stride."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from flaxnets.errors import InputError, one_of
from flaxnets.inference.dense import SPAN
from flaxnets.layers import Conv, Linear, Sequential

BEFORE_RELU = "before_relu"  # name under which a norm with a fused ReLU sows its output
STRIDES = (4, 8, 16, 32)  # pixels; those of most networks for photographs


def feature_names(model: nn.Module, variables: Any, x: jax.Array) -> list[str]:
    """Return the names that `features` accepts: modules, and functions in a Sequential by index."""
    shapes = jax.eval_shape(lambda: _capture(model, variables, x, lambda _: True))
    return list(shapes)


def features(
    model: nn.Module, variables: Any, x: jax.Array, names: Sequence[str]
) -> dict[str, jax.Array]:
    """Return the outputs of layers in evaluation.

        features(model, variables, images, ["layer3.1.conv2", "layer4"])["layer4"]

    Args:
        model: a network.
        variables: variables as `model.init` gives them.
        x: images (N, H, W, C), normalised as for `model.apply`.
        names: names of modules, joined by dots as in torch: "layer3.1.conv2", "features.28".

    Returns:
        Outputs by name in the order of `names`; most have the shape (N, H', W', C').

    Raises:
        InputError: a name is unknown; the message has the nearest one.
    """
    known = feature_names(model, variables, x)
    for name in names:
        one_of(known, name, "layer")
    wanted = set(names)
    outputs = _capture(model, variables, x, lambda module: ".".join(module.path) in wanted)
    return {name: outputs[name] for name in names}


@dataclasses.dataclass(frozen=True)
class Level:
    """The last map of one stride, `(N, H / stride, W / stride, channels)`."""

    stride: int
    """Pixels between the positions of the map."""
    name: str
    """torch's name of the layer whose output it is; for a norm, with its ReLU."""
    channels: int
    """Channels of the map."""


def feature_info(model: nn.Module) -> tuple[Level, ...]:
    """Return the last map of each stride of a network, the finest first, without computing it.

        [(level.stride, level.channels) for level in feature_info(create_model("resnet50"))]

    Maps are the outputs on the network's main path, before its first fully connected layer: those
    of its modules, of the layers of its Sequentials, and what it sows between them. A map has a
    stride if it grows by one position for every `stride` pixels of the picture.

    The result is empty for networks that read images of one size: multilayer perceptrons and vision
    transformers. `features` gives the tokens (N, 1 + patches, C) of the latter.
    """
    model = _up_to_maps(model)
    step = getattr(model, "size_step", None)
    if step is None:
        return ()
    span = math.lcm(SPAN, step)
    height, width, channels = model.input_shape
    variables = jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros((1, height, width, channels))
    )
    maps, larger = (
        _main_path(model, variables, (height + more, width + more, channels)) for more in (0, span)
    )
    levels: dict[int, Level] = {}
    for name, shape in maps.items():
        growth = larger[name][1] - shape[1] if len(shape) == 4 else 0
        if growth > 0:
            stride = round(span / growth)
            levels[stride] = Level(stride, name, shape[-1])
    return tuple(levels[stride] for stride in sorted(levels))


def pyramid(
    model: nn.Module,
    variables: Any,
    x: jax.Array,
    strides: Sequence[int] = STRIDES,
    info: Sequence[Level] | None = None,
) -> list[jax.Array]:
    """Return the last map of each of `strides` in evaluation, as the next layer reads it.

    Under `jax.jit`, layers after the deepest map are not computed.

    Args:
        model: a network of the library.
        variables: variables as `model.init` gives them; those of the head are not needed.
        x: images (N, H, W, C), normalised as for `model.apply`.
        strides: strides of the maps, in pixels.
        info: `feature_info(model)`, if it is known already.

    Returns:
        Maps (N, H', W', C') in the order of `strides`; `feature_info` tells their channels.

    Raises:
        InputError: the network has no map of a stride.
    """
    levels = {level.stride: level for level in info or feature_info(model)}
    if not levels:
        raise InputError(
            f"{type(model).__name__} reads images of one size and has no maps; use features"
        )
    for stride in strides:
        if stride not in levels:
            known = ", ".join(map(str, levels))
            raise InputError(f"the network has no map of stride {stride}; expected one of {known}")
    names = [levels[stride].name for stride in strides]

    outputs = _capture(
        _up_to_maps(model),
        variables,
        x,
        lambda module: ".".join(module.path) in names,
        before_relu=False,
    )
    return [outputs[name] for name in names]


def _up_to_maps(model: Any) -> Any:
    """Return the network without its head, and without recomputation of activations."""
    fields: dict[str, Any] = {"remat": False} if hasattr(model, "remat") else {}
    return model.headless().clone(**fields) if hasattr(model, "headless") else model


def _main_path(
    model: nn.Module, variables: Any, input_shape: tuple[int, ...]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the outputs on the main path, in the order of their computation."""
    containers: set[tuple[str, ...]] = {()}  # paths of the network and its Sequentials
    ends: set[tuple[str, ...]] = set()  # paths of Linear layers
    identities: set[tuple[str, ...]] = set()  # paths of modules that return their input

    def capture(module: nn.Module) -> bool:
        if isinstance(module, Sequential):
            containers.add(module.path)
        if isinstance(module, Linear):
            ends.add(module.path)
        if isinstance(module, nn.Dropout) or (isinstance(module, Conv) and not module.features):
            identities.add(module.path)
        return True

    shapes: dict[str, tuple[int, ...]] = {}

    def trace(variables: Any, x: jax.Array) -> None:
        for path, output in _intermediates(model, variables, x, capture).items():
            if path in ends:
                break
            is_on_path = all(path[:depth] in containers for depth in range(len(path)))
            if path and is_on_path and path not in identities:
                shapes[".".join(path)] = output.shape

    jax.eval_shape(trace, variables, jax.ShapeDtypeStruct((1, *input_shape), jnp.float32))
    return shapes


def _capture(
    model: nn.Module,
    variables: Any,
    x: jax.Array,
    capture: Callable[[nn.Module], bool],
    *,
    before_relu: bool = True,
) -> dict[str, jax.Array]:
    """Return outputs by their dotted names.

    With `before_relu`, the output of a norm is that before its fused ReLU, which is a layer of its
    own in torch.
    """

    def sow_before_relu(next_function, args, kwargs, context):
        if not kwargs.get("relu"):
            return next_function(*args, **kwargs)
        y = next_function(*args, **kwargs | {"relu": False})
        context.module.sow("intermediates", BEFORE_RELU, y)
        return nn.relu(y)

    with nn.intercept_methods(sow_before_relu) if before_relu else contextlib.nullcontext():
        outputs = _intermediates(model, variables, x, capture)
    named = {".".join(path): output for path, output in outputs.items() if path}
    norms = [name for name in named if name.endswith(f".{BEFORE_RELU}")]
    return named | {name.removesuffix(f".{BEFORE_RELU}"): named.pop(name) for name in norms}


def _intermediates(
    model: Any, variables: Any, x: jax.Array, capture: Callable[[nn.Module], bool]
) -> dict[tuple[str, ...], jax.Array]:
    """Return the outputs of the modules that `capture` chooses, and what modules sow.

    They are returned by path, in the order of the calls.
    """

    def is_wanted(module: nn.Module, method: str) -> bool:
        return method == "__call__" and capture(module)

    _, state = model.apply(variables, x, capture_intermediates=is_wanted, mutable=["intermediates"])
    outputs: dict[Any, Any] = flatten_dict(state["intermediates"])
    return {
        path[:-1] if path[-1] == "__call__" else path: values[-1]
        for path, values in outputs.items()
    }
