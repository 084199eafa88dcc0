"""Open the network of a run of train.py from its workdir."""

import contextlib
import pathlib
from typing import Any

import jax.numpy as jnp

from flaxnets.data.plan import Plan, evaluation_plan
from flaxnets.errors import InputError
from flaxnets.inference.network import Network
from flaxnets.inference.results import Card
from flaxnets.models import create_model
from flaxnets.recipes import Kind, Preprocessing
from flaxnets.runs.checkpoints import Checkpoints
from flaxnets.runs.files import read_json

CONFIG = "config.json"


def read_config(path: pathlib.Path) -> dict[str, Any]:
    """Return the config of a run. Raises InputError if `path` is not the workdir of a run."""
    config = path / CONFIG
    if not config.is_file():
        raise InputError(
            f"{path} is not the workdir of a training run: it has no {CONFIG}; expected one that "
            "train.py wrote"
        )
    return read_json(config)


def load_run(path: pathlib.Path) -> Network:
    """Return the network of the newest intact checkpoint of the run in `path`.

    Its preprocessing is the run's evaluation plan. Only the variables of the checkpoint are read.

    Raises InputError if there is no checkpoint, or if a run did not write the config.json.
    """
    config = read_config(path)
    try:
        mean, std = config["statistics"]
        classes = tuple(config["class_names"])
        described: dict[str, Any] = {
            "model": create_model(
                config["arch"], num_classes=len(classes) or 1, dtype=jnp.dtype(config["dtype"])
            ),
            "preprocessing": _evaluation_plan(config),
            "statistics": (tuple(mean), tuple(std)),
            "classes": classes,
        }
        dataset = str(config["dataset"])
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path / CONFIG} is not that of a training run; expected a workdir of train.py"
        ) from error
    checkpoints = Checkpoints(path / "checkpoints", read_only=True)
    variables = checkpoints.restore_variables()
    card = Card(str(path), dataset, _accuracy(path, checkpoints.latest_step))
    return Network(variables=variables, card=card, **described)


def _accuracy(path: pathlib.Path, step: int | None) -> dict[str, float]:
    """Return the accuracies in the run's summary, if they are those of that step's weights."""
    with contextlib.suppress(OSError, InputError, KeyError, TypeError):
        summary = read_json(path / "summary.json")
        if summary["steps"] == step:
            # The variables are the moving averages if the run has any: report theirs.
            values = {
                name: summary.get(f"ema_{name}", summary.get(name))
                for name in ("top1", "top5", "loss")
            }
            return {name: value for name, value in values.items() if value is not None}
    return {}


def _evaluation_plan(config: dict[str, Any]) -> Plan:
    """Return the plan with which the run of a config evaluates."""
    if "plan" in config:
        return Plan.from_json(config["plan"]["evaluation"])
    # Older runs did not store plans. Their evaluation was bilinear and read photographs as they are
    # stored. Recipes of small images do not crop.
    values, dataset = config["preprocessing"], config["dataset"]
    size, resize, channels = values["image_size"], values["resize"], config["input_shape"][-1]
    kind: Kind = "photographs"
    if config["input_shape"][0] == 1:
        kind = "rows"
    elif not dataset.startswith("folder:") and (resize == size or ":" in dataset):
        kind = "small images"
    preprocessing = Preprocessing(image_size=size, resize=resize, orientation="stored")
    return evaluation_plan(preprocessing, kind, channels)
