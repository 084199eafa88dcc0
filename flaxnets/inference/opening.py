"""Open trained networks of every kind: `flaxnets.pretrained`."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from flaxnets.convert import from_torch, torch_keys
from flaxnets.data.plan import Plan, evaluation_plan
from flaxnets.data.source import IMAGENET_STATISTICS
from flaxnets.errors import InputError, one_of
from flaxnets.inference import saved
from flaxnets.inference.network import Network
from flaxnets.inference.results import IMAGENET, Card, class_names, imagenet_class_names
from flaxnets.inference.run import load_run
from flaxnets.models import NAMES, create_model, describe
from flaxnets.recipes import Kind, Orientation, Preprocessing, Statistics, recipe_for
from flaxnets.weights import PublishedWeights, find_weights, load_model, published_weights
from flaxnets.weights.files import read_weights
from flaxnets.weights.loading import check_in_channels


def pretrained(
    source: str | os.PathLike | tuple[Any, Any],
    weights: str | os.PathLike | None = None,
    *,
    preprocessing: Plan | str | None = None,
    statistics: Statistics | None = None,
    classes: Sequence[str] | None = None,
    orientation: Orientation | None = None,
    kind: Kind = "photographs",
    ema: bool = False,
    in_channels: int | None = None,
    **fields: Any,
) -> Network:
    """Return a trained network that can be called on pictures.

        network = pretrained("resnet50", "IMAGENET1K_V2")  # published weights
        network = pretrained("resnet50", "mine.pth")  # a file of weights, torch or safetensors
        network = pretrained("runs/vgg19-digits")  # a run of train.py
        network = pretrained("mine.safetensors")  # a file of network.save
        network = pretrained((model, variables))  # a module with its variables
        network.classify("dog.jpg")

    Args:
        source: name of a network; directory of a run; file that `network.save` wrote; or a module
            with its variables, (model, variables).
        weights: weights of a network opened by name: the name of published weights, by default
            "IMAGENET1K_V1", or a file.
        preprocessing: a plan, or the name of published weights to use their plan and statistics. By
            default that of the run, of the published weights, or of the network's recipe for data
            of that `kind`.
        statistics: mean and deviation of each channel, of pixels in 0..1. By default those that
            belong to the preprocessing, or ImageNet's if nothing is known about the weights.
        classes: names of the classes. By default those of the run, ImageNet's if there are 1000,
            or "class 0" and so on.
        orientation: turn pictures "upright" as EXIF says, or read them as "stored". By default as
            in the run, or upright.
        kind: kind of data on which the network was trained: "photographs", "small images" or
            "rows". Only for a network opened by name or from a module.
        ema: use the average weights of a file that has raw ones too.
        in_channels: channels of the pictures, as for `load_weights`. Only for a network opened by
            name.
        fields: fields of a network opened by name, as for `create_model`; `num_classes` as for
            `load_weights`.

    Returns:
        The network. Its variables are on the default device.

    Raises:
        InputError: a name is wrong, a file is missing, broken or of another network, or an argument
            does not go with the source.
    """
    row = preprocessing if isinstance(preprocessing, str) else None
    if isinstance(source, str) and source in NAMES:
        check_in_channels(in_channels)
        start = _start(source, weights)
        _check_start(start, source, ema, fields.get("num_classes"))
        if isinstance(start, PublishedWeights):
            fields = {**start.shaping_fields, **fields}
        elif row is not None:
            fields = {**published_weights(source, row).shaping_fields, **fields}
        model: Any = create_model(source, **fields)
        if hasattr(model, "aux_logits") and "aux_logits" not in fields:
            model = model.clone(aux_logits=False)  # for training, and some files lack them
        model, variables, channels = load_model(
            model,
            start,
            model.input_shape,
            num_classes=fields.get("num_classes"),
            in_channels=in_channels,
            ema=ema,
        )
        if isinstance(start, PublishedWeights):
            row = row or start.name
        plan, known = _prepared(source, model, row, kind, channels, statistics)
        outputs = _classes(source, kind, model.num_classes)
        card = _card(start)
        network = Network(model, jax.device_put(variables), plan, known, outputs, card)
    elif weights is not None or ema or in_channels or fields:
        options = {"weights": weights, "ema": ema, "in_channels": in_channels}
        names = [name for name, value in options.items() if value] + list(fields)
        if isinstance(source, str):
            one_of(NAMES, source, "architecture")
        raise InputError(
            f"{', '.join(names)} cannot be given with a source that has its own weights; expected "
            "the name of a network"
        )
    elif isinstance(source, tuple):
        network = _at_hand(*source, row, kind, preprocessing, statistics)
    else:
        network = _stored(source)
        if row is not None:
            arch, model, channels = network.arch, network.model, network.input_shape[-1]
            plan, known = _prepared(arch, model, row, kind, channels, statistics)
            network = dataclasses.replace(network, preprocessing=plan, statistics=known)
    own: dict[str, Any] = {}
    if isinstance(preprocessing, Plan):
        own["preprocessing"] = preprocessing
    if statistics is not None:
        own["statistics"] = statistics
    if classes is not None:
        own["classes"] = class_names(classes, network.model.num_classes)
    own["preprocessing"] = oriented(own.get("preprocessing", network.preprocessing), orientation)
    return dataclasses.replace(network, **own)


def oriented(plan: Plan, orientation: Orientation | None) -> Plan:
    """Return the plan with another orientation of pictures, unless it is None."""
    if orientation is None or not plan.operations:
        return plan
    decode = dataclasses.replace(plan.decode, orientation=orientation)
    return Plan((decode, *plan.operations[1:]))


def _start(arch: str, weights: str | os.PathLike | None) -> PublishedWeights | pathlib.Path:
    """Return the published weights or the file that `weights` names."""
    if weights is None:
        return published_weights(arch)
    return find_weights(arch, weights) if isinstance(weights, str) else pathlib.Path(weights)


def _check_start(
    start: PublishedWeights | pathlib.Path, arch: str, ema: bool, num_classes: int | None
) -> None:
    """Raise InputError if published weights lack averages or classes that are asked for."""
    if isinstance(start, PublishedWeights):
        if ema:
            raise InputError(
                f"the weights {start.name} of {arch} have no averages; leave out ema, or give a "
                "file of weights"
            )
        if not start.classes and num_classes is None:
            raise InputError(
                f"the weights {start.name} of {arch} are features without classes; give "
                "num_classes for a fresh head"
            )


def _prepared(
    arch: str,
    model: Any,
    row: str | None,
    kind: Kind,
    channels: int,
    statistics: Statistics | None,
) -> tuple[Plan, Statistics]:
    """Return the preprocessing and statistics of a network for images with a number of channels.

    They are those of the published weights `row`, or of the network's recipe for a kind of data.

    Raises InputError if the statistics of so many channels are neither given nor known.
    """
    if row is None:
        mean, std = IMAGENET_STATISTICS
        values = recipe_for(arch, kind).preprocessing
        side = getattr(model, "image_size", None)
        if side is not None and kind == "photographs":
            resize = values.resize * side // values.image_size
            values = dataclasses.replace(values, image_size=side, resize=resize)
    else:
        published, kind = published_weights(arch, row), "photographs"
        mean, std = published.statistics
        if getattr(model, "transform_input", False):  # the network scales to -1..1 itself
            mean, std = published.mean, published.std
        values = Preprocessing(
            image_size=published.crop,
            resize=published.resize,
            interpolation=published.interpolation,
        )
    if statistics is None:
        if channels > len(mean):
            raise InputError(
                f"the statistics of {channels} channels are not known; give statistics, the mean "
                "and deviation of each channel"
            )
        statistics = mean[:channels], std[:channels]
    return evaluation_plan(values, kind, channels), statistics


def _classes(arch: str, kind: Kind, count: int) -> tuple[str, ...]:
    """Return the default names of a network's classes; none if it gives numbers."""
    if kind == "rows" and recipe_for(arch, kind).loss == "squared_error":
        return ()
    return imagenet_class_names() if count == 1000 else class_names(None, count)


