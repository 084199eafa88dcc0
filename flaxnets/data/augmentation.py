"""Pure functions from image to image, for use eagerly and inside tf.data alike.

Images are (height, width, channels), values in 0..255: uint8 as decoded, float32 once resampled,
so that rounding happens once, in `to_uint8`. A `seed` is a pair of integers, as in
`tf.random.stateless_uniform`: the same seed gives the same result.
"""

# TensorFlow's annotations deny what its functions accept (tensors for integers, and back).
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

import numpy as np

from flaxnets.data.tensorflow import tf

# Principal components of the RGB values (in 0..1) of ImageNet's training pixels: eigenvalues of
# their covariance, and its unit eigenvectors in the columns. Krizhevsky et al. 2012 did not publish
# theirs; these are the figures of facebook/fb.resnet.torch (datasets/imagenet.lua).
# `tools/rgb_pca.py` measures them for any data set.
IMAGENET_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045], np.float32)
IMAGENET_EIGENVECTORS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]],
    np.float32,
)

# The decoder's default, INTEGER_FAST, is off by up to 16/255 from what PIL and torchvision see.
DCT = "INTEGER_ACCURATE"


def decode(encoded: tf.Tensor, channels: int = 3) -> tf.Tensor:
    """uint8 image of a JPEG, PNG, BMP or GIF file (its first frame); grey and CMYK become RGB."""
    image = tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.io.decode_jpeg(encoded, channels=channels, dct_method=DCT),
        lambda: tf.io.decode_image(encoded, channels=channels, expand_animations=False),
    )
    return tf.ensure_shape(image, (None, None, channels))


def to_uint8(image: tf.Tensor) -> tf.Tensor:
    """Rounds and saturates."""
    return tf.saturate_cast(tf.round(tf.cast(image, tf.float32)), tf.uint8)


def short_side_size(height: tf.Tensor, width: tf.Tensor, short: int | tf.Tensor) -> tf.Tensor:
    """[height, width] of the image scaled to a short side of `short` pixels, as torchvision
    rounds it (transforms/functional.py, `_compute_resized_output_size`).
    """
    size = tf.stack([height, width])
    # Integer division: int(short * long / short_side) without its floating point.
    return short * size // tf.reduce_min(size)


def resize_and_crop(image: tf.Tensor, size: tf.Tensor, offset: tf.Tensor, crop: int) -> tf.Tensor:
    """The `crop` x `crop` window at `offset` of the image resized to `size`, as one resampling:
    bilinear with antialiasing, as PIL's and torchvision's.
    """
    resized = tf.raw_ops.ScaleAndTranslate(
        images=image[None],
        size=[crop, crop],
        scale=tf.cast(size, tf.float32) / tf.cast(tf.shape(image)[:2], tf.float32),
        translation=-tf.cast(offset, tf.float32),
        kernel_type="triangle",
        antialias=True,
    )[0]
    return tf.ensure_shape(resized, (crop, crop, image.shape[-1]))


def center_crop(image: tf.Tensor, short: int, crop: int) -> tf.Tensor:
    """Evaluation: short side to `short`, then the centre `crop` x `crop`."""
    size = short_side_size(*tf.unstack(tf.shape(image)[:2]), short)
    offset = tf.cast(tf.round(tf.cast(size - crop, tf.float32) / 2), tf.int32)
    return resize_and_crop(image, size, offset, crop)


def resize(image: tf.Tensor, size: int) -> tf.Tensor:
    """To `size` x `size`, whatever the aspect ratio."""
    return resize_and_crop(image, tf.constant([size, size]), tf.zeros(2, tf.int32), size)


def pad_and_crop(image: tf.Tensor, pad: int, seed: tf.Tensor) -> tf.Tensor:
    """Zeros on all sides, then a window of the old size at random (He et al. 2015, section 4.2)."""
    height, width = image.shape[:2]
    offset = tf.random.stateless_uniform([2], seed, 0, 2 * pad + 1, tf.int32)
    padded = tf.pad(image, [[pad, pad], [pad, pad], [0, 0]])
    return tf.ensure_shape(padded[offset[0] :, offset[1] :][:height, :width], image.shape)


def random_flip(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Its horizontal reflection, half of the time."""
    return tf.cond(
        tf.random.stateless_uniform([], seed) < 0.5, lambda: image[:, ::-1], lambda: image
    )


def pca_colour(
    image: tf.Tensor,
    seed: tf.Tensor,
    std: float = 0.1,
    eigenvalues: np.ndarray = IMAGENET_EIGENVALUES,
    eigenvectors: np.ndarray = IMAGENET_EIGENVECTORS,
) -> tf.Tensor:
    """Adds sum_i alpha_i * lambda_i * p_i to every pixel, alpha ~ N(0, std) once an image
    (Krizhevsky et al. 2012, section 4.1). lambda_i and p_i belong to RGB values in 0..1.
    """
    alpha = tf.random.stateless_normal([3], seed, stddev=std)
    shift = tf.linalg.matvec(eigenvectors, alpha * eigenvalues)
    return tf.cast(image, tf.float32) + 255 * shift
