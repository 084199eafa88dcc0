"""Make the batches of a data set, for training and evaluation by a recipe."""

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

EXAMPLES = 5000  # training images from which whitening is computed


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
    """Return the feed of `source`, with the recipe's preprocessing and batch size.

    Args:
        source: the data set.
        recipe: the values of the run.
        parallel: the devices, which keep the training images if they fit. Without it all batches
            are made on the host.
        seed: seed of the order of the examples and of the augmentation.
        statistics: mean and deviation of each channel, by which images are normalised. Default:
            those of the recipe for the data set.
        test_batch_size: images of an evaluation step, rounded up to a multiple of the devices.
            Default: the batch size of training.
        shard: number of this process, and number of processes.
        bad: counts unreadable pictures. Default: none is allowed.
        decoded: keeps decoded pictures and the test images as network input. Default: nothing is
            kept.
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
    """Return the first `count` training images, read as in evaluation, uint8 (N, H, W, C)."""
    plan = evaluation_plan(preprocessing, source.kind, source.channels)
    return np.stack([plan(raw) for raw, _ in itertools.islice(source.examples("train"), count)])
