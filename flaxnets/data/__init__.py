"""Data: sources, plans of operations on pixels, and NumPy batches.

Only `flaxnets.data.tfds` imports TensorFlow, for data sets of TensorFlow Datasets.
"""

from flaxnets.data.bad_images import BadImages
from flaxnets.data.decoded import Decoded
from flaxnets.data.pipeline import eval_batches, train_batches, training_as_fed
from flaxnets.data.plan import Plan, evaluation_plan, training_plan
from flaxnets.data.registry import has_classes, kind_of, open_source
from flaxnets.data.source import Source

__all__ = [
    "BadImages",
    "Decoded",
    "Plan",
    "Source",
    "eval_batches",
    "evaluation_plan",
    "has_classes",
    "kind_of",
    "open_source",
    "train_batches",
    "training_as_fed",
    "training_plan",
]
