"""Augmentation policies: which operations change an image, how much, and how often.

TrivialAugment-wide (Mueller & Hutter 2021), RandAugment (Cubuk et al. 2019) and the three policies
of AutoAugment (Cubuk et al. 2018), with the operations, magnitudes and probabilities of torchvision
(transforms/autoaugment.py).

An operation is a pure function of a uint8 image (height, width, 1 or 3 channels; of known shape)
and a magnitude, for use eagerly and inside tf.data alike. Its result has the bits of torchvision's
for a PIL image, which the comments explain where they are Pillow's doing.
"""

# TensorFlow's annotations deny what its functions accept (tensors for integers, and back).
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false
# pyright: reportOperatorIssue=false, reportIndexIssue=false

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from flaxnets.data.tensorflow import tf
from flaxnets.errors import one_of
from flaxnets.recipes import Interpolation, Policy

# ------------------------------------------------------------------------------ moving the pixels

# Pixel [x, y] of the result is that at [a x + b y + c, d x + e y + f] of the image, as float64.
Matrix = Sequence[tf.Tensor | float]


def _affine(image: tf.Tensor, matrix: Matrix, interpolation: Interpolation) -> tf.Tensor:
    """The image under the inverse of `matrix`, with zeros where that leads out of it."""
    matrix = [tf.cast(value, tf.float64) for value in matrix]
    height, width = image.shape[:2]
    sample = _nearest if interpolation == "nearest" else _bilinear
    return tf.ensure_shape(sample(image, matrix, height, width), image.shape)


def _nearest(image: tf.Tensor, matrix: Matrix, height: int, width: int) -> tf.Tensor:
    def fixed(value):  # Pillow counts in 1/65536 of a pixel
        return tf.cast(tf.floor(value * 65536 + 0.5), tf.int32)

    def source(a, b, c):
        steps = fixed(a) * np.arange(width) + fixed(b) * np.arange(height)[:, None]
        return tf.bitwise.right_shift(fixed(c + a * 0.5 + b * 0.5) + steps, 16)

    x, y = source(*matrix[:3]), source(*matrix[3:])
    index = tf.where(_inside(x, y, height, width), y * width + x, height * width)
    pixels = tf.reshape(image, (height * width, -1))
    return tf.gather(tf.pad(pixels, [[0, 1], [0, 0]]), index)


def _bilinear(image: tf.Tensor, matrix: Matrix, height: int, width: int) -> tf.Tensor:
    columns, rows = np.arange(width) + 0.5, np.arange(height)[:, None] + 0.5
    x, y = (a * columns + b * rows + c for a, b, c in (matrix[:3], matrix[3:]))
    inside = _inside(x, y, height, width)
    x, y = x - 0.5, y - 0.5
    left, top = tf.floor(x), tf.floor(y)
    right_share, lower_share = (x - left)[..., None], (y - top)[..., None]
    left, top = tf.cast(left, tf.int32), tf.cast(top, tf.int32)
    pixels = tf.cast(tf.reshape(image, (height * width, -1)), tf.float64)

    def row(y):
        start = tf.clip_by_value(y, 0, height - 1) * width
        first = tf.gather(pixels, start + tf.clip_by_value(left, 0, width - 1))
        second = tf.gather(pixels, start + tf.clip_by_value(left + 1, 0, width - 1))
        return first + (second - first) * right_share

    upper, lower = row(top), row(top + 1)
    values = tf.cast(upper + (lower - upper) * lower_share, tf.uint8)  # Pillow truncates
    return tf.where(inside[..., None], values, 0)


def _inside(x: tf.Tensor, y: tf.Tensor, height: int, width: int) -> tf.Tensor:
    return (x >= 0) & (x < width) & (y >= 0) & (y < height)


def shear_x(image: tf.Tensor, magnitude: tf.Tensor, interpolation: Interpolation) -> tf.Tensor:
    """Each row moves left by `magnitude` pixels more than the one above, the first one not."""
    return _affine(image, (1, magnitude, 0, 0, 1, 0), interpolation)


def shear_y(image: tf.Tensor, magnitude: tf.Tensor, interpolation: Interpolation) -> tf.Tensor:
    """Each column moves up by `magnitude` pixels more than the one on its left."""
    return _affine(image, (1, 0, 0, magnitude, 1, 0), interpolation)


def translate_x(image: tf.Tensor, magnitude: tf.Tensor, interpolation: Interpolation) -> tf.Tensor:
    """Moves to the right by the whole pixels in `magnitude`."""
    return _affine(image, (1, 0, -tf.cast(magnitude, tf.int32), 0, 1, 0), interpolation)


def translate_y(image: tf.Tensor, magnitude: tf.Tensor, interpolation: Interpolation) -> tf.Tensor:
    """Moves down by the whole pixels in `magnitude`."""
    return _affine(image, (1, 0, 0, 0, 1, -tf.cast(magnitude, tf.int32)), interpolation)