def _card(start: PublishedWeights | pathlib.Path) -> Card:
    """Return what is known about published weights or a file."""
    if isinstance(start, PublishedWeights):
        accuracy = {"top1": start.top1 / 100, "top5": start.top5 / 100} if start.classes else {}
        return Card(f"{start.arch} {start.name}", IMAGENET, accuracy, start.licence)
    return Card(str(start))


def _stored(source: Any) -> Network:
    """Return the network of a run's directory, or of a file that `network.save` wrote."""
    if not isinstance(source, str | os.PathLike):
        raise InputError(
            f"cannot open a network from a value of type {type(source).__name__}; expected a name, "
            "a path, or a module with its variables, (model, variables)"
        )
    path = pathlib.Path(source)
    if path.is_file():
        return _saved(path)
    if isinstance(source, str) and path.name == source and not path.suffix and not path.exists():
        one_of(NAMES, source, "architecture")  # a mistyped name, not a path
    return load_run(path)


def _saved(path: pathlib.Path) -> Network:
    """Return the network of a file that `network.save` wrote."""
    model, described = saved.read_header(path)
    try:
        mean, std = described["statistics"]
        network = Network(
            model,
            variables=None,
            preprocessing=Plan.from_json(described["preprocessing"]),
            statistics=(tuple(mean), tuple(std)),
            classes=tuple(described["classes"]),
            card=Card(**described["card"]),
        )
        like = _shapes(model, network.input_shape)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} has a header that network.save did not write; give the name of the network too"
        ) from error
    state_dict = read_weights(path, jax.tree.leaves(torch_keys(like)))
    return dataclasses.replace(network, variables=jax.device_put(from_torch(state_dict, like)))


def _at_hand(
    model: Any,
    variables: Any,
    row: str | None,
    kind: Kind,
    preprocessing: Plan | str | None,
    statistics: Statistics | None,
) -> Network:
    """Return the network of a module with its variables."""
    card = Card(f"{type(model).__name__} at hand")
    if isinstance(preprocessing, Plan) and statistics is not None:
        classes = class_names(None, getattr(model, "num_classes", 0))
        return Network(model, variables, preprocessing, statistics, classes, card)
    try:
        arch, _ = describe(model)
    except InputError as error:
        raise InputError(f"{error}; give preprocessing (a plan) and statistics") from error
    shapes = jax.tree.map(jnp.shape, variables)
    *size, usual = model.input_shape
    for channels in (usual, 1, 3, len(statistics[0]) if statistics else 3):
        if jax.tree.map(lambda leaf: leaf.shape, _shapes(model, (*size, channels))) == shapes:
            break
    else:
        raise InputError(
            f"the variables do not fit this {type(model).__name__}; expected the shapes of "
            "model.init"
        )
    plan, known = _prepared(arch, model, row, kind, channels, statistics)
    return Network(model, variables, plan, known, _classes(arch, kind, model.num_classes), card)


def _shapes(model: Any, input_shape: tuple[int, ...]) -> Any:
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *input_shape)))
