"""Turn a batch into network input on the device: crop, mirror, shift colours and normalise.

The host's plan leaves these operations to the training step (`Plan.split`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from flaxnets.recipes import Padding, Preprocessing


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Return (x - mean) / std of each channel, in float32.

    Pictures (uint8) are divided by 255 first. Measured features are in the units of the statistics.
    """
    shape = (1,) * (images.ndim - 1) + (-1,)  # strict rank promotion demands equal ranks
    shift, scale = (jnp.array(values, jnp.float32).reshape(shape) for values in (mean, std))
    unit = 255 if images.dtype == jnp.uint8 else 1
    return (images.astype(jnp.float32) / unit - shift) / scale


def cropped(batch: Mapping[str, Any], preprocessing: Preprocessing) -> jax.Array:
    """Return the images of a batch, cropped by its "offset" and flipped by its "mirrored".

    The batch comes from `flaxnets.data.train_batches`. Either key may be absent. The crops are
    those of He et al. 2015, section 4.2.
    """
    images = batch["image"]
    if "offset" not in batch and "mirrored" not in batch:
        return images
    count, pad = len(images), preprocessing.pad if "offset" in batch else 0
    offsets = batch.get("offset", jnp.zeros((count, 2), jnp.int32))
    mirrored = batch.get("mirrored", jnp.zeros(count, bool))
    return crop_and_flip(images, offsets, mirrored, pad, preprocessing.padding)


def shifted(images: jax.Array, batch: Mapping[str, Any], unit: jax.Array | float) -> jax.Array:
    """Add the batch's "colour" to `images` (N, H, W, C), if the batch has colour shifts.

    `unit` is the distance from black to white in `images`: one number, or one for each channel. The
    shifts are those of Krizhevsky et al. 2012, section 4.1.
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
    """Pad each image, crop it to its old size at its offset, and mirror it where asked.

    Args:
        images: (N, H, W, C).
        offsets: (N, [y, x]), each from 0 to 2 * pad.
        mirrored: bool (N,).
        pad: pixels added on each side.
        padding: with zeros, or with the image reflected at its edge.
    """
    height, width = images.shape[1:3]
    mode = "constant" if padding == "zeros" else "reflect"
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode)
    columns = jnp.arange(width)[None]
    columns = jnp.where(mirrored[:, None], columns[:, ::-1], columns) + offsets[:, 1:]
    rows = jnp.arange(height)[None] + offsets[:, :1]
    examples = jnp.arange(len(images))[:, None, None]
    return padded[examples, rows[:, :, None], columns[:, None, :]]
