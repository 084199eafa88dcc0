"""Make several views of a picture, over which class probabilities are averaged.

- center: the central crop of the scaled picture.
- ten-crop: its corners, its centre, and their mirror images, in the order of torchvision's
  `TenCrop` (Krizhevsky et al. 2012, section 4.1, at test time).
- random-10: ten crops at random positions, mirrored with probability 1/2.
- multi-scale: OverFeat's six sizes and their mirror images, each of which the network reads as a
  map (Sermanet et al. 2013, arXiv:1312.6229, section 3.3 and Table 5). A class has its largest
  probability over the positions of a map. Sizes are proportional to the network's input, which is
  221 pixels in the paper. The paper does not say how pictures were brought to these sizes: here
  they are scaled to cover a size and cut to it around the centre.
- mirror-and-shift: the network's input, two shifts of it by a pixel, and their mirror images
  (`flaxnets.training.views`).
"""

import collections
import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import numpy as np

from flaxnets.data.pixels.crop import CenterCrop, center
from flaxnets.data.pixels.decode import as_array
from flaxnets.data.pixels.resize import cover, scale_short_side
from flaxnets.data.plan import Plan
from flaxnets.errors import InputError
from flaxnets.inference.dense import SIX_SCALES, finest_map
from flaxnets.training.views import MIRROR_AND_SHIFT, mirror_and_shift
from flaxnets.types import Views as Views


def ten_crop(image: np.ndarray, crop: int) -> np.ndarray:
    """Return ten crops (10, crop, crop, C) of an image (H, W, C).

    They are top left and right, bottom left and right, and the centre; then the same of the
    mirrored image.
    """
    bottom, right = (size - crop for size in image.shape[:2])
    views = []
    for side in (image, image[:, ::-1]):
        for top, left in ((0, 0), (0, right), (bottom, 0), (bottom, right)):
            views.append(side[top : top + crop, left : left + crop])
        views.append(center(side, crop))
    return np.stack(views)


def random_crops(image: np.ndarray, crop: int, seed: Sequence[int], count: int = 10) -> np.ndarray:
    """Return `count` crops (count, crop, crop, C) of an image (H, W, C).

    Positions are uniform; a crop is mirrored with probability 1/2.
    """
    random = np.random.default_rng(seed)
    views = []
    for _ in range(count):
        top, left = (random.integers(size - crop, endpoint=True) for size in image.shape[:2])
        view = image[top : top + crop, left : left + crop]
        views.append(view[:, ::-1] if random.integers(2) else view)
    return np.stack(views)


def check_views(views: Views, plan: Plan) -> None:
    """Raise InputError if a network with that preprocessing has no such views."""
    if views not in ("center", "mirror-and-shift") and not isinstance(plan.window, CenterCrop):
        raise InputError(
            f"this network reads the whole picture at {plan.size}x{plan.size} pixels and has no "
            f"{views} views; expected 'center' or 'mirror-and-shift'"
        )


def views_of(
    raw: bytes | np.ndarray,
    plan: Plan,
    views: Views,
    seed: Sequence[int] = (0,),
    name: str = "the picture",
) -> dict[str, np.ndarray]:
    """Return the views of a raw picture: uint8 (V, height, width, C) for each size.

    Their keys start with "image". Messages call the picture `name`.

    Raises InputError as `check_views`, and if the picture is damaged or too long to be scaled.
    """
    check_views(views, plan)
    if views == "center":
        return {"image": plan(raw, name=name)[None]}
    if views == "mirror-and-shift":
        return {"image": mirror_and_shift(plan(raw, name=name))}
    image, window = plan.decode(raw, name=name).image, plan.window
    if views == "multi-scale":
        sizes = [tuple(round(n * window.size / 221) for n in size) for size in SIX_SCALES]
        images = [as_array(cover(image, size, window.interpolation)) for size in sizes]
        return {f"image{i}": np.stack([x, x[:, ::-1]]) for i, x in enumerate(images)}
    pixels = as_array(scale_short_side(image, window.resize, window.interpolation))
    if views == "ten-crop":
        return {"image": ten_crop(pixels, window.size)}
    return {"image": random_crops(pixels, window.size, seed)}


VIEWS_PER_SIZE = {
    "center": 1, "ten-crop": 10, "random-10": 10, "multi-scale": 2,
    "mirror-and-shift": len(MIRROR_AND_SHIFT),
}  # fmt: skip
# Weights of the views in the mean; other views have equal weights.
SHARES: dict[str, tuple[float, ...]] = {"mirror-and-shift": MIRROR_AND_SHIFT}


def for_views(model: nn.Module, views: Views) -> nn.Module:
    """Return the network that reads such views: for multi-scale, the one with the finest map.

    Raises InputError if it has no map.
    """
    return finest_map(model) if views == "multi-scale" else model


def view_batches(
    elements: Iterable[Any],
    batch_size: int,
    prepare: Callable[[int, Any], tuple[dict[str, np.ndarray], Any]],
) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches of views with "label" and "mask", in the form of `data.eval_batches`.

    The last batch is padded with zeros. `prepare(index, element)` gives an example's views and its
    label. One thread per core prepares pictures, up to one batch ahead.
    """

    def pad(values: Sequence[Any]) -> np.ndarray:
        stacked = np.stack(values)
        return np.pad(stacked, [(0, batch_size - len(values))] + [(0, 0)] * (stacked.ndim - 1))

    def batch(waiting: list[concurrent.futures.Future]) -> dict[str, np.ndarray]:
        prepared = [{**views, "label": label} for views, label in (job.result() for job in waiting)]
        mask = (np.arange(batch_size) < len(prepared)).astype(np.float32)
        return {key: pad([x[key] for x in prepared]) for key in prepared[0]} | {"mask": mask}

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs: collections.deque[Any] = collections.deque()
        for index, element in enumerate(elements):
            jobs.append(pool.submit(prepare, index, element))
            if len(jobs) == 2 * batch_size:
                yield batch([jobs.popleft() for _ in range(batch_size)])
        while jobs:
            yield batch([jobs.popleft() for _ in range(min(batch_size, len(jobs)))])
