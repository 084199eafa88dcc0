"""Write networks to files: safetensors with torch's keys.

Everything else that is needed to call the network is JSON in the file's header.
"""

import json
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from flaxnets.convert import to_torch
from flaxnets.errors import InputError, one_of
from flaxnets.models import create_model, describe
from flaxnets.models.base import Model

SUFFIX = ".safetensors"
HEADER = "flaxnets"  # the key of the JSON


def write(path: pathlib.Path, model: Model, variables: Any, described: dict[str, Any]) -> None:
    """Write a network to one file, completely or not at all.

    Args:
        path: file to write, with the suffix .safetensors.
        model: a network of the library.
        variables: the network's variables.
        described: further entries of the JSON.

    Raises:
        InputError: the suffix is another one, the network is none of the library's or has a field
            that JSON cannot hold, or the file cannot be written.
    """
    one_of([SUFFIX], path.suffix, f"suffix of {path}")
    arch, fields = describe(model)
    fields = {name: _to_json(arch, name, value) for name, value in fields.items()}
    header = json.dumps({"arch": arch, "fields": fields} | described)
    partial = path.with_name(path.name + ".part")  # a half-written file never has the final name
    try:
        save_file(to_torch(variables), partial, metadata={HEADER: header})
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write {path} ({error})") from error


def read_header(path: pathlib.Path) -> tuple[Model, dict[str, Any]]:
    """Return the module of a file that `write` wrote, and the other entries of its JSON.

    Raises InputError for any other file.
    """
    try:
        with safe_open(path, "numpy") as file:
            header = (file.metadata() or {})[HEADER]
    except (SafetensorError, OSError, KeyError) as error:
        raise InputError(
            f"{path} does not say which network its weights belong to; give the network's name "
            "too, or a file that network.save wrote"
        ) from error
    try:
        described = json.loads(header)
        arch, fields = described.pop("arch"), described.pop("fields")
        return create_model(arch, **{k: _from_json(k, v) for k, v in fields.items()}), described
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} has a header that network.save did not write; give the name of the network too"
        ) from error


def _to_json(arch: str, name: str, value: Any) -> Any:
    """Return a field's value as JSON has it. Raises InputError if JSON cannot hold it."""
    if name == "dtype":
        return jnp.dtype(value).name
    if isinstance(value, tuple | list):
        return [_to_json(arch, name, item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, str | int | float | bool | None):
        raise InputError(
            f"the field {name} of {arch} is {value!r}, which no file can hold; expected numbers, "
            "text, or lists of them"
        )
    return value


def _from_json(name: str, value: Any) -> Any:
    if name == "dtype":
        return jnp.dtype(value)
    return tuple(_from_json("", item) for item in value) if isinstance(value, list) else value
