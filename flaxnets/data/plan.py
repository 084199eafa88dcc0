"""List the operations that turn a raw picture into network input: a plan.

Training, evaluation and classification each execute a plan. A run stores its plans
(`Plan.to_json`), so that nothing has to be guessed later. A plan also tells a pipeline what it may
do: keep pictures in memory, decode only parts of them, or leave crops to the device.
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

# Operations that turn a picture into pixels, and operations that change pixels.
WINDOWS = (Resize, CenterCrop, RandomCrop, RandomResizedCrop)
CHANGES = (PadAndCrop, Flip, Policy, Grayscale, Colour)


def _name(kind: type) -> str:
    """Return the name of an operation in JSON, such as "random_resized_crop"."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


TYPES = {_name(kind): kind for kind in (Decode, *WINDOWS, *CHANGES)}


@dataclasses.dataclass(frozen=True)
class Plan:
    """A list of operations: `Decode`, then one of `WINDOWS`, then any of `CHANGES`.

    The plan of rows of features is empty: they are network input already.
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
            random: generator for the operations that draw; equal states give equal results.
            memory: keeps decoded pictures while it has room.
            name: name of the picture in messages.

        Raises:
            UnreadablePicture: the bytes are not a picture, or the picture is damaged.
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
            raise InputError(
                "the network reads rows of features, not pictures; expected a network that was "
                "trained on pictures"
            )
        return self.operations[0]

    @property
    def orientation(self) -> Orientation | None:
        """Return whether pictures are turned upright; None for rows of features."""
        return self.decode.orientation if self.operations else None

    @property
    def window(self) -> Any:
        """The operation that turns the picture into pixels; None for rows of features."""
        return self.operations[1] if self.operations else None

    @property
    def changes(self) -> tuple[Any, ...]:
        """The operations after the window."""
        return self.operations[2:]

    @property
    def size(self) -> int:
        """Height and width of the network input, in pixels."""
        return self.window.size if self.operations else 1

    @property
    def has_fixed_window(self) -> bool:
        """True if a picture gives the same window every time, so that memory can keep it."""
        return not self.operations or not self.window.is_random

    def split(self) -> tuple["Plan", tuple[Any, ...]]:
        """Return the plan for the host and the operations that are left to the training step.

        The step takes all changes if the window is fixed and it can compute every one of them.
        Otherwise it takes only the colour shift.
        """
        if self.has_fixed_window and all(hasattr(change, "draw") for change in self.changes):
            return Plan(self.operations[:2]), self.changes
        on_device = tuple(o for o in self.operations if isinstance(o, Colour))
        return Plan(tuple(o for o in self.operations if o not in on_device)), on_device

    def to_json(self) -> list[dict[str, Any]]:
        """Return each operation's name and values, for a run's config.json."""
        return [
            {"operation": _name(type(operation)), **dataclasses.asdict(operation)}
            for operation in self.operations
        ]

    @classmethod
    def from_json(cls, rows: Sequence[Mapping[str, Any]]) -> "Plan":
        """Return the plan that `to_json` wrote as `rows`. Raises InputError if they are no plan."""
        try:
            operations = tuple(
                TYPES[row["operation"]](**{k: v for k, v in row.items() if k != "operation"})
                for row in rows
            )
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{rows!r} is not a plan; expected operations named {', '.join(TYPES)}"
            ) from error
        kinds = [type(operation) for operation in operations]
        in_order = kinds[:1] == [Decode] and len(kinds) > 1 and kinds[1] in WINDOWS
        if kinds and not (in_order and all(kind in CHANGES for kind in kinds[2:])):
            raise InputError(
                f"{rows!r} is not a plan; expected decode, then a crop or resize, then changes"
            )
        return cls(operations)


def training_plan(preprocessing: Preprocessing, source: Source) -> Plan:
    """Return the plan for the training images of a data set."""
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
    """Return the plan for evaluation and classification of data of one kind.

    Photographs are cropped in the centre; small images are taken whole.
    """
    if kind == "rows":
        return Plan()
    size, interpolation = preprocessing.image_size, preprocessing.interpolation
    if kind == "small images":
        window = Resize(size, interpolation)
    else:
        window = CenterCrop(preprocessing.resize, size, interpolation)
    return Plan((Decode(channels, preprocessing.orientation), window))
