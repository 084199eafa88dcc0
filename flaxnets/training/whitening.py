"""Make a first convolution that whitens the patches of the training images."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.convert import torch_keys
from flaxnets.errors import InputError
from flaxnets.recipes import Statistics
from flaxnets.training.on_device import normalize
from flaxnets.training.state import PyTree

EPSILON = 5e-4  # added to the variances


def whitening_kernel(images: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a kernel of `shape` (height, width, C, features) that whitens patches of images.

    The filters are the principal directions of the patches of normalised images (N, H, W, C),
    smallest variance first, each divided by its standard deviation. The second half of the filters
    are the negatives of the first (Jordan 2024, arXiv:2404.00498, section 3.1; the idea is
    Page's, 2019).

    Raises InputError unless the kernel has two features for every value of a patch.
    """
    height, width, channels, features = shape
    numbers = height * width * channels
    if features != 2 * numbers or channels != images.shape[-1]:
        raise InputError(
            f"patches of {height}x{width} pixels with {images.shape[-1]} channels are whitened by "
            f"{2 * height * width * images.shape[-1]} filters; the kernel has the shape {shape}"
        )
    windows = np.lib.stride_tricks.sliding_window_view(images, (height, width), (1, 2))
    patches = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, numbers).astype(np.float64)
    variances, directions = np.linalg.eigh(patches.T @ patches / len(patches))
    filters = directions / np.sqrt(variances + EPSILON)
    return np.concatenate([filters, -filters], 1).reshape(shape).astype(np.float32)


def whitening(
    shapes: PyTree,
    key: str,
    examples: Callable[[], np.ndarray] | None,
    statistics: Statistics,
) -> dict[str, np.ndarray]:
    """Return, under its torch key `key`, the kernel that whitens the patches of training images.

    Args:
        shapes: the network's variables, or their shapes.
        key: torch key of the first convolution's kernel.
        examples: gives training images, uint8 (N, H, W, C).
        statistics: mean and deviation by which the images are normalised.

    Raises:
        InputError: `key` is not that of a convolution's kernel, the kernel has another shape, or
            `examples` is None.
    """
    shape = _shape_of(shapes, key)
    if examples is None:
        raise InputError(
            f"whiten {key!r} needs training images and none are given; expected `examples`"
        )
    return {
        key: whitening_kernel(np.asarray(normalize(jnp.asarray(examples()), *statistics)), shape)
    }


def with_values(variables: PyTree, values: Mapping[str, np.ndarray]) -> PyTree:
    """Return `variables` with those in `values`, by torch key, replaced."""
    return jax.tree.map(lambda key, leaf: values.get(key, leaf), torch_keys(variables), variables)


def _shape_of(variables: PyTree, key: str) -> tuple[int, ...]:
    """Return the shape of the convolution kernel whose torch key is `key`.

    Raises InputError if there is no such kernel.
    """
    keys, leaves = jax.tree.leaves(torch_keys(variables)), jax.tree.leaves(variables)
    shapes = {name: leaf.shape for name, leaf in zip(keys, leaves, strict=True)}
    if len(shapes.get(key, ())) != 4:
        kernels = [name for name, shape in shapes.items() if len(shape) == 4]
        raise InputError(
            f"whiten {key!r} is not the kernel of a convolution; expected "
            + (f"one such as {', '.join(kernels[:3])}" if kernels else "a network that has one")
        )
    return shapes[key]
