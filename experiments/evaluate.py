"""Evaluates trained networks, one by one and together.

    python experiments/evaluate.py runs/mcdnn_mnist-digits runs/second-column runs/third-column

Prints top-1 and top-5 accuracy over the whole test split for each run of `train.py` and, for
several, of the mean of their class probabilities.
"""

import dataclasses
import json
import pathlib
import sys
from typing import Annotated

import numpy as np
import tyro
from rich.progress import track

from flaxnets import data
from flaxnets.errors import InputError
from flaxnets.inference.predict import accuracy, predict
from flaxnets.inference.run import load_run
from flaxnets.terminal import compilation_cache, one_sentence_errors, quiet
from flaxnets.training.parallel import DataParallel


@dataclasses.dataclass(frozen=True)
class Options:
    workdirs: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional]
    """Directories of runs of train.py, whose networks tell the same classes apart."""
    dataset: str | None = None
    """A name as in train.py; the one that the first network was trained on unless given."""
    data_dir: str | None = None
    """Where TensorFlow Datasets were prepared; TFDS_DATA_DIR otherwise."""
    batch_size: int = 64
    """Images per step, over all devices."""
    out: pathlib.Path | None = None
    """JSON file to write the results to."""
    predictions: pathlib.Path | None = None
    """NumPy file (.npz) to write to: `probabilities` (runs, N, classes) and `labels` (N,)."""


def main(options: Options) -> None:
    if not options.workdirs:
        raise InputError("no run given; expected directories that train.py wrote")
    runs = [load_run(path) for path in options.workdirs]
    dataset = options.dataset or runs[0].dataset
    source = data.open_source(dataset, options.data_dir)
    if not source.class_names:
        raise InputError(f"{dataset} has numbers to predict, not classes; expected classes")
    for run in runs:
        if run.class_names != source.class_names:
            raise InputError(
                f"{run.path} was trained on the classes of {run.dataset!r}, not {dataset!r}"
            )
    parallel = DataParallel()
    members, labels = [], np.empty(0)
    for run in runs:
        batches = data.eval_batches(
            source, parallel.round_up(options.batch_size), run.preprocessing
        )
        count = -(-source.sizes["test"] // parallel.round_up(options.batch_size))
        watched = track(batches, run.arch, count, disable=not sys.stdout.isatty())
        probabilities, labels = predict(run.model, run.variables, watched, run.statistics, parallel)
        members.append(probabilities)

    rows = [
        {"run": str(run.path), "arch": run.arch, **accuracy(probabilities, labels)}
        for run, probabilities in zip(runs, members, strict=True)
    ]
    if len(runs) > 1:
        name = f"mean of {len(runs)}"
        rows.append({"run": name, "arch": name, **accuracy(np.mean(members, 0), labels)})
    print(f"{len(labels)} test examples of {dataset}")
    for row in rows:
        print(
            f"top-1 {row['top1']:7.2%}  top-5 {row['top5']:7.2%}  loss {row['loss']:.4f}  "
            f"{row['run']}"
        )
    if options.out is not None:
        result = {"dataset": dataset, "examples": len(labels), "results": rows}
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    if options.predictions is not None:
        np.savez(options.predictions, probabilities=np.stack(members), labels=labels)


if __name__ == "__main__":
    quiet()
    with one_sentence_errors():
        compilation_cache()
        main(tyro.cli(Options, description=__doc__))
