"""Turn a source into NumPy batches: `{"image": uint8 (N, H, W, C), "label": int32 (N,)}`.

Rows of measured features and labels that are numbers are float32.

Position decides everything. Image `i` of the training stream of all processes is augmented with a
seed made of (seed, i). Draws for the training step use (seed, step). Each pass over the data is
shuffled with (seed, pass). So equal seeds give equal batches for any number of threads, and a
stream can start at any step. If the examples have indices (`InMemory`), the batch of all processes
does not depend on their number either: each process knows the whole order and takes its part of
every batch. Records of TensorFlow Datasets are divided by file instead: each process reads its own
files in every pass, in its own order.

Images that a `Plan` makes the same every time stay in memory if they fit: small images as network
input, photographs decoded (`Decoded`). Threads make all others, ahead of the training step.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random
from typing import Any

import numpy as np

from flaxnets.data.bad_images import BadImages
from flaxnets.data.decoded import Decoded, HostBatch
from flaxnets.data.pixels.crop import Flip
from flaxnets.data.pixels.decode import UnreadablePicture
from flaxnets.data.pixels.resize import Resize
from flaxnets.data.plan import Plan
from flaxnets.data.source import InMemory, Shard, Source, local_batch_size
from flaxnets.data.threads import in_threads
from flaxnets.errors import InputError

Keep = Callable[[np.ndarray], Callable[[np.ndarray], Any]]

MAX_IN_MEMORY = 2**30  # bytes of training images; more are resized again in every epoch
DRAWS = 1  # marks the generator of a step's draws; 0 marks the order of a pass (`source.PASS`)


def train_batches(
    source: Source,
    batch_size: int,
    plan: Plan,
    *,
    repeats: int = 1,
    seed: int = 0,
    start_step: int = 0,
    shard: Shard = (0, 1),
    bad: BadImages | None = None,
    keep: Keep | None = None,
    decoded: Decoded | None = None,
) -> Iterator[HostBatch]:
    """Yield augmented batches of this process without end, from step `start_step` on.

    A batch may contain the end of one epoch and the beginning of the next, so no example is left
    out. Process `i` has the `i`-th part of each batch. An unreadable picture is replaced by the
    next one in the order of the files, with the augmentation of the first.

    Draws for the changes that `plan` leaves to the training step (`flaxnets.training.on_device`)
    are made here: `"offset"`, int32 (N, [y, x]) in 0..2 * pad, `"mirrored"`, bool (N,), and
    `"colour"`, float32 (N, 3).

    Args:
        source: the data set.
        batch_size: examples of a batch, over all processes.
        plan: the operations on a training picture.
        repeats: copies of an example in an epoch, which has as many batches but fewer distinct
            examples (Berman et al. 2019, Hoffer et al. 2020).
        seed: seed of the order and of the augmentation.
        start_step: number of the first batch.
        shard: number of this process, and number of processes.
        bad: counts unreadable pictures. Default: none is allowed.
        keep: `keep(images)` returns a function from indices to images, which may keep the images on
            the devices (`DataParallel.keep`).
        decoded: keeps decoded photographs while it has room. The batches do not depend on it.

    Raises:
        InputError: the batch does not divide over the processes, a process has no examples, or too
            many pictures are unreadable.
    """
    local = local_batch_size(batch_size, shard)
    if source.share("train", shard) < 1:
        raise InputError(
            f"process {shard[0]} of {shard[1]} has no training examples; expected fewer processes"
        )
    places = slice(shard[0] * local, (shard[0] + 1) * local)
    host, on_device = plan.split()
    as_fed = training_as_fed(source, plan)
    alternating = [o for o in plan.changes if isinstance(o, Flip) and o.alternating]
    if alternating and (as_fed is None or host.changes):
        raise InputError(
            "flip 'alternating' needs images that stay in memory and are changed by crops alone; "
            "expected the flip 'random'"
        )
    source = as_fed or source
    order: Any = source.training_order(batch_size, seed, start_step, shard, repeats)
    if as_fed is not None and not host.changes:
        images, labels = as_fed.images["train"], as_fed.labels["train"]
        take: Any = images.__getitem__ if keep is None else keep(images)
        made = (
            {"image": take(indices), "label": labels[indices], "index": indices}
            for indices in order
        )
    else:
        made = _made_for_training(
            source, host, order, start_step, seed, places.start, batch_size,
            bad or BadImages(), decoded or Decoded(),
        )  # fmt: skip
    for step, batch in enumerate(made, start_step):
        random = np.random.default_rng([DRAWS, seed % 2**64, step])
        draws = [operation.draw(random, batch_size) for operation in on_device]
        batch |= {key: values[places] for drawn in draws for key, values in drawn.items()}
        indices = batch.pop("index", None)
        for flip in alternating:
            positions = step * batch_size + np.arange(batch_size)[places]
            passes = positions // source.sizes["train"]
            batch["mirrored"] = flip.alternate(seed, indices, passes)
        yield batch


def training_as_fed(source: Source, plan: Plan) -> InMemory | None:
    """Return the source with its training images resized by the plan's window, as they stay.

    None if they do not stay in memory. They do if the source has pixels, the window does not move
    and the result has at most `MAX_IN_MEMORY` bytes.
    """
    if not isinstance(source, InMemory) or not source.has_pixels or not plan.has_fixed_window:
        return None
    if not plan.operations or source.image_size == plan.size:
        return source
    if source.sizes["train"] * plan.size**2 * source.channels > MAX_IN_MEMORY:
        return None
    images = {**source.images, "train": plan.window.many(source.images["train"])}
    return dataclasses.replace(source, images=images, image_size=plan.size)


def eval_batches(
    source: Source,
    batch_size: int,
    plan: Plan,
    *,
    split: str = "test",
    start_batch: int = 0,
    shard: Shard = (0, 1),
    bad: BadImages | None = None,
) -> Iterator[HostBatch]:
    """Yield one pass over `split`, from batch `start_batch` on, in a fixed order.

    Every example occurs once. The last batch is padded with zeros. `"mask"` (N,) is 1.0 for
    examples, and 0.0 for padding and for pictures that cannot be read. All processes yield the same
    number of batches.

    Raises InputError as `train_batches` does.
    """
    local = local_batch_size(batch_size, shard)
    largest = max(source.share(split, (index, shard[1])) for index in range(shard[1]))
    numbers = range(start_batch, -(-largest // local))
    elements = source.evaluation_order(split, shard, start_batch * local)
    if isinstance(source, InMemory) and source.has_pixels and _is_vectorised(plan):
        made = _windows(source, split, elements, plan, local)
    else:
        made = _made_for_evaluation(source, split, elements, plan, local, bad or BadImages())
    empty = {
        "image": np.zeros(
            (0, plan.size, plan.size, source.channels), np.uint8 if plan.operations else np.float32
        ),
        "label": np.zeros(0, np.int32 if source.class_names else np.float32),
        "mask": np.zeros(0, np.float32),
    }
    for _ in numbers:
        batch = next(made, empty)
        missing = local - len(batch["label"])
        yield {
            key: np.pad(value, [(0, missing)] + [(0, 0)] * (value.ndim - 1))
            for key, value in batch.items()
        }


def _is_vectorised(plan: Plan) -> bool:
    return not plan.operations or isinstance(plan.window, Resize)


def _windows(
    source: InMemory, split: str, elements: Iterable[int], plan: Plan, local: int
) -> Iterator[HostBatch]:
    for few in _grouped(elements, local):
        images, labels = source.images[split][few], source.labels[split][few]
        if plan.operations:
            images = plan.window.many(images)
        yield {"image": images, "label": labels, "mask": np.ones(len(few), np.float32)}


def _grouped(elements: Iterable[Any], count: int) -> Iterator[list[Any]]:
    stream = iter(elements)
    return iter(lambda: list(itertools.islice(stream, count)), [])


def _made_for_training(
    source: Source,
    plan: Plan,
    order: Iterator[Sequence[Any]],
    start_step: int,
    seed: int,
    first: int,
    batch_size: int,
    bad: BadImages,
    decoded: Decoded,
) -> Iterator[HostBatch]:
    def make(step: int, place: int, element: Any) -> tuple[np.ndarray, Any]:
        raw, label = source.read("train", element)
        position = step * batch_size + first + place
        random = Random((seed << 64) + position)
        return plan(raw, random, memory=decoded, name=source.title("train", element)), label

    shape = (plan.size, plan.size, source.channels)
    for step, made in enumerate(in_threads(order, make, shape, start_step), start_step):
        for place, error in sorted(made.errors.items()):
            here = functools.partial(make, step, place)
            image, label = _next_readable(source, made.elements[place], error, here, bad)
            made.images[place], made.labels[place] = image, label
        yield {"image": made.images, "label": np.array(made.labels)}


def _next_readable(
    source: Source, element: Any, error: UnreadablePicture, make: Callable, bad: BadImages
) -> tuple[np.ndarray, Any]:
    """Return the next readable picture in the order of the files, with its label.

    It depends only on the place of the unreadable one, so that a resumed run chooses it again.
    """
    _add(source, "train", element, error, bad)
    size = source.sizes["train"]
    for index in itertools.chain(range(element + 1, size), range(element)):
        try:
            return make(index)
        except UnreadablePicture as another:
            _add(source, "train", index, another, bad)
    raise InputError(f"no training picture of {source.name} is readable; replace its files")


def _add(source: Source, split: str, element: Any, error: UnreadablePicture, bad: BadImages):
    if not isinstance(source, InMemory):
        raise InputError(f"{error}; prepare the data set again with 'tfds build'") from error
    bad.add(source.title(split, element), error)


def _made_for_evaluation(
    source: Source, split: str, elements: Iterable[Any], plan: Plan, local: int, bad: BadImages
) -> Iterator[HostBatch]:
    def make(_number: int, _place: int, element: Any) -> tuple[np.ndarray, Any]:
        raw, label = source.read(split, element)
        return plan(raw, name=source.title(split, element)), label

    shape = (plan.size, plan.size, source.channels)
    for made in in_threads(_grouped(elements, local), make, shape, 0):
        mask = np.ones(len(made.elements), np.float32)
        for place, error in sorted(made.errors.items()):
            _add(source, split, made.elements[place], error, bad)
            made.images[place], made.labels[place], mask[place] = 0, 0, 0
        yield {"image": made.images, "label": np.array(made.labels, np.int32), "mask": mask}
