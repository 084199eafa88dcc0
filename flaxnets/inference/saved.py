"""Networks as files: safetensors with torch's keys, and everything else that calling the network
needs as JSON in the file's header.
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
    """Write a network to one file, whole or not at all.

    Args:
        path: file to write, .safetensors.
        model: the network, of the library.
        variables: its variables.
        described: what else the JSON holds.

    Raises:
        InputError: another suffix, a network that is not the library's or has a field that JSON
            cannot hold, or a file that cannot be written.
    """
    one_of([SUFFIX], path.suffix, f"suffix of {path}")
    arch, fields = describe(model)
    fields = {name: _to_json(arch, name, value) for name, value in fields.items()}
    header = json.dumps({"arch": arch, "fields": fields} | described)
    partial = path.with_name(path.name + ".part")  # never half a file under the final name
    try:
        save_file(to_torch(variables), partial, metadata={HEADER: header})
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write {path} ({error})") from error


def read_header(path: pathlib.Path) -> tuple[Model, dict[str, Any]]:
    """Return the network of a file that `write` wrote, without variables, and the rest of its JSON.

    Raises InputError if it is another file.
    """
    try:
        with safe_open(path, "numpy") as file:
            header = (file.metadata() or {})[HEADER]
    except (SafetensorError, OSError, KeyError) as error:
        raise InputError(
            f"{path} does not say what network it is of, as those that network.save wrote do; "
            "expected the name of its network as well"
        ) from error
    try:
        described = json.loads(header)
        arch, fields = described.pop("arch"), described.pop("fields")
        return create_model(arch, **{k: _from_json(k, v) for k, v in fields.items()}), described
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} has a header that network.save did not write") from error


def _to_json(arch: str, name: str, value: Any) -> Any:
    if name == "dtype":
        return jnp.dtype(value).name
    if isinstance(value, tuple | list):
        return [_to_json(arch, name, item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, str | int | float | bool | None):
        raise InputError(f"the field {name} of {arch} is {value!r}, which no file can hold")
    return value


def _from_json(name: str, value: Any) -> Any:
    if name == "dtype":
        return jnp.dtype(value)
    return tuple(_from_json("", item) for item in value) if isinstance(value, list) else value
