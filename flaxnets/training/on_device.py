"""Network input, made on the device from a batch as the host sends it: the crops and colour shifts
that the host's plan leaves to the step, and normalised values.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from flaxnets.recipes import Padding, Preprocessing


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Return (x - mean) / std of each channel, in float32.

    Pictures (uint8) are divided by 255 first; measured features have the units of the statistics.
    """
    shape = (1,) * (images.ndim - 1) + (-1,)  # the images' rank, as strict rank promotion asks
    shift, scale = (jnp.array(values, jnp.float32).reshape(shape) for values in (mean, std))
    unit = 255 if images.dtype == jnp.uint8 else 1
    return (images.astype(jnp.float32) / unit - shift) / scale


def cropped(batch: Mapping[str, Any], how: Preprocessing) -> jax.Array:
    """Return the images of a batch of `flaxnets.data.train_batches`, padded, cropped and mirrored
    where it says so (He et al. 2015, section 4.2).
    """
    images = batch["image"]
    if "offset" not in batch and "mirrored" not in batch:
        return images
    count, pad = len(images), how.pad if "offset" in batch else 0
    offsets = batch.get("offset", jnp.zeros((count, 2), jnp.int32))
    mirrored = batch.get("mirrored", jnp.zeros(count, bool))
    return crop_and_flip(images, offsets, mirrored, pad, how.padding)


def shifted(images: jax.Array, batch: Mapping[str, Any], unit: jax.Array | float) -> jax.Array:
    """Return `images` (N, H, W, C) with each image's colour shift, if the batch has any (Krizhevsky
    et al. 2012, section 4.1). `unit`, a number or C of them, is the distance from black to white in
    `images`.
    """
    if "colour" not in batch:
        return images
    shift = jnp.reshape(batch["colour"], (len(images), 1, 1, -1))
    return images + shift * jnp.reshape(jnp.asarray(unit), (1, 1, 1, -1))


def crop_and_flip(
    images: jax.Array,
    offsets: jax.Array,
    mirrored: jax.Array,
    pad: int,
    padding: Padding = "zeros",
) -> jax.Array:
    """Return the crop at offsets (N, [y, x]), each 0..2 * pad, of each padded image, mirrored where
    `mirrored` (N,) is true.
    """
    height, width = images.shape[1:3]
    mode = "constant" if padding == "zeros" else "reflect"
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode)
    columns = jnp.arange(width)[None]
    columns = jnp.where(mirrored[:, None], columns[:, ::-1], columns) + offsets[:, 1:]
    rows = jnp.arange(height)[None] + offsets[:, :1]
    examples = jnp.arange(len(images))[:, None, None]
    return padded[examples, rows[:, :, None], columns[:, None, :]]
