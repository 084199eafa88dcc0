"""Files of weights, of torch and of safetensors, as arrays under torchvision's keys."""

import importlib.util
import pathlib
import re
from collections.abc import Mapping

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from flaxnets.convert import as_numpy
from flaxnets.errors import InputError, one_of

SUFFIXES = (".safetensors", ".pth", ".pt")
StateDict = dict[str, np.ndarray]  # torch's keys and layout

# Keys of files to the keys of torchvision's networks.
RENAMED = (
    # timm's VGG, whose linear layers over a map are convolutions (timm/models/vgg.py, `ConvMlp`)
    (r"^pre_logits\.fc1\.", "classifier.0."),
    (r"^pre_logits\.fc2\.", "classifier.3."),
    (r"^head\.fc\.", "classifier.6."),
    # torchvision's DenseNet files, older than its rule against dots in the names of modules
    (r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),
    # torch's wrappers for several devices and for compilation
    (r"^(?:(?:module|_orig_mod)\.)+", ""),
)


def torchvision_keys(state_dict: Mapping[str, np.ndarray]) -> StateDict:
    """The keys of timm and of older files as torchvision has them; other keys stay."""
    renamed = {}
    for key, value in state_dict.items():
        if key.startswith("pre_logits.") and value.ndim == 4:
            value = value.reshape(len(value), -1)
        for pattern, replacement in RENAMED:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


def read_weights(path: pathlib.Path) -> StateDict:
    """The arrays of a safetensors or torch file, by its suffix, under torchvision's keys.

    Raises InputError if the file is absent, broken, or holds something else.
    """
    if not path.is_file():
        raise InputError(f"no file {path}; tools/convert_torchvision.py writes one")
    one_of(SUFFIXES, path.suffix, f"suffix of {path}")
    read = _read_safetensors if path.suffix == ".safetensors" else _read_torch
    return torchvision_keys(read(path))


def _read_safetensors(path: pathlib.Path) -> StateDict:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is not a complete safetensors file ({error})") from error
    except KeyError as error:
        raise InputError(f"{path} holds numbers that NumPy lacks ({error}); use float32") from error


def _read_torch(path: pathlib.Path) -> StateDict:
    """Checkpoints of training scripts nest the weights under "model" or "state_dict"."""
    if not torch_is_installed():
        raise InputError(
            f"reading {path} takes torch: install it, or convert the file to safetensors where it "
            f"is with tools/convert_torchvision.py"
        )
    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # broken bytes make the unpickler raise almost anything
        raise InputError(
            f"{path} is not a complete file of torch weights, or holds more than tensors"
        ) from error
    for key in ("model", "state_dict"):
        loaded = loaded.get(key, loaded) if isinstance(loaded, dict) else loaded
    named = isinstance(loaded, dict) and all(isinstance(key, str) for key in loaded)
    if not (named and all(isinstance(value, torch.Tensor) for value in loaded.values())):
        raise InputError(f"{path} holds no state_dict; save model.state_dict()")
    return {key: as_numpy(value) for key, value in loaded.items()}


def torch_is_installed() -> bool:
    return importlib.util.find_spec("torch") is not None
