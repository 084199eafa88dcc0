"""Plans: the operations, in order, from a raw picture to network input.

Training, evaluation and classification execute one plan each, and a run stores its plans
(`Plan.to_json`), so that nothing has to be guessed later. The list also tells what a pipeline may
do: keep pictures in memory, decode them in part, or leave crops to the device.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import numpy as np

from flaxnets.data.decoded import Decoded
from flaxnets.data.pixels.colour import Colour, Grayscale
from flaxnets.data.pixels.crop import CenterCrop, Flip, PadAndCrop, RandomCrop, RandomResizedCrop
from flaxnets.data.pixels.decode import Decode
from flaxnets.data.pixels.policies import Policy
from flaxnets.data.pixels.resize import Resize
from flaxnets.data.source import Source
from flaxnets.errors import InputError
from flaxnets.recipes import Kind, Orientation, Preprocessing

# From a picture to pixels, and from pixels to pixels.
WINDOWS = (Resize, CenterCrop, RandomCrop, RandomResizedCrop)
CHANGES = (PadAndCrop, Flip, Policy, Grayscale, Colour)


def _name(kind: type) -> str:
    """In JSON: "random_resized_crop"."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


OPERATIONS = {_name(kind): kind for kind in (Decode, *WINDOWS, *CHANGES)}


@dataclasses.dataclass(frozen=True)
class Plan:
    """A list of operations: `Decode`, one of `WINDOWS`, any of `CHANGES`. It is empty for rows of
    features, which are network input as they are.
    """

    operations: tuple[Any, ...] = ()

    def __call__(
        self,
        raw: bytes | np.ndarray,
        random: Random | None = None,
        *,
        memory: Decoded | None = None,
        name: str = "the picture",
    ) -> np.ndarray:
        """Turn one raw picture into network input, uint8 (height, width, channels).

        Args:
            raw: the bytes of a file in any format, or uint8 pixels (height, width, channels).
            random: decides the operations that draw; the same state gives the same result.
            memory: keeps decoded pictures, as far as it has room.
            name: stands for the picture in messages.

        Raises:
            UnreadablePicture: the bytes are no picture, or a damaged one.
        """
        if not self.operations and isinstance(raw, np.ndarray):
            return raw
        random = random or Random(0)
        pixels = self.window(self.decode(raw, memory=memory, name=name), random)
        for change in self.changes:
            pixels = change(pixels, random)
        return pixels

    @property
    def decode(self) -> Decode:
        """The first operation. Raises InputError if the plan is for rows of features."""
        if not self.operations:
            raise InputError("the network reads rows of features; expected one that reads pictures")
        return self.operations[0]

    @property
    def orientation(self) -> Orientation | None:
        """How pictures are turned; None for rows of features."""
        return self.decode.orientation if self.operations else None

    @property
    def window(self) -> Any:
        return self.operations[1] if self.operations else None

    @property
    def changes(self) -> tuple[Any, ...]:
        return self.operations[2:]

    @property
    def size(self) -> int:
        """Pixels of each side of the network input."""
        return self.window.size if self.operations else 1

    @property
    def has_fixed_window(self) -> bool:
        """True if a picture gives the same window every time, so that memory can keep it."""
        return not self.operations or not self.window.is_random

    def split(self) -> tuple["Plan", tuple[Any, ...]]:
        """Return the plan of the host and the operations that are left to the training step: all
        changes if the window is fixed and the step can do them, otherwise only the colour shift.
        """
        if self.has_fixed_window and all(hasattr(change, "draw") for change in self.changes):
            return Plan(self.operations[:2]), self.changes
        on_device = tuple(o for o in self.operations if isinstance(o, Colour))
        return Plan(tuple(o for o in self.operations if o not in on_device)), on_device

    def to_json(self) -> list[dict[str, Any]]:
        """Return each operation by its name and values, for a run's config.json."""
        return [
            {"operation": _name(type(operation)), **dataclasses.asdict(operation)}
            for operation in self.operations
        ]

    @classmethod
    def from_json(cls, rows: Sequence[Mapping[str, Any]]) -> "Plan":
        """Return the plan of such rows. Raises InputError if they are no plan."""
        try:
            operations = tuple(
                OPERATIONS[row["operation"]](**{k: v for k, v in row.items() if k != "operation"})
                for row in rows
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"{rows!r} is no plan of operations") from error
        kinds = [type(operation) for operation in operations]
        in_order = kinds[:1] == [Decode] and len(kinds) > 1 and kinds[1] in WINDOWS
        if kinds and not (in_order and all(kind in CHANGES for kind in kinds[2:])):
            raise InputError(f"{rows!r} is no plan; expected decode, a window, and its changes")
        return cls(operations)


def training_plan(preprocessing: Preprocessing, source: Source) -> Plan:
    """Return the plan of a data set's training images."""
    if source.kind == "rows":
        return Plan()
    size = preprocessing.train_size or preprocessing.image_size
    interpolation = preprocessing.interpolation
    if source.kind == "small images":
        window = Resize(size, interpolation)
    elif preprocessing.crop == "random":
        window = RandomCrop(preprocessing.resize, size, preprocessing.resize_max, interpolation)
    else:
        window = RandomResizedCrop(size, interpolation)
    is_colour = source.channels == 3
    pad, policy, flip = preprocessing.pad, preprocessing.policy, preprocessing.flip
    changes = (
        PadAndCrop(pad, preprocessing.padding) if source.kind == "small images" and pad else None,
        Flip(alternating=flip == "alternating") if flip != "none" and source.flip else None,
        None if policy == "none" else Policy(policy, interpolation, preprocessing.policy_magnitude),
        Grayscale(preprocessing.grayscale) if preprocessing.grayscale and is_colour else None,
        Colour(preprocessing.pca_std) if preprocessing.pca_std and is_colour else None,
    )
    decode = Decode(source.channels, preprocessing.orientation)
    return Plan((decode, window, *(change for change in changes if change is not None)))


def evaluation_plan(preprocessing: Preprocessing, kind: Kind, channels: int) -> Plan:
    """Return the plan of evaluation and classification for data of that kind: photographs are
    cropped in the centre, small images read whole.
    """
    if kind == "rows":
        return Plan()
    size, interpolation = preprocessing.image_size, preprocessing.interpolation
    if kind == "small images":
        window = Resize(size, interpolation)
    else:
        window = CenterCrop(preprocessing.resize, size, interpolation)
    return Plan((Decode(channels, preprocessing.orientation), window))
