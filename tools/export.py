"""Export a network with its weights to one StableHLO file, which JAX runs without this library.

    python tools/export.py --arch resnet18 --checkpoint FILE.safetensors --out resnet18.stablehlo

    exported = jax.export.deserialize(bytearray(pathlib.Path("resnet18.stablehlo").read_bytes()))
    logits = exported.call(images)  # float32 (N, H, W, C), normalised; any N

The file holds programs for CPU, GPU and TPU.
"""

if __name__ == "__main__":  # first, because the other imports take seconds
    from flaxnets.terminal import quiet

    quiet()

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from jax import export

from flaxnets import create_model, pretrained
from flaxnets.errors import InputError
from flaxnets.initializers import drawn
from flaxnets.kernels.folding import folded_norms
from flaxnets.kernels.platform import on_every_platform
from flaxnets.terminal import arguments, one_sentence_errors


@dataclasses.dataclass(frozen=True)
class Options:
    out: pathlib.Path
    """File to write."""
    arch: str | None = None
    """Name of a network; flaxnets.list_models() lists them."""
    checkpoint: pathlib.Path | None = None
    """File of its weights (safetensors or torch); by default the weights are random."""
    workdir: pathlib.Path | None = None
    """Run of train.py, instead of --arch and --checkpoint."""
    num_classes: int | None = None
    """Outputs of the network; by default its own number, or that of the checkpoint."""
    image_size: int | None = None
    """Height and width of the images in pixels, fixed in the file; by default the network's own."""
    platforms: tuple[str, ...] = ("cpu", "cuda", "tpu")
    """Platforms for which the file has programs."""


def main(options: Options) -> None:
    if options.workdir is not None:
        network = pretrained(options.workdir)
        model, variables, input_shape = network.model, network.variables, network.input_shape
    elif options.arch is not None:
        fields = {} if options.num_classes is None else {"num_classes": options.num_classes}
        model: Any = create_model(options.arch, **fields)
        input_shape = model.input_shape
        if options.image_size is not None:
            input_shape = (options.image_size, options.image_size, input_shape[-1])
        if options.checkpoint is not None:
            network = pretrained(options.arch, options.checkpoint)
            model, variables = network.model, network.variables
            if options.num_classes not in (None, model.num_classes):
                raise InputError(
                    f"--num-classes is {options.num_classes}; expected {model.num_classes}, the "
                    f"classes of {options.checkpoint}"
                )
            input_shape = (*input_shape[:2], network.input_shape[-1])
        else:
            variables = drawn(model.init)(jax.random.key(0), jnp.zeros((1, *input_shape)))
    else:
        raise InputError("nothing to export; expected --arch NAME or --workdir DIR")
    (batch,) = export.symbolic_shape("N")
    images = jax.ShapeDtypeStruct((batch, *input_shape), jnp.float32)

    def logits(variables, images):
        with folded_norms():
            return model.apply(variables, images)

    # The variables are arguments, so that the programs of all platforms share them.
    function = jax.jit(lambda images: on_every_platform(logits)(variables, images))
    exported = export.export(function, platforms=options.platforms)(images)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    partial = options.out.with_name(options.out.name + ".part")
    partial.write_bytes(exported.serialize())
    partial.replace(options.out)
    shape = "x".join(map(str, input_shape))
    print(f"{options.out}: {type(model).__name__} on Nx{shape} float32, {exported.platforms}")


if __name__ == "__main__":
    with one_sentence_errors():
        main(tyro.cli(Options, args=arguments(), description=__doc__))
