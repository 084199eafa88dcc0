"""The classic image-classification networks as Flax modules, exact to torchvision.

from flaxnets import pretrained, create_model, list_models, load_weights, from_torch, to_torch
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# The names that the package exports, with their modules. A module is imported at the first use of a
# name: the scripts import flaxnets.terminal before jax, which takes seconds.
_MODULES = {
    "InputError": "errors",
    "Network": "inference.network",
    "WeightsWarning": "weights",
    "create_model": "models",
    "feature_info": "inference.features",
    "from_torch": "convert",
    "list_models": "catalog",
    "list_weights": "weights",
    "load_weights": "weights",
    "pretrained": "inference.opening",
    "published_weights": "weights",
    "to_torch": "convert",
}
__all__ = list(_MODULES)  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:  # the same names for type checkers; a test compares
    from flaxnets.catalog import list_models as list_models
    from flaxnets.convert import from_torch as from_torch
    from flaxnets.convert import to_torch as to_torch
    from flaxnets.errors import InputError as InputError
    from flaxnets.inference.features import feature_info as feature_info
    from flaxnets.inference.network import Network as Network
    from flaxnets.inference.opening import pretrained as pretrained
    from flaxnets.models import create_model as create_model
    from flaxnets.weights import WeightsWarning as WeightsWarning
    from flaxnets.weights import list_weights as list_weights
    from flaxnets.weights import load_weights as load_weights
    from flaxnets.weights import published_weights as published_weights


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"flaxnets.{_MODULES[name]}"), name)
    rooms = ("convert", "inference", "models", "weights")
    if name in rooms:  # flaxnets.models, after `import flaxnets` alone
        return importlib.import_module(f"flaxnets.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
