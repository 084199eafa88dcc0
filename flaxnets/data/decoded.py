"""Memory for pictures and batches that are decoded once."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Batch = dict[str, Any]  # of arrays


class Decoded:
    """Decoded pictures, by their encoded bytes, and batches of evaluation. The first ones are kept,
    as many as fit `room` bytes.
    """

    def __init__(self, room: int = 0):
        self.room = room
        self._pictures: dict[bytes, np.ndarray] = {}
        self._lock = threading.RLock()

    def get(self, encoded: bytes) -> np.ndarray | None:
        """Return the whole picture, or None if it is not kept."""
        return self._pictures.get(encoded) if self._pictures else None  # a hash takes time

    def fits(self, encoded: bytes, pixels: int) -> bool:
        return len(encoded) + pixels <= self.room

    def keep(self, encoded: bytes, picture: np.ndarray) -> None:
        with self._lock:
            if encoded not in self._pictures and self._take(len(encoded) + picture.nbytes):
                self._pictures[encoded] = picture

    def repeatable(
        self, batches_from: Callable[[int], Iterator[Batch]]
    ) -> Callable[[], Iterator[Batch]]:
        """Return a function that passes over the batches of `batches_from(number)` each time it is
        called; batches that are kept are not made again.
        """
        kept: list[Batch] = []

        def one_pass() -> Iterator[Batch]:
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
