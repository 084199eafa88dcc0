"""Draws originals over what the network is fed in training.

python tools/show_augmentation.py --dataset digits --policy trivial_augment_wide --out grid.png
"""

if __name__ == "__main__":  # first, for the other imports take seconds
    from flaxnets.terminal import quiet

    quiet()

import dataclasses
import itertools
import pathlib

import matplotlib.figure
import numpy as np
import tyro

from flaxnets import data
from flaxnets.data.augmentation import decode
from flaxnets.data.images import train_image
from flaxnets.data.tensorflow import tf
from flaxnets.errors import InputError
from flaxnets.recipes import Crop, Interpolation, Policy, recipe_for
from flaxnets.terminal import arguments, one_sentence_errors
from flaxnets.training.pictures import literal


def main(
    dataset: str = "digits",
    out: pathlib.Path = pathlib.Path("augmentation.png"),
    data_dir: str | None = None,
    arch: str = "vgg19",
    crop: Crop | None = None,
    policy: Policy | None = None,
    interpolation: Interpolation | None = None,
    columns: int = 8,
    rows: int = 4,
    seed: int = 0,
) -> None:
    """Draws a column for each of the first images: the original, then augmented views of it.

    Args:
        dataset: a name as in train.py.
        out: the picture to write.
        data_dir: where TensorFlow Datasets were prepared; TFDS_DATA_DIR otherwise.
        arch: the network whose recipe augments.
        crop: instead of the recipe's.
        policy: instead of the recipe's.
        interpolation: of the policy, instead of the recipe's.
        columns: images.
        rows: views of each.
        seed: of the views.
    """
    source = data.open_source(dataset, data_dir)
    if source.kind == "rows":
        raise InputError(f"data set {dataset!r} has rows of features; expected images")
    given = {"crop": crop, "policy": policy, "interpolation": interpolation}
    given = {name: value for name, value in given.items() if value is not None}
    how = dataclasses.replace(recipe_for(arch, source.kind).preprocessing, **given)
    if columns < 1 or rows < 1:
        raise InputError(f"{columns} columns and {rows} rows; expected at least one of each")
    figure = matplotlib.figure.Figure(figsize=(1.4 * columns, 1.5 * (rows + 1)))
    axes = figure.subplots(rows + 1, columns, squeeze=False)
    examples = itertools.islice(source.stream("train", (0, 1), tf.constant([seed, 0])), columns)
    for column, example in enumerate(examples):
        raw, label = example["image"], int(example["label"])
        original = decode(raw, source.channels) if raw.dtype == tf.string else raw
        seeds = [tf.constant([seed, column * rows + row]) for row in range(rows)]
        views = [train_image(source, how, raw, each) for each in seeds]
        for row, image in enumerate([original, *views]):
            shown = np.squeeze(image.numpy())
            axes[row, column].imshow(shown, cmap="gray", vmin=0, vmax=255)
        axes[0, column].set_title(literal(source.class_names[label]), fontsize=8)
    for each in axes.flat:
        each.set_axis_off()
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=100)
    size = how.train_size or how.image_size
    print(f"{out}: {columns} images of {dataset}, {rows} views each, {size} pixels")


if __name__ == "__main__":
    with one_sentence_errors():
        tyro.cli(main, args=arguments())
