"""What is known about a network, and what it says about a picture: card, classes, predictions."""

import dataclasses
import importlib.resources
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flaxnets.errors import InputError

IMAGENET = "ImageNet-1k"  # the training images of ILSVRC 2012


@dataclasses.dataclass(frozen=True)
class Card:
    """What is known about a network's weights; unknown values are None or missing.

        pretrained("resnet50", "IMAGENET1K_V2").card.accuracy  # {"top1": 0.80858, ...}

    `network.save` stores the card in the file.
    """

    source: str
    """A run's directory, a file, or the names of the network and its published weights."""
    training_data: str | None = None
    """Data set: its name as in train.py, or "ImageNet-1k"."""
    accuracy: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Shares of the test images, 0..1: "top1" and "top5". For networks that give numbers: "loss",
    the mean squared error."""
    licence: str | None = None
    """Licence of the weights."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A class that a network sees in a picture, as `network.classify` returns it."""

    index: int
    """Index of the class, from 0."""
    name: str
    """Name of the class."""
    score: float | None
    """Logit of the class; None if several views are averaged."""
    probability: float
    """Probability of the class, 0..1."""


def best_classes(
    classes: Sequence[str], scores: Any, log_probabilities: Any, top: int
) -> list[Prediction]:
    """Return the `top` best classes of a picture, the best first.

    Args:
        classes: names of the classes.
        scores: logits (classes,) that decide the order; None if several views are averaged.
        log_probabilities: (classes,), which decide the order if there are no scores.
        top: number of classes.
    """
    order = np.argsort(-np.asarray(log_probabilities if scores is None else scores), stable=True)
    return [
        Prediction(
            int(index),
            classes[int(index)],
            None if scores is None else float(scores[index]),
            math.exp(log_probabilities[index]),
        )
        for index in order[:top]
    ]


def imagenet_class_names() -> tuple[str, ...]:
    """Return torchvision's names of the 1000 classes, in the order of the published weights."""
    file = importlib.resources.files("flaxnets.inference") / "imagenet_classes.txt"
    return tuple(file.read_text("utf-8").splitlines())


def class_names(names: Sequence[str] | None, count: int) -> tuple[str, ...]:
    """Return the names of `count` classes; by default "class 0", "class 1" and so on.

    Raises InputError if there is another number of names.
    """
    if names is None:
        return tuple(f"class {index}" for index in range(count))
    if len(names) != count:
        raise InputError(
            f"classes has {len(names)} names; expected {count}, one for each output of the network"
        )
    return tuple(names)
