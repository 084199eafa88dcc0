"""Draw the filters of a network's first convolution.

    python tools/plot_filters.py --arch alexnet --weights IMAGENET1K_V1 --out filters.png

Filters of RGB images are drawn in colour. Any other filter is a row with one image per channel.
Zero is grey; the weight of the largest magnitude of a filter is white or black.
"""

if __name__ == "__main__":  # first, because the other imports take seconds
    from flaxnets.terminal import quiet

    quiet()

import dataclasses
import math
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import tyro

from flaxnets.errors import InputError
from flaxnets.inference.network import Network
from flaxnets.inference.options import NetworkOptions
from flaxnets.layers import Conv
from flaxnets.runs.figures import literal
from flaxnets.terminal import arguments, one_sentence_errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(NetworkOptions):
    out: pathlib.Path
    """Picture to write."""


def first_filters(network: Network) -> tuple[str, np.ndarray]:
    """Return the torch name of the first convolution, and its kernel (height, width, C, filters).

    Raises InputError if the network has none.
    """
    first: list[tuple[str, np.ndarray]] = []

    def record(next_function, args, kwargs, context):
        if isinstance(context.module, Conv) and not first:
            kernel = context.module.variables["params"]["kernel"]
            first.append((".".join(context.module.path), np.asarray(kernel)))
        return next_function(*args, **kwargs)

    images = jnp.zeros((1, *network.input_shape))
    with nn.intercept_methods(record):
        jax.eval_shape(lambda: network.model.apply(network.variables, images))
    if not first:
        raise InputError(f"{network.arch} has no convolution; choose another network")
    return first[0]


def tiles(kernel: np.ndarray) -> np.ndarray:
    """Return images of the filters with values in 0..1, where 0.5 is zero.

    Their shape is (filters, height, width, 3) for three channels, otherwise (filters * channels,
    height, width, 1).
    """
    scaled = 0.5 + 0.5 * kernel / np.abs(kernel).max((0, 1, 2), keepdims=True).clip(1e-12)
    filters = np.moveaxis(scaled, -1, 0)
    if filters.shape[-1] == 3:
        return filters
    return np.moveaxis(filters, -1, 1).reshape(-1, *filters.shape[1:3], 1)


def main(options: Options) -> None:
    network = options.open()
    name, kernel = first_filters(network)
    images = tiles(kernel)
    channels = kernel.shape[2]
    columns = math.ceil(math.sqrt(len(images))) if channels in (1, 3) else channels
    rows = math.ceil(len(images) / columns)
    figure = matplotlib.figure.Figure(figsize=(0.6 * columns, 0.6 * rows + 0.4))
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis in axes:
        axis.set_axis_off()
    for axis, image in zip(figure.axes, images, strict=False):
        axis.imshow(np.squeeze(image), cmap="gray", vmin=0, vmax=1)
    figure.suptitle(literal(f"{network.card.source}: {name}"), fontsize=9)
    figure.savefig(options.out, dpi=120)
    height, width = kernel.shape[:2]
    print(f"{options.out}: {kernel.shape[3]} filters of {height}x{width}x{channels}, {name}")


if __name__ == "__main__":
    with one_sentence_errors():
        main(tyro.cli(Options, args=arguments(), description=__doc__))
