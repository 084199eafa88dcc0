"""The batches of a data set as a recipe wants them, for training and evaluation."""

import itertools

import numpy as np

from flaxnets.data.bad_images import BadImages
from flaxnets.data.decoded import Decoded
from flaxnets.data.pipeline import eval_batches, train_batches
from flaxnets.data.plan import evaluation_plan, training_plan
from flaxnets.data.source import Shard, Source
from flaxnets.recipes import Preprocessing, Recipe, Statistics
from flaxnets.training.parallel import DataParallel
from flaxnets.training.program import Feed

EXAMPLES = 5000  # training images whose patches are whitened


def feed_from_source(
    source: Source,
    recipe: Recipe,
    parallel: DataParallel | None = None,
    *,
    seed: int = 0,
    statistics: Statistics | None = None,
    test_batch_size: int | None = None,
    shard: Shard = (0, 1),
    bad: BadImages | None = None,
    decoded: Decoded | None = None,
) -> Feed:
    """Return what a program needs of `source`, with the recipe's preprocessing and batch size.

    Args:
        source: the data set.
        recipe: of the run.
        parallel: the devices, on which training images stay if they fit; without it, batches are
            made on the host.
        seed: of the order and the augmentation.
        statistics: mean and deviation of each channel, by which images are normalised; the recipe's
            for the data set unless given.
        test_batch_size: images of an evaluation step, rounded up so that it divides over the
            devices; those of a training step unless given.
        shard: this process and the number of processes.
        bad: counts unreadable pictures; none is allowed unless given.
        decoded: keeps decoded pictures, and the test images as network input.
    """
    preprocessing, decoded = recipe.preprocessing, decoded or Decoded()
    size = preprocessing.image_size
    for_training = training_plan(preprocessing, source)
    for_evaluation = evaluation_plan(preprocessing, source.kind, source.channels)
    tested = test_batch_size or recipe.batch_size
    if parallel is not None:
        tested = parallel.round_up(tested)
    return Feed(
        train=lambda step: train_batches(
            source, recipe.batch_size, for_training,
            repeats=preprocessing.repeats, seed=seed, start_step=step, shard=shard,
            bad=bad, keep=None if parallel is None else parallel.keep, decoded=decoded,
        ),
        test=decoded.repeatable(
            lambda number: eval_batches(
                source, tested, for_evaluation, start_batch=number, shard=shard, bad=bad
            )
        ),
        train_size=source.sizes["train"],
        input_shape=(size, size, source.channels),
        statistics=statistics or recipe.normalization(source.statistics),
        class_names=source.class_names,
    )  # fmt: skip


def training_examples(
    source: Source, preprocessing: Preprocessing, count: int = EXAMPLES
) -> np.ndarray:
    """Return the first training images as evaluation would read them, uint8 (N, H, W, C)."""
    plan = evaluation_plan(preprocessing, source.kind, source.channels)
    return np.stack([plan(raw) for raw, _ in itertools.islice(source.examples("train"), count)])