def rotate(image: tf.Tensor, magnitude: tf.Tensor, interpolation: Interpolation) -> tf.Tensor:
    """Counter-clockwise about the centre, by `magnitude` degrees."""
    angle = -tf.math.floormod(tf.cast(magnitude, tf.float64), 360) * (math.pi / 180)
    # As Pillow: fifteen decimals, so that a right angle moves pixels to pixels.
    cos, sin = (tf.round(part * 1e15) / 1e15 for part in (tf.cos(angle), tf.sin(angle)))
    y, x = (int(size) / 2 for size in image.shape[:2])
    matrix = (cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y)
    return _affine(image, matrix, interpolation)


# -------------------------------------------------------------------------- changing their values


def _blend(first: tf.Tensor, second: tf.Tensor, magnitude: tf.Tensor) -> tf.Tensor:
    """From `first` to `second` and beyond: (1 + magnitude) times the way."""
    factor = tf.cast(1 + tf.cast(magnitude, tf.float64), tf.float32)
    first, second = tf.cast(first, tf.float32), tf.cast(second, tf.float32)
    values = tf.clip_by_value(first + factor * (second - first), 0, 255)
    return tf.cast(values, tf.uint8)  # Pillow truncates


def _luma(image: tf.Tensor) -> tf.Tensor:
    """uint8 grey values (height, width, 1) of an RGB image, those of ITU-R 601-2; of a grey one
    itself.
    """
    if image.shape[-1] == 1:
        return image
    weights = tf.constant([[19595.0], [38470.0], [7471.0]])  # of 65536: float32 holds every sum
    sums = tf.tensordot(tf.cast(image, tf.float32), weights, 1)
    return tf.cast(tf.floor((sums + 0x8000) / 0x10000), tf.uint8)


def brightness(image: tf.Tensor, magnitude: tf.Tensor) -> tf.Tensor:
    """1 + magnitude times as bright: -1 is black."""
    return _blend(tf.zeros_like(image), image, magnitude)


def colour(image: tf.Tensor, magnitude: tf.Tensor) -> tf.Tensor:
    """1 + magnitude times as far from grey: -1 is grey."""
    return _blend(_luma(image), image, magnitude)


def contrast(image: tf.Tensor, magnitude: tf.Tensor) -> tf.Tensor:
    """1 + magnitude times as far from the mean grey value: -1 is that alone."""
    mean = tf.reduce_mean(tf.cast(_luma(image), tf.float64))
    return _blend(tf.floor(mean + 0.5), image, magnitude)


def sharpness(image: tf.Tensor, magnitude: tf.Tensor) -> tf.Tensor:
    """1 + magnitude times as far from the smoothed image: -1 is that. The edges stay."""
    values = tf.cast(image, tf.float32)
    columns = values[:-2] + values[1:-1] + values[2:]
    sums = columns[:, :-2] + columns[:, 1:-1] + columns[:, 2:] + 4 * values[1:-1, 1:-1]
    smooth = tf.floor(sums / 13 + 0.5)
    inner = tf.pad(tf.ones_like(smooth, tf.bool), [[1, 1], [1, 1], [0, 0]])
    smooth = tf.pad(smooth, [[1, 1], [1, 1], [0, 0]])
    return _blend(tf.where(inner, smooth, values), image, magnitude)


def posterize(image: tf.Tensor, magnitude: tf.Tensor) -> tf.Tensor:
    """Keeps the upper `magnitude` bits of the eight."""
    lower = 8 - tf.cast(magnitude, tf.int32)
    mask = tf.bitwise.left_shift(tf.bitwise.right_shift(255, lower), lower)
    return tf.bitwise.bitwise_and(image, tf.cast(mask, tf.uint8))


def solarize(image: tf.Tensor, magnitude: tf.Tensor) -> tf.Tensor:
    """Inverts the values from `magnitude` on."""
    return tf.where(tf.cast(image, tf.float32) < magnitude, image, 255 - image)


def _look_up(image: tf.Tensor, table: tf.Tensor) -> tf.Tensor:
    """`table` (channels, 256) holds the new values."""
    values = tf.cast(tf.clip_by_value(table, 0, 255), tf.uint8)
    return tf.gather(tf.reshape(values, [-1]), _places_in_table(image))


def _places_in_table(image: tf.Tensor) -> tf.Tensor:
    return tf.cast(image, tf.int32) + 256 * np.arange(image.shape[-1])


def auto_contrast(image: tf.Tensor, magnitude: tf.Tensor) -> tf.Tensor:
    """Stretches the values of each channel to 0..255; a channel of one value stays."""
    low = tf.cast(tf.reduce_min(image, (0, 1)), tf.float64)[:, None]
    high = tf.cast(tf.reduce_max(image, (0, 1)), tf.float64)[:, None]
    old, scale = np.arange(256.0), 255 / (high - low)
    return _look_up(image, tf.where(high > low, tf.floor(old * scale - low * scale), old))


