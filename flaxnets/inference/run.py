"""A network that `experiments/train.py` trained, read back from its workdir."""

import dataclasses
import pathlib
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.data.plan import Plan, evaluation_plan
from flaxnets.errors import InputError
from flaxnets.models import create_model
from flaxnets.recipes import Kind, Preprocessing
from flaxnets.runs.checkpoints import Checkpoints
from flaxnets.runs.files import read_json


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """The network with its variables, and what it was trained on."""

    path: pathlib.Path
    arch: str
    dataset: str
    model: nn.Module
    variables: Any
    plan: Plan  # of evaluation
    statistics: tuple[tuple[float, ...], tuple[float, ...]]  # as `data.Source.statistics`
    class_names: tuple[str, ...]


def read_config(path: pathlib.Path) -> dict[str, Any]:
    """What a run was asked for. Raises InputError if `path` is not the workdir of a run."""
    config = path / "config.json"
    if not config.is_file():
        raise InputError(f"{path} is not the workdir of a training run: it has no config.json")
    return read_json(config)


def load_run(path: pathlib.Path) -> TrainedRun:
    """The newest intact checkpoint of the run in `path`.

    Raises InputError if there is none, or if its config.json is not one that a run wrote.
    """
    config = read_config(path)
    try:
        mean, std = config["statistics"]
        class_names = tuple(config["class_names"])
        described: dict[str, Any] = {
            "arch": str(config["arch"]),
            "dataset": str(config["dataset"]),
            "model": create_model(
                config["arch"], num_classes=len(class_names) or 1, dtype=jnp.dtype(config["dtype"])
            ),
            "plan": _evaluation_plan(config),
            "statistics": (tuple(mean), tuple(std)),
        }
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path / 'config.json'} is not that of a training run") from error
    variables = Checkpoints(path / "checkpoints", read_only=True).restore_variables()
    return TrainedRun(path=path, variables=variables, class_names=class_names, **described)


def _evaluation_plan(config: dict[str, Any]) -> Plan:
    if "plan" in config:
        return Plan.from_json(config["plan"]["evaluation"])
    # A run from before plans were written down. Its evaluation was bilinear, and read photographs
    # as they are stored; the recipes of small images crop nothing.
    values, dataset = config["preprocessing"], config["dataset"]
    size, resize, channels = values["image_size"], values["resize"], config["input_shape"][-1]
    kind: Kind = "photographs"
    if config["input_shape"][0] == 1:
        kind = "rows"
    elif not dataset.startswith("folder:") and (resize == size or ":" in dataset):
        kind = "small images"
    how = Preprocessing(image_size=size, resize=resize, orientation="stored")
    return evaluation_plan(how, kind, channels)
