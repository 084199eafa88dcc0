"""The classic image-classification networks as Flax modules, exact to torchvision.

from flaxnets import create_model, list_models, load_weights, from_torch, to_torch
"""

import importlib
from typing import TYPE_CHECKING, Any

from flaxnets.errors import InputError

if TYPE_CHECKING:
    from flaxnets.convert import from_torch, to_torch
    from flaxnets.models import create_model, list_models
    from flaxnets.weights import WeightsWarning, list_weights, load_weights, published_weights

__version__ = "0.1.0"
__all__ = [
    "InputError",
    "WeightsWarning",
    "create_model",
    "from_torch",
    "list_models",
    "list_weights",
    "load_weights",
    "published_weights",
    "to_torch",
]

# Imported at the first use: the scripts import flaxnets.terminal before jax, which takes seconds.
_MODULES = {
    "WeightsWarning": "weights",
    "create_model": "models",
    "from_torch": "convert",
    "list_models": "models",
    "list_weights": "weights",
    "load_weights": "weights",
    "published_weights": "weights",
    "to_torch": "convert",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"flaxnets.{_MODULES[name]}"), name)
    if name in _MODULES.values():  # flaxnets.models, after `import flaxnets` alone
        return importlib.import_module(f"flaxnets.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
