"""Draw training images, and below each of them the network input after augmentation.

    python tools/show_augmentation.py --dataset digits --policy trivial_augment_wide --out grid.png

Values that are not given come from the recipe of the network --arch.
"""

if __name__ == "__main__":  # first, because the other imports take seconds
    from flaxnets.terminal import quiet

    quiet()

import argparse
import dataclasses
import itertools
import pathlib
from random import Random
from typing import Annotated

import matplotlib.figure
import numpy as np
import tyro

from flaxnets import data
from flaxnets.errors import InputError
from flaxnets.recipes import Preprocessing, recipe_for
from flaxnets.runs.figures import literal
from flaxnets.terminal import arguments, one_sentence_errors


@dataclasses.dataclass(frozen=True)
class Options:
    values: Annotated[Preprocessing, tyro.conf.OmitArgPrefixes]
    dataset: str = "digits"
    """Data set, named as in train.py."""
    data_dir: str | None = None
    """Directory of prepared TensorFlow Datasets; by default TFDS_DATA_DIR."""
    arch: str = "vgg19"
    """Network whose recipe gives the augmentation."""
    out: pathlib.Path = pathlib.Path("augmentation.png")
    """Picture to write."""
    columns: int = 8
    """Number of images."""
    rows: int = 4
    """Number of augmentations of each image."""
    seed: int = 0
    """Seed of the choice of images and of their augmentation."""


def parse(arguments: list[str]) -> tuple[Options, data.Source]:
    """Return the options and the data set. Network and data set decide the other defaults."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--arch", default="vgg19")
    first.add_argument("--dataset", default="digits")
    first.add_argument("--data-dir", "--data_dir")
    chosen, _ = first.parse_known_args(arguments)
    source = data.open_source(chosen.dataset, chosen.data_dir)
    if source.kind == "rows":
        raise InputError(f"the data set {chosen.dataset!r} has rows of features; expected images")
    values = recipe_for(chosen.arch, source.kind).preprocessing
    default = Options(values, **vars(chosen))
    return tyro.cli(Options, args=arguments, default=default, description=__doc__), source


def main(arguments: list[str]) -> None:
    options, source = parse(arguments)
    options.values.check()
    columns, rows = options.columns, options.rows
    if columns < 1 or rows < 1:
        raise InputError(f"--columns is {columns} and --rows {rows}; expected at least 1 of each")
    plan = data.training_plan(options.values, source)
    figure = matplotlib.figure.Figure(figsize=(1.4 * columns, 1.5 * (rows + 1)))
    axes = figure.subplots(rows + 1, columns, squeeze=False)
    batches = source.training_order(1, options.seed, 0, (0, 1), 1)
    for column, (element,) in enumerate(itertools.islice(batches, columns)):
        raw, label = source.read("train", element)
        original = plan.decode(raw, name=source.title("train", element)).pixels
        seeds = [(options.seed << 64) + column * rows + row for row in range(rows)]
        views = [plan(raw, Random(seed)) for seed in seeds]
        for row, image in enumerate([original, *views]):
            axes[row, column].imshow(np.squeeze(image), cmap="gray", vmin=0, vmax=255)
        axes[0, column].set_title(literal(source.class_names[label]), fontsize=8)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.tight_layout()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=100)
    print(
        f"{options.out}: {columns} images of {options.dataset}, {rows} views each, "
        f"{plan.size} pixels"
    )


if __name__ == "__main__":
    with one_sentence_errors():
        main(arguments())
