"""Evaluate a network over a whole split, and find its worst predictions."""

import dataclasses
import heapq
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from flaxnets.runs.figures import PICTURED, draw_grid
from flaxnets.training.parallel import DataParallel
from flaxnets.training.program import Feed
from flaxnets.training.state import PyTree


@dataclasses.dataclass(frozen=True, order=True)
class Example:
    """An evaluated image, ordered by its loss."""

    loss: float
    image: np.ndarray = dataclasses.field(compare=False)
    label: int = dataclasses.field(compare=False)
    output: int = dataclasses.field(compare=False)  # the class with the best score


def evaluate(
    eval_step: Callable, variables: PyTree, feed: Feed, parallel: DataParallel
) -> tuple[dict[str, float], list[Example]]:
    """Return the mean metrics over the whole test split, and the examples with the largest losses.

    Every example is counted once. The examples are `PICTURED` of this process, the largest loss
    first. As in a training step, only the batches are transferred to the devices.
    """
    totals: dict[str, float] = {}
    worst: list[Example] = []
    for batch in feed.test():
        with jax.transfer_guard("disallow"):
            sums, examples = jax.device_get(eval_step(variables, parallel.shard(batch)))
        for name, value in sums.items():
            totals[name] = totals.get(name, 0.0) + float(value)
        local = len(batch["label"])
        own = slice(jax.process_index() * local, (jax.process_index() + 1) * local)
        losses, outputs = examples["loss"][own], examples["output"][own]
        for i in np.argsort(-losses)[:PICTURED]:
            if losses[i] >= 0:  # masked examples have -1
                image, label = batch["image"][i].copy(), int(batch["label"][i])
                worst.append(Example(float(losses[i]), image, label, int(outputs[i])))
        worst = heapq.nlargest(PICTURED, worst)
    count = totals.pop("count")
    return {name: value / count for name, value in totals.items()}, worst


def draw_worst(worst: list[Example], class_names: tuple[str, ...]) -> Any:
    """Return a figure of the worst predictions, with predicted class, true class and loss."""
    captions = [
        f"{class_names[example.output]}\nnot {class_names[example.label]} ({example.loss:.1f})"
        if example.output != example.label
        else f"{class_names[example.label]} ({example.loss:.1f})"
        for example in worst
    ]
    return draw_grid([example.image for example in worst], captions)
