"""A network that `experiments/train.py` trained, read back from its workdir."""

import dataclasses
import json
import pathlib
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.errors import InputError
from flaxnets.models import create_model
from flaxnets.recipes import Preprocessing
from flaxnets.training.checkpoints import Checkpoints


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """The network with its variables, and what it was trained on."""

    path: pathlib.Path
    arch: str
    dataset: str
    model: nn.Module
    variables: Any
    preprocessing: Preprocessing
    statistics: tuple[tuple[float, ...], tuple[float, ...]]  # as `data.Source.statistics`
    class_names: tuple[str, ...]


def read_config(path: pathlib.Path) -> dict[str, Any]:
    """What a run was asked for. Raises InputError if `path` is not the workdir of a run."""
    config = path / "config.json"
    if not config.is_file():
        raise InputError(f"{path} is not the workdir of a training run: it has no config.json")
    return json.loads(config.read_text())


def load_run(path: pathlib.Path) -> TrainedRun:
    """The newest checkpoint of the run in `path`.

    Raises InputError if there is none.
    """
    config = read_config(path)
    mean, std = config["statistics"]
    class_names = tuple(config["class_names"])
    return TrainedRun(
        path=path,
        arch=config["arch"],
        dataset=config["dataset"],
        model=create_model(
            config["arch"], num_classes=len(class_names) or 1, dtype=jnp.dtype(config["dtype"])
        ),
        variables=Checkpoints(path / "checkpoints", read_only=True).restore_variables(),
        preprocessing=Preprocessing(**config["preprocessing"]),
        statistics=(tuple(mean), tuple(std)),
        class_names=class_names,
    )
