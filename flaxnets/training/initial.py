"""Variables from a file, to start a run from."""

import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from flaxnets.convert import from_torch
from flaxnets.errors import InputError


def read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file. Raises InputError if it is absent or broken."""
    if not path.is_file():
        raise InputError(f"no file {path}; tools/convert_torchvision.py writes one")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is not a complete safetensors file ({error})") from error


def load_initial(path: pathlib.Path, model: nn.Module, input_shape: tuple[int, int, int]) -> Any:
    """The variables in a safetensors file under torch's keys.

    Raises InputError if the file is absent, broken, or of another network.
    """
    images = jnp.zeros((1, *input_shape))
    like = jax.eval_shape(model.init, jax.random.key(0), images)
    return from_torch(read_safetensors(path), like)
