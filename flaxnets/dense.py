r"""Draw where in a picture a network sees a class.

    python -m flaxnets.dense photo.jpg --arch vgg16 --weights DEFAULT --class tabby
    python -m flaxnets.dense photo.jpg --workdir runs/vgg16-pets --class Maine --scales 6

The network slides over the whole picture as a filter and gives a map of class probabilities. The
figure shows the picture, the probability of the class in each cell of the map, and the best class
of each cell.
"""

if __name__ == "__main__":  # first, because the other imports take seconds
    from flaxnets.terminal import quiet

    quiet()

import collections
import dataclasses
import pathlib
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro
from PIL import Image

from flaxnets.data.pixels.decode import as_array, read_file
from flaxnets.data.pixels.resize import scale_short_side
from flaxnets.errors import InputError, one_of
from flaxnets.inference.inputs import MAX_READ
from flaxnets.inference.options import NetworkOptions
from flaxnets.terminal import arguments, compilation_cache, one_sentence_errors, reuse_memory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from flaxnets.inference.network import Network

# Matplotlib's colours for the most frequent classes; its grey, C7, is for all others.
COLORS, GREY = ("C0", "C1", "C2", "C3", "C4", "C5", "C6", "C8", "C9"), "C7"
Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Options(NetworkOptions):
    """The options of the script; the text under a field is its help."""

    picture: Annotated[pathlib.Path, tyro.conf.Positional]
    """File in any format that Pillow reads."""
    class_: Annotated[str, tyro.conf.arg(name="class")]
    """Name of the class to draw."""
    image_size: int | None = None
    """Short side of the scaled picture, in pixels. Default: twice the network's input."""
    scales: Literal[1, 6] = 1
    """Scales whose maps are averaged: one, or OverFeat's six with their mirror images."""
    out: pathlib.Path = pathlib.Path("map.png")
    """File for the figure (.png, .pdf, .svg)."""
    compilation_cache: bool = True
    """Keep compiled programs for the next start."""


GROUPS = {
    "picture": ("picture", "class_", "image_size", "scales", "orientation"),
    "network": ("arch", "weights", "checkpoint", "ema", "class_names", "workdir"),
    "output": ("out",),
    "running": ("compilation_cache",),
}


def main(options: Options) -> None:
    """Draw where the network sees the class, and print how many cells each best class has."""
    # Not before `--help` is answered: jax, linen and Matplotlib take a second.
    from matplotlib.figure import Figure

    from flaxnets.inference.dense import average_maps, cell_stride, finest_map

    if options.compilation_cache:
        compilation_cache()
    if options.image_size is not None and options.scales == 6:
        raise InputError(
            f"--image-size {options.image_size} is given with --scales 6, which has its own sizes; "
            f"leave out one of them"
        )
    known = Figure().canvas.get_supported_filetypes()
    one_of(known, options.out.suffix.removeprefix("."), "format of a figure")
    network = options.open()
    one_of(network.classes, options.class_, "class")
    raw = read_file(options.picture)
    picture = network.preprocessing.decode(raw, name=str(options.picture)).image
    pictures = [as_array(_scaled(picture, size)) for size in _short_sides(options, network)]
    sizes = [pixels.shape[:2] for pixels in pictures]
    grids = [_probabilities(network, pixels, options.scales == 6) for pixels in pictures]
    probabilities = average_maps(grids, sizes)
    shown = pictures[-1]
    down, right = cell_stride(finest_map(network.model), shown.shape)

    rows, columns, _ = probabilities.shape
    heat = probabilities[..., network.classes.index(options.class_)]
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    best = probabilities.argmax(2)
    counts = collections.Counter(best.ravel().tolist()).most_common()
    size = f"{shown.shape[1]}x{shown.shape[0]}"
    print(f"{rows}x{columns} cells, {down:g} pixels apart, of {size} pixels")
    place = f"row {row + 1}, column {column + 1}"
    print(f"{options.class_}: {heat[row, column]:.2%} at most, in {place}")
    print("cells by their best class:")
    for index, count in counts[: len(COLORS)]:
        print(f"{count:5} {network.classes[index]}")
    named = [(index, f"{network.classes[index]} ({count})") for index, count in counts]
    # Cells are centred on the picture.
    height, width = rows * down / 2, columns * right / 2
    middle, centre = shown.shape[0] / 2, shown.shape[1] / 2
    box = (centre - width, centre + width, middle + height, middle - height)
    figure = draw_maps(shown, options.class_, heat, best, named, box)
    try:
        figure.savefig(options.out, dpi=120, bbox_inches="tight")
    except OSError as error:
        raise InputError(
            f"cannot write {options.out} ({error.strerror}); give another file with --out"
        ) from error


