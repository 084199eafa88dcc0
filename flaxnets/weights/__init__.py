"""Load published weights and files of weights as variables for `model.apply`.

variables = load_weights("resnet50", "IMAGENET1K_V2")
variables = load_weights("vgg16", checkpoint="mine.safetensors")
"""

from flaxnets.weights.files import WeightsWarning
from flaxnets.weights.loading import find_weights, load_model, load_weights
from flaxnets.weights.published import PublishedWeights, list_weights, published_weights

__all__ = [
    "PublishedWeights",
    "WeightsWarning",
    "find_weights",
    "list_weights",
    "load_model",
    "load_weights",
    "published_weights",
]
