"""One image, from as it is in the source to as the network is fed it."""

# TensorFlow's annotations deny what its functions accept (tensors for integers, and back).
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

from collections.abc import Sequence
from random import Random

import numpy as np

from flaxnets.data import augmentation, policies, windows
from flaxnets.data.decoded import Decoded
from flaxnets.data.photographs import Photograph
from flaxnets.data.sources import Source
from flaxnets.data.tensorflow import tf
from flaxnets.recipes import Preprocessing


def train_image(source: Source, how: Preprocessing, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """The uint8 image that the network is fed in training; `image` is raw, as in the source.

    Inside of tf.data for small images alone; photographs are NumPy's (`window_image`).
    """
    if source.kind == "rows":
        return image
    if source.kind == "photographs":
        window = window_image(source, how, image.numpy(), seed.numpy())
        return recolour(source, how, tf.constant(window), seed)
    seeds = [tf.random.fold_in(seed, operation) for operation in range(2)]
    size = how.train_size or how.image_size
    image = augmentation.to_uint8(augmentation.resize(image, size))
    image = augmentation.pad_and_crop(image, how.pad, seeds[0])
    if how.flip and source.flip:
        image = augmentation.random_flip(image, seeds[1])
    return recolour(source, how, image, seed)


def window_image(
    source: Source,
    how: Preprocessing,
    encoded: bytes,
    seed: Sequence[int],
    decoded: Decoded | None = None,
) -> np.ndarray:
    """A random window of an encoded photograph, mirrored or not; `recolour` does the rest."""
    random = Random((int(seed[0]) << 64) + int(seed[1]))
    size = how.train_size or how.image_size
    smallest = how.resize if how.crop == "random" else size
    photograph = Photograph(encoded, source.channels, smallest, decoded or Decoded())
    if how.crop == "random":
        short = random.randint(how.resize, how.resize_max or how.resize)
        image = windows.random_crop(photograph, short, size, random)
    else:
        image = windows.random_resized_crop(photograph, size, random)
    if how.flip and source.flip and random.random() < 0.5:
        image = windows.mirror(image)
    return image


def recolour(source: Source, how: Preprocessing, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """What follows cropping and mirroring: the policy's operations, and other PCA colours."""
    if how.policy != "none":
        image = augmentation.to_uint8(image)
        drawing = tf.random.fold_in(seed, 3)
        image = policies.apply(how.policy, image, drawing, how.interpolation)
    if how.pca_std and source.channels == 3:
        image = augmentation.pca_colour(image, tf.random.fold_in(seed, 2), how.pca_std)
    return augmentation.to_uint8(image)


def eval_image(source: Source, how: Preprocessing, encoded: tf.Tensor) -> tf.Tensor:
    """The uint8 image of an encoded photograph that the network is fed in evaluation."""
    image = augmentation.decode(encoded, source.channels)
    return augmentation.to_uint8(augmentation.center_crop(image, how.resize, how.image_size))
