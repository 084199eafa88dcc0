"""Says what is in pictures.

    python experiments/classify.py dog.jpg cat.png --arch alexnet --weights IMAGENET1K_V1
    python experiments/classify.py dog.jpg --arch vgg16 --checkpoint FILE.safetensors
    python experiments/classify.py digit.png --workdir runs/lenet5-digits

Prints for each picture the best classes, each with its score (the logit). A picture that cannot be
read gets a sentence instead, and the status is 2 at the end.
"""

if __name__ == "__main__":  # first, for the other imports take seconds
    from flaxnets.terminal import quiet

    quiet()

import dataclasses
import math
import pathlib
import sys
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from flaxnets.data.pixels.decode import read_file
from flaxnets.errors import InputError, shown
from flaxnets.inference.network import Network, NetworkOptions
from flaxnets.inference.pictures import MAX_READ, own_statistics
from flaxnets.inference.views import (
    Views,
    check_views,
    for_views,
    mean_log_probabilities,
    view_logits,
    views_of,
)
from flaxnets.runs.workdir import json_text
from flaxnets.terminal import arguments, compilation_cache, one_sentence_errors, say_error
from flaxnets.training.inputs import normalize


@dataclasses.dataclass(frozen=True)
class Options(NetworkOptions):
    pictures: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional]
    """Files in any format that Pillow reads."""
    top: int = 5
    """Classes to print."""
    probabilities: bool = False
    """Per cent instead of scores (always, where several views are averaged)."""
    views: Views | Literal["whole"] = "center"
    """What of a picture the network sees: the centre; the corners and the centre, mirrored as well;
    ten random crops; OverFeat's six scales; or all of it, not scaled."""
    normalize: Literal["training", "image"] = "training"
    """With the mean and deviation of the training data, or 0.5 + 0.5 * (x - mean) / std with
    those of all values of the picture itself."""
    seed: int = 0
    """Of random views."""
    json: bool = False
    """Print one JSON list."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache directory, for the next start."""


def main(options: Options) -> None:
    if options.compilation_cache:
        compilation_cache()
    if not options.pictures:
        raise InputError("no picture given; expected files")
    if options.top < 1:
        raise InputError(f"--top {options.top}; expected at least 1")
    network = options.open()
    if options.views != "whole":
        check_views(options.views, network.plan)
    elif not hasattr(network.model, "dense"):
        raise InputError(f"{network.arch} reads pictures of one size; expected --views center")
    multi_scale = options.views == "multi-scale"
    model = for_views(network.model, "multi-scale") if multi_scale else network.model

    @jax.jit
    def classify(variables: Any, images: dict[str, jax.Array], statistics: Any):
        """Return logits (1, V, classes), or maps of them, of each size of view, and the logarithms
        of the mean probabilities.
        """
        logits = [
            view_logits(model, variables, normalize(x, *statistics)[None]) for x in images.values()
        ]
        return logits, mean_log_probabilities(logits)[0]

    def best_classes(path: pathlib.Path) -> list[dict[str, Any]]:
        raw, statistics = read_file(path), network.statistics
        if options.normalize == "image":
            statistics = own_statistics(network.plan.decode(raw, name=str(path)).image)
        images = _views(raw, options, network, str(path))
        logits, log_probabilities = classify(network.variables, images, statistics)
        one_view = len(logits) == 1 and logits[0].shape[1] == 1
        scores = logits[0][0, 0] if one_view else None
        best = np.argsort(-np.asarray(log_probabilities if scores is None else scores), stable=True)
        return [
            {
                "index": int(index),
                "class": network.class_names[index],
                "score": None if scores is None else float(scores[index]),
                "probability": math.exp(log_probabilities[index]),
            }
            for index in best[: options.top]
        ]

    results = []
    for path in options.pictures:
        result: dict[str, Any] = {"picture": str(path)}
        try:
            result["classes"] = best_classes(path)
        except InputError as error:
            is_named = shown(path) in str(error)
            result["error"] = str(error) if is_named else f"{shown(path)}: {error}"
        results.append(result)
        if not options.json:
            _print(result, options.probabilities, titled=len(options.pictures) > 1)
    if options.json:
        print(json_text(results, indent=2))
    if any("error" in result for result in results):
        sys.exit(2)


def _views(raw: bytes, options: Options, network: Network, name: str) -> dict[str, np.ndarray]:
    if options.views != "whole":
        return views_of(raw, network.plan, options.views, (options.seed,), name)
    picture = network.plan.decode(raw, name=name)
    height, width = picture.size
    if width * height > MAX_READ:
        raise InputError(
            f"{width}x{height} pixels are too many to be read at once; expected at most "
            f"{MAX_READ:,}, or other --views"
        )
    return {"image": picture.pixels[None]}


def _print(result: dict[str, Any], probabilities: bool, titled: bool) -> None:
    if "error" in result:
        say_error(result["error"])
        return
    if titled:
        print(result["picture"])
    for row in result["classes"]:
        percent = probabilities or row["score"] is None
        value = f"{row['probability']:7.2%}" if percent else f"{row['score']:5.2f}"
        print(f"{value} {row['class']}")


if __name__ == "__main__":
    with one_sentence_errors():
        main(tyro.cli(Options, args=arguments(), description=__doc__))
