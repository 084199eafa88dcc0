"""Evaluate trained networks on a test split, one by one and together.

    python -m flaxnets.evaluate runs/mcdnn_mnist-digits runs/second-column
    python -m flaxnets.evaluate --arch resnet50 --weights DEFAULT --dataset imagenet2012

Print top-1 and top-5 accuracy over the whole test split, for each network and for the mean of their
class probabilities.
"""

if __name__ == "__main__":  # first, because the other imports take seconds
    from flaxnets.terminal import quiet

    quiet()

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

import flaxnets.data as data
from flaxnets.errors import InputError, one_of
from flaxnets.inference.options import NetworkOptions
from flaxnets.recipes import Orientation
from flaxnets.runs.files import json_text
from flaxnets.terminal import arguments, compilation_cache, one_sentence_errors, reuse_memory
from flaxnets.types import Views

if TYPE_CHECKING:
    from flaxnets.inference.network import Network


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of the script; the text under a field is its help."""

    workdirs: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional] = ()
    """Workdirs of train.py or files of network.save, all with the same classes."""
    arch: tuple[str, ...] = ()
    """Names of networks for --weights or --checkpoint: one name for all, or one for each."""
    weights: tuple[str, ...] = ()
    """Published weights, such as IMAGENET1K_V1. With --checkpoint only their preprocessing is
    used."""
    checkpoint: tuple[pathlib.Path, ...] = ()
    """Files of weights (safetensors or torch), with classes in the data set's order."""
    ema: bool = False
    """Use the average weights of a --checkpoint that has raw and average ones."""
    dataset: str | None = None
    """Data set, as in train.py. Default: the first run's."""
    data_dir: str | None = None
    """Directory of prepared TensorFlow Datasets. Default: TFDS_DATA_DIR."""
    views: Views = "center"
    """Views whose class probabilities are averaged. center: one crop. ten-crop: corners and centre,
    mirrored too. random-10: random crops. multi-scale: OverFeat's six scales. mirror-and-shift:
    shifts by a pixel, mirrored too. Small images have only center and mirror-and-shift."""
    orientation: Orientation | None = None
    """Turn pictures upright as EXIF says, or take them as they are stored, as for the published
    accuracies. Default: as in the run, else upright."""
    seed: int = 0
    """Seed of random-10."""
    ensemble: bool = True
    """For several networks, also evaluate the mean of their class probabilities."""
    batch_size: int = 64
    """Images in a step, over all devices; views count as images."""
    json: bool = False
    """Print the results as JSON."""
    output: pathlib.Path | None = None
    """NumPy file (.npz) for `probabilities` and `log_probabilities`, (networks, N, classes), and
    `labels`, (N,)."""
    confusion: pathlib.Path | None = None
    """File (.png, .pdf, .svg) for the confusion matrix of the last line printed."""
    compilation_cache: bool = True
    """Keep compiled programs for the next start."""


GROUPS = {
    "networks": ("workdirs", "arch", "weights", "checkpoint", "ema", "ensemble"),
    "data": ("dataset", "data_dir", "views", "seed", "orientation"),
    "output": ("json", "output", "confusion"),
    "running": ("batch_size", "compilation_cache"),
}


def main(options: Options) -> None:
    """Print the accuracy of each network and of their mean."""
    # Imported after `--help` is answered: jax and linen take a second.
    from flaxnets.inference.predict import accuracy, mean_of_members
    from flaxnets.runs.figures import draw_confusion

    if options.compilation_cache:
        compilation_cache()
    _check_files(options)  # first, because evaluation may take hours
    networks, source, dataset = _opened(options)
    members, labels = _predicted(networks, source, options)
    evaluated = [(x.card.source, x.arch, own) for x, own in zip(networks, members, strict=True)]
    if options.ensemble and len(networks) > 1:
        name = f"mean of {len(networks)}"
        evaluated.append((name, name, mean_of_members(members)))
    rows = [{"network": name, "arch": arch, **accuracy(p, labels)} for name, arch, p in evaluated]
    result = {
        "dataset": dataset, "examples": len(labels), "views": options.views,
        "orientations": [network.preprocessing.orientation for network in networks],
        "results": rows,
    }  # fmt: skip
    if options.json:
        print(json_text(result, indent=2))
    else:
        print(f"{len(labels)} test examples of {dataset}{_orientations(networks, source)}")
        for row in rows:
            print(
                f"top-1 {row['top1']:7.2%}  top-5 {row['top5']:7.2%}  loss {row['loss']:.4f}  "
                f"{row['network']}"
            )
    if options.output is not None:
        logs = np.stack(members)
        np.savez(options.output, probabilities=np.exp(logs), log_probabilities=logs, labels=labels)
    if options.confusion is not None:
        name, _, log_probabilities = evaluated[-1]
        guesses = log_probabilities.argmax(1)
        title = f"{name} on {dataset}: {rows[-1]['top1']:.2%}"
        draw_confusion(options.confusion, guesses, labels, source.class_names, title)


def _check_files(options: Options) -> None:
    """Raise InputError if a file that is asked for cannot be written."""
    for path in (options.output, options.confusion):
        if path is not None and not path.absolute().parent.is_dir():
            raise InputError(
                f"cannot write {path}: there is no directory {path.parent}; create it first"
            )
    if options.confusion is not None:
        from matplotlib.figure import Figure

        formats = Figure().canvas.get_supported_filetypes()
        one_of(formats, options.confusion.suffix.removeprefix("."), "format of a figure")


