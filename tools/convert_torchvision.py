"""Convert weights between torch and safetensors, and check them against the network of that name.

    python tools/convert_torchvision.py --arch vgg19 --weights IMAGENET1K_V1 --out vgg19.safetensors
    python tools/convert_torchvision.py --arch vgg19 --checkpoint FILE.pth --out vgg19.safetensors
    python tools/convert_torchvision.py --arch vgg19 --workdir runs/vgg19-digits --out vgg19.pth

Both formats hold torch's keys in torch's layout. The suffix of the output decides which one is
written; only .pth needs torch. Auxiliary heads are included if the weights have them. A
.safetensors file of a run has everything to call the network: `flaxnets.pretrained(FILE)`.
"""

if __name__ == "__main__":  # first, for the other imports take seconds
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
        checkpoint: file to read, of safetensors or torch, also a training script's checkpoint.
        weights: torchvision's published weights, such as IMAGENET1K_V1 (downloads).
        workdir: a run of experiments/train.py to read.
        ema: of a checkpoint with raw and average weights, take the averages.
        average: of a run, take the mean of that many of the newest checkpoints (train.py --keep).
    """
    model = create_model(arch)  # a wrong name is answered first
    one_of(SUFFIXES, out.suffix, f"suffix of {out}")
    if out.suffix != ".safetensors" and importlib.util.find_spec("torch") is None:
        raise InputError(f"writing {out} takes torch; install it, or write .safetensors")
    if ema and checkpoint is None:
        raise InputError("--ema is about a file of weights; expected --checkpoint FILE beside it")
    if average != 1 and workdir is None:
        raise InputError("--average is about the checkpoints of a run; expected --workdir DIR")
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
            raise InputError(f"{workdir} holds {network.arch!r}, not {arch!r}")
        if average != 1:
            variables = Checkpoints(workdir / "checkpoints", read_only=True).restore_mean(average)
            source = f"{workdir}, the mean of {average} checkpoints"
            card = dataclasses.replace(network.card, source=source, accuracy={})
            network = dataclasses.replace(network, variables=variables, card=card)
        variables = network.variables
    else:
        raise InputError("give one of --checkpoint, --weights and --workdir")

    converted = to_torch(variables)
    out.parent.mkdir(parents=True, exist_ok=True)
    if network is not None and out.suffix == ".safetensors":
        network.save(out)
    else:
        _write(out, arch, converted)
    count = sum(value.size for value in jax.tree.leaves(variables["params"]))
    print(f"{out}: {arch}, {count:,} parameters in {len(converted)} arrays")


def _write(out: pathlib.Path, arch: str, state_dict: dict[str, np.ndarray]) -> None:
    partial = out.with_name(out.name + ".part")  # never half a file under the final name
    if out.suffix == ".safetensors":
        save_file(state_dict, partial, metadata={"arch": arch})
    else:
        import torch

        tensors = collections.OrderedDict(
            (key, torch.from_numpy(value)) for key, value in state_dict.items()
        )
        tensors._metadata = {"": {"version": 2}}  # pyright: ignore  # MNASNet's loader asks for it
        torch.save(tensors, partial)
    partial.replace(out)


if __name__ == "__main__":
    with one_sentence_errors():
        tyro.cli(main, args=arguments())
