"""Change the colours of pixels, uint8 (height, width, channels)."""

import dataclasses
from random import Random

import numpy as np

from flaxnets.data.pixels.decode import as_array, as_image

# Principal components of the RGB values (in 0..1) of ImageNet's training pixels: eigenvalues of
# their covariance, and its unit eigenvectors as columns. Krizhevsky et al. 2012 did not publish
# theirs. These are the figures of facebook/fb.resnet.torch (datasets/imagenet.lua).
# `tools/rgb_pca.py` measures them for any data set.
IMAGENET_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
IMAGENET_EIGENVECTORS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)


@dataclasses.dataclass(frozen=True)
class Grayscale:
    """Turn pixels grey with a probability and keep the channels: torchvision's RandomGrayscale."""

    probability: float

    def __call__(self, pixels: np.ndarray, random: Random) -> np.ndarray:
        if random.random() >= self.probability:
            return pixels
        return as_array(as_image(pixels).convert("L").convert("RGB"))


@dataclasses.dataclass(frozen=True)
class Colour:
    """Add sum_i alpha_i * lambda_i * p_i to every pixel, with alpha_i ~ N(0, std) for each image.

    From Krizhevsky et al. 2012, section 4.1. lambda_i and p_i are the eigenvalues and eigenvectors
    above, for RGB values in 0..1.

    The training step adds the shift in floating point and clips nothing. Rounded to 1/255 with the
    pixels, the smallest component would be 2.7 times too large.
    """

    std: float

    def __call__(self, pixels: np.ndarray, random: Random) -> np.ndarray:
        """Return shifted pixels for pictures of the augmentation, rounded and clipped to uint8."""
        shift = self._shifts(np.array([[random.gauss() for _ in range(3)]]))[0]
        return np.clip(np.round(pixels + 255 * shift), 0, 255).astype(np.uint8)

    def draw(self, random: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        """Draw `"colour"`, float32 (count, 3), which the training step adds to values in 0..1."""
        return {"colour": self._shifts(random.standard_normal((count, 3))).astype(np.float32)}

    def _shifts(self, normal: np.ndarray) -> np.ndarray:
        return (self.std * normal * IMAGENET_EIGENVALUES) @ IMAGENET_EIGENVECTORS.T
