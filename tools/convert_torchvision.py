"""Convert weights between torch and safetensors, and check every key and shape.

    python tools/convert_torchvision.py --arch vgg19 --weights IMAGENET1K_V1 --out vgg19.safetensors
    python tools/convert_torchvision.py --arch vgg19 --checkpoint FILE.pth --out vgg19.safetensors
    python tools/convert_torchvision.py --arch vgg19 --workdir runs/vgg19-digits --out vgg19.pth

Both formats hold arrays under torch's keys and in torch's layout. The suffix of --out decides which
one is written; only .pth and .pt need torch. Auxiliary heads are included if the weights have them.
A .safetensors file of a run can be opened and called: `flaxnets.pretrained(FILE)`.
"""

if __name__ == "__main__":  # first, because the other imports take seconds
    from flaxnets.terminal import quiet

    quiet()

import collections
import dataclasses
import importlib.util
import pathlib

import jax
import numpy as np
import tyro
from safetensors.numpy import save_file

from flaxnets import create_model, pretrained, published_weights, to_torch
from flaxnets.errors import InputError, one_of
from flaxnets.runs.checkpoints import Checkpoints
from flaxnets.terminal import arguments, one_sentence_errors
from flaxnets.weights import load_model
from flaxnets.weights.files import SUFFIXES


def main(
    arch: str,
    out: pathlib.Path,
    checkpoint: pathlib.Path | None = None,
    weights: str | None = None,
    workdir: pathlib.Path | None = None,
    ema: bool = False,
    average: int = 1,
) -> None:
    """Convert weights and check every key and shape.

    Args:
        arch: name of the network.
        out: file to write: .safetensors, .pth or .pt.
        checkpoint: file to read: safetensors, torch, or a training script's checkpoint.
        weights: published weights to download, such as IMAGENET1K_V1.
        workdir: directory of a run of train.py to read.
        ema: use the average weights of a --checkpoint that has raw and average ones.
        average: write the mean of this many of the newest checkpoints of a run (train.py --keep).
    """
    model = create_model(arch)  # raises InputError for a wrong name
    one_of(SUFFIXES, out.suffix, f"suffix of {out}")
    if out.suffix != ".safetensors" and importlib.util.find_spec("torch") is None:
        raise InputError(f"torch is needed to write {out}; install it, or write .safetensors")
    if ema and checkpoint is None:
        raise InputError("--ema needs a file of weights; expected --checkpoint FILE")
    if average != 1 and workdir is None:
        raise InputError("--average needs the checkpoints of a run; expected --workdir DIR")
    network = None
    if checkpoint is not None:
        _, variables, _ = load_model(model, checkpoint, model.input_shape, ema=ema)
    elif weights is not None:
        row = published_weights(arch, weights)
        model = create_model(arch, **row.shaping_fields)
        _, variables, _ = load_model(model, row, model.input_shape)
    elif workdir is not None:
        network = pretrained(workdir)
        if network.arch != arch:
            raise InputError(
                f"{workdir} holds a run of {network.arch!r}, not {arch!r}; expected --arch "
                f"{network.arch}"
            )
        if average != 1:
            variables = Checkpoints(workdir / "checkpoints", read_only=True).restore_mean(average)
            source = f"{workdir}, the mean of {average} checkpoints"
            card = dataclasses.replace(network.card, source=source, accuracy={})
            network = dataclasses.replace(network, variables=variables, card=card)
        variables = network.variables
    else:
        raise InputError("no weights given; expected --checkpoint, --weights or --workdir")

    converted = to_torch(variables)
    out.parent.mkdir(parents=True, exist_ok=True)
    if network is not None and out.suffix == ".safetensors":
        network.save(out)
    else:
        _write(out, arch, converted)
    count = sum(value.size for value in jax.tree.leaves(variables["params"]))
    print(f"{out}: {arch}, {count:,} parameters in {len(converted)} arrays")


def _write(out: pathlib.Path, arch: str, state_dict: dict[str, np.ndarray]) -> None:
    """Write weights in the format of the suffix."""
    partial = out.with_name(out.name + ".part")  # a half-written file never has the final name
    if out.suffix == ".safetensors":
        save_file(state_dict, partial, metadata={"arch": arch})
    else:
        import torch

        tensors = collections.OrderedDict(
            (key, torch.from_numpy(value)) for key, value in state_dict.items()
        )
        tensors._metadata = {"": {"version": 2}}  # pyright: ignore  # MNASNet's loader reads it
        torch.save(tensors, partial)
    partial.replace(out)


if __name__ == "__main__":
    with one_sentence_errors():
        tyro.cli(main, args=arguments(), description=__doc__)
