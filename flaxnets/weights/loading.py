"""Load the weights of a file into the variables of a network, which may have other classes."""

import functools
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from flaxnets.convert import IGNORED, fit_positions, fits, from_torch, list_keys, to_torch
from flaxnets.errors import InputError
from flaxnets.models import create_model
from flaxnets.weights.adaptation import (
    adapt_input_channels,
    changed_keys,
    initial_values,
    missing_head,
    shapes_by_key,
    trace_shapes,
)
from flaxnets.weights.download import fetch
from flaxnets.weights.files import read_weights, warn
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

    `flaxnets.pretrained` opens the same weights together with their preprocessing and classes.

    Some published weights expect fields of the network: `transform_input` of GoogLeNet and
    Inception v3, `image_size` of vision transformers. Give `published_weights(arch, name).fields`
    to `create_model`.

    Args:
        arch: name of the network.
        name: torchvision's name of the weights, or "DEFAULT" for the most accurate ones.
        num_classes: number of classes; by default that of the weights. If given, parts that the
            weights lack are freshly initialised: the last layer (also of auxiliary heads) if the
            weights have another number of classes, and a head or auxiliary head that they do not
            have. 0 leaves out the head.
        in_channels: channels of the images; by default as many as the weights read. For another
            number, the kernel of the first convolution is summed over its channels (for one
            channel), or its channels are repeated and scaled, as in timm's `adapt_input_conv`
            (timm/models/_manipulate.py).
        checkpoint: file of weights of any network, used instead of published ones; nothing is
            downloaded. It may be of safetensors or torch, have torch's or timm's keys, be a
            training script's checkpoint, and have a prefix before every key.
        ema: use the average weights of a file that has raw ones too.
        seed: seed of what is freshly initialised.
        fields: fields of the network that change its variables, as for `create_model`.

    Returns:
        A tree of float32 NumPy arrays with the structure of `model.init`'s result. Without
        `num_classes` it has no auxiliary heads if the weights have none. Warns (WeightsWarning) if
        a part does not come from the weights as it is.

    Raises:
        InputError: a name is unknown; a file is missing, broken, or of another network; it has no
            head and `num_classes` is not given; a download fails, or its SHA-256 is not the
            published one.
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
    """Raise InputError if no image has that number of channels."""
    if in_channels is not None and in_channels < 1:
        raise InputError(f"in_channels is {in_channels}; expected at least 1")


def find_weights(arch: str, name_or_path: str) -> PublishedWeights | pathlib.Path:
    """Return the published weights of a name, or the file if it is a path."""
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
    """Load weights as `load_weights` does, into an existing network.

    Args:
        model: a network of the library.
        start: published weights or a file.
        input_shape: (height, width, channels) of the images with which it is initialised.
        num_classes: number of classes, 0 for no head; by default that of the weights.
        in_channels: channels of the images; by default those of the weights.
        ema: use the average weights of a file that has raw ones too.
        seed: seed of what is freshly initialised.

    Returns:
        The network with the classes and auxiliary heads of its variables, those variables, and the
        number of channels that it reads.

    Raises:
        InputError: as `load_weights`.
    """
    published = isinstance(start, PublishedWeights)
    path = fetch(start) if published else start
    fresh = start.fresh if published else None
    if num_classes == 0:
        model = model.headless()
    original, (*size, channels) = model, input_shape
    if hasattr(model, "transform_input"):  # for RGB only; no variable depends on it
        model = model.clone(transform_input=False)
    like = trace_shapes(model, input_shape)
    shapes = shapes_by_key(like)
    auxiliary: set[str] = set()
    if hasattr(model, "aux_logits"):
        other = model.clone(aux_logits=not model.aux_logits, num_classes=model.num_classes or 1)
        others = shapes_by_key(trace_shapes(other, input_shape))
        auxiliary = shapes.keys() ^ others.keys()
    state_dict = read_weights(path, shapes.keys() | auxiliary, ema=ema)
    state_dict = {key: v for key, v in state_dict.items() if not key.endswith(IGNORED)}
    stored, state_dict = state_dict, fit_positions(state_dict, shapes)
    for key, value in state_dict.items():
        if value is not stored[key]:
            lengths = f"{stored[key].shape[1]} to {value.shape[1]} positions"
            warn(f"{key} is interpolated from {lengths}, for images of another size", above=2)
    lacking = (auxiliary & shapes.keys()) - state_dict.keys()
    if lacking and num_classes is None:
        original = original.clone(aux_logits=False)
        model, lacking = model.clone(aux_logits=False), set()
        like = trace_shapes(model, input_shape)
        shapes = shapes_by_key(like)
    for key in auxiliary - shapes.keys():  # torchvision's files always have auxiliary heads
        state_dict.pop(key, None)
    usual = model.num_classes
    fits_as_it_is = (
        not fresh
        and in_channels in (None, channels)
        and num_classes in (None, usual)
        and state_dict.keys() == shapes.keys()
        and all(fits(key, value, shapes[key]) for key, value in state_dict.items())
    )
    if fits_as_it_is:
        return original.clone(num_classes=usual), from_torch(state_dict, like), channels

    # Heads change their shapes with the number of classes, and the stem with the channels.
    wider = shapes_by_key(trace_shapes(model.clone(num_classes=usual + 1), input_shape))
    heads = changed_keys(shapes, wider)
    stem = changed_keys(shapes, shapes_by_key(trace_shapes(model, (*size, channels + 1))))
    if not usual:
        state_dict = {k: v for k, v in state_dict.items() if k in shapes or k not in wider}

    renewed = [key for key in shapes if fresh and re.match(fresh, key)]
    fixed = {key: shape for key, shape in shapes.items() if key not in (*auxiliary, *stem)}
    main = [key for key in heads if key in fixed]
    unused = sorted(state_dict.keys() - shapes.keys())
    absent = [] if renewed else missing_head(state_dict, fixed, main, unused)
    if absent and num_classes is None:
        instead = "; " + list_keys("instead", unused) if unused else ""
        raise InputError(
            f"{path} has no classification head ({list_keys('missing', main)}{instead}); give "
            f"num_classes for a fresh one, or train one from these weights (init from)"
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
            warn(f"{key} is {change} {read} channels, as the images have {channels}", above=2)
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
        state_dict |= to_torch(unflatten_dict(initial_values(init, {*renewed, *lacking})))
    variables = from_torch(state_dict, jax.eval_shape(init))
    return original.clone(num_classes=num_classes), variables, channels
