"""Whether a network learns: its loss over the first steps on a data set."""

import dataclasses
import statistics
import time

import jax
import jax.numpy as jnp

from benchmarking.common import Options, Row, peak_gigabytes
from flaxnets import create_model, data
from flaxnets.recipes import recipe_for
from flaxnets.training.optimizer import make_optimizer
from flaxnets.training.parallel import DataParallel
from flaxnets.training.state import create_state, init_variables
from flaxnets.training.step import make_train_step


def measure_learning(arch: str, options: Options) -> Row:
    batch_size = options.batch_size or 8
    source = data.open_source(options.dataset, options.data_dir)
    recipe = recipe_for(arch, source.kind)
    how = recipe.preprocessing
    if options.image_size is not None:
        how = dataclasses.replace(how, image_size=options.image_size, resize=options.image_size)
    # Smaller batches take a rate smaller in proportion (Goyal et al. 2017, section 2.1).
    rate = options.learning_rate
    if rate is None:
        rate = recipe.learning_rate * min(1, batch_size / recipe.batch_size)
    model = create_model(
        arch, num_classes=len(source.class_names) or 1, dtype=jnp.dtype(options.dtype)
    )
    optimizer = make_optimizer(recipe, lambda _: jnp.float32(rate))
    parallel = DataParallel(devices=jax.devices()[:1])
    pixels = recipe.normalization(source.statistics)
    step = parallel.map(make_train_step(model, optimizer, pixels, recipe), donate_state=True)
    input_shape = (how.image_size, how.image_size, source.channels)
    variables = init_variables(model, input_shape, recipe, 0)
    state = parallel.replicate(create_state(variables, optimizer, recipe))
    batches = data.train_batches(source, batch_size, how)
    losses, seconds = [], []
    for _ in range(options.steps):
        start = time.perf_counter()
        state, metrics = step(state, parallel.shard(next(batches)))
        losses.append(float(metrics["loss"]))
        seconds.append(time.perf_counter() - start)
    tenth = max(1, options.steps // 10)
    first, last = statistics.mean(losses[:tenth]), statistics.mean(losses[-tenth:])
    return {
        "dataset": options.dataset,
        "steps": options.steps,
        "batch_size": batch_size,
        "learning_rate": rate,
        "first_loss": first,
        "last_loss": last,
        "goes_down": last < first,
        "first_step_seconds": seconds[0],
        "step_seconds": statistics.median(seconds),
        "peak_gigabytes": peak_gigabytes(),
    }
