"""Average the class probabilities of several views of an image."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.kernels.folding import folded_norms

# Weights of the views of `mirror_and_shift`: the unshifted image counts as much as both shifts.
MIRROR_AND_SHIFT = (1 / 4, 1 / 4, 1 / 8, 1 / 8, 1 / 8, 1 / 8)


def mirror_and_shift(images: Any) -> Any:
    """Return six views (..., 6, H, W, C) of images (..., H, W, C), NumPy's or jax's.

    They are the image, the image shifted by a pixel down and right, the image shifted by a pixel up
    and left, and the mirror image of each. Pixels that move in are reflected at the edge (Jordan
    2024, arXiv:2404.00498, section 3.5).
    """
    numpy = np if isinstance(images, np.ndarray) else jnp
    height, width = images.shape[-3:-1]
    padded = numpy.pad(images, [(0, 0)] * (images.ndim - 3) + [(1, 1), (1, 1), (0, 0)], "reflect")
    moved = [padded[..., i : i + height, i : i + width, :] for i in (1, 0, 2)]
    return numpy.stack([view for x in moved for view in (x, x[..., ::-1, :])], -4)


def view_logits(model: nn.Module, variables: Any, images: jax.Array) -> jax.Array:
    """Return the logits (N, V, classes) of normalised views (N, V, H, W, C).

    A dense network gives maps of logits, (N, V, H', W', classes).
    """
    with folded_norms():
        logits: Any = model.apply(variables, images.reshape(-1, *images.shape[2:]))
    return logits.astype(jnp.float32).reshape(*images.shape[:2], *logits.shape[1:])


def mean_log_probabilities(
    logits: Sequence[jax.Array], shares: Sequence[float] | None = None
) -> jax.Array:
    """Return the logarithms (N, classes) of the class probabilities averaged over all views.

    Args:
        logits: results of `view_logits`, one array for each size of view. From a map each class
            takes its largest probability over the positions.
        shares: weights of the views in the mean; equal unless given.

    The mean is computed from logarithms, by log-sum-exp, because in float32 a probability below
    1e-45 is zero.
    """
    logs = [jax.nn.log_softmax(x) for x in logits]
    logs = jnp.concatenate([x.max((2, 3)) if x.ndim == 5 else x for x in logs], 1)
    if shares is not None:
        logs += jnp.log(jnp.array(shares, jnp.float32))[None, :, None]
    # The outer log_softmax divides by the number of views. It also normalises maxima over
    # positions, which add up to more than one.
    return jax.nn.log_softmax(jax.nn.logsumexp(logs, 1))
