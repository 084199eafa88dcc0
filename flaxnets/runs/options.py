"""The options of a run, and the defaults that its recipe gives."""

import dataclasses
import math
import pathlib
from typing import Literal

from flaxnets.errors import InputError
from flaxnets.recipes import Kind, Recipe, Version, recipe_for
from flaxnets.types import DeviceMapping


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """The options by which a run is saved and watched."""

    checkpoint_steps: int = 0
    """Steps between extra checkpoints; 0 for none. Every epoch ends with one."""
    checkpoint_minutes: float = 0.0
    """Minutes between extra checkpoints; 0 for none."""
    keep: int = 2
    """Newest checkpoints to keep, besides the one with the smallest validation error."""
    log_every: int = 10
    """Steps between logged values of single steps (TensorBoard)."""
    profile: int = 0
    """Steps to trace with JAX's profiler, after the first ten, for TensorBoard and Perfetto."""

    def check(self) -> None:
        """Raises InputError for values that no run can have."""
        for name in ("checkpoint_steps", "checkpoint_minutes", "profile"):
            if not getattr(self, name) >= 0:
                raise InputError(
                    f"{name.replace('_', ' ')} is {getattr(self, name)}; expected zero or more"
                )
        for name, unit in (("keep", "checkpoint"), ("log_every", "step")):
            if getattr(self, name) < 1:
                what = name.replace("_", " ")
                raise InputError(f"{what} is {getattr(self, name)}; expected at least 1 {unit}")


@dataclasses.dataclass(frozen=True)
class Processes:
    """The processes of a run. Under SLURM or Open MPI, or on TPU pods, JAX finds them by itself."""

    coordinator: str | None = None
    """HOST:PORT of process 0, where the port is free."""
    num_processes: int | None = None
    """Number of processes on all machines together."""
    process_id: int | None = None
    """Number of this process, from 0."""

    @property
    def are_named(self) -> bool:
        """True if the options name the processes; otherwise JAX finds them."""
        return any(value is not None for value in vars(self).values())

    def check(self) -> None:
        """Raises InputError for values that no run can have."""
        names = {name.replace("_", " "): value for name, value in vars(self).items()}
        missing = [name for name, value in names.items() if value is None]
        if not self.are_named:
            return
        if self.coordinator is None or self.num_processes is None or self.process_id is None:
            raise InputError(
                f"{', '.join(names)} belong together; expected all or none of them, missing: "
                f"{', '.join(missing)}"
            )
        host, _, port = self.coordinator.rpartition(":")
        if not (host and port.isdecimal() and 0 < int(port) < 2**16):
            raise InputError(
                f"coordinator is {self.coordinator!r}; expected HOST:PORT, such as 10.0.0.1:8476"
            )
        if not 0 <= self.process_id < self.num_processes:
            raise InputError(
                f"process id is {self.process_id} and num processes is {self.num_processes}; "
                f"expected a process id from 0 to {max(self.num_processes - 1, 0)}"
            )


@dataclasses.dataclass(frozen=True)
class Options:
    """All options of a run; the text under a field is its help in train.py."""

    values: Recipe
    arch: str = "vgg19"
    """Name of a network: flaxnets.list_models()."""
    recipe: Version = "paper"
    """Source of the defaults: the network's paper, or the command that trained torchvision's first
    (v1) or second (v2) weights."""
    dataset: str = "digits"
    """digits, breast_cancer or diabetes (bundled), folder:PATH (train/<class>/*.jpg,
    val/<class>/*.jpg), npz:PATH (arrays), or a name that TensorFlow Datasets has prepared, such as
    cifar10.
    """
    data_dir: str | None = None
    """Directory of prepared TensorFlow Datasets. Default: TFDS_DATA_DIR."""
    workdir: pathlib.Path | None = None
    """Directory of the run. Default: runs/ARCH-DATASET."""
    init_from: str | None = None
    """Weights to start from: the name of published ones, such as IMAGENET1K_V1, or a file
    (safetensors or torch) with torch's keys. Published weights bring the mean and deviation by
    which images are normalised. The last layer is fresh if the weights have other classes or
    none."""
    ema: bool = False
    """Start from the average weights of a file that has raw and average ones."""
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    """Type of the computation; parameters are always float32. With auto it is bfloat16 where the
    device multiplies that in hardware, and float32 elsewhere."""
    remat: bool = False
    """Recompute activations in the backward pass, which takes less memory and more time."""
    parallel: DeviceMapping = "shard_map"
    """JAX function that maps the step onto the devices."""
    seed: int = 0
    """Seed of initialisation, data order, augmentation and dropout."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache directory for the next start."""
    on_nan: Literal["stop", "skip"] = "stop"
    """If the loss or an update is not finite, stop the run or skip the step."""
    max_bad_images: int = 0
    """Number of unreadable pictures of a folder that are allowed; each is named and skipped."""
    decoded_gigabytes: float = 2.0
    """Memory of each process, in GB, for decoded training photographs and resized test images. What
    does not fit is decoded again in every epoch."""
    dry_run: bool = False
    """Print the values, layers, steps and memory of the run, and stop."""
    run: RunOptions = dataclasses.field(default_factory=RunOptions)
    processes: Processes = dataclasses.field(default_factory=Processes)

    def check(self) -> None:
        """Raises InputError for values that no run can have."""
        self.values.check()
        self.run.check()
        if self.max_bad_images < 0:
            raise InputError(f"max bad images is {self.max_bad_images}; expected zero or more")
        if not 0 <= self.decoded_gigabytes < math.inf:
            raise InputError(
                f"decoded gigabytes is {self.decoded_gigabytes}; expected a finite number, zero or "
                f"more"
            )


# Options that may change when a run is continued. Values of the recipe are compared one by one.
MAY_DIFFER = (
    "workdir", "data_dir", "compilation_cache", "on_nan", "max_bad_images", "decoded_gigabytes",
    "dry_run", "run", "processes", "values",
)  # fmt: skip


def default_values(arch: str, kind: Kind, version: Version, *, has_classes: bool) -> Recipe:
    """Return the recipe of a network for one kind of data, with the loss for its labels.

    Raises InputError as `recipe_for` does.
    """
    recipe = recipe_for(arch, kind, version)
    return recipe if has_classes else dataclasses.replace(recipe, loss="squared_error")
