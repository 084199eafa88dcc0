"""From the arrays of a file to variables of a network, whose classes and channels may differ."""

import functools
import math
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxnets.convert import (
    IGNORED,
    fit_positions,
    fits,
    from_torch,
    list_keys,
    to_torch,
    torch_keys,
)
from flaxnets.errors import InputError
from flaxnets.initializers import drawn
from flaxnets.models import create_model
from flaxnets.weights.download import fetch
from flaxnets.weights.files import StateDict, read_weights, warn
from flaxnets.weights.published import PublishedWeights, published_weights


def load_weights(
    arch: str,
    name: str = "IMAGENET1K_V1",
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    checkpoint: str | pathlib.Path | None = None,
    ema: bool = False,
    seed: int = 0,
    **fields: Any,
) -> Any:
    """Return the variables of a network with published weights, or with those of a file.

        variables = load_weights("resnet50", "IMAGENET1K_V2")
        logits = create_model("resnet50").apply(variables, images)

    Some weights expect fields of the network: `transform_input` of GoogLeNet and Inception v3,
    `image_size` of vision transformers. `published_weights(arch, name).fields` has them, for
    `create_model`.

    Args:
        arch: name of the network.
        name: torchvision's name of the weights, or "DEFAULT" for the most accurate.
        num_classes: as many as the weights tell apart unless given. If given, what the weights lack
            is freshly initialised: the last layer (also of auxiliary heads) if they tell another
            number apart, a head or an auxiliary head that they do not have. 0 leaves out the head.
        in_channels: as many as the weights read unless given; the kernel of the first convolution
            is summed over its channels for one, repeated and scaled for another number, as in
            timm's `adapt_input_conv` (timm/models/_manipulate.py).
        checkpoint: a file instead of published weights, of any network: of safetensors or torch,
            under torch's or timm's keys, also inside a training script's checkpoint and with a
            prefix before every key. Nothing is downloaded.
        ema: take the average weights of a file that has raw ones as well.
        seed: of what is freshly initialised.
        fields: of the network, as for `create_model`, where they change its variables.

    Returns:
        A tree of NumPy arrays, float32, as `model.init` gives them; without `num_classes` it has no
        auxiliary heads if the weights have none. Warns (WeightsWarning) if a part is not the
        weights' own.

    Raises:
        InputError: an unknown name; a file that is absent, broken, of another network, or without
            a head where `num_classes` is not given; weights that cannot be downloaded, or whose
            SHA-256 is not the published one.
    """
    if num_classes is not None:
        fields["num_classes"] = num_classes
    check_in_channels(in_channels)
    model: Any = create_model(arch, **fields)
    start = published_weights(arch, name) if checkpoint is None else pathlib.Path(checkpoint)
    if isinstance(start, PublishedWeights):
        model = create_model(arch, **{**start.fields, **fields})
    return load_model(
        model,
        start,
        model.input_shape,
        num_classes=num_classes,
        in_channels=in_channels,
        ema=ema,
        seed=seed,
    )[1]


def check_in_channels(in_channels: int | None) -> None:
    """Raise InputError for a number of channels that no image has."""
    if in_channels is not None and in_channels < 1:
        raise InputError(f"in_channels is {in_channels}; expected at least 1")


def find_weights(arch: str, name_or_path: str) -> PublishedWeights | pathlib.Path:
    """Return published weights by their name, or the file that a user names instead."""
    path = pathlib.Path(name_or_path)
    return path if path.suffix or path.exists() else published_weights(arch, name_or_path)


