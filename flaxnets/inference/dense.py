"""Use networks as filters: class scores at every position of a picture, at one or several scales.

A classifier that reads patches of the feature map is a convolution (Sermanet et al. 2013,
"OverFeat", arXiv:1312.6229, section 3.5). On a larger picture the network gives a map of its
answers for all crops, and computes only once what the crops share.
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

SPAN = 1152  # pixels, 2^7 * 9: a multiple of every stride of every network here
# (height, width) in pixels of the six scales of OverFeat's accurate network (Table 5).
SIX_SCALES = ((245, 245), (281, 317), (317, 389), (389, 461), (425, 497), (461, 569))


def convolutionize(
    network: nn.Module | Sequence[Layer], input_size: tuple[int, int, int] | None = None
) -> nn.Module:
    """Return a network that gives a map of logits, with the same variables.

        scores = convolutionize(create_model("alexnet")).apply(variables, images)
        scores = convolutionize(layers, (28, 28, 1)).apply(variables, images)

    It maps images `(N, H, W, C)` to logits `(N, H', W', classes)`.

    A network of the library becomes `network.clone(dense=True)`. A list of layers, or a Sequential
    (ours or flax's), becomes a module that runs layers as they are while their output grows with
    their input: convolutions, pools, activations. The head starts at the first layer whose output
    does not grow: a function that flattens in any order, an adaptive or global pool, or a module
    that does this inside. The head is applied to every window of the map, one position apart. A
    window is as large as the map of an image of `input_size`. So a fully connected layer after a
    flattened map becomes the convolution that it is, computed as one matrix product over windows.

    For images of `input_size` the map has one position with the network's logits. If convolutions
    do not pad, a cell of a larger map equals the network on its crop. If they pad, the zeros lie
    around the picture and not around the crop, so the numbers differ.

    Args:
        network: a network, or layers: modules and functions of an array.
        input_size: (height, width, channels) of the images that the layers were made for. Needed
            for layers only.

    Raises:
        InputError: the network is no list of layers and has no field `dense`, or `input_size` is
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
    """Return the network as a map with the smallest stride that it offers.

    A network with the field `offset_pooling` computes all offsets of its last pool. Raises
    InputError if the network has no map.
    """
    fields: dict[str, Any] = {"offset_pooling": True} if hasattr(network, "offset_pooling") else {}
    return convolutionize(network).clone(**fields)


def _output_shape(layer: Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a layer's output for an input of a shape, without computing it."""

    def output(x: Array) -> Any:
        if isinstance(layer, nn.Module):
            key = jax.random.key(0)
            return layer.init_with_output({"params": key, "dropout": key}, x)[0]
        return layer(x)

    return jax.eval_shape(output, jax.ShapeDtypeStruct(shape, jnp.float32)).shape


class FullyConvolutional(nn.Module):
    """Layers as a map: `layers[:head]` on the picture, then the others on every window of the map.

    It maps `(N, H, W, C)` to `(N, H', W', ...)` with one cell for each window (height, width).
    Layers are named by their index, as in our Sequential; with `flax_names` they are named
    "layers_0" and so on, as in flax's.
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
    """Return every window of a map (N, H, W, C): (N, H', W', height, width, C)."""
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
    """Return the pixels between cells of a network's map, (down, right).

    `input_shape` is the (height, width, channels) of the images.
    """
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
    """Return the logarithms of `probability_maps`; they are finite where probabilities are 0."""
    as_map = convolutionize(model)
    with folded_norms():
        logits: Any = [as_map.apply(variables, x) for x in (images, images[:, :, ::-1])]
    straight, mirrored = (jax.nn.log_softmax(x.astype(jnp.float32)) for x in logits)
    return straight, mirrored[:, :, ::-1]


def probability_maps(model: nn.Module, variables: Any, images: Array) -> tuple[Array, Array]:
    """Return maps of class probabilities, 0..1, of pictures and of their mirror images.

    Args:
        model: a network with a map. Its field `offset_pooling`, if it has one, gives a finer map.
        variables: the network's variables.
        images: (N, H, W, C), normalised as for `model.apply`.

    Returns:
        Two maps (N, H', W', classes), float32. The second is mirrored back, so that the left of
        the picture is on the left of both.

    Raises:
        InputError: the network has no map, or the pictures are too small for it.
    """
    straight, mirrored = map(jnp.exp, log_probability_maps(model, variables, images))
    return straight, mirrored


def log_multi_scale(model: nn.Module, variables: Any, scales: Sequence[Array]) -> Array:
    """Return the logarithms of `multi_scale`; they keep their order where scores round to 0."""
    maps = [side for images in scales for side in log_probability_maps(model, variables, images)]
    maxima = jnp.stack([side.max((1, 2)) for side in maps])
    return jax.nn.logsumexp(maxima, 0) - math.log(len(maxima))


def multi_scale(model: nn.Module, variables: Any, scales: Sequence[Array]) -> Array:
    """Return class scores (N, classes) from all positions at several scales (OverFeat, 3.3).

    For each scale, and for pictures and mirror images, take each class's maximum over positions;
    then average these vectors. They are maxima of probabilities here, which the paper leaves open.
    They add up to more than one, because classes have their maxima at different positions.

    Args:
        model: a network with a map.
        variables: the network's variables.
        scales: the same pictures at each scale, (N, H, W, C) each, normalised; the paper's scales
            are `SIX_SCALES`.

    Raises:
        InputError: as `probability_maps`.
    """
    return jnp.exp(log_multi_scale(model, variables, scales))


def average_maps(maps: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return the mean of maps of one picture at several scales, at the cells of the last map.

    Cells are centred on the picture and are the same number of pixels apart at all scales.

    Args:
        maps: (H', W', classes) each, with any number of cells.
        sizes: (height, width) in pixels of the picture at the scale of each map.

    Returns:
        A map (H', W', classes) with the cells of the last one. The others are interpolated linearly
        between their cells, and are constant beyond their outermost cells.
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
    """Return (finer, count): the weight of each of `count` cells at each of `finer` cells.

    Both rows of cells have the same centre; the distance of the finer ones is `scale`.
    """
    places = (count - 1) / 2 + (np.arange(finer) - (finer - 1) / 2) * scale
    return np.stack([np.interp(places, np.arange(count), row) for row in np.eye(count)], 1)