def _probabilities(network: "Network", picture: np.ndarray, mirrored: bool) -> np.ndarray:
    """Return the map (H', W', classes) of class probabilities of uint8 (height, width, channels).

    With `mirrored` it is the mean of the maps of the picture and of its mirror image.
    """
    import jax

    probabilities = np.asarray(jax.nn.softmax(network.dense(picture)))
    if not mirrored:
        return probabilities
    other = np.asarray(jax.nn.softmax(network.dense(picture[:, ::-1])))
    return (probabilities + other[:, ::-1]) / 2


def _short_sides(options: Options, network: "Network") -> list[int]:
    if options.scales == 6:
        from flaxnets.inference.dense import SIX_SCALES

        return [round(min(size) * network.preprocessing.size / 221) for size in SIX_SCALES]
    return [2 * network.preprocessing.size if options.image_size is None else options.image_size]


def _scaled(picture: Image.Image, short_side: int) -> Image.Image:
    if short_side < 1:
        raise InputError(f"--image-size is {short_side}; expected at least 1")
    pixels = short_side**2 * max(picture.size) // min(picture.size)
    if pixels > MAX_READ:
        raise InputError(
            f"the picture has {pixels:,} pixels when its short side is scaled to {short_side}; "
            f"expected at most {MAX_READ:,}, so cut it or give a smaller --image-size"
        )
    return scale_short_side(picture, short_side)


def draw_maps(
    picture: np.ndarray,
    name: str,
    heat: np.ndarray,
    best: np.ndarray,
    classes: list[tuple[int, str]],
    box: Box,
) -> "Figure":
    """Return a figure with three panels: the picture, the probabilities, the best classes.

    Args:
        picture: uint8 (H, W, 1 or 3).
        name: name of the class whose probabilities are drawn.
        heat: probability of the class in each cell, (H', W').
        best: index of the best class of each cell, (H', W').
        classes: index and label of each class in `best`, the most frequent first.
        box: left, right, bottom and top of the map, in pixels of the picture.
    """
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    from flaxnets.runs.figures import literal

    height, width = picture.shape[:2]
    panel = 5 * min(max(width / height, 0.5), 2)
    figure = Figure((3 * panel + 3, 5.5), layout="constrained")
    axes: Any = figure.subplots(1, 3)
    for axis in axes:
        pixels = picture[..., 0] if picture.shape[2] == 1 else picture
        axis.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
        axis.set_axis_off()
    axes[0].set_title("picture")

    values = axes[1].imshow(heat, "inferno", vmin=0, extent=box, alpha=0.6)
    axes[1].set_title(literal(f"probability of {name}"))
    figure.colorbar(values, ax=axes[1], fraction=0.046)

    colors = {index: color for (index, _), color in zip(classes, COLORS, strict=False)}
    rgb = {index: to_rgb(colors.get(index, GREY)) for index, _ in classes}
    tiles = np.array([[rgb[index] for index in row] for row in best.tolist()])
    axes[2].imshow(tiles, extent=box, alpha=0.6, interpolation="nearest")
    axes[2].set_title("best class of each cell")
    handles = [Patch(color=colors[i], label=literal(name)) for i, name in classes if i in colors]
    if len(classes) > len(handles):
        handles.append(Patch(color=GREY, label=f"{len(classes) - len(handles)} other classes"))
    axes[2].legend(handles=handles, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    for axis in axes:
        axis.set(xlim=(0, width), ylim=(height, 0))
    return figure


def run() -> None:
    """Run the script with the arguments of the command line."""
    from flaxnets.script_help import parsed

    reuse_memory()
    with one_sentence_errors():
        main(parsed(Options, arguments(), __doc__, GROUPS))


if __name__ == "__main__":
    run()
