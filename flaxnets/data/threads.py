"""Make images in threads, ahead of the reader."""

import collections
import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from flaxnets.data.pixels.decode import UnreadablePicture

PREFETCH = 2  # groups that are ready before the reader asks for them
# Cores that this process may use.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

Make = Callable[[int, int, Any], tuple[np.ndarray, Any]]  # (number, place, element): image, label


@dataclasses.dataclass
class Made:
    """The images that threads make from a group of elements, in the order of the elements."""

    elements: Sequence[Any]
    images: np.ndarray
    labels: list[Any]
    errors: dict[int, UnreadablePicture]  # errors of unreadable pictures by their places


@functools.cache
def threads() -> concurrent.futures.Executor:
    """Return the threads that make images, one for each core."""
    return concurrent.futures.ThreadPoolExecutor(CORES)


def in_threads(
    groups: Iterator[Sequence[Any]], make: Make, shape: tuple[int, ...], first_number: int
) -> Iterator[Made]:
    """Yield the images of `shape` that `make` returns for each group of elements.

    Groups are numbered from `first_number`. Threads make `PREFETCH` groups ahead of the reader.
    """

    def begin(number: int, elements: Sequence[Any]) -> tuple[Made, Iterator[None]]:
        count = len(elements)
        made = Made(elements, np.empty((count, *shape), np.uint8), [None] * count, {})

        def part(first: int) -> None:  # one task for many images: starting one takes time
            for place in range(first, count, CORES):
                try:
                    image, made.labels[place] = make(number, place, elements[place])
                    made.images[place] = image
                except UnreadablePicture as error:
                    made.errors[place] = error

        return made, threads().map(part, range(CORES))

    def complete(made: Made, parts: Iterator[None]) -> Made:
        for _ in parts:  # raises the exception of a thread
            continue
        return made

    ahead = collections.deque()
    for number, elements in enumerate(groups, first_number):
        ahead.append(begin(number, elements))
        if len(ahead) > PREFETCH:
            yield complete(*ahead.popleft())
    while ahead:
        yield complete(*ahead.popleft())
