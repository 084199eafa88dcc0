"""Measure the principal components of a data set's RGB values, for PCA colour augmentation.

    python tools/rgb_pca.py --dataset cifar10 --data-dir DIR

Every pixel of the training split counts once. Sums are integers, so the covariance is exact; only
the eigenvectors are rounded. The output is JSON: the eigenvalues of the covariance (of RGB values
in 0..1), the largest first, and the unit eigenvectors as columns.
"""

if __name__ == "__main__":  # first, because the other imports take seconds
    from flaxnets.terminal import quiet

    quiet()

from collections.abc import Iterable

import numpy as np
import tyro

from flaxnets import data
from flaxnets.data.pixels.decode import Decode
from flaxnets.errors import InputError
from flaxnets.runs.files import json_text
from flaxnets.runs.progress import track
from flaxnets.terminal import arguments, one_sentence_errors


def rgb_covariance(images: Iterable[np.ndarray]) -> tuple[int, np.ndarray]:
    """Return the number of pixels and the covariance (3, 3) of uint8 images (H, W, 3).

    The covariance is that of values in 0..1. Raises InputError if there are no pixels.
    """
    count = 0
    total = [0] * 3  # Python's integers, because 10**14 pixels exceed 2**64
    products = [[0] * 3 for _ in range(3)]
    for image in images:
        pixels = image.reshape(-1, 3).astype(np.int64)
        count += len(pixels)
        gram, sums = pixels.T @ pixels, pixels.sum(0)
        for i in range(3):
            total[i] += int(sums[i])
            for j in range(3):
                products[i][j] += int(gram[i, j])
    if not count:
        raise InputError("the data set has no pixels; expected at least one image")
    # All values are integers until the last division.
    covariance = [
        [(count * products[i][j] - total[i] * total[j]) / (count * count) for j in range(3)]
        for i in range(3)
    ]
    return count, np.array(covariance) / 255**2


def principal_components(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvalues, the largest first, and the unit eigenvectors as columns."""
    values, vectors = np.linalg.eigh(covariance)
    return values[::-1], vectors[:, ::-1]


def main(dataset: str, data_dir: str | None = None) -> None:
    """Measure the principal components of RGB values.

    Args:
        dataset: data set, named as in train.py: cifar10, imagenet2012, folder:PATH.
        data_dir: directory of prepared TensorFlow Datasets; by default TFDS_DATA_DIR.
    """
    source = data.open_source(dataset, data_dir)
    if source.channels != 3:
        raise InputError(
            f"the data set {dataset!r} has {source.channels} channels; expected 3, for RGB"
        )

    decode, size = Decode(source.channels), source.sizes["train"]
    images = (decode(raw).pixels for raw, _ in source.examples("train"))
    watched = track(images, "measuring", size)
    count, covariance = rgb_covariance(watched)
    values, vectors = principal_components(covariance)
    components = {
        "dataset": dataset,
        "images": size,
        "pixels": count,
        "eigenvalues": values.round(6).tolist(),
        "eigenvectors": vectors.round(6).tolist(),
    }
    print(json_text(components, indent=2))


if __name__ == "__main__":
    with one_sentence_errors():
        tyro.cli(main, args=arguments(), description=__doc__)
