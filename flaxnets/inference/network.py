"""A trained network that can be called: its module, its variables and its preprocessing."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
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
from flaxnets.inference.inputs import as_list, check_size, own_statistics
from flaxnets.inference.predict import predict_views
from flaxnets.inference.programs import BATCH, Programs
from flaxnets.inference.results import Card, best_classes, class_names
from flaxnets.inference.views import SHARES, VIEWS_PER_SIZE, check_views, views_of
from flaxnets.models import describe
from flaxnets.recipes import Statistics
from flaxnets.training.on_device import normalize
from flaxnets.types import AnyViews, Normalization
from flaxnets.weights.adaptation import with_fresh_head


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Network:
    """A trained network that can be called on pictures; `flaxnets.pretrained` opens it.

        network = pretrained("resnet50", "IMAGENET1K_V2")
        logits = network("dog.jpg")  # (1000,), float32
        network.classify("dog.jpg", top=3)

    A picture is a path, the bytes of a file, a Pillow image, or a uint8 array (height, width,
    channels) with values 0..255 as read from a file. The network preprocesses pictures itself. A
    network for rows of features reads arrays of numbers (features,) instead.

    Methods take one picture or several (a list, or an array with one more axis). Programs are
    compiled at the first call, and again for another number of pictures.
    """

    model: Any
    """The linen module, a `flaxnets.models.base.Model`."""
    variables: Any
    """Variables of the module, for `model.apply`."""
    preprocessing: Plan
    """Plan that turns a picture into network input: uint8 (height, width, channels)."""
    statistics: Statistics
    """Mean and deviation of each channel, of values in 0..1, by which input is normalised."""
    classes: tuple[str, ...]
    """Names of the classes; empty if the network gives numbers or features."""
    card: Card
    """What is known about the weights: source, training data, accuracy and licence."""

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
        """(height, width, channels) of network input, in pixels."""
        size = self.preprocessing.size
        return size, size, len(self.statistics[0])

    @functools.cached_property
    def feature_names(self) -> list[str]:
        """Names of the layers that `features` accepts."""
        return feature_names(self.model, self.variables, jnp.zeros((1, *self.input_shape)))

    @functools.cached_property
    def feature_info(self) -> tuple[Level, ...]:
        """Stride, name and channels of each map that `pyramid` gives, known without computing."""
        return feature_info(self.model)

    def __call__(self, pictures: Any) -> jax.Array:
        """Return logits of pictures: (N, outputs), or (outputs,) for a single one, float32.

            probabilities = jax.nn.softmax(network("dog.jpg"))

        Raises InputError if a picture cannot be read; the message names it.
        """

        def logits(variables: Any, images: dict[str, jax.Array], statistics: Any) -> jax.Array:
            views = predict_views(self.model, variables, [images["image"]], statistics)[0][0]
            return views[:, 0]

        return self._programs.compute("logits", logits, pictures)

    def classify(
        self,
        pictures: Any,
        top: int = 5,
        *,
        views: AnyViews = "center",
        normalization: Normalization = "training",
        seed: int = 0,
    ) -> Any:
        """Return the `top` best classes of a picture, the best first.

            for prediction in network.classify("dog.jpg", top=3):
                print(f"{prediction.probability:.1%} {prediction.name}")

        Args:
            pictures: one or several.
            top: number of classes, at least 1.
            views: views of a picture whose class probabilities are averaged: "center", "ten-crop",
                "random-10", "multi-scale" or "mirror-and-shift" (`flaxnets.inference.views`), or
                "whole" for the whole picture at its own size.
            normalization: "training" normalises by the statistics of the training data. "image"
                gives 0.5 + 0.5 * (x - mean) / std, with the statistics of the picture itself.
            seed: seed of random views.

        Returns:
            A list of `Prediction`; for several pictures a list of such lists. A network that gives
            numbers returns a number, or a list of them.

        Raises:
            InputError: a picture cannot be read, the network does not have such views, or it has no
                head.
        """
        if top < 1:
            raise InputError(f"top is {top}; expected at least 1")
        if not self.model.num_classes:
            raise InputError(
                f"{self.arch} has no head and so no classes; add one with network.with_head"
            )
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

        are_alike = views != "whole" and normalization == "training"  # in size and statistics
        size = max(BATCH // count, 1) if are_alike else 1
        scores, logs = jax.device_get(
            self._programs.compute(("classify", views), predictions, pictures, prepare, size)
        )
        if logs.ndim == 1:
            return best_classes(self.classes, scores, logs, top)
        rows = [None] * len(logs) if scores is None else scores
        return [best_classes(self.classes, *row, top) for row in zip(rows, logs, strict=True)]

    def check_views(self, views: AnyViews) -> None:
        """Raise InputError if the network does not have such views."""
        if views != "whole":
            check_views(views, self.preprocessing)
        elif not hasattr(self.model, "dense"):
            raise InputError(
                f"{self.arch} reads pictures of one size, not whole ones; expected views 'center'"
            )

    def dense(self, picture: Any) -> jax.Array:
        """Return the network's answer at every position of one picture, which is not scaled.

            heat = jax.nn.softmax(network.dense("street.jpg"))[..., 207]

        The map of logits is (H', W', classes), float32; `flaxnets.inference.dense.cell_stride`
        gives the pixels between its cells.

        Raises InputError if the network has no map, or the picture is too small or too large.
        """
        model = finest_map(self.model)
        if not as_list(picture, self.preprocessing)[1]:
            raise InputError("dense reads one picture, but several are given; call it for each")

        def scores(variables: Any, images: dict[str, jax.Array], statistics: Any) -> jax.Array:
            return predict_views(model, variables, [images["image"]], statistics)[0][0][:, 0]

        def prepare(raw: Any, name: str) -> tuple[dict[str, np.ndarray], Statistics]:
            return self._whole(raw, name), self.statistics

        return self._programs.compute("dense", scores, picture, prepare)

    def features(self, pictures: Any, names: Sequence[str]) -> dict[str, jax.Array]:
        """Return the outputs of layers by their torch names.

            network.features("dog.jpg", ["layer3", "layer4.1.conv2"])["layer3"]

        Most have the shape (N, H', W', C'), without the first axis for a single picture
        (`flaxnets.inference.features`).

        Raises InputError for an unknown name, with the nearest one of `feature_names`.
        """

        def activations(variables: Any, images: dict[str, jax.Array], statistics: Any) -> Any:
            x = normalize(images["image"][:, 0], *statistics)
            return features(self.model, variables, x, names)

        outputs = self._programs.compute(("features", *names), activations, pictures)
        return {name: outputs[name] for name in names}

    def pyramid(self, pictures: Any, strides: Sequence[int] = STRIDES) -> list[jax.Array]:
        """Return the last map of each of `strides`, (N, H', W', C').

            fine, coarse = network.pyramid("dog.jpg", strides=(8, 32))

        A stride is in pixels. For a single picture the maps have no first axis. Deeper layers are
        not computed. `feature_info` tells the channels in advance.

        Raises InputError if the network has no map of a stride.
        """

        def maps(variables: Any, images: dict[str, jax.Array], statistics: Any) -> Any:
            x = normalize(images["image"][:, 0], *statistics)
            return pyramid(self.model, variables, x, strides, self.feature_info)

        return self._programs.compute(("pyramid", *strides), maps, pictures)

    def with_head(
        self, num_classes: int, key: jax.Array, classes: Sequence[str] | None = None
    ) -> "Network":
        """Return the network with a new, freshly initialised last layer; the rest is kept.

            pets = network.with_head(2, jax.random.key(0), classes=["cat", "dog"])

        Args:
            num_classes: number of outputs of the new layer, at least 1.
            key: key of `jax.random` for its initial values.
            classes: names of the classes; by default "class 0" and so on.

        Raises:
            InputError: `num_classes` is below 1, or there is another number of names.
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
        """Write the network to one file, which `flaxnets.pretrained` opens again.

            network.save("mine.safetensors")
            network = pretrained("mine.safetensors")

        The file has the weights under torch's keys, and the preprocessing, statistics, classes and
        card as JSON in its header.

        Raises InputError if the suffix is not .safetensors, the network is none of the library's,
        or the file cannot be written.
        """
        described = {
            "preprocessing": self.preprocessing.to_json(),
            "statistics": self.statistics,
            "classes": self.classes,
            "card": dataclasses.asdict(self.card),
        }
        saved.write(pathlib.Path(path), self.model, self.variables, described)

    @functools.cached_property
    def _programs(self) -> Programs:
        return Programs(self.variables, self.preprocessing, self._as_fed)

    def _as_fed(self, raw: Any, name: str) -> tuple[dict[str, np.ndarray], Statistics]:
        """Return the one view of a picture that the plan gives."""
        return {"image": self.preprocessing(raw, name=name)[None]}, self.statistics

    def _whole(self, raw: Any, name: str) -> dict[str, np.ndarray]:
        """Return the one view of a picture at its own size."""
        picture = self.preprocessing.decode(raw, name=name)
        check_size(picture.size)
        return {"image": picture.pixels[None]}
