"""Data sets of noise that TensorFlow Datasets prepares without a download."""

import numpy as np
import tensorflow_datasets as tfds


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


class Tiny(tfds.core.GeneratorBasedBuilder):
    """Small pictures."""

    VERSION = tfds.core.Version("1.0.0")
    SHAPE: tuple = (16, 16, 3)
    ENCODING = "png"

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=self.SHAPE, encoding_format=self.ENCODING),
            "label": tfds.features.ClassLabel(names=["left", "right"]),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(7), "validation": self._generate_examples(3)}

    def _generate_examples(self, count):
        for i in range(count):
            height, width = (size or 300 + i for size in self.SHAPE[:2])
            yield i, {"image": noise(height, width, i), "label": i % 2}


class TinyPhotos(Tiny):
    """JPEGs of several sizes."""

    VERSION = tfds.core.Version("1.0.0")
    SHAPE = (None, None, 3)
    ENCODING = "jpeg"
