"""Data sets bundled with scikit-learn: digits, and rows of measured features."""

# scikit-learn's annotations include return types that do not occur here.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Sequence

import numpy as np

from flaxnets.data.source import InMemory, Rows
from flaxnets.recipes import Kind


def digits() -> InMemory:
    """Return 1,797 scans of handwritten digits, 8x8 pixels (UCI, bundled with scikit-learn).

    1,442 are for training. 355 are for testing: every fifth scan of each digit.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    return InMemory(
        name="digits",
        class_names=tuple(map(str, range(10))),
        channels=1,
        image_size=8,
        flip=False,
        **_every_fifth_tested(images, bunch.target.astype(np.int32), bunch.target),
    )


def breast_cancer() -> Rows:
    """Return 569 tumours, malignant or benign, described by 30 measurements of their cells.

    456 are for training and 113 for testing, stratified (UCI, bundled with scikit-learn).
    """
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    return _rows("breast_cancer", bunch.data, bunch.target.astype(np.int32), bunch.target_names)


def diabetes() -> Rows:
    """Return 442 patients with ten measurements each and the progression of their disease.

    The target is the progression after one year (Efron et al. 2004, bundled with scikit-learn).
    354 patients are for training and 88 for testing. Targets are standardised by the mean and
    deviation of the training targets, so that always predicting the mean has a squared error of 1.
    """
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes()
    train = _every_fifth_tested(bunch.data, bunch.target, np.zeros(442))["labels"]["train"]
    target = ((bunch.target - train.mean()) / train.std()).astype(np.float32)
    return _rows("diabetes", bunch.data, target, ())


def _rows(name: str, features: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> Rows:
    strata = labels if len(class_names) else np.zeros_like(labels)
    images = features.astype(np.float32)[:, None, None]
    return Rows(
        name=name,
        class_names=tuple(map(str, class_names)),
        channels=features.shape[1],
        image_size=1,
        flip=False,
        **_every_fifth_tested(images, labels, strata),
    )


def _every_fifth_tested(images: np.ndarray, labels: np.ndarray, strata: np.ndarray) -> dict:
    """Split examples in a fixed way: every fifth example of each stratum is for testing."""
    occurrence = np.empty(len(labels), int)
    for stratum in np.unique(strata):
        members = strata == stratum
        occurrence[members] = np.arange(np.count_nonzero(members))
    masks = {"train": occurrence % 5 != 4, "test": occurrence % 5 == 4}
    return {
        "sizes": {split: int(mask.sum()) for split, mask in masks.items()},
        "images": {split: images[mask] for split, mask in masks.items()},
        "labels": {split: labels[mask] for split, mask in masks.items()},
    }


# The kind of each data set, known without opening it.
KINDS: dict[str, Kind] = {"digits": "small images", "breast_cancer": "rows", "diabetes": "rows"}
NUMBERS = ("diabetes",)  # data sets whose labels are numbers, not classes

BUNDLED = {"digits": digits, "breast_cancer": breast_cancer, "diabetes": diabetes}