def _opened(options: Options) -> tuple[list["Network"], data.Source, str]:
    """Return the networks, the data set and its name as it was asked for.

    Raises InputError if they do not fit each other.
    """
    named = _named_weights(options)
    networks = [
        NetworkOptions(workdir=path, orientation=options.orientation).open()
        for path in options.workdirs
    ]
    if not networks and not named:
        raise InputError(
            "no network given; expected workdirs of train.py, or --arch NAME with --weights NAME "
            "or --checkpoint FILE"
        )
    dataset = options.dataset or (networks[0].card.training_data if networks else None)
    if dataset is None:
        raise InputError("no data set given; expected --dataset NAME")
    source = data.open_source(dataset, options.data_dir)
    networks += [network.open(source.kind) for network in named]
    if not source.class_names:
        raise InputError(
            f"the labels of {dataset} are numbers, not classes; expected a --dataset with classes"
        )
    for network in networks:
        _check_fits(network, source, options.views)
    return networks, source, dataset


def _predicted(
    networks: list["Network"], source: data.Source, options: Options
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return each network's log-probabilities (N, classes) of the test split, and labels (N,)."""
    from flaxnets.inference.predict import predict
    from flaxnets.inference.views import SHARES, VIEWS_PER_SIZE, for_views
    from flaxnets.runs.progress import track
    from flaxnets.training.parallel import DataParallel

    parallel = DataParallel()
    batch_size = parallel.round_up(-(-options.batch_size // VIEWS_PER_SIZE[options.views]))
    count = -(-source.sizes["test"] // batch_size)
    members, labels = [], np.empty(0)
    for network in networks:
        batches = _batches(source, batch_size, network.preprocessing, options)
        log_probabilities, labels = predict(
            for_views(network.model, options.views),
            network.variables,
            track(batches, network.card.source, count),
            network.statistics,
            parallel,
            SHARES.get(options.views),
        )
        members.append(log_probabilities)
    return members, labels


def _orientations(networks: list["Network"], source: data.Source) -> str:
    """Return a phrase for the title that tells how photographs were turned."""
    if source.kind != "photographs":
        return ""
    words = {"upright": "turned upright", "stored": "read as they are stored"}
    return ", " + " or ".join(
        dict.fromkeys(words[network.preprocessing.decode.orientation] for network in networks)
    )


def _named_weights(options: Options) -> list[NetworkOptions]:
    """Return the networks that --arch, --weights and --checkpoint name."""
    if options.ema and not options.checkpoint:
        raise InputError("--ema is given without --checkpoint; expected --checkpoint FILE")
    count = max(len(options.arch), len(options.weights), len(options.checkpoint))
    columns: list[Any] = []
    for name in ("arch", "weights", "checkpoint"):
        values = getattr(options, name) or (None,)
        if len(values) not in (1, count):
            raise InputError(
                f"--{name} has {len(values)} values for {count} networks; expected one for all or "
                "one for each"
            )
        columns.append(values * count if len(values) == 1 else values)
    networks = []
    for arch, weights, checkpoint in zip(*columns, strict=True):
        if arch is None:
            raise InputError("weights are given, but no network; expected --arch NAME")
        networks.append(
            NetworkOptions(
                arch=arch,
                weights=weights,
                checkpoint=checkpoint,
                ema=options.ema,
                orientation=options.orientation,
            )
        )
    return networks


def _check_fits(network: "Network", source: data.Source, views: Views) -> None:
    from flaxnets.inference.results import IMAGENET

    name, trained_on = network.card.source, network.card.training_data
    if trained_on not in (None, IMAGENET) and network.classes != source.class_names:
        raise InputError(
            f"{name} was trained on the classes of {trained_on!r}, not on those of "
            f"{source.name!r}; expected --dataset {trained_on}"
        )
    if len(network.classes) != len(source.class_names):
        raise InputError(
            f"{name} has {len(network.classes)} classes, but {source.name!r} has "
            f"{len(source.class_names)}; expected a --dataset with the network's classes"
        )
    channels = network.input_shape[-1]
    if channels != source.channels:
        raise InputError(
            f"{name} reads images with {channels} channel(s), but those of {source.name!r} have "
            f"{source.channels}; expected a network trained on such images"
        )
    network.check_views(views)


def _batches(
    source: data.Source, batch_size: int, plan: data.Plan, options: Options
) -> Iterator[dict[str, np.ndarray]]:
    if options.views == "center":
        return data.eval_batches(source, batch_size, plan)
    from flaxnets.inference.views import view_batches, views_of

    def prepare(index: int, element: Any) -> tuple[dict[str, np.ndarray], Any]:
        raw, label = source.read("test", element)
        seed, name = (options.seed, index), source.title("test", element)
        return views_of(raw, plan, options.views, seed, name), label

    return view_batches(source.evaluation_order("test", (0, 1)), batch_size, prepare)


def run() -> None:
    """Run the script with the arguments of the command line."""
    from flaxnets.script_help import parsed

    reuse_memory()
    with one_sentence_errors():
        main(parsed(Options, arguments(), __doc__, GROUPS))


if __name__ == "__main__":
    run()