def equalize(image: tf.Tensor, magnitude: tf.Tensor) -> tf.Tensor:
    """Gives each channel a histogram as flat as can be, keeping the order of its values."""
    height, width, channels = image.shape
    places = tf.reshape(_places_in_table(image), [-1])
    counts = tf.reshape(tf.math.bincount(places, minlength=256 * channels), (channels, 256))
    brightest = tf.cast(tf.reduce_max(image, (0, 1)), tf.int32)
    count_of_brightest = tf.gather(counts, brightest, batch_dims=1)[:, None]
    step = (height * width - count_of_brightest) // 255
    below = tf.cumsum(counts, 1, exclusive=True)
    equal = (step // 2 + below) // tf.maximum(step, 1)
    return _look_up(image, tf.where(step > 0, equal, np.arange(256)))


def invert(image: tf.Tensor, magnitude: tf.Tensor) -> tf.Tensor:
    """255 less each value."""
    return 255 - image


def identity(image: tf.Tensor, magnitude: tf.Tensor) -> tf.Tensor:
    """The image itself."""
    return image


# -------------------------------------------------------------------------------------- policies

# Moving operations take an interpolation; they and the enhancements are reversed half of the time.
MOVING = {
    "ShearX": shear_x, "ShearY": shear_y,
    "TranslateX": translate_x, "TranslateY": translate_y, "Rotate": rotate,
}  # fmt: skip
ENHANCING = {
    "Brightness": brightness, "Color": colour, "Contrast": contrast, "Sharpness": sharpness,
}  # fmt: skip
OPERATIONS: dict[str, Callable[..., tf.Tensor]] = {
    "Identity": identity,
    **MOVING,
    **ENHANCING,
    "Posterize": posterize,
    "Solarize": solarize,
    "AutoContrast": auto_contrast,
    "Equalize": equalize,
    "Invert": invert,
}
NAMES = list(OPERATIONS)

# AutoAugment's policies (Cubuk et al. 2018, appendix A, tables 7 to 9): 25 pairs of (operation,
# probability, magnitude of 0..9; 0 where there is none).
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
    """`bins` magnitudes, float32, from the weakest to the strongest, of each operation that has
    some: tangents of the shears, pixels of the translations, degrees of the rotation, relative
    changes of the enhancements, bits that are kept and the first value that is inverted.

    They are torchvision's but for the last bit. One whole number hangs on it: the sixteenth of the
    wide translations is of 16 pixels, where float32 gives torchvision 15.999999, hence 15.
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


def plans(policy: Policy, height: int, width: int) -> list[tuple[Step, ...]]:
    """The equally likely sequences of operations that `policy` has for images of that size.

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
    names = [name for name in NAMES if name != "Invert"]
    values = magnitudes(31, height, width, wide=policy == "trivial_augment_wide")
    strengths = {name: values.get(name, np.zeros(31)).tolist() for name in names}
    if policy == "trivial_augment_wide":  # any operation at any magnitude
        return [(Step(name, 1.0, value),) for name in names for value in strengths[name]]
    # Two operations at magnitude 9 of 0..30.
    return list(
        itertools.product([Step(name, 1.0, strengths[name][9]) for name in names], repeat=2)
    )


def draw(policy: Policy, height: int, width: int, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """What is done to an image: indices into `NAMES` (steps,), and magnitudes (steps,)."""
    table = plans(policy, height, width)
    operation = tf.constant([[NAMES.index(step.operation) for step in plan] for plan in table])
    probability = tf.constant([[step.probability for step in plan] for plan in table])
    magnitude = tf.constant([[step.magnitude for step in plan] for plan in table])
    reversible = tf.constant(
        [[step.operation in {**MOVING, **ENHANCING} for step in plan] for plan in table]
    )
    row = tf.random.stateless_uniform([], seed, 0, len(table), tf.int32)
    chance = tf.random.stateless_uniform([2, operation.shape[1]], tf.random.fold_in(seed, 1))
    applied = chance[0] < probability[row]
    strength = tf.where(reversible[row] & (chance[1] < 0.5), -magnitude[row], magnitude[row])
    return (
        tf.where(applied, operation[row], NAMES.index("Identity")),
        tf.where(applied, strength, 0.0),
    )


def apply(
    policy: Policy, image: tf.Tensor, seed: tf.Tensor, interpolation: Interpolation = "nearest"
) -> tf.Tensor:
    """The uint8 `image`, of known shape, after the operations that `policy` draws."""
    height, width = image.shape[:2]
    operations, strengths = draw(policy, height, width, seed)
    for step in range(operations.shape[0]):
        branches = [
            functools.partial(
                function, image, strengths[step],
                **({"interpolation": interpolation} if name in MOVING else {}),
            )
            for name, function in OPERATIONS.items()
        ]  # fmt: skip
        image = tf.ensure_shape(tf.switch_case(operations[step], branches), image.shape)
    return image
