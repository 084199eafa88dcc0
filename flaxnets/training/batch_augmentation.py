"""Augment a whole batch on the device: pure functions of a key, vectorised over the images.

Under a mapped axis each device sees its own part of the batch and has its own key. So each device
draws one mixing coefficient and mixes its own images, as each process does in torchvision's
recipes.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from flaxnets.recipes import Recipe
from flaxnets.training.on_device import cropped, normalize, shifted
from flaxnets.training.state import Batch

# Zhong et al. 2017, section 3, as torchvision's RandomErasing implements it: the rectangle's share
# of the image's area, its aspect ratio (height to width), and the number of tries.
ERASED_AREA = (0.02, 0.33)
ERASED_RATIO = (0.3, 3.3)
TRIES = 10


def augmented(
    batch: Batch,
    key: jax.Array,
    statistics: tuple[Sequence[float], Sequence[float]],
    recipe: Recipe,
    num_classes: int,
) -> Batch:
    """Return the "image" and "label" of a batch, augmented as the recipe says.

    Images are cropped, normalised, shifted in colour, erased and mixed, in this order. Crops and
    colour shifts are drawn on the host and come with the batch. If the recipe mixes images, labels
    become probabilities (N, num_classes).
    """
    erasing, blending = jax.random.split(key)
    images = cropped(batch, recipe.preprocessing)
    images, labels = normalize(images, *statistics), batch["label"]
    images = shifted(images, batch, 1 / jnp.array(statistics[1], jnp.float32))
    if recipe.random_erasing:
        images = random_erasing(images, erasing, recipe.random_erasing)
    if recipe.mixup or recipe.cutmix:
        targets = jax.nn.one_hot(labels, num_classes)
        images, labels = mixup_or_cutmix(images, targets, blending, recipe.mixup, recipe.cutmix)
    return {"image": images, "label": labels}


def random_erasing(images: jax.Array, key: jax.Array, probability: float) -> jax.Array:
    """Replace a random rectangle of normalised `images` (N, H, W, C) by zeros, the mean colour.

    Each image is changed with probability `probability`. The rectangle's area is uniform between 2%
    and 33% of the image, and its aspect ratio is log-uniform between 0.3 and 3.3. The first of ten
    rectangles that fits is taken; if none does, the image stays whole (torchvision's
    transforms/transforms.py, RandomErasing).
    """
    count, height, width, _ = images.shape
    coins, areas, ratios, places = jax.random.split(key, 4)
    area = jax.random.uniform(areas, (count, TRIES), minval=ERASED_AREA[0], maxval=ERASED_AREA[1])
    low, high = jnp.log(jnp.array(ERASED_RATIO))
    ratio = jnp.exp(jax.random.uniform(ratios, (count, TRIES), minval=low, maxval=high))
    pixels = height * width * area
    sizes = jnp.round(jnp.sqrt(jnp.stack([pixels * ratio, pixels / ratio], -1)))  # (N, tries, 2)
    fits = (sizes < jnp.array([[[height, width]]])).all(-1)
    size = jnp.take_along_axis(sizes, fits.argmax(1)[:, None, None], 1)[:, 0].astype(int)
    room = jnp.array([[height, width]]) - size + 1
    corner = jax.random.randint(places, size.shape, 0, jnp.maximum(room, 1))
    chosen = fits.any(1) & (jax.random.uniform(coins, (count,)) < probability)
    box = _box(height, width, corner, corner + size) & chosen[:, None, None]
    return jnp.where(box[..., None], jnp.zeros((), images.dtype), images)


def _box(height: int, width: int, first: jax.Array, last: jax.Array) -> jax.Array:
    """Return masks (..., height, width) of rectangles with corners `first` and `last` (excluded).

    Corners are (..., [y, x]).
    """
    places = (lax.broadcast_to_rank(jnp.arange(size), first.ndim) for size in (height, width))
    rows, columns = (
        (place >= first[..., i, None]) & (place < last[..., i, None])
        for i, place in enumerate(places)
    )
    return rows[..., :, None] & columns[..., None, :]


def mixup(
    images: jax.Array, targets: jax.Array, key: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Return lambda times each example plus 1 - lambda times the example before it.

    lambda ~ Beta(alpha, alpha) is drawn once for the batch (Zhang et al. 2017; torchvision's
    transforms/v2/_augment.py, MixUp). `images` (N, H, W, C) are floating point; `targets` (N, K)
    are probabilities of classes.
    """
    share = jax.random.beta(key, alpha, alpha)
    return _mixed(images, share), _mixed(targets, share)


def _mixed(values: jax.Array, share: jax.Array) -> jax.Array:
    share = share.astype(values.dtype)
    return share * values + (1 - share) * jnp.roll(values, 1, 0)


def cutmix(
    images: jax.Array, targets: jax.Array, key: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Paste a rectangle of the image before it into each image, and mix the targets by area.

    All images of the batch have the same rectangle (Yun et al. 2019; torchvision's
    transforms/v2/_augment.py, CutMix). Its sides are sqrt(1 - lambda) of the image's sides, with
    lambda ~ Beta(alpha, alpha). Its centre is uniform, so the image's edge may clip it. Shapes are
    those of `mixup`.
    """
    height, width = images.shape[1:3]
    size = jnp.array([height, width])
    shares, centres = jax.random.split(key)
    centre = jax.random.randint(centres, (2,), 0, size)
    half = (0.5 * jnp.sqrt(1 - jax.random.beta(shares, alpha, alpha)) * size).astype(int)
    first, last = jnp.maximum(centre - half, 0), jnp.minimum(centre + half, size)
    box = _box(height, width, first, last)
    share = 1 - (last - first).prod() / size.prod()
    return jnp.where(box[None, ..., None], jnp.roll(images, 1, 0), images), _mixed(targets, share)


def mixup_or_cutmix(
    images: jax.Array,
    targets: jax.Array,
    key: jax.Array,
    mixup_alpha: float,
    cutmix_alpha: float,
) -> tuple[jax.Array, jax.Array]:
    """Apply `mixup` or `cutmix`, whichever has an alpha above zero.

    If both have one, either is applied to the whole batch with equal chances (torchvision's
    references/classification/train.py). If neither has, the batch is returned unchanged.
    """
    alphas = ((mixup, mixup_alpha), (cutmix, cutmix_alpha))
    branches = [functools.partial(mix, alpha=alpha) for mix, alpha in alphas if alpha > 0]
    if not branches:
        return images, targets
    choice, key = jax.random.split(key)
    index = jax.random.randint(choice, (), 0, len(branches))
    return lax.switch(index, branches, images, targets, key)
