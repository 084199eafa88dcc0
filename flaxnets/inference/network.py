"""A trained network that can be called: its module, its variables and its preprocessing."""

import dataclasses
import functools
import importlib.resources
import math
import operator
import pathlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.data.plan import Plan
from flaxnets.errors import InputError
from flaxnets.inference import saved
from flaxnets.inference.dense import finest_map
from flaxnets.inference.features import (
    STRIDES,
    Level,
    feature_info,
    feature_names,
    features,
    pyramid,
)
from flaxnets.inference.inputs import (
    as_list,
    as_raw,
    check_size,
    name_of,
    own_statistics,
)
from flaxnets.inference.predict import predict_views
from flaxnets.inference.views import SHARES, VIEWS_PER_SIZE, check_views, views_of
from flaxnets.models import describe
from flaxnets.recipes import Statistics
from flaxnets.training.on_device import normalize
from flaxnets.types import AnyViews, Normalization
from flaxnets.weights.loading import with_fresh_head

IMAGENET = "ImageNet-1k"  # its training images, ILSVRC 2012
BATCH = 32  # views of pictures that are computed at once


@dataclasses.dataclass(frozen=True)
class Card:
    """What is known about a network's weights; None if it is not known."""

    source: str
    """A run's directory, a file, or the names of the network and of its published weights."""
    training_data: str | None = None
    """The data set: as train.py names it, or "ImageNet-1k"."""
    accuracy: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Shares of the test images: "top1", "top5"; for numbers "loss", the mean squared error."""
    licence: str | None = None


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A class that a network sees in a picture."""

    index: int
    name: str
    score: float | None
    """The logit; None where several views are averaged."""
    probability: float


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Network:
    """A trained network, which `flaxnets.pretrained` opens.

    Pictures are paths, bytes of files, Pillow images, or uint8 arrays (height, width, channels) as
    read from files; the network preprocesses them. Programs are compiled at the first call, and
    again for another number of pictures.
    """

    model: Any
    """The linen module, a `flaxnets.models.base.Model`."""
    variables: Any
    """Its variables, for `model.apply`."""
    preprocessing: Plan
    """The plan from a picture to network input, uint8."""
    statistics: Statistics
    """Mean and deviation of each channel, by which network input is normalised."""
    classes: tuple[str, ...]
    """Names of the classes; empty if the network gives numbers or features."""
    card: Card

    def __repr__(self) -> str:
        return f"<Network {self.arch} from {self.card.source}, {len(self.classes)} classes>"

    @functools.cached_property
    def arch(self) -> str:
        """The library's name of the network, or the name of its Python class."""
        try:
            return describe(self.model)[0]
        except InputError:
            return type(self.model).__name__

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of network input."""
        size = self.preprocessing.size
        return size, size, len(self.statistics[0])

    @functools.cached_property
    def feature_names(self) -> list[str]:
        """Names of layers that `features` accepts."""
        return feature_names(self.model, self.variables, jnp.zeros((1, *self.input_shape)))

    @functools.cached_property
    def feature_info(self) -> tuple[Level, ...]:
        """Stride, name and channels of each map that `pyramid` can give, from shapes alone."""
        return feature_info(self.model)

    def __call__(self, pictures: Any) -> jax.Array:
        """Return logits (N, outputs) of pictures, or (outputs,) of a single one, float32.

        Raises InputError if one cannot be read; the message names it.
        """

        def logits(variables: Any, images: dict[str, jax.Array], statistics: Any) -> jax.Array:
            views = predict_views(self.model, variables, [images["image"]], statistics)[0][0]
            return views[:, 0]

        return self._compute("logits", logits, pictures)

    def classify(
        self,
        pictures: Any,
        top: int = 5,
        *,
        views: AnyViews = "center",
        normalization: Normalization = "training",
        seed: int = 0,
    ) -> Any:
        """Return the `top` best classes of a picture, the best first; of several, a list for each.

        Args:
            pictures: one or several.
            top: how many classes.
            views: the views whose class probabilities are averaged (`flaxnets.inference.views`), or
                "whole" for the whole picture, not scaled.
            normalization: "training" normalises by the statistics of the training data; "image"
                gives 0.5 + 0.5 * (x - mean) / std, with the statistics of the picture itself.
            seed: of random views.

        Returns:
            A `Prediction` for each class. A network that gives numbers returns those.

        Raises:
            InputError: a picture that cannot be read, views that the network does not have, or a
                network without a head.
        """
        if top < 1:
            raise InputError(f"top is {top}; expected at least 1")
        if not self.model.num_classes:
            raise InputError(f"{self.arch} has no head and so no classes; see network.with_head")
        self.check_views(views)
        if not self.classes:
            numbers = np.asarray(self(pictures))
            return (numbers[..., 0] if numbers.shape[-1] == 1 else numbers).tolist()
        model = finest_map(self.model) if views == "multi-scale" else self.model
        count = 1 if views == "whole" else VIEWS_PER_SIZE[views]

        def predictions(variables: Any, images: dict[str, jax.Array], statistics: Any) -> Any:
            logits, log_probabilities = predict_views(
                model, variables, list(images.values()), statistics, SHARES.get(views)
            )
            return (logits[0][:, 0] if count == 1 else None), log_probabilities

        def prepare(raw: Any, name: str) -> tuple[dict[str, np.ndarray], Statistics]:
            statistics = self.statistics
            if normalization == "image":
                statistics = own_statistics(self.preprocessing.decode(raw, name=name).image)
            if views == "whole":
                return self._whole(raw, name), statistics
            return views_of(raw, self.preprocessing, views, (seed,), name), statistics

        is_of_one_kind = views != "whole" and normalization == "training"
        size = max(BATCH // count, 1) if is_of_one_kind else 1
        scores, logs = jax.device_get(
            self._compute(("classify", views), predictions, pictures, prepare, size)
        )
        if logs.ndim == 1:
            return self._best(scores, logs, top)
        rows = [None] * len(logs) if scores is None else scores
        return [self._best(*row, top) for row in zip(rows, logs, strict=True)]

    def check_views(self, views: AnyViews) -> None:
        """Raise InputError if the network does not have such views."""
        if views != "whole":
            check_views(views, self.preprocessing)
        elif not hasattr(self.model, "dense"):
            raise InputError(f"{self.arch} reads pictures of one size; expected the view 'center'")

    def dense(self, picture: Any) -> jax.Array:
        """Return the map of logits (H', W', classes) of one picture of any size, which is not
        scaled: the network's answer at every position (`flaxnets.inference.dense`).

        Raises InputError if the network has no map, or the picture is too small or too large.
        """
        model = finest_map(self.model)
        if not as_list(picture, self.preprocessing)[1]:
            raise InputError("several pictures are given; expected one")

        def scores(variables: Any, images: dict[str, jax.Array], statistics: Any) -> jax.Array:
            return predict_views(model, variables, [images["image"]], statistics)[0][0][:, 0]

        return self._compute(
            "dense", scores, picture, lambda raw, name: (self._whole(raw, name), self.statistics)
        )

    def features(self, pictures: Any, names: Sequence[str]) -> dict[str, jax.Array]:
        """Return activations by the torch names of layers, (N, H', W', C') for most layers, without
        the first axis for a single picture (`flaxnets.inference.features`).

        Raises InputError for an unknown name, with the nearest one of `feature_names`.
        """

        def activations(variables: Any, images: dict[str, jax.Array], statistics: Any) -> Any:
            x = normalize(images["image"][:, 0], *statistics)
            return features(self.model, variables, x, names)

        outputs = self._compute(("features", *names), activations, pictures)
        return {name: outputs[name] for name in names}

    def pyramid(self, pictures: Any, strides: Sequence[int] = STRIDES) -> list[jax.Array]:
        """Return the last map of each stride, (N, H', W', C'), without the first axis for a single
        picture. Nothing deeper is computed; `feature_info` tells the channels in advance.

        Raises InputError if the network has no map of a stride.
        """

        def maps(variables: Any, images: dict[str, jax.Array], statistics: Any) -> Any:
            x = normalize(images["image"][:, 0], *statistics)
            return pyramid(self.model, variables, x, strides, self.feature_info)

        return self._compute(("pyramid", *strides), maps, pictures)

    def with_head(
        self, num_classes: int, key: jax.Array, classes: Sequence[str] | None = None
    ) -> "Network":
        """Return the network with a new last layer, initialised with `key`; everything else is
        kept.

        Args:
            num_classes: outputs of the new layer.
            key: a key of `jax.random`.
            classes: their names; "class 0" and so on unless given.

        Raises:
            InputError: a number below one, or another number of names.
        """
        if num_classes < 1:
            raise InputError(f"num_classes is {num_classes}; expected at least 1")
        model, variables = with_fresh_head(
            self.model, self.variables, self.input_shape, num_classes, key
        )
        return Network(
            model,
            variables,
            self.preprocessing,
            self.statistics,
            class_names(classes, num_classes),
            Card(f"{self.card.source}, with a new head", licence=self.card.licence),
        )

    def save(self, path: str | pathlib.Path) -> None:
        """Write the network to one .safetensors file, which `flaxnets.pretrained` opens again.

        Raises InputError if it is no network of the library, or the file cannot be written.
        """
        described = {
            "preprocessing": self.preprocessing.to_json(),
            "statistics": self.statistics,
            "classes": self.classes,
            "card": dataclasses.asdict(self.card),
        }
        saved.write(pathlib.Path(path), self.model, self.variables, described)

    @functools.cached_property
    def _programs(self) -> dict[Any, Callable[..., Any]]:
        return {}

    def _compute(
        self,
        kind: Hashable,
        function: Callable[[Any, dict[str, jax.Array], Any], Any],
        pictures: Any,
        prepare: Callable[[Any, str], tuple[dict[str, np.ndarray], Statistics]] | None = None,
        size: int = BATCH,
    ) -> Any:
        """Apply a function to pictures, compiled and `size` pictures at a time.

        Args:
            kind: what the function depends on besides its arguments; the key of its program.
            function: of variables, views of pictures (N, V, H, W, C) and statistics; gives a tree
                of arrays (N, ...), which have no first axis for a single picture.
            pictures: one or several.
            prepare: gives the views and statistics of one raw picture and its name; by the plan
                unless given. Statistics of one batch are the same.
            size: pictures of a batch; the last of several batches is padded with zeros.
        """
        pictures, is_single = as_list(pictures, self.preprocessing)

        def of_one(*arguments: Any) -> Any:
            return jax.tree.map(lambda x: x[0], function(*arguments))

        if (kind, is_single) not in self._programs:
            self._programs[kind, is_single] = jax.jit(of_one if is_single else function)
        program = self._programs[kind, is_single]
        results = []
        for start in range(0, len(pictures), size):
            prepared = []
            for index, picture in enumerate(pictures[start : start + size], start):
                name = name_of(picture, None if is_single else index)
                raw = as_raw(picture, self.preprocessing, name)
                prepared.append((prepare or self._as_fed)(raw, name))
            sizes, own = prepared[0]
            images = {key: np.stack([views[key] for views, _ in prepared]) for key in sizes}
            rest = size - len(prepared) if start else 0
            if rest:
                images = {key: np.pad(x, [(0, rest)] + [(0, 0)] * 4) for key, x in images.items()}
            statistics = tuple(np.array(values, np.float32) for values in own)
            result = program(self.variables, images, statistics)
            if rest:
                result = jax.tree.map(operator.itemgetter(slice(-rest)), result)
            results.append(result)
        if len(results) == 1:
            return results[0]
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *results)

    def _as_fed(self, raw: Any, name: str) -> tuple[dict[str, np.ndarray], Statistics]:
        return {"image": self.preprocessing(raw, name=name)[None]}, self.statistics

    def _whole(self, raw: Any, name: str) -> dict[str, np.ndarray]:
        picture = self.preprocessing.decode(raw, name=name)
        check_size(picture.size)
        return {"image": picture.pixels[None]}

    def _best(self, scores: Any, log_probabilities: Any, top: int) -> list[Prediction]:
        order = np.argsort(
            -np.asarray(log_probabilities if scores is None else scores), stable=True
        )
        return [
            Prediction(
                int(index),
                self.classes[index],
                None if scores is None else float(scores[index]),
                math.exp(log_probabilities[index]),
            )
            for index in order[:top]
        ]


def imagenet_class_names() -> tuple[str, ...]:
    """Return the 1000 classes in the order of the published weights, as torchvision names them."""
    file = importlib.resources.files("flaxnets.inference") / "imagenet_classes.txt"
    return tuple(file.read_text("utf-8").splitlines())


def class_names(names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """Return the names of `count` classes: "class 0" and so on unless given.

    Raises InputError if another number is given.
    """
    if names is None:
        return tuple(f"class {index}" for index in range(count))
    if len(names) != count:
        raise InputError(f"{len(names)} class names are given; the network has {count} classes")
    return tuple(names)