def load_model(
    model: Any,
    start: PublishedWeights | pathlib.Path,
    input_shape: tuple[int, ...],
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    ema: bool = False,
    seed: int = 0,
) -> tuple[Any, Any, int]:
    """Do what `load_weights` does, for a network at hand.

    Args:
        model: a network of the library.
        start: published weights or a file.
        input_shape: (height, width, channels) to initialise it with.
        num_classes: that of the weights unless given; 0 for no head.
        in_channels: those of the weights unless given.
        ema: take the average weights of a file that has raw ones as well.
        seed: of what is freshly initialised.

    Returns:
        The network with as many classes and auxiliary heads as its variables have, those variables,
        and how many channels it reads.
    """
    published = isinstance(start, PublishedWeights)
    path = fetch(start) if published else start
    fresh = start.fresh if published else None
    if num_classes == 0:
        model = model.headless()
    original, (*size, channels) = model, input_shape
    if hasattr(model, "transform_input"):  # for RGB only; no variable depends on it
        model = model.clone(transform_input=False)
    like = _trace(model, input_shape)
    shapes = _shapes(like)
    auxiliary: set[str] = set()
    if hasattr(model, "aux_logits"):
        other = model.clone(aux_logits=not model.aux_logits, num_classes=model.num_classes or 1)
        others = _shapes(_trace(other, input_shape))
        auxiliary = shapes.keys() ^ others.keys()
    state_dict = read_weights(path, shapes.keys() | auxiliary, ema=ema)
    state_dict = {key: v for key, v in state_dict.items() if not key.endswith(IGNORED)}
    read, state_dict = state_dict, fit_positions(state_dict, shapes)
    for key, value in state_dict.items():
        if value is not read[key]:
            lengths = f"{read[key].shape[1]} to {value.shape[1]} positions"
            warn(f"{key} is interpolated from {lengths}, for images of another size", above=2)
    lacking = (auxiliary & shapes.keys()) - state_dict.keys()
    if lacking and num_classes is None:
        original = original.clone(aux_logits=False)
        model, lacking = model.clone(aux_logits=False), set()
        like = _trace(model, input_shape)
        shapes = _shapes(like)
    for key in auxiliary - shapes.keys():  # torchvision's files have the heads always
        state_dict.pop(key, None)
    usual = model.num_classes
    is_as_it_is = (
        not fresh
        and in_channels in (None, channels)
        and num_classes in (None, usual)
        and state_dict.keys() == shapes.keys()
        and all(fits(key, value, shapes[key]) for key, value in state_dict.items())
    )
    if is_as_it_is:
        return original.clone(num_classes=usual), from_torch(state_dict, like), channels

    # The heads, and what reads the image, are what changes with their number.
    wider = _shapes(_trace(model.clone(num_classes=usual + 1), input_shape))
    heads = _changed(shapes, wider)
    stem = _changed(shapes, _shapes(_trace(model, (*size, channels + 1))))
    if not usual:
        state_dict = {k: v for k, v in state_dict.items() if k in shapes or k not in wider}

    renewed = [key for key in shapes if fresh and re.match(fresh, key)]
    fixed = {key: shape for key, shape in shapes.items() if key not in (*auxiliary, *stem)}
    main = [key for key in heads if key in fixed]
    unused = sorted(state_dict.keys() - shapes.keys())
    absent = [] if renewed else _without_head(state_dict, fixed, main, unused)
    if absent and num_classes is None:
        instead = "; " + list_keys("instead", unused) if unused else ""
        raise InputError(
            f"{path} has no head to classify with ({list_keys('missing', main)}{instead}); train "
            f"one from these weights (init from), or give num_classes for a fresh one"
        )
    renewed += absent
    known = [state_dict[key] for key in heads if key in state_dict and key not in renewed]
    counts = {len(value) for value in known if value.ndim}
    told = max(counts, default=usual)
    num_classes = told if num_classes is None else num_classes
    if counts - {num_classes}:
        others = [key for key in heads if key not in lacking]
        renewed = list(dict.fromkeys([*renewed, *others]))
    for key in stem:
        kernel = state_dict.get(key)
        if kernel is None or kernel.ndim != 4 or shapes[key][2] != input_shape[-1]:
            continue  # no convolution, or a separable one
        read, channels = kernel.shape[1], in_channels or kernel.shape[1]
        if read != channels:
            change = "summed over its" if channels == 1 else "repeated and scaled from"
            warn(f"{key} is {change} {read} channels for images of {channels}", above=2)
            state_dict[key] = adapt_input_channels(kernel.astype(np.float32), channels)

    channels = in_channels or channels
    model = model.clone(num_classes=num_classes)
    images = jnp.zeros((1, *size, channels))
    init = functools.partial(model.init, jax.random.key(seed), images)
    if renewed:
        modules = ", ".join(dict.fromkeys(key.rpartition(".")[0] for key in renewed))
        had = f"{told} classes" if counts else "none"
        left = f"; {list_keys('left out', unused)}" if absent and unused else ""
        warn(
            f"freshly initialised for {num_classes} classes (the weights have {had}): "
            f"{modules}{left}",
            above=2,
        )
    if lacking:
        modules = ", ".join(sorted({key.partition(".")[0] for key in lacking}))
        warn(f"freshly initialised (the weights have no such auxiliary heads): {modules}", above=2)
    if absent:
        state_dict = {key: value for key, value in state_dict.items() if key not in unused}
    if renewed or lacking:
        state_dict |= to_torch(unflatten_dict(_initial(init, {*renewed, *lacking})))
    variables = from_torch(state_dict, jax.eval_shape(init))
    return original.clone(num_classes=num_classes), variables, channels


