"""The options of a script that name one trained network."""

import dataclasses
import pathlib
from typing import TYPE_CHECKING

from flaxnets.errors import InputError, one_of
from flaxnets.models import NAMES
from flaxnets.recipes import Kind, Orientation

if TYPE_CHECKING:
    from flaxnets.inference.network import Network

DEMO = "efficientnet_lite0"  # the extra `demo` installs its published weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """The options of a script that name one trained network."""

    arch: str | None = None
    """Name of a network; flaxnets.list_models() lists them."""
    weights: str | None = None
    """Published weights such as IMAGENET1K_V1; with --checkpoint, only their preprocessing."""
    checkpoint: pathlib.Path | None = None
    """File of weights (safetensors or torch) instead of published ones."""
    ema: bool = False
    """Use the average weights of a --checkpoint that has raw and average ones."""
    class_names: pathlib.Path | None = None
    """Text file with one class name per line; ImageNet's classes by default."""
    workdir: pathlib.Path | None = None
    """Run of train.py, or file of network.save, instead of --arch and weights."""
    orientation: Orientation | None = None
    """Turn pictures upright as EXIF says, or read them as they are stored (as torchvision does);
    by default as in the run, or upright."""

    def open(self, kind: Kind = "photographs") -> "Network":
        """Return the network. The `kind` of data decides how a file of weights reads pictures.

        Raises InputError for missing, contradictory or wrong options.
        """
        from flaxnets.inference.opening import pretrained  # not before `--help` is answered

        if self.workdir is not None:
            if self.arch or self.weights or self.checkpoint or self.ema:
                raise InputError(
                    "--workdir names a network with its weights; leave out --arch, --weights, "
                    "--checkpoint and --ema"
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
                f"{self.class_names} has {len(names)} lines; expected "
                f"{network.model.num_classes}, one for each class of the network"
            )
        return dataclasses.replace(network, classes=names)

    def _named(self, arch: str, kind: Kind) -> "Network":
        if self.ema and self.checkpoint is None:
            raise InputError("--ema needs a file of weights; expected --checkpoint FILE")
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
        raise InputError(
            f"cannot read class names from {path} ({error}); expected one name per line"
        ) from error
