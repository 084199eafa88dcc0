"""Several views of an image, whose class probabilities are averaged."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.kernels.folding import folded_norms

# Of the views of `mirror_and_shift`: an image where it is counts as much as both of its shifts.
MIRROR_AND_SHIFT = (1 / 4, 1 / 4, 1 / 8, 1 / 8, 1 / 8, 1 / 8)


def mirror_and_shift(images: Any) -> Any:
    """Return six views (..., 6, H, W, C) of images (..., H, W, C), NumPy's or jax's: as they are,
    shifted by a pixel down and right, and up and left, each with its mirror image. What moves in is
    reflected at the edge (Jordan 2024, arXiv:2404.00498, section 3.5).
    """
    numpy = np if isinstance(images, np.ndarray) else jnp
    height, width = images.shape[-3:-1]
    padded = numpy.pad(images, [(0, 0)] * (images.ndim - 3) + [(1, 1), (1, 1), (0, 0)], "reflect")
    moved = [padded[..., i : i + height, i : i + width, :] for i in (1, 0, 2)]
    return numpy.stack([view for x in moved for view in (x, x[..., ::-1, :])], -4)


def view_logits(model: nn.Module, variables: Any, images: jax.Array) -> jax.Array:
    """Return the logits (N, V, classes), or maps of them, of normalised images (N, V, H, W, C)."""
    with folded_norms():
        logits: Any = model.apply(variables, images.reshape(-1, *images.shape[2:]))
    return logits.astype(jnp.float32).reshape(*images.shape[:2], *logits.shape[1:])


def mean_log_probabilities(
    logits: Sequence[jax.Array], shares: Sequence[float] | None = None
) -> jax.Array:
    """Return the logarithms (N, classes) of the class probabilities averaged over all views.

    `logits` are those of `view_logits`, one array for each size of view; `shares` are those of the
    views in the mean, all alike unless given. Each class has its largest probability over the
    positions of a map. The mean is taken of logarithms, by log-sum-exp: in float32 a probability
    below 1e-45 is zero.
    """
    logs = [jax.nn.log_softmax(x) for x in logits]
    logs = jnp.concatenate([x.max((2, 3)) if x.ndim == 5 else x for x in logs], 1)
    if shares is not None:
        logs += jnp.log(jnp.array(shares, jnp.float32))[None, :, None]
    # The last one divides by the number of views, and maxima add up to more than one.
    return jax.nn.log_softmax(jax.nn.logsumexp(logs, 1))
