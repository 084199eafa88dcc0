"""Measure whether a network learns, and how fast: the loss of its first steps, and the time to an
accuracy.
"""

import dataclasses
import functools
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarking.common import Options, Row, peak_gigabytes
from flaxnets import create_model, data
from flaxnets.recipes import Recipe, recipe_for
from flaxnets.runs.evaluation import evaluate
from flaxnets.runs.feed import feed_from_source, training_examples
from flaxnets.training.parallel import DataParallel
from flaxnets.training.program import Program, make_program
from flaxnets.training.state import TrainState

# One cycle of the rate (Smith & Topin 2017), with the other values of Wide ResNets on CIFAR.
ONE_CYCLE = {"schedule": "one_cycle", "warmup_epochs": 0.0, "nesterov": True, "weight_decay": 5e-4}


def measure_learning(arch: str, options: Options) -> Row:
    """Return the loss over the first and the last tenth of the first steps, and their seconds."""
    batch_size = options.batch_size or 8
    source = data.open_source(options.dataset, options.data_dir)
    recipe = recipe_for(arch, source.kind)
    preprocessing, size = recipe.preprocessing, options.image_size
    if size is not None:
        preprocessing = dataclasses.replace(preprocessing, image_size=size, resize=size)
    recipe = dataclasses.replace(
        recipe,
        preprocessing=preprocessing,
        batch_size=batch_size,
        learning_rate=rate(recipe, batch_size, options),
        schedule="constant",
        warmup_epochs=0.0,
    )
    program = program_of(arch, source, recipe, options)
    state, batches = program.initial_state(), program.feed.train(0)
    losses, seconds = [], []
    for _ in range(options.steps):
        start = time.perf_counter()
        state, metrics = program.train_step(state, program.parallel.shard(next(batches)))
        losses.append(float(metrics["loss"]))
        seconds.append(time.perf_counter() - start)
    tenth = max(1, options.steps // 10)
    first, last = statistics.mean(losses[:tenth]), statistics.mean(losses[-tenth:])
    return {
        "dataset": options.dataset,
        "steps": options.steps,
        "batch_size": batch_size,
        "learning_rate": recipe.learning_rate,
        "first_loss": first,
        "last_loss": last,
        "goes_down": last < first,
        "first_step_seconds": seconds[0],
        "step_seconds": statistics.median(seconds),
        "peak_gigabytes": peak_gigabytes(),
    }


def measure_accuracy(arch: str, options: Options, seed: int = 0) -> Row:
    """Return the seconds of training until the accuracy `options.target`, or until the last epoch.

    The network is trained with its own recipe, or with one cycle of the learning rate if
    `options.epochs` is given. As in published times, programs are compiled before the clock starts.
    Evaluation is timed separately: it runs after every epoch, and with the recipe's views after the
    last one.
    """
    source = data.open_source(options.dataset, options.data_dir)
    recipe = recipe_for(arch, source.kind)
    batch_size = options.batch_size or recipe.batch_size
    recipe = dataclasses.replace(
        recipe, batch_size=batch_size, learning_rate=rate(recipe, batch_size, options)
    )
    if options.epochs is not None:
        recipe = dataclasses.replace(recipe, epochs=options.epochs, **ONE_CYCLE)
    program = program_of(arch, source, recipe, options, seed)
    feed, parallel = program.feed, program.parallel

    def test(step: Any, state: TrainState) -> float:
        return evaluate(step, state.variables, feed, parallel)[0]["top1"]

    batches = feed.train(0)
    state, _ = program.train_step(program.initial_state(), parallel.shard(next(batches)))
    test(program.eval_step, state)
    if program.last_eval_step is not None:
        test(program.last_eval_step, state)

    # The stream continues: a new one would compile its reading from the device again.
    state = jax.block_until_ready(program.initial_state())
    accuracies, training, testing, best = [], 0.0, 0.0, 0.0
    for epoch in range(1, recipe.epochs + 1):
        start = time.perf_counter()
        for _ in range(program.steps_per_epoch):
            state, _ = program.train_step(state, parallel.shard(next(batches)))
        jax.block_until_ready(state)
        middle = time.perf_counter()
        accuracies.append(test(program.eval_step, state))
        training += middle - start
        best = accuracies[-1]
        if epoch == recipe.epochs and program.last_eval_step is not None:
            best = test(program.last_eval_step, state)
        testing += time.perf_counter() - middle
        reached = f"{best:.2%} after {training:.1f} s of training"
        print(f"epoch {epoch}/{recipe.epochs}: {reached}", flush=True)
        if best >= options.target:
            break
    return {
        "dataset": options.dataset,
        "seed": seed,
        "batch_size": batch_size,
        "learning_rate": recipe.learning_rate,
        "target": options.target,
        "reached": best >= options.target,
        "accuracy": best,
        "seconds": training,
        "evaluation_seconds": testing,
        "epochs": len(accuracies),
        "accuracies": [round(accuracy, 4) for accuracy in accuracies],
        "images_per_second": len(accuracies) * program.steps_per_epoch * batch_size / training,
        "peak_gigabytes": peak_gigabytes(),
    }


def rate(recipe: Recipe, batch_size: int, options: Options) -> float:
    """Return the learning rate: the given one, or the recipe's in proportion to the batch.

    Goyal et al. 2017, section 2.1.
    """
    if options.learning_rate is not None:
        return options.learning_rate
    return recipe.learning_rate * batch_size / recipe.batch_size


def program_of(
    arch: str, source: "data.Source", recipe: Recipe, options: Options, seed: int = 0
) -> Program:
    """Return the program that trains a network on a data set, on one device."""
    parallel = DataParallel(devices=jax.devices()[:1])
    model = create_model(
        arch, num_classes=len(source.class_names) or 1, dtype=jnp.dtype(options.dtype)
    )
    feed = feed_from_source(source, recipe, parallel, seed=seed, test_batch_size=1000)
    examples = functools.partial(training_examples, source, recipe.preprocessing)
    return make_program(model, recipe, feed, parallel, seed=seed, examples=examples)
