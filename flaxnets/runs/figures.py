"""Draw the figures of a run: its learning curve, and images with captions."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from flaxnets.recipes import Preprocessing
from flaxnets.training.on_device import cropped, shifted

PICTURED = 16  # images in a figure

# matplotlib is imported where it is used: its import takes half a second.


def literal(text: str) -> str:
    """Return `text` escaped, so that matplotlib shows it unchanged.

    In matplotlib `$` begins a formula. Text that is not Unicode (a file name in another encoding)
    is an error; such characters become question marks.
    """
    return text.replace("$", r"\$").encode(errors="replace").decode()


def draw_learning_curve(rows: Sequence[Mapping[str, Any]], path: pathlib.Path, title: str) -> None:
    """Draw the loss and, for classes, the top-1 accuracy over the epochs to a PNG file.

    The curves are those of training data, of test data and, if there is one, of the moving average.
    """
    import matplotlib.figure

    curves = {"loss": ("loss", 1), "top1": ("top-1 accuracy (%)", 100)}
    names = [name for name in curves if f"test_{name}" in rows[0]]
    figure = matplotlib.figure.Figure(figsize=(4.5 * len(names), 3.6), layout="constrained")
    epochs = [row["epoch"] for row in rows]
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False).flat, names, strict=True):
        label, scale = curves[name]
        for split, marker in (("train", "."), ("test", "o"), ("ema", "x")):
            if f"{split}_{name}" in rows[0]:
                values = [scale * row[f"{split}_{name}"] for row in rows]
                axes.plot(epochs, values, marker=marker, markersize=4, label=split)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.set_yscale("log" if name == "loss" else "linear")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(literal(title))
    figure.savefig(path, dpi=120)


def draw_grid(images: Sequence[np.ndarray], captions: Sequence[str], columns: int = 8) -> Any:
    """Return a matplotlib figure of uint8 images (H, W, 1 or 3) with captions."""
    import matplotlib.figure

    rows = -(-len(images) // columns)
    figure = matplotlib.figure.Figure(figsize=(1.6 * columns, 1.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for place in axes:
        place.set_axis_off()
    for place, image, caption in zip(figure.axes, images, captions, strict=False):
        shown = image if image.shape[-1] == 3 else image[..., 0]
        place.imshow(shown, cmap="gray", vmin=0, vmax=255)
        place.set_title(literal(caption), fontsize=7)
    return figure


def draw_batch(
    batch: Mapping[str, Any], class_names: tuple[str, ...], preprocessing: Preprocessing
) -> Any:
    """Return a figure of training images, augmented, but neither mixed nor erased."""
    images = batch["image"]
    if isinstance(images, jax.Array):
        images = images.addressable_shards[0].data  # the first of this process
    few = {name: values[: min(PICTURED, len(images))] for name, values in batch.items()}
    few["image"] = images[:PICTURED]
    captions = [class_names[label] for label in few["label"]]
    shown = np.round(shifted(cropped(few, preprocessing), few, 255.0))
    return draw_grid(list(np.clip(shown, 0, 255).astype(np.uint8)), captions)


def draw_confusion(
    path: pathlib.Path,
    guesses: np.ndarray,
    labels: np.ndarray,
    class_names: tuple[str, ...],
    title: str,
) -> None:
    """Draw a row for each true class: the share of its examples that were put into each class."""
    from matplotlib.figure import Figure

    count = len(class_names)
    matrix = np.zeros((count, count))
    np.add.at(matrix, (labels, guesses), 1)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = max(4.0, min(12.0, 0.3 * count))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(drawn, label="share of the true class")
    if count <= 40:
        shown = [literal(name) for name in class_names]
        axes.set_xticks(range(count), shown, rotation=90)
        axes.set_yticks(range(count), shown)
    if count <= 12:
        for row, column in np.argwhere(matrix):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{matrix[row, column]:.0f}", ha="center", va="center", c=colour)
    axes.set_xlabel("network's class")
    axes.set_ylabel("true class")
    axes.set_title(literal(title))
    figure.savefig(path, dpi=120)
