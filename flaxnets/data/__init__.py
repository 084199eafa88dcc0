"""tf.data: sources -> augmentation -> NumPy batches. The only part that imports TensorFlow."""

from flaxnets.data.pipeline import eval_batches, train_batches
from flaxnets.data.sources import Source, open_source

__all__ = ["Source", "eval_batches", "open_source", "train_batches"]
