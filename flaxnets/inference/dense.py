"""Networks as filters: a class score at every position of a picture, at one scale or several.

A classifier that reads patches of the feature map is a convolution (Sermanet et al. 2013,
"OverFeat", arXiv:1312.6229, section 3.5): on a larger picture the network gives a map of its
answers for every crop, and computes what the crops share only once.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.errors import InputError
from flaxnets.kernels.folding import folded_norms
from flaxnets.layers import Sequential

Array = jax.Array
Layer = Callable[..., Any]  # a module, or a function of an array

SPAN = 1152  # pixels: a multiple of the strides of every network here, 2^7 * 9
# arXiv:1312.6229, Table 5: (height, width) of the six scales of the accurate network.
SIX_SCALES = ((245, 245), (281, 317), (317, 389), (389, 461), (425, 497), (461, 569))


def convolutionize(
    network: nn.Module | Sequence[Layer], input_size: tuple[int, int, int] | None = None
) -> nn.Module:
    """Return the network as a map: `(N, H, W, C)` to logits `(N, H', W', classes)`, with the same
    variables.

    A network of the library becomes `network.clone(dense=True)`. A list of layers, or a Sequential
    (ours or flax's), becomes a module that leaves the layers alone as long as their output grows
    with their input: convolutions, pools, activations. The first layer that does not (a function
    that flattens in any order, an adaptive or global pool, a module that does this inside) starts
    the head. The head acts on every window of the map, one position apart, as large as the map for
    images of `input_size`. So a fully connected layer after a flattened map becomes the convolution
    that it is, written as one matrix product over windows.

    For images of `input_size` the map has one position, with the network's logits. If convolutions
    do not pad, a cell of a larger map is the network on its crop; with padding, the borders are
    those of the picture, not of the crop.

    Args:
        network: a network, or layers: modules and functions of an array.
        input_size: (height, width, channels) of the images that the layers were made for; needed
            for layers, and only for them.

    Raises:
        InputError: the network is no list of layers and has no field `dense`, or the size is
            missing.
    """
    if not isinstance(network, Sequence | Sequential | nn.Sequential):
        if not hasattr(network, "dense"):
            raise InputError(
                f"{type(network).__name__} reads its input at one size and has no map; expected a "
                "network with a field `dense`, or a list of layers"
            )
        return network.clone(dense=True)
    if input_size is None or len(input_size) != 3:
        raise InputError(
            f"input_size is {input_size}; expected the (height, width, channels) of the images "
            "that the layers were made for"
        )
    layers = tuple(network if isinstance(network, Sequence) else network.layers)
    flax = isinstance(network, nn.Sequential)
    shape = (1, *input_size)
    for head, layer in enumerate(layers):
        n, height, width, channels = shape
        larger = _output_shape(layer, (n, height + 64, width + 64, channels))
        output = _output_shape(layer, shape)
        if len(output) != 4 or output[1:3] == larger[1:3]:
            return FullyConvolutional(layers, head, (height, width), flax)
        shape = output
    return FullyConvolutional(layers, len(layers), (1, 1), flax)


def finest_map(network: nn.Module) -> nn.Module:
    """Return the network as a map, at all offsets of its last pool if it has the field
    `offset_pooling`. Raises InputError if it has no map.
    """
    fields: dict[str, Any] = {"offset_pooling": True} if hasattr(network, "offset_pooling") else {}
    return convolutionize(network).clone(**fields)


def _output_shape(layer: Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    def output(x: Array) -> Any:
        if isinstance(layer, nn.Module):
            key = jax.random.key(0)
            return layer.init_with_output({"params": key, "dropout": key}, x)[0]
        return layer(x)

    return jax.eval_shape(output, jax.ShapeDtypeStruct(shape, jnp.float32)).shape


class FullyConvolutional(nn.Module):
    """Layers as a map: `layers[:head]` on the picture, then the others on every window of the map.

    `(N, H, W, C)` to `(N, H', W', ...)`, a cell for each window (height, width). Layers are named
    by their index, as in our Sequential, or with `flax_names` "layers_0", as in flax's.
    """

    layers: Sequence[Layer]
    head: int
    window: tuple[int, int]
    flax_names: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        grid = None
        for index, layer in enumerate(self.layers):
            if index == self.head:
                x = _windows(x, self.window)
                grid, x = x.shape[:3], x.reshape(-1, *x.shape[3:])
            if isinstance(layer, nn.Module) and not self.flax_names:
                layer = layer.clone(parent=self, name=str(index))
            x = layer(x)
        return x if grid is None else x.reshape(*grid, *x.shape[1:])


def _windows(x: Array, window: tuple[int, int]) -> Array:
    """Return every window of (N, H, W, C): (N, H', W', height, width, C)."""
    (_, height, width, _), (rows, columns) = x.shape, window
    if height < rows or width < columns:
        raise InputError(
            f"the images are too small: the head reads {rows}x{columns} positions of a feature map "
            f"of {height}x{width}; use larger images"
        )
    down = jnp.arange(height - rows + 1)[:, None] + jnp.arange(rows)
    right = jnp.arange(width - columns + 1)[:, None] + jnp.arange(columns)
    return x[:, down][:, :, :, right].swapaxes(2, 3)


def cell_stride(model: nn.Module, input_shape: tuple[int, int, int]) -> tuple[float, float]:
    """Return the pixels between cells of a network's map, (down, right), for images (H, W, C)."""
    height, width, channels = input_shape
    before, after = (
        map_shape(model, (height + more, width + more, channels)) for more in (0, SPAN)
    )
    return SPAN / (after[0] - before[0]), SPAN / (after[1] - before[1])


def map_shape(model: nn.Module, input_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Return (H', W') of the network's map for images of `input_shape`, without computing it."""
    x = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    as_map = convolutionize(model)
    output = jax.eval_shape(lambda x: as_map.init_with_output(jax.random.key(0), x)[0], x)
    return output.shape[1:3]


def log_probability_maps(model: nn.Module, variables: Any, images: Array) -> tuple[Array, Array]:
    """Return the logarithms of `probability_maps`, finite even if a probability rounds to zero."""
    as_map = convolutionize(model)
    with folded_norms():
        logits: Any = [as_map.apply(variables, x) for x in (images, images[:, :, ::-1])]
    straight, mirrored = (jax.nn.log_softmax(x.astype(jnp.float32)) for x in logits)
    return straight, mirrored[:, :, ::-1]


def probability_maps(model: nn.Module, variables: Any, images: Array) -> tuple[Array, Array]:
    """Return maps of class probabilities of pictures and of their mirror images.

    Args:
        model: a network with a map; `offset_pooling` gives a finer one where it is a field.
        variables: of the network.
        images: (N, H, W, C), normalised as for `model.apply`.

    Returns:
        Two maps (N, H', W', classes), float32. The second is mirrored back: the picture's left is
        at the left of both.

    Raises:
        InputError: the network has no map, or the pictures are too small for it.
    """
    straight, mirrored = map(jnp.exp, log_probability_maps(model, variables, images))
    return straight, mirrored


def log_multi_scale(model: nn.Module, variables: Any, scales: Sequence[Array]) -> Array:
    """Return the logarithms of `multi_scale`, in order even if scores round to zero."""
    maps = [side for images in scales for side in log_probability_maps(model, variables, images)]
    maxima = jnp.stack([side.max((1, 2)) for side in maps])
    return jax.nn.logsumexp(maxima, 0) - math.log(len(maxima))


def multi_scale(model: nn.Module, variables: Any, scales: Sequence[Array]) -> Array:
    """Return class scores (N, classes) from all positions at several scales (OverFeat, 3.3).

    Take the maximum over positions of each class, at each scale and for pictures and mirror images,
    then the mean of these vectors. They are probabilities here, which the paper leaves open; maxima
    of different positions add up to more than one.

    Args:
        model: a network with a map.
        variables: of the network.
        scales: the same pictures at each scale, (N, H, W, C) each; the paper's are `SIX_SCALES`.

    Raises:
        InputError: as `probability_maps`.
    """
    return jnp.exp(log_multi_scale(model, variables, scales))


def average_maps(maps: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return the mean of maps of one picture at several scales, on the cells of the last one.

    Args:
        maps: (H', W', classes) each, of any numbers of cells.
        sizes: (height, width) of the picture at the scale of each map, in pixels.

    Cells are centred on the picture and equally many pixels apart at all scales.

    Returns:
        (H', W', classes) of the last map; the others are interpolated linearly between their cells
        and constant beyond the outermost.
    """
    total = np.zeros_like(maps[-1])
    for values, size in zip(maps, sizes, strict=True):
        rows, columns = (
            _interpolation(values.shape[axis], maps[-1].shape[axis], size[axis] / sizes[-1][axis])
            for axis in (0, 1)
        )
        total += np.einsum("ih,hwc,jw->ijc", rows, values, columns, optimize=True)
    return total / len(maps)


def _interpolation(count: int, finer: int, scale: float) -> np.ndarray:
    """Return (finer, count): weights of `count` cells at places of `finer` ones, both centred."""
    places = (count - 1) / 2 + (np.arange(finer) - (finer - 1) / 2) * scale
    return np.stack([np.interp(places, np.arange(count), row) for row in np.eye(count)], 1)
