"""The classic image-classification networks as Flax modules, exact to torchvision.

from flaxnets import create_model, list_models, from_torch, to_torch
"""

from flaxnets.convert import from_torch, to_torch
from flaxnets.errors import InputError
from flaxnets.models import create_model, list_models

__version__ = "0.1.0"
__all__ = ["InputError", "create_model", "from_torch", "list_models", "to_torch"]
