"""Trains any network of the library: `python experiments/train.py --arch vgg19`.

Values that are not given come from the network's recipe, which `--arch NAME --help` shows. The same
command again goes on where it stopped.
"""

if __name__ == "__main__":  # first, for the other imports take seconds
    from flaxnets.terminal import quiet

    quiet()

import argparse
import dataclasses
import math
import pathlib
import shlex
import sys
import time
import warnings
from typing import Annotated, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax.errors import ScopeParamShapeError

from flaxnets import create_model, data
from flaxnets.errors import InputError, InputWarning, one_of
from flaxnets.recipes import Recipe, Version, recipe_for
from flaxnets.runs.loop import Interrupted, RunOptions, fit
from flaxnets.runs.processes import Processes, all_or_none, join
from flaxnets.runs.workdir import Follower, Workdir, default_workdir
from flaxnets.summary import footers, summarize
from flaxnets.terminal import (
    arguments,
    compilation_cache,
    one_sentence_errors,
    print_table,
    reuse_memory,
    versions,
)
from flaxnets.training.batch_norms import check_batch_norms
from flaxnets.training.parallel import DataParallel, Mapping
from flaxnets.training.program import Feed, Program, make_program
from flaxnets.weights import PublishedWeights, WeightsWarning, find_weights, load_into


@dataclasses.dataclass(frozen=True)
class Options:
    values: Annotated[Recipe, tyro.conf.OmitArgPrefixes]
    arch: str = "vgg19"
    """Name of a network: flaxnets.list_models()."""
    recipe: Version = "paper"
    """Where the defaults of the values below come from: the network's paper, or the commands of
    torchvision's first and second weights."""
    dataset: str = "digits"
    """digits, breast_cancer or diabetes (bundled), folder:PATH (train/<class>/*.jpg,
    val/<class>/*.jpg), or a prepared TensorFlow Datasets name such as cifar10 or imagenet2012."""
    data_dir: str | None = None
    """Where TensorFlow Datasets were prepared; TFDS_DATA_DIR otherwise."""
    workdir: pathlib.Path | None = None
    """Directory of the run; runs/ARCH-DATASET unless given."""
    init_from: str | None = None
    """Weights to start from: the name of published ones, such as IMAGENET1K_V1, whose mean and
    deviation the images then have, or a file of safetensors or torch under torch's keys. The last
    layer starts afresh if the weights tell other classes apart or have none."""
    ema: bool = False
    """Take the average weights of a file --init-from that has raw ones as well."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation; parameters are float32."""
    remat: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    parallel: Mapping = "shard_map"
    """How the step is mapped onto the devices."""
    seed: int = 0
    """Of initialisation, data order, augmentation and dropout."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache directory, for the next start."""
    on_nan: Literal["stop", "skip"] = "stop"
    """Where the loss or an update is not finite: stop, or leave that step out."""
    max_bad_images: int = 0
    """Pictures of a folder that may be unreadable: each is named and skipped."""
    decoded_gigabytes: float = 2.0
    """Memory, in each process, for decoded photographs of training and for test images as the
    network is fed them: those that fit are decoded and resized once, the others in every epoch."""
    dry_run: bool = False
    """Print the values, the layers, the steps and the memory of the run, and stop."""
    run: Annotated[RunOptions, tyro.conf.OmitArgPrefixes] = dataclasses.field(
        default_factory=RunOptions
    )
    processes: Annotated[Processes, tyro.conf.OmitArgPrefixes] = dataclasses.field(
        default_factory=Processes
    )


# Options that may change when a run goes on. The values have lines of their own.
MAY_DIFFER = (
    "workdir", "data_dir", "compilation_cache", "on_nan", "max_bad_images", "decoded_gigabytes",
    "dry_run", "run", "processes", "values",
)  # fmt: skip


