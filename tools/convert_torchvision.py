"""Weights between torch and safetensors, checked against the network of that name.

    python tools/convert_torchvision.py --arch vgg19 --weights IMAGENET1K_V1 --out vgg19.safetensors
    python tools/convert_torchvision.py --arch vgg19 --checkpoint FILE.pth --out vgg19.safetensors
    python tools/convert_torchvision.py --arch vgg19 --workdir runs/vgg19-digits --out vgg19.pth

Both formats hold torch's keys in torch's layout. The suffix of a file decides which one it is.
"""

if __name__ == "__main__":  # first, for the other imports take seconds
    from flaxnets.terminal import quiet

    quiet()

import pathlib

import jax
import jax.numpy as jnp
import torch
import tyro
from safetensors.numpy import save_file

from flaxnets import create_model, from_torch, to_torch
from flaxnets.errors import InputError, one_of
from flaxnets.inference.run import read_config
from flaxnets.terminal import arguments, one_sentence_errors
from flaxnets.training.checkpoints import Checkpoints
from flaxnets.weights.files import SUFFIXES, StateDict, read_weights


def read_workdir(path: pathlib.Path, arch: str) -> StateDict:
    """The newest checkpoint of a run of experiments/train.py."""
    trained = read_config(path)["arch"]
    if trained != arch:
        raise InputError(f"{path} holds {trained!r}, not {arch!r}")
    return to_torch(Checkpoints(path / "checkpoints", read_only=True).restore_variables())


def main(
    arch: str,
    out: pathlib.Path,
    checkpoint: pathlib.Path | None = None,
    weights: str | None = None,
    workdir: pathlib.Path | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
) -> None:
    """Converts weights and checks every key and shape.

    Args:
        arch: name of the network.
        out: file to write: .safetensors, .pth or .pt.
        checkpoint: file to read, of the same suffixes.
        weights: torchvision's published weights, such as IMAGENET1K_V1 (downloads).
        workdir: a run of experiments/train.py to read.
        num_classes: of the weights, if not the network's usual number.
        in_channels: of the weights' images, if not the usual number.
    """
    create_model(arch)  # a wrong name is answered first
    one_of(SUFFIXES, out.suffix, f"suffix of {out}")
    if checkpoint is not None:
        state_dict = read_weights(checkpoint)
    elif weights is not None:
        from torchvision_import import torchvision

        one_of(torchvision.models.list_models(), arch, "torchvision network")
        published = torchvision.models.get_model_weights(arch)
        one_of([entry.name for entry in published], weights, f"weights of {arch}")
        loaded = torchvision.models.get_model(arch, weights=weights).state_dict()
        state_dict = {key: value.numpy() for key, value in loaded.items()}
    elif workdir is not None:
        state_dict = read_workdir(workdir, arch)
    else:
        raise InputError("give one of --checkpoint, --weights and --workdir")

    fields = {} if num_classes is None else {"num_classes": num_classes}
    height, width, usual_channels = create_model(arch).input_shape
    images = jnp.zeros((1, height, width, in_channels or usual_channels))
    like = jax.eval_shape(create_model(arch, **fields).init, jax.random.key(0), images)
    variables = from_torch(state_dict, like)
    converted = to_torch(variables)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".part")  # never half a file under the final name
    if out.suffix == ".safetensors":
        save_file(converted, partial, metadata={"arch": arch})
    else:
        torch.save({key: torch.from_numpy(value) for key, value in converted.items()}, partial)
    partial.replace(out)
    count = sum(value.size for value in jax.tree.leaves(variables["params"]))
    print(f"{out}: {arch}, {count:,} parameters in {len(converted)} arrays")


if __name__ == "__main__":
    with one_sentence_errors():
        tyro.cli(main, args=arguments())
