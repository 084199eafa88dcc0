"""Make batches of a source from a preprocessing, as runs make them."""

from collections.abc import Iterator

from flaxnets.data import Source, open_source
from flaxnets.data.source import InMemory
from flaxnets.recipes import Preprocessing, Recipe
from flaxnets.runs.feed import feed_from_source
from flaxnets.training.program import Feed, HostBatch


def train_batches(
    source: Source, batch_size: int, preprocessing: Preprocessing, *, start_step: int = 0, **options
) -> Iterator[HostBatch]:
    return _feed(source, batch_size, preprocessing, **options).train(start_step)


def eval_batches(
    source: Source, batch_size: int, preprocessing: Preprocessing, **options
) -> Iterator[HostBatch]:
    return _feed(source, batch_size, preprocessing, **options).test()


def _feed(source: Source, batch_size: int, preprocessing: Preprocessing, **options) -> Feed:
    recipe = Recipe(batch_size, epochs=1, learning_rate=1.0, preprocessing=preprocessing)
    return feed_from_source(source, recipe, **options)


def in_memory(name: str, data_dir: str | None = None) -> InMemory:
    """Return a data set that gives its examples by index, such as the bundled ones."""
    source = open_source(name, data_dir)
    assert isinstance(source, InMemory)
    return source
