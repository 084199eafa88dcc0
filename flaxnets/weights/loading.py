"""From the arrays of a file to variables of a network, whose classes and channels may differ."""

import functools
import math
import pathlib
import re
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxnets.convert import from_torch, to_torch, torch_keys
from flaxnets.errors import InputError
from flaxnets.models import create_model
from flaxnets.weights.download import Source, fetch
from flaxnets.weights.files import StateDict, read_weights
from flaxnets.weights.published import PublishedWeights, published_weights


class WeightsWarning(UserWarning):
    """The weights do not fit as they are: a part is freshly initialised, or adapted."""


def load_weights(
    arch: str,
    name: str = "IMAGENET1K_V1",
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    checkpoint: str | pathlib.Path | None = None,
    source: Source | None = None,
    seed: int = 0,
    **fields: Any,
) -> Any:
    """The variables of a network with published weights, or with those of a file.

        variables = load_weights("resnet50", "IMAGENET1K_V2")
        logits = create_model("resnet50").apply(variables, images)

    Some weights expect fields of the network (GoogLeNet and Inception v3 `transform_input`):
    `create_model(arch, **published_weights(arch, name).fields)`.

    Args:
        arch: name of the network.
        name: torchvision's name of the weights, or "DEFAULT" for the most accurate.
        num_classes: as many as the weights tell apart unless given; with another number the last
            layer (also of auxiliary heads) is freshly initialised.
        in_channels: as many as the weights read unless given; the kernel of the first convolution
            is summed over its channels for one, repeated and scaled for another number, as in
            timm's `adapt_input_conv` (timm/models/_manipulate.py).
        checkpoint: a file instead of published weights, of any network: .safetensors, or .pth and
            .pt (which need torch), under torch's or timm's keys. Nothing is downloaded.
        source: "torchvision" for its .pth files (need torch), "timm" for safetensors; torchvision
            where torch is installed unless given.
        seed: of what is freshly initialised.
        fields: of the network, as for `create_model`, where they change its variables.

    Returns:
        A tree of NumPy arrays, float32, as `model.init` gives them. Warns (WeightsWarning) if a
        part is not the weights' own.

    Raises:
        InputError: an unknown name; a file that is absent, broken, or of another network; weights
            that cannot be downloaded, or whose SHA-256 is not the published one.
    """
    if num_classes is not None:
        fields["num_classes"] = num_classes
    if in_channels is not None and in_channels < 1:
        raise InputError(f"in_channels is {in_channels}; expected at least 1")
    model: Any = create_model(arch, **fields)
    start = published_weights(arch, name) if checkpoint is None else pathlib.Path(checkpoint)
    return load_into(
        model,
        start,
        model.input_shape,
        num_classes=num_classes,
        in_channels=in_channels,
        source=source,
        seed=seed,
    )


def find_weights(arch: str, given: str) -> PublishedWeights | pathlib.Path:
    """What a user gave on the command line: the name of published weights, or a file."""
    path = pathlib.Path(given)
    return path if path.suffix or path.exists() else published_weights(arch, given)


def load_into(
    model: Any,
    start: PublishedWeights | pathlib.Path,
    input_shape: tuple[int, ...],
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    source: Source | None = None,
    seed: int = 0,
) -> Any:
    """`load_weights` for a network at hand.

    Args:
        model: a network of the library.
        start: published weights or a file.
        input_shape: (height, width, channels) to initialise it with.
        num_classes, in_channels: those of the weights unless given.
    """
    published = isinstance(start, PublishedWeights)
    state_dict = read_weights(fetch(start, source) if published else start)
    fresh = start.fresh if published else None
    if getattr(model, "transform_input", False):  # for RGB only; no variable depends on it
        model = model.clone(transform_input=False)
    shapes = _shapes(model, input_shape)
    if not getattr(model, "aux_logits", True):  # torchvision's files have the heads always
        for key in _shapes(model, input_shape, aux_logits=True).keys() - shapes.keys():
            state_dict.pop(key, None)

    # The heads, and what reads the image, are what changes with their number.
    usual, (*size, channels) = model.num_classes, input_shape
    heads = _changed(shapes, _shapes(model, input_shape, num_classes=usual + 1))
    stem = _changed(shapes, _shapes(model, (*size, channels + 1)))

    renewed = [key for key in shapes if fresh and re.match(fresh, key)]
    given = {len(state_dict[key]) for key in heads if key in state_dict and key not in renewed}
    told = max(given, default=usual)
    num_classes = num_classes or told
    if given - {num_classes}:
        renewed = heads
    for key in stem:
        kernel = state_dict.get(key)
        if kernel is None or kernel.ndim != 4 or shapes[key][2] != input_shape[-1]:
            continue  # no convolution, or a separable one
        read, channels = kernel.shape[1], in_channels or kernel.shape[1]
        if read != channels:
            how = "summed over its" if channels == 1 else "repeated and scaled from"
            _warn(f"{key} is {how} {read} channels for images of {channels}")
            state_dict[key] = adapt_input_channels(kernel, channels)

    model = model.clone(num_classes=num_classes)
    images = jnp.zeros((1, *size, in_channels or channels))
    init = functools.partial(model.init, jax.random.key(seed), images)
    if renewed:
        modules = ", ".join(dict.fromkeys(key.rpartition(".")[0] for key in renewed))
        had = f"{told} classes" if given else "none"
        _warn(f"freshly initialised for {num_classes} classes (the weights have {had}): {modules}")
        state_dict |= _initial(init, set(renewed))
    return from_torch(state_dict, jax.eval_shape(init))


def _warn(sentence: str) -> None:
    warnings.warn(sentence, WeightsWarning, stacklevel=4)  # at the caller of load_weights


def _shapes(model, input_shape, **fields) -> dict[str, tuple[int, ...]]:
    """Flax's shapes under torch's keys."""
    images = jnp.zeros((1, *input_shape))
    like = jax.eval_shape(model.clone(**fields).init, jax.random.key(0), images)
    leaves, keys = jax.tree.leaves(like), jax.tree.leaves(torch_keys(like))
    return {key: leaf.shape for key, leaf in zip(keys, leaves, strict=True)}


def _changed(shapes: dict[str, tuple], others: dict[str, tuple]) -> list[str]:
    return [key for key, shape in shapes.items() if others[key] != shape]


def _initial(init, wanted: set[str]) -> StateDict:
    """`model.init`'s own values of some variables; the compiler leaves the others out."""

    @jax.jit
    def chosen():
        variables = init()
        keys: dict[Any, Any] = flatten_dict(torch_keys(variables))
        values: dict[Any, Any] = flatten_dict(variables)
        return unflatten_dict({p: v for p, v in values.items() if keys[p] in wanted})

    return to_torch(chosen())


def adapt_input_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """A convolution's kernel (O, C, h, w) for images of another number of channels, as timm has it.

    For one channel the sum over C, so that a grey image gives what it gave as equal channels; for
    other numbers the channels in turn, scaled to keep the size of their sum.
    """
    given = kernel.shape[1]
    if channels == given:
        return kernel
    if channels == 1:
        return kernel.sum(1, keepdims=True)
    repeated = np.tile(kernel, (1, math.ceil(channels / given), 1, 1))[:, :channels]
    return repeated * kernel.dtype.type(given / channels)
