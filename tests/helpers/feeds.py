"""Batches of a source by the values of a recipe, as the scripts make them."""

from flaxnets import data
from flaxnets.data import Source, evaluation_plan, training_plan
from flaxnets.recipes import Preprocessing


def train_batches(source: Source, batch_size: int, how: Preprocessing, **options):
    plan = training_plan(how, source)
    return data.train_batches(source, batch_size, plan, repeats=how.repeats, **options)


def eval_batches(source: Source, batch_size: int, how: Preprocessing, **options):
    plan = evaluation_plan(how, source.kind, source.channels)
    return data.eval_batches(source, batch_size, plan, **options)
