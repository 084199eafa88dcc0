"""Report a run: the tables of a dry run, its summary, and its result in a sentence."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from flaxnets.data.pipeline import training_as_fed
from flaxnets.runs.assembly import Run
from flaxnets.summary import footers, summarize

Table = tuple[str, list[dict[str, Any]], list[dict[str, Any]]]  # title, rows, last lines


def dry_run(run: Run) -> Iterator[Table]:
    """Yield tables that describe the run, without taking a step.

    They show its values, the layers, the steps, and the memory on each device.
    """
    options, recipe, parallel = run.options, run.program.recipe, run.program.parallel
    values = dataclasses.asdict(recipe)
    values |= values.pop("preprocessing")
    rows = [{"value": name.replace("_", " "), "is": str(value)} for name, value in values.items()]
    yield f"{options.recipe} recipe of {run.title}", rows, []

    input_shape = run.program.feed.input_shape
    layers = summarize(run.model, input_shape)
    title = f"{options.arch} on {'x'.join(map(str, input_shape))}"
    yield title, [dataclasses.asdict(layer) for layer in layers], footers(layers)

    steps = {
        "devices": len(parallel.devices),
        "images of a step on each": recipe.batch_size // len(parallel.devices),
        "training examples": run.program.feed.train_size,
        "steps of an epoch": run.program.steps_per_epoch,
        "steps": run.program.steps,
    }
    yield "steps", [{"of the run": name, "number": n} for name, n in steps.items()], []

    memory = _memory(run).items()
    rows = [{"on each device": name, "megabytes": f"{size / 1e6:,.1f}"} for name, size in memory]
    yield "memory", rows, []


def _memory(run: Run) -> dict[str, int]:
    """Return the bytes on each device, by purpose. Compiles the step."""
    local = run.program.recipe.batch_size // jax.process_count()
    batch = {
        "image": np.zeros((local, *run.train_shape), np.uint8),
        "label": np.zeros(local, np.int32 if run.source.class_names else np.float32),
    }
    on_device = 0
    as_fed = training_as_fed(run.source, run.training_plan)
    if as_fed is not None and run.program.parallel.keeps(as_fed.images["train"]):
        on_device = as_fed.images["train"].nbytes
    return run.program.memory(batch, on_device)


def summary_of(
    run: Run, row: Mapping[str, Any], *, seconds: float, versions: Mapping[str, str], command: str
) -> dict[str, Any]:
    """Return the content of summary.json for a finished run.

    Args:
        run: the run.
        row: the result of `loop.fit`.
        seconds: time since the run was last started.
        versions: versions of the packages that matter to the result.
        command: the command that started the run.
    """
    metrics = ("top1", "top5", "loss")
    others = [f"{kind}_{name}" for kind in ("ema", "views") for name in metrics]
    return {
        "arch": run.options.arch,
        "dataset": run.options.dataset,
        "parameters": row["parameters"],
        "epochs": run.program.recipe.epochs,
        "steps": row["steps"],
        **{name: row[f"test_{name}"] for name in metrics if f"test_{name}" in row},
        **{name: row[name] for name in others if name in row},
        "skipped_steps": row["skipped_steps"],
        "bad_images": run.bad_images.paths,
        "images_per_second": row["images_per_second"],
        "seconds": round(seconds, 1),
        "devices": [str(device) for device in run.program.parallel.devices],
        "versions": dict(versions),
        "command": command,
    }


def result(run: Run, summary: Mapping[str, Any]) -> str:
    """Return the result of a finished run in one sentence."""
    if run.source.class_names:
        text = f"top-1 {summary['top1']:.2%}, top-5 {summary['top5']:.2%}"
        if "ema_top1" in summary:
            text += f" (moving average: {summary['ema_top1']:.2%}, {summary['ema_top5']:.2%})"
        if "views_top1" in summary:
            text += f" (mean of views: {summary['views_top1']:.2%}, {summary['views_top5']:.2%})"
    else:
        text = f"mean squared error {summary['loss']:.4f}"
    return (
        f"{run.title}: {text} of {run.source.sizes['test']} test examples after "
        f"{summary['epochs']} epochs; see {run.path}"
    )
