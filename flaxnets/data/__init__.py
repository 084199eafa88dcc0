"""tf.data: sources -> augmentation -> NumPy batches. The only part that imports TensorFlow."""

from flaxnets.data.pipeline import BadImages, eval_batches, train_batches
from flaxnets.data.sources import Source, open_source

__all__ = ["BadImages", "Source", "eval_batches", "open_source", "train_batches"]
