"""tf.data: sources -> augmentation -> NumPy batches. The only part that imports TensorFlow, when
something of it is used for the first time: the import takes seconds, and starts threads.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flaxnets.data.pipeline import BadImages, eval_batches, train_batches
    from flaxnets.data.sources import Source, open_source

__all__ = ["BadImages", "Source", "eval_batches", "open_source", "train_batches"]


def __getattr__(name: str) -> Any:
    for module in ("sources", "pipeline") if name in __all__ else ():
        found = getattr(importlib.import_module(f"{__name__}.{module}"), name, None)
        if found is not None:
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
