"""Variables from a file, to start a run from."""

import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from safetensors import SafetensorError
from safetensors.numpy import load_file

from flaxnets.convert import from_torch
from flaxnets.errors import InputError


def load_initial(
    path: pathlib.Path | None, model: nn.Module, input_shape: tuple[int, int, int]
) -> Any:
    """The variables in a safetensors file under torch's keys; None without a path.

    Raises InputError if the file is absent, broken, or of another network.
    """
    if path is None:
        return None
    if not path.is_file():
        raise InputError(f"no file {path}; tools/convert_torchvision.py writes one")
    try:
        state_dict = load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is not a complete safetensors file ({error})") from error
    images = jnp.zeros((1, *input_shape))
    return from_torch(state_dict, jax.eval_shape(model.init, jax.random.key(0), images))