def _without_head(
    state_dict: StateDict, shapes: dict[str, tuple], head: list[str], unused: list[str]
) -> list[str]:
    """Return the keys of the last layers that the weights lack, if they have no head.

    They have none if keys of the head are missing, or have other shapes than other classes give
    them, and all that does not fit stands under the head's first name, such as "classifier" or
    "fc", or under a name that the network does not have. Otherwise they are of another network.

    Args:
        state_dict: the weights.
        shapes: Flax's shapes, but for auxiliary heads and what reads the image.
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
    of_head = {key.partition(".")[0] for key in wrong} <= root
    of_body = not body.isdisjoint(key.partition(".")[0] for key in unused)
    return wrong if of_head and not of_body and len(wrong) < len(shapes) else []


def _trace(model: Any, input_shape: tuple[int, ...]) -> Any:
    """Return the shapes of the network's variables."""
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *input_shape)))


def _shapes(like: Any) -> dict[str, tuple[int, ...]]:
    """Return Flax's shapes under torch's keys."""
    leaves, keys = jax.tree.leaves(like), jax.tree.leaves(torch_keys(like))
    return {key: leaf.shape for key, leaf in zip(keys, leaves, strict=True)}


def _changed(shapes: dict[str, tuple], others: dict[str, tuple]) -> list[str]:
    return [key for key, shape in shapes.items() if others[key] != shape]


def _initial(init: Callable[[], Any], wanted: set[str]) -> dict[Any, Any]:
    """Return `model.init`'s own values of some variables by their paths; only they are drawn."""

    def chosen() -> dict[Any, Any]:
        variables = init()
        keys: dict[Any, Any] = flatten_dict(torch_keys(variables))
        values: dict[Any, Any] = flatten_dict(variables)
        return unflatten_dict({p: v for p, v in values.items() if keys[p] in wanted})

    return flatten_dict(drawn(chosen)())


def with_fresh_head(
    model: Any, variables: Any, input_shape: tuple[int, ...], num_classes: int, key: jax.Array
) -> tuple[Any, Any]:
    """Return the network and its variables with a new head of `num_classes` outputs, drawn by
    `key`; the other variables are kept.
    """
    model = model.clone(num_classes=num_classes)
    shapes = _shapes(_trace(model, input_shape))
    wider = _shapes(_trace(model.clone(num_classes=num_classes + 1), input_shape))
    init = functools.partial(model.init, key, jnp.zeros((1, *input_shape)))
    head = _initial(init, set(_changed(shapes, wider)))
    return model, unflatten_dict(flatten_dict(variables) | head)


def adapt_input_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Return a convolution's kernel (O, C, h, w) for images of another number of channels, as timm
    has it.

    For one channel it is the sum over C, so that a grey image gives what it gave as equal channels;
    for other numbers the channels in turn, scaled to keep the size of their sum.
    """
    own = kernel.shape[1]
    if channels == own:
        return kernel
    if channels == 1:
        return kernel.sum(1, keepdims=True)
    repeated = np.tile(kernel, (1, math.ceil(channels / own), 1, 1))[:, :channels]
    return repeated * kernel.dtype.type(own / channels)
