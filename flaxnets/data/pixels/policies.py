"""Augmentation policies: which operations change an image, how strongly, and how often.

The policies are TrivialAugment-wide (Mueller & Hutter 2021), RandAugment (Cubuk et al. 2019) and
the three of AutoAugment (Cubuk et al. 2018). Operations, magnitudes and probabilities are those of
torchvision for PIL images (transforms/autoaugment.py), which also computes them with Pillow.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from random import Random
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from flaxnets.data.pixels.decode import as_array, as_image
from flaxnets.errors import one_of
from flaxnets.recipes import Interpolation, PolicyName

# (image, magnitude, interpolation of pixels) -> image
Operation = Callable[[Image.Image, float, Image.Resampling], Image.Image]


def _affine(matrix: Callable[[float], tuple[float, ...]]) -> Operation:
    """Return an operation that moves pixels by `matrix(magnitude)`, (a, b, c, d, e, f).

    Pixel [x, y] of the result is the pixel [a x + b y + c, d x + e y + f] of the image, or zero if
    that is outside.
    """

    def operation(image: Image.Image, magnitude: float, resampling: Image.Resampling):
        affine = Image.Transform.AFFINE
        return image.transform(image.size, affine, matrix(magnitude), resampling, fillcolor=0)

    return operation


def _enhance(kind: type) -> Operation:
    """Return an operation that enhances an image by the factor 1 + magnitude."""
    return lambda image, magnitude, _: kind(image).enhance(1 + magnitude)


# Moving operations interpolate. They and the enhancements are reversed half of the time.
MOVING: dict[str, Operation] = {
    # Move each row `magnitude` pixels further left than the row above; each column further up.
    "ShearX": _affine(lambda m: (1, m, 0, 0, 1, 0)),
    "ShearY": _affine(lambda m: (1, 0, 0, m, 1, 0)),
    # Move right, or down, by whole pixels.
    "TranslateX": _affine(lambda m: (1, 0, -int(m), 0, 1, 0)),
    "TranslateY": _affine(lambda m: (1, 0, 0, 0, 1, -int(m))),
    # Turn counter-clockwise about the centre, in degrees.
    "Rotate": lambda image, degrees, resampling: image.rotate(degrees, resampling),
}
ENHANCING: dict[str, Operation] = {
    "Brightness": _enhance(ImageEnhance.Brightness),  # away from black
    "Color": _enhance(ImageEnhance.Color),  # away from grey
    "Contrast": _enhance(ImageEnhance.Contrast),  # away from the mean grey value
    "Sharpness": _enhance(ImageEnhance.Sharpness),  # away from the smoothed image
}
OPERATIONS: dict[str, Operation] = {
    "Identity": lambda image, _, __: image,
    **MOVING,
    **ENHANCING,
    "Posterize": lambda image, bits, _: ImageOps.posterize(image, int(bits)),
    "Solarize": lambda image, threshold, _: ImageOps.solarize(image, threshold),  # pyright: ignore
    "AutoContrast": lambda image, _, __: ImageOps.autocontrast(image),
    "Equalize": lambda image, _, __: ImageOps.equalize(image),
    "Invert": lambda image, _, __: ImageOps.invert(image),
}
OPERATION_NAMES = list(OPERATIONS)

# AutoAugment's policies (Cubuk et al. 2018, appendix A, tables 7 to 9): 25 pairs of (operation,
# probability, magnitude from 0 to 9; 0 for operations without a magnitude).
# fmt: off
AUTO_AUGMENT = {
    "auto_augment_imagenet": [
        (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
        (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
        (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
        (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
        (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
        (("Equalize", 0.4, 0), ("Rotate", 0.8, 8)),
        (("Solarize", 0.6, 3), ("Equalize", 0.6, 0)),
        (("Posterize", 0.8, 5), ("Equalize", 1.0, 0)),
        (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
        (("Equalize", 0.6, 0), ("Posterize", 0.4, 6)),
        (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
        (("Rotate", 0.4, 9), ("Equalize", 0.6, 0)),
        (("Equalize", 0.0, 0), ("Equalize", 0.8, 0)),
        (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
        (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
        (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
        (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
        (("Sharpness", 0.4, 7), ("Invert", 0.6, 0)),
        (("ShearX", 0.6, 5), ("Equalize", 1.0, 0)),
        (("Color", 0.4, 0), ("Equalize", 0.6, 0)),
        (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
        (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
        (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
        (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
        (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
    ],
    "auto_augment_cifar10": [
        (("Invert", 0.1, 0), ("Contrast", 0.2, 6)),
        (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
        (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
        (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
        (("AutoContrast", 0.5, 0), ("Equalize", 0.9, 0)),
        (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
        (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
        (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
        (("Equalize", 0.6, 0), ("Equalize", 0.5, 0)),
        (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
        (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
        (("Equalize", 0.3, 0), ("AutoContrast", 0.4, 0)),
        (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
        (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
        (("Solarize", 0.5, 2), ("Invert", 0.0, 0)),
        (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
        (("Equalize", 0.2, 0), ("Equalize", 0.6, 0)),
        (("Color", 0.9, 9), ("Equalize", 0.6, 0)),
        (("AutoContrast", 0.8, 0), ("Solarize", 0.2, 8)),
        (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
        (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 0)),
        (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
        (("AutoContrast", 0.9, 0), ("Solarize", 0.8, 3)),
        (("Equalize", 0.8, 0), ("Invert", 0.1, 0)),
        (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 0)),
    ],
    "auto_augment_svhn": [
        (("ShearX", 0.9, 4), ("Invert", 0.2, 0)),
        (("ShearY", 0.9, 8), ("Invert", 0.7, 0)),
        (("Equalize", 0.6, 0), ("Solarize", 0.6, 6)),
        (("Invert", 0.9, 0), ("Equalize", 0.6, 0)),
        (("Equalize", 0.6, 0), ("Rotate", 0.9, 3)),
        (("ShearX", 0.9, 4), ("AutoContrast", 0.8, 0)),
        (("ShearY", 0.9, 8), ("Invert", 0.4, 0)),
        (("ShearY", 0.9, 5), ("Solarize", 0.2, 6)),
        (("Invert", 0.9, 0), ("AutoContrast", 0.8, 0)),
        (("Equalize", 0.6, 0), ("Rotate", 0.9, 3)),
        (("ShearX", 0.9, 4), ("Solarize", 0.3, 3)),
        (("ShearY", 0.8, 8), ("Invert", 0.7, 0)),
        (("Equalize", 0.9, 0), ("TranslateY", 0.6, 6)),
        (("Invert", 0.9, 0), ("Equalize", 0.6, 0)),
        (("Contrast", 0.3, 3), ("Rotate", 0.8, 4)),
        (("Invert", 0.8, 0), ("TranslateY", 0.0, 2)),
        (("ShearY", 0.7, 6), ("Solarize", 0.4, 8)),
        (("Invert", 0.6, 0), ("Rotate", 0.8, 4)),
        (("ShearY", 0.3, 7), ("TranslateX", 0.9, 3)),
        (("ShearX", 0.1, 6), ("Invert", 0.6, 0)),
        (("Solarize", 0.7, 2), ("TranslateY", 0.6, 7)),
        (("ShearY", 0.8, 4), ("Invert", 0.8, 0)),
        (("ShearX", 0.7, 9), ("TranslateY", 0.8, 3)),
        (("ShearY", 0.8, 5), ("AutoContrast", 0.7, 0)),
        (("ShearX", 0.7, 2), ("Invert", 0.1, 0)),
    ],
}
# fmt: on


class Step(NamedTuple):
    """An operation that is applied with a probability."""

    operation: str
    probability: float
    magnitude: float


def magnitudes(bins: int, height: int, width: int, wide: bool = False) -> dict[str, np.ndarray]:
    """Return the magnitudes of each operation that has some, float32 (bins,), weakest first.

    Shears have tangents, translations pixels, the rotation degrees and enhancements relative
    changes. The magnitude of "Posterize" is the number of bits that are kept. That of "Solarize" is
    the lowest value that is inverted.

    They are torchvision's up to the last bit. That bit decides one whole number: the sixteenth wide
    translation is 16 pixels here. In torchvision float32 gives 15.999999, hence 15.
    """
    tangent, degrees, change, bits = (0.99, 135.0, 0.99, 6) if wide else (0.3, 30.0, 0.9, 4)
    right, down = (32.0, 32.0) if wide else (150 / 331 * width, 150 / 331 * height)
    strongest = {
        "ShearX": tangent, "ShearY": tangent, "TranslateX": right, "TranslateY": down,
        "Rotate": degrees, **dict.fromkeys(ENHANCING, change),
    }  # fmt: skip
    share = np.linspace(0, 1, bins)
    values = {name: share * most for name, most in strongest.items()}
    values |= {"Posterize": 8 - np.round(share * bits), "Solarize": 255 * (1 - share)}
    return {name: value.astype(np.float32) for name, value in values.items()}


@functools.cache
def sub_policies(
    policy: PolicyName, height: int, width: int, magnitude: int = 9
) -> list[tuple[Step, ...]]:
    """Return the equally likely sequences of operations of `policy` for images of one size.

    `magnitude`, from 0 to 30, is used by RandAugment alone.

    Raises InputError for an unknown policy.
    """
    one_of(("trivial_augment_wide", "rand_augment", *AUTO_AUGMENT), policy, "policy")
    if policy in AUTO_AUGMENT:
        values = magnitudes(10, height, width)
        return [
            tuple(
                Step(name, probability, float(values[name][index]) if name in values else 0.0)
                for name, probability, index in pair
            )
            for pair in AUTO_AUGMENT[policy]
        ]
    names = [name for name in OPERATION_NAMES if name != "Invert"]
    values = magnitudes(31, height, width, wide=policy == "trivial_augment_wide")
    strengths = {name: values.get(name, np.zeros(31)).tolist() for name in names}
    if policy == "trivial_augment_wide":  # any operation at any magnitude
        return [(Step(name, 1.0, value),) for name in names for value in strengths[name]]
    steps = [Step(name, 1.0, strengths[name][magnitude]) for name in names]
    return list(itertools.product(steps, repeat=2))


def draw(
    policy: PolicyName, height: int, width: int, random: Random, magnitude: int = 9
) -> list[tuple[str, float]]:
    """Draw the operations for one image, with their magnitudes."""
    drawn = []
    for step in random.choice(sub_policies(policy, height, width, magnitude)):
        is_applied, is_reversed = random.random() < step.probability, random.random() < 0.5
        if is_applied:
            reverse = is_reversed and (step.operation in MOVING or step.operation in ENHANCING)
            drawn.append((step.operation, -step.magnitude if reverse else step.magnitude))
    return drawn


@dataclasses.dataclass(frozen=True)
class Policy:
    """Change uint8 pixels (height, width, channels) by the operations that a policy draws."""

    policy: PolicyName
    interpolation: Interpolation = "bilinear"
    magnitude: int = 9

    def __call__(self, pixels: np.ndarray, random: Random) -> np.ndarray:
        image, resampling = as_image(pixels), Image.Resampling[self.interpolation.upper()]
        height, width = pixels.shape[:2]
        for name, magnitude in draw(self.policy, height, width, random, self.magnitude):
            image = OPERATIONS[name](image, magnitude, resampling)
        return as_array(image)
