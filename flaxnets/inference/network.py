"""A trained network with all that it takes to classify a picture."""

import dataclasses
import functools
import importlib.resources
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.data.plan import Plan, evaluation_plan
from flaxnets.data.source import IMAGENET_STATISTICS
from flaxnets.errors import InputError
from flaxnets.inference.run import load_run
from flaxnets.models import create_model
from flaxnets.recipes import Kind, Orientation, Preprocessing, Statistics, recipe_for
from flaxnets.weights import load_weights, published_weights


@dataclasses.dataclass(frozen=True)
class Network:
    """`model.apply(variables, images)` of images that `plan` makes and `statistics` (mean and
    deviation of each channel) normalise, and what it tells apart.

    `name` says where it came from: a workdir, a file, or the name of published weights. `dataset`
    is what `experiments/train.py` trained it on.
    """

    name: str
    arch: str
    model: nn.Module
    variables: Any
    plan: Plan
    statistics: Statistics
    class_names: tuple[str, ...]
    dataset: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """How the options of a script name one trained network."""

    arch: str | None = None
    """Name of a network: flaxnets.list_models()."""
    weights: str | None = None
    """Published weights such as IMAGENET1K_V1; beside --checkpoint, their preprocessing alone."""
    checkpoint: pathlib.Path | None = None
    """A file of weights instead, of safetensors or torch."""
    ema: bool = False
    """Take the average weights of a --checkpoint that has raw ones as well."""
    class_names: pathlib.Path | None = None
    """Text file with a line for each class; ImageNet's unless given."""
    workdir: pathlib.Path | None = None
    """A run of train.py instead of a name and weights."""
    orientation: Orientation | None = None
    """Pictures are turned upright as EXIF says, or taken as they are stored (torchvision's
    reading); as in the run, or upright, unless given."""

    def open(self) -> Network:
        """Raises InputError for what is missing, contradictory or wrong."""
        if self.workdir is not None:
            if self.arch or self.weights or self.checkpoint or self.ema:
                raise InputError(
                    "--workdir names a network with its weights; give nothing beside it"
                )
            return from_workdir(self.workdir, self.orientation)
        if self.arch is None:
            raise InputError("no network given; expected --arch NAME or --workdir DIR")
        return from_weights(
            self.arch,
            self.weights,
            self.checkpoint,
            self.class_names,
            ema=self.ema,
            orientation=self.orientation,
        )


def imagenet_class_names() -> tuple[str, ...]:
    """The 1000 classes in the order of the published weights, as torchvision names them."""
    file = importlib.resources.files("flaxnets.inference") / "imagenet_classes.txt"
    return tuple(file.read_text("utf-8").splitlines())


def from_workdir(path: pathlib.Path, orientation: Orientation | None = None) -> Network:
    """Return the newest checkpoint of a run of `experiments/train.py`, with the plan of its
    evaluation; `orientation` of pictures is the run's unless given.

    Raises InputError if there is none.
    """
    run = load_run(path)
    return Network(
        str(path),
        run.arch,
        run.model,
        run.variables,
        oriented(run.plan, orientation),
        run.statistics,
        run.class_names,
        run.dataset,
    )


def oriented(plan: Plan, orientation: Orientation | None) -> Plan:
    """Return the plan with another orientation of pictures, if one is given."""
    if orientation is None or not plan.operations:
        return plan
    decode = dataclasses.replace(plan.decode, orientation=orientation)
    return Plan((decode, *plan.operations[1:]))


def from_weights(
    arch: str,
    weights: str | None = None,
    checkpoint: pathlib.Path | None = None,
    class_names: pathlib.Path | None = None,
    *,
    ema: bool = False,
    orientation: Orientation | None = None,
    kind: Kind = "photographs",
) -> Network:
    """Published weights, or those of a file.

    Args:
        arch: name of the network.
        weights: torchvision's name, such as "IMAGENET1K_V1"; beside a `checkpoint` it names the
            preprocessing alone, without it that of the recipe for `kind` is used, with
            ImageNet's statistics: for photographs torchvision's own for its networks.
        checkpoint: a file of safetensors or torch; nothing is downloaded.
        class_names: a text file with a line for each class. ImageNet's names unless given, or
            numbers where there are not 1000 classes.
        ema: take the average weights of a `checkpoint` that has raw ones as well.
        orientation: of pictures; "upright" unless given.
        kind: of the data, which decides the recipe whose preprocessing is used.

    Raises InputError for wrong names, and files that are absent, broken or of another network.
    """
    model = create_model(arch)
    # Auxiliary heads are for training, and some files do not have them.
    fields: dict[str, Any] = {"aux_logits": False} if hasattr(model, "aux_logits") else {}
    model = model.clone(**fields)
    if ema and checkpoint is None:
        raise InputError("average weights are asked for of no file; expected --checkpoint FILE")
    if weights is None and checkpoint is None:
        raise InputError(
            f"no weights of {arch} given; expected --weights NAME or --checkpoint FILE"
        )
    row = None if weights is None else published_weights(arch, weights)
    if checkpoint is not None:
        name = str(checkpoint)
        variables = load_weights(arch, checkpoint=checkpoint, ema=ema, **fields)
    else:
        assert row is not None
        if not row.classes:
            raise InputError(f"the weights {row.name} of {arch} are features only, without classes")
        name, variables = f"{arch} {row.name}", load_weights(arch, row.name, **fields)
    classes, channels = _outputs_and_channels(model, variables)
    if row is not None:
        mean, std = row.statistics
        how = Preprocessing(image_size=row.crop, resize=row.resize, interpolation=row.interpolation)
        kind = "photographs"
    else:
        mean, std = IMAGENET_STATISTICS
        how = recipe_for(arch, kind).preprocessing
    plan = oriented(evaluation_plan(how, kind, channels), orientation)
    return Network(
        name,
        arch,
        model.clone(num_classes=classes),
        variables,
        plan,
        (mean[:channels], std[:channels]),
        _class_names(class_names, classes),
    )


def _class_names(path: pathlib.Path | None, classes: int) -> tuple[str, ...]:
    if path is None:
        if classes == 1000:
            return imagenet_class_names()
        return tuple(f"class {index}" for index in range(classes))
    try:
        names = tuple(path.read_text("utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read class names from {path} ({error})") from error
    if len(names) != classes:
        raise InputError(
            f"{path} has {len(names)} lines; the network tells {classes} classes apart"
        )
    return names


def _outputs_and_channels(model: nn.Module, variables: Any) -> tuple[int, int]:
    """Read off where the shapes differ from the network's usual ones."""
    *size, channels = model.input_shape
    init = functools.partial(model.init, jax.random.key(0), jnp.zeros((1, *size, channels)))
    outputs = model.num_classes
    for usual, given in zip(
        jax.tree.leaves(jax.eval_shape(init)), jax.tree.leaves(variables), strict=True
    ):
        if given.shape[-1] != usual.shape[-1]:
            outputs = given.shape[-1]
        if given.ndim > 1 and given.shape[-2] != usual.shape[-2]:
            channels = given.shape[-2]
    return outputs, channels
