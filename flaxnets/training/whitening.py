"""A first convolution that whitens the patches of the training images."""

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
    """Return a kernel of `shape`, (height, width, C, features), whose filters are the directions in
    which patches of normalised images (N, H, W, C) vary, the least first, each divided by its
    standard deviation; then the negatives of those (Jordan 2024, arXiv:2404.00498, section 3.1;
    the idea is Page's, 2019).

    Raises InputError unless it has two features for every number of a patch.
    """
    height, width, channels, features = shape
    numbers = height * width * channels
    if features != 2 * numbers or channels != images.shape[-1]:
        raise InputError(
            f"patches of {height}x{width} pixels with {images.shape[-1]} channels are whitened by "
            f"{2 * height * width * images.shape[-1]} filters, not by a kernel of shape {shape}"
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
    """Return the kernel of the torch key `key` that whitens the patches of `examples`, normalised
    by `statistics`; `shapes` are those of the network's variables.

    Raises InputError if that is no kernel of a convolution, or one of another shape.
    """
    shape = _shape_of(shapes, key)
    if examples is None:
        raise InputError(f"whiten {key!r} needs training images, and none are given")
    return {
        key: whitening_kernel(np.asarray(normalize(jnp.asarray(examples()), *statistics)), shape)
    }


def with_values(variables: PyTree, values: Mapping[str, np.ndarray]) -> PyTree:
    """Return `variables` with some in place of others, by their torch keys."""
    return jax.tree.map(lambda key, leaf: values.get(key, leaf), torch_keys(variables), variables)


def _shape_of(variables: PyTree, key: str) -> tuple[int, ...]:
    """Return the shape of the kernel whose torch key is `key`. Raises InputError if there is none
    of a convolution.
    """
    keys, leaves = jax.tree.leaves(torch_keys(variables)), jax.tree.leaves(variables)
    shapes = {name: leaf.shape for name, leaf in zip(keys, leaves, strict=True)}
    if len(shapes.get(key, ())) != 4:
        kernels = [name for name, shape in shapes.items() if len(shape) == 4]
        raise InputError(
            f"whiten {key!r} is no kernel of a convolution; expected one such as "
            f"{', '.join(kernels[:3]) or 'those of other networks'}"
        )
    return shapes[key]
