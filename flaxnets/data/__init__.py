"""Sources -> augmentation -> NumPy batches. The only part that imports TensorFlow, once something
has to be read, decoded or recoloured: the import takes seconds, and starts threads.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flaxnets.data.decoded import Decoded
    from flaxnets.data.pipeline import (
        BadImages,
        eval_batches,
        train_batches,
        training_as_fed,
    )
    from flaxnets.data.sources import Source, open_source

__all__ = [
    "BadImages",
    "Decoded",
    "Source",
    "eval_batches",
    "open_source",
    "train_batches",
    "training_as_fed",
]

_MODULES = {
    "BadImages": "pipeline",
    "Decoded": "decoded",
    "Source": "sources",
    "eval_batches": "pipeline",
    "open_source": "sources",
    "train_batches": "pipeline",
    "training_as_fed": "pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