def parse(arguments: list[str]) -> "tuple[Options, data.Source]":
    """Network and data set first: they decide the defaults of everything else."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--arch", default="vgg19")
    first.add_argument("--recipe", default="paper")
    first.add_argument("--dataset", default="digits")
    first.add_argument("--data-dir", "--data_dir")
    chosen, _ = first.parse_known_args(arguments)
    create_model(chosen.arch)  # a wrong name is answered before a data set is opened
    if sys.stdout.isatty() and not {"-h", "--help"} & set(arguments):
        print(f"{chosen.arch} on {chosen.dataset}")  # TensorFlow is imported next, for seconds
    source = data.open_source(chosen.dataset, chosen.data_dir)
    one_of(get_args(Version), chosen.recipe, "recipe")
    recipe = recipe_for(chosen.arch, source.kind, chosen.recipe)
    if not source.class_names:
        recipe = dataclasses.replace(recipe, loss="squared_error")
    default = Options(recipe, **vars(chosen))
    options = tyro.cli(Options, args=arguments, default=default, description=__doc__)
    return options, source


def start_from(options: Options, model, input_shape: tuple[int, int, int], statistics):
    """The initial variables, if asked for, and the statistics that the images are normalised by."""
    if options.init_from is None:
        if options.ema:
            raise InputError(
                "--ema is about a file of weights; expected --init-from FILE beside it"
            )
        return None, statistics
    start = find_weights(options.arch, options.init_from)
    if isinstance(start, PublishedWeights) and input_shape[-1] == 3:
        statistics = start.statistics
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", WeightsWarning)
        initial = load_into(
            model,
            start,
            input_shape,
            num_classes=model.num_classes,
            in_channels=input_shape[-1],
            ema=options.ema,
            seed=options.seed,
        )
    for note in notes:
        print(note.message)
    return initial, statistics


def dry_run(
    options: Options, source: "data.Source", model, program: Program, image_shape: tuple[int, ...]
) -> None:
    """What the run would be, without its first step."""
    recipe, feed, parallel = program.recipe, program.feed, program.parallel
    values = dataclasses.asdict(recipe)
    values |= values.pop("preprocessing")
    shown = [{"value": name.replace("_", " "), "is": str(value)} for name, value in values.items()]
    print_table(f"{options.recipe} recipe of {options.arch} on {options.dataset}", shown)
    layers = summarize(model, feed.input_shape)
    title = f"{options.arch} on {'x'.join(map(str, feed.input_shape))}"
    print_table(title, [dataclasses.asdict(layer) for layer in layers], footers(layers))
    steps = {
        "devices": len(parallel.devices),
        "images of a step on each": recipe.batch_size // len(parallel.devices),
        "training examples": feed.train_size,
        "steps of an epoch": program.steps_per_epoch,
        "steps": program.steps,
    }
    print_table("steps", [{"of the run": name, "number": n} for name, n in steps.items()])
    local = recipe.batch_size // jax.process_count()
    batch = {
        "image": np.zeros((local, *image_shape), np.uint8),
        "label": np.zeros(local, np.int32 if feed.class_names else np.float32),
    }
    kept = 0
    as_fed = data.training_as_fed(source, data.training_plan(recipe.preprocessing, source))
    if as_fed is not None and parallel.keeps(as_fed.images["train"]):
        kept = as_fed.images["train"].nbytes
    memory = program.memory(batch, kept).items()
    rows = [{"on each device": name, "megabytes": f"{size / 1e6:,.1f}"} for name, size in memory]
    print_table("memory", rows)


def warn_of_short_epochs(program: Program) -> None:
    """An epoch has one step at least, which may be many passes over a small data set."""
    batch_size, examples = program.recipe.batch_size, program.feed.train_size
    if batch_size > examples:
        warnings.warn(
            f"a batch of {batch_size} images is larger than the data set: an epoch is one step, "
            f"{batch_size / examples:.3g} passes over the {examples} training examples",
            InputWarning,
            stacklevel=2,
        )


def main(arguments: list[str]) -> None:
    options, source = parse(arguments)
    if options.compilation_cache:
        compilation_cache()
    options.values.check()
    options.run.check()
    if options.max_bad_images < 0:
        raise InputError(f"max bad images is {options.max_bad_images}; expected zero or more")
    if not 0 <= options.decoded_gigabytes < math.inf:
        raise InputError(
            f"decoded gigabytes is {options.decoded_gigabytes}; expected a finite number from 0 on"
        )
    join(options.processes)
    recipe, shard = options.values, (jax.process_index(), jax.process_count())
    if recipe.loss == "cross_entropy" and not source.class_names:
        raise InputError(
            f"{options.dataset} has numbers to predict, not classes; expected --loss squared_error"
        )
    outputs = len(source.class_names) or 1
    model = create_model(
        options.arch, num_classes=outputs, dtype=jnp.dtype(options.dtype), remat=options.remat
    )
    parallel = DataParallel(options.parallel)
    size = recipe.preprocessing.image_size
    input_shape = (size, size, source.channels)
    train_shape = (recipe.preprocessing.train_size or size,) * 2 + (source.channels,)
    own_statistics = recipe.normalization(source.statistics)
    initial, statistics = start_from(options, model, input_shape, own_statistics)
    plan = data.training_plan(recipe.preprocessing, source)
    test_plan = data.evaluation_plan(recipe.preprocessing, source.kind, source.channels)
    decoded = data.Decoded(int(options.decoded_gigabytes * 1e9))
    feed = Feed(
        train=lambda step: data.train_batches(
            source, recipe.batch_size, plan, repeats=recipe.preprocessing.repeats,
            seed=options.seed, start_step=step, shard=shard, bad=bad, keep=parallel.keep,
            decoded=decoded,
        ),
        test=decoded.repeatable(
            lambda number: data.eval_batches(
                source, parallel.round_up(recipe.batch_size), test_plan,
                start_batch=number, shard=shard, bad=bad,
            )
        ),
        train_size=source.sizes["train"],
        input_shape=input_shape,
        statistics=statistics,
        class_names=source.class_names,
    )  # fmt: skip
    program = make_program(
        model, recipe, feed, parallel,
        seed=options.seed, initial=initial, skip_non_finite=options.on_nan == "skip",
    )  # fmt: skip
    # What does not fit (images, batch, patterns) is refused before anything is written.
    variables = program.state_shapes().variables
    if train_shape != input_shape:
        try:
            jax.eval_shape(model.apply, variables, jnp.zeros((1, *train_shape)))
        except ScopeParamShapeError as error:
            raise InputError(
                f"train size is {train_shape[0]}; {options.arch} reads images of one size, "
                f"expected {size} or 0"
            ) from error
    check_batch_norms(model, variables, recipe, train_shape, len(parallel.devices))
    if jax.process_index() == 0:
        warn_of_short_epochs(program)
    if options.dry_run:
        dry_run(options, source, model, program, train_shape)
        return
    config = {
        **dataclasses.asdict(options) | dict.fromkeys(MAY_DIFFER),
        **dataclasses.asdict(recipe),
        "ema": options.ema or None,  # runs from before this option lack it
        "input_shape": input_shape,
        "class_names": source.class_names,
        "statistics": statistics,
        "kind": source.kind,
        "plan": {"training": plan.to_json(), "evaluation": test_plan.to_json()},
        "examples": dict(source.sizes),
    }
    path = options.workdir or default_workdir(options.arch, options.dataset)
    with all_or_none():  # process 0 writes first
        workdir = Workdir(path, config) if jax.process_index() == 0 else None
    with all_or_none():
        workdir = workdir or Follower(path, config)
    bad = data.BadImages(options.max_bad_images, workdir.bad_images, workdir.add_bad_image)
    title = f"{options.arch} on {options.dataset}"
    command = shlex.join(["python", *sys.argv])

    start = time.perf_counter()
    try:
        row = fit(program, workdir, title=title, options=options.run)
    except Interrupted as stopped:
        workdir.close()
        print(f"{stopped}; go on with: {command}")
        sys.exit(130)
    if row["steps"] > program.steps:
        workdir.leave()
        print(
            f"{title}: the run is already at epoch {row['epoch']} of {recipe.epochs} asked; "
            f"see {workdir.path}"
        )
        return
    summary = {
        "arch": options.arch,
        "dataset": options.dataset,
        "parameters": row["parameters"],
        "epochs": recipe.epochs,
        "steps": row["steps"],
        **{name: row[f"test_{name}"] for name in ("top1", "top5", "loss") if f"test_{name}" in row},
        **{name: row[name] for name in ("ema_top1", "ema_top5", "ema_loss") if name in row},
        "skipped_steps": row["skipped_steps"],
        "bad_images": bad.paths,
        "images_per_second": row["images_per_second"],
        "seconds": round(time.perf_counter() - start, 1),
        "devices": [str(device) for device in parallel.devices],
        "versions": versions(),
        "command": command,
    }
    workdir.finish(summary, title)
    if source.class_names:
        result = f"top-1 {summary['top1']:.2%}, top-5 {summary['top5']:.2%}"
        if "ema_top1" in summary:
            result += f" (moving average: {summary['ema_top1']:.2%}, {summary['ema_top5']:.2%})"
    else:
        result = f"mean squared error {summary['loss']:.4f}"
    print(
        f"{title}: {result} of {source.sizes['test']} test examples after {recipe.epochs} epochs; "
        f"see {workdir.path}"
    )


if __name__ == "__main__":
    reuse_memory()
    with one_sentence_errors():
        main(arguments())
