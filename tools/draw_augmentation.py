"""Draw what each augmentation does to scikit-learn's photographs, one picture for each.

    python tools/draw_augmentation.py --out docs/images/augmentation

A picture shows the original on the left, then several random draws of the operation.
"""

if __name__ == "__main__":  # first, because the other imports take seconds
    from flaxnets.terminal import quiet

    quiet()

import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from random import Random
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from PIL import Image
from sklearn.datasets import load_sample_images

from flaxnets.data.pixels.colour import Colour, Grayscale
from flaxnets.data.pixels.crop import CenterCrop, Flip, PadAndCrop, RandomCrop, RandomResizedCrop
from flaxnets.data.pixels.decode import Decode
from flaxnets.data.pixels.policies import Policy
from flaxnets.errors import InputError
from flaxnets.recipes import PolicyName
from flaxnets.terminal import arguments, one_sentence_errors
from flaxnets.training.batch_augmentation import cutmix, mixup, random_erasing

GAP = 6  # white pixels between pictures


@dataclasses.dataclass(frozen=True)
class Options:
    out: pathlib.Path = pathlib.Path("augmentation")
    """Directory for the pictures."""
    size: int = 128
    """Side of a draw, in pixels."""
    draws: int = 4
    """Number of draws of each operation."""
    seed: int = 0
    """Seed of the draws."""


def windows(photo: np.ndarray, options: Options) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Yield the name and draws of each operation that crops a picture."""
    size, resize = options.size, options.size * 8 // 7
    for operation in (
        CenterCrop(resize, size),
        RandomCrop(resize, size, resize_max=2 * resize),
        RandomResizedCrop(size),
    ):
        random = Random(options.seed)
        picture = Decode(3)(photo)
        count = options.draws if operation.is_random else 1
        yield _name(operation), [operation(picture, random) for _ in range(count)]


def changes(pixels: np.ndarray, options: Options) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Yield the name and draws of each operation that changes pixels."""
    operations = {
        _name(operation): operation
        for operation in (PadAndCrop(options.size // 8), Flip(), Grayscale(0.5), Colour(1.0))
    }
    operations |= {name: Policy(name) for name in get_args(PolicyName) if name != "none"}
    for name, operation in operations.items():
        random = Random(options.seed)
        yield name, [operation(pixels, random) for _ in range(options.draws)]


def batches(pixels: np.ndarray, options: Options) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Yield the name of each operation on a batch, and draws of the batch's first image.

    `pixels` are two images (2, H, W, C), uint8.
    """
    images, targets = jnp.asarray(pixels / np.float32(255)), jnp.eye(2)
    mean = images.mean((0, 1, 2))  # the colour of an erased rectangle
    operations: dict[str, Callable[[jax.Array], jax.Array]] = {
        "random_erasing": lambda key: random_erasing(images - mean, key, 1.0) + mean,
        "mixup": lambda key: mixup(images, targets, key, 1.0)[0],
        "cutmix": lambda key: cutmix(images, targets, key, 1.0)[0],
    }
    for name, operation in operations.items():
        keys = jax.random.split(jax.random.key(options.seed), options.draws)
        draws = [np.asarray(operation(key))[0] for key in keys]
        yield name, [np.clip(np.round(255 * x), 0, 255).astype(np.uint8) for x in draws]


def _name(operation: object) -> str:
    """Return the name of an operation's class in snake case."""
    words = "".join(f"_{c.lower()}" if c.isupper() else c for c in type(operation).__name__)
    return words.removeprefix("_")


def strip(pictures: list[np.ndarray], height: int) -> Image.Image:
    """Return pictures of one height side by side on white."""
    width = sum(picture.shape[1] + GAP for picture in pictures) - GAP
    whole = Image.new("RGB", (width, height), "white")
    left = 0
    for picture in pictures:
        whole.paste(Image.fromarray(picture), (left, (height - picture.shape[0]) // 2))
        left += picture.shape[1] + GAP
    return whole


def main(options: Options) -> None:
    if options.size < 16 or options.draws < 1:
        raise InputError(
            f"--size is {options.size} and --draws {options.draws}; expected at least 16 and 1"
        )
    photos = load_sample_images().images
    whole = Image.fromarray(photos[1])
    original = np.asarray(whole.resize((options.size * whole.width // whole.height, options.size)))
    square = CenterCrop(options.size * 8 // 7, options.size)
    pixels = [square(Decode(3)(photo), Random(0)) for photo in (photos[1], photos[0])]
    rows = [(original, row) for row in windows(photos[1], options)]
    rows += [(pixels[0], row) for row in changes(pixels[0], options)]
    rows += [(pixels[0], row) for row in batches(np.stack(pixels), options)]
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        for before, (name, draws) in rows:
            strip([before, *draws], options.size).save(options.out / f"{name}.jpg", quality=85)
    except OSError as error:
        raise InputError(f"cannot write to {options.out} ({error.strerror})") from error
    print(f"{options.out}: {len(rows)} operations")


if __name__ == "__main__":
    with one_sentence_errors():
        main(tyro.cli(Options, args=arguments(), description=__doc__))
