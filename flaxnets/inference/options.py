"""The options by which a script names one trained network."""

import dataclasses
import pathlib
from typing import TYPE_CHECKING

from flaxnets.errors import InputError, one_of
from flaxnets.models import NAMES
from flaxnets.recipes import Kind, Orientation

if TYPE_CHECKING:
    from flaxnets.inference.network import Network

DEMO = "efficientnet_lite0"  # whose published weights the extra `demo` installs


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """The options of a script that name one trained network."""

    arch: str | None = None
    """Name of a network: flaxnets.list_models()."""
    weights: str | None = None
    """Published weights such as IMAGENET1K_V1; beside --checkpoint, their preprocessing alone."""
    checkpoint: pathlib.Path | None = None
    """File of weights, of safetensors or torch, instead of published ones."""
    ema: bool = False
    """Take the average weights of a --checkpoint that has raw and average ones."""
    class_names: pathlib.Path | None = None
    """Text file with a line for each class; ImageNet's unless given."""
    workdir: pathlib.Path | None = None
    """Run of train.py, or file of network.save, instead of a name and weights."""
    orientation: Orientation | None = None
    """Turn pictures upright as EXIF says, or take them as they are stored (as torchvision does).
    Unless given: as in the run, or upright."""

    def open(self, kind: Kind = "photographs") -> "Network":
        """Return the network; the `kind` of data decides the preprocessing of files.

        Raises InputError for missing, contradictory or wrong options.
        """
        from flaxnets.inference.opening import pretrained  # not before `--help` is answered

        if self.workdir is not None:
            if self.arch or self.weights or self.checkpoint or self.ema:
                raise InputError(
                    "--workdir names a network with its weights; give nothing beside it"
                )
            network = pretrained(self.workdir, orientation=self.orientation)
        elif self.arch is None:
            raise InputError("no network given; expected --arch NAME or --workdir DIR")
        else:
            network = self._named(one_of(NAMES, self.arch, "architecture"), kind)
        if self.class_names is None:
            return network
        names = _lines(self.class_names)
        if len(names) != network.model.num_classes:
            raise InputError(
                f"{self.class_names} has {len(names)} lines; the network tells "
                f"{network.model.num_classes} classes apart"
            )
        return dataclasses.replace(network, classes=names)

    def _named(self, arch: str, kind: Kind) -> "Network":
        if self.ema and self.checkpoint is None:
            raise InputError("average weights are asked for of no file; expected --checkpoint FILE")
        if self.weights is None and self.checkpoint is None:
            raise InputError(
                f"no weights of {arch} given; expected --weights NAME or --checkpoint FILE"
            )
        from flaxnets.inference.opening import pretrained

        return pretrained(
            arch,
            self.checkpoint or self.weights,
            preprocessing=self.weights,
            ema=self.ema,
            orientation=self.orientation,
            kind=kind,
        )


def _lines(path: pathlib.Path) -> tuple[str, ...]:
    try:
        return tuple(path.read_text("utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read class names from {path} ({error})") from error
