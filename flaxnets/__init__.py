"""The classic image-classification networks as Flax modules, exact to torchvision.

from flaxnets import create_model, list_models, load_weights, from_torch, to_torch
"""

from flaxnets.convert import from_torch, to_torch
from flaxnets.errors import InputError
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
