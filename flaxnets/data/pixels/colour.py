"""Change the colours of pixels, uint8 (height, width, channels)."""

import dataclasses
from random import Random

import numpy as np

from flaxnets.data.pixels.decode import as_array, as_image

# Principal components of the RGB values (in 0..1) of ImageNet's training pixels: eigenvalues of
# their covariance, and its unit eigenvectors in the columns. Krizhevsky et al. 2012 did not publish
# theirs; these are the figures of facebook/fb.resnet.torch (datasets/imagenet.lua).
# `tools/rgb_pca.py` measures them for any data set.
IMAGENET_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045])
IMAGENET_EIGENVECTORS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)


@dataclasses.dataclass(frozen=True)
class Grayscale:
    """Remove the colours with a probability, keep the channels; torchvision's RandomGrayscale."""

    probability: float

    def __call__(self, pixels: np.ndarray, random: Random) -> np.ndarray:
        if random.random() >= self.probability:
            return pixels
        return as_array(as_image(pixels).convert("L").convert("RGB"))


@dataclasses.dataclass(frozen=True)
class Colour:
    """Add sum_i alpha_i * lambda_i * p_i to every pixel, alpha_i ~ N(0, std) once an image
    (Krizhevsky et al. 2012, section 4.1). lambda_i and p_i belong to RGB values in 0..1.

    The training step adds it in floating point: rounded to 1/255 with the pixels, the smallest
    component would be 2.7 times too large. Nothing is clipped.
    """

    std: float

    def __call__(self, pixels: np.ndarray, random: Random) -> np.ndarray:
        """Show the shift: rounded and clipped to uint8."""
        shift = self._shifts(np.array([[random.gauss() for _ in range(3)]]))[0]
        return np.clip(np.round(pixels + 255 * shift), 0, 255).astype(np.uint8)

    def draw(self, random: np.random.Generator, count: int) -> dict[str, np.ndarray]:
        """Draw `"colour"`, float32 (count, 3), added to values in 0..1 by the training step."""
        return {"colour": self._shifts(random.standard_normal((count, 3))).astype(np.float32)}

    def _shifts(self, normal: np.ndarray) -> np.ndarray:
        return (self.std * normal * IMAGENET_EIGENVALUES) @ IMAGENET_EIGENVECTORS.T
