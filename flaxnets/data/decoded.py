"""Keep decoded pictures and batches in memory, so that each is decoded once."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

HostBatch = dict[str, Any]  # arrays of a batch, before they are on the devices


class Decoded:
    """A memory of `room` bytes for decoded pictures and for evaluation batches.

    Pictures are found by their encoded bytes. What comes first is kept until the room is used up.
    """

    def __init__(self, room: int = 0):
        self.room = room
        self._pictures: dict[bytes, np.ndarray] = {}
        self._lock = threading.RLock()

    def get(self, encoded: bytes) -> np.ndarray | None:
        """Return the whole decoded picture; None if it is not kept."""
        return self._pictures.get(encoded) if self._pictures else None  # a hash takes time

    def fits(self, encoded: bytes, pixels: int) -> bool:
        """Return whether there is room for the file and `pixels` bytes of its decoded picture."""
        return len(encoded) + pixels <= self.room

    def keep(self, encoded: bytes, picture: np.ndarray) -> None:
        """Keep a decoded picture if there is room."""
        with self._lock:
            if encoded not in self._pictures and self._take(len(encoded) + picture.nbytes):
                self._pictures[encoded] = picture

    def repeatable(
        self, batches_from: Callable[[int], Iterator[HostBatch]]
    ) -> Callable[[], Iterator[HostBatch]]:
        """Return a function that yields the batches of one pass each time it is called.

        `batches_from(number)` makes the batches from batch `number` on. Kept batches are not made
        again.
        """
        kept: list[HostBatch] = []

        def one_pass() -> Iterator[HostBatch]:
            yield from kept
            for number, batch in enumerate(batches_from(len(kept)), len(kept)):
                size = sum(values.nbytes for values in batch.values())
                if number == len(kept) and self._take(size):
                    kept.append(batch)
                yield batch

        return one_pass

    def _take(self, size: int) -> bool:
        with self._lock:
            fits = size <= self.room
            self.room -= size if fits else 0
        return fits
