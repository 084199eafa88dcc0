"""Count the pictures that cannot be read, and stop when there are too many."""

import warnings
from collections.abc import Callable, Iterable

from flaxnets.data.pixels.decode import UnreadablePicture
from flaxnets.errors import InputError, InputWarning


class BadImages:
    """Pictures of a folder that cannot be read.

    Each gets one warning, and its path is passed to `record`. More than `maximum` of them raise
    InputError.
    """

    def __init__(
        self,
        maximum: int = 0,
        paths: Iterable[str] = (),
        record: Callable[[str], None] | None = None,
    ):
        self.maximum = maximum
        self.go_on(paths, record)

    def go_on(self, paths: Iterable[str], record: Callable[[str], None] | None = None) -> None:
        """Continue from the `paths` that the run has recorded; pass new ones to `record`."""
        self.paths = list(paths)
        self._record = record

    def add(self, path: str, error: UnreadablePicture) -> None:
        """Count the picture at `path`; `error` says what is wrong with it.

        Raises InputError if there are now more than `maximum`.
        """
        if path in self.paths:
            return
        if len(self.paths) >= self.maximum:
            others = f", after {len(self.paths)} others" if self.paths else ""
            raise InputError(
                f"{error}{others}; remove or replace it, or raise max bad images above "
                f"{self.maximum}"
            ) from error
        self.paths.append(path)
        if self._record is not None:
            self._record(path)
        warnings.warn(f"{error}; skipped", InputWarning, stacklevel=2)
