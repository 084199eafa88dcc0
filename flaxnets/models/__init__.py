"""The networks by name. Each family is one file that ends in a table, `VARIANTS`."""

import dataclasses
import fnmatch

import flax.linen as nn

from flaxnets.errors import InputError, one_of
from flaxnets.models import (
    alexnet,
    bn_inception,
    densenet,
    googlenet,
    highway,
    inception_resnet,
    inception_v3,
    inception_v4,
    lenet,
    mcdnn,
    mlp,
    nin,
    overfeat,
    resnet,
    resnet_cifar,
    vgg,
    wide_resnet,
)

FAMILIES = {
    "lenet": lenet.VARIANTS,
    "alexnet": alexnet.VARIANTS,
    "overfeat": overfeat.VARIANTS,
    "vgg": vgg.VARIANTS,
    "nin": nin.VARIANTS,
    "googlenet": googlenet.VARIANTS,
    "bn_inception": bn_inception.VARIANTS,
    "inception_v3": inception_v3.VARIANTS,
    "inception_v4": inception_v4.VARIANTS,
    "inception_resnet": inception_resnet.VARIANTS,
    "resnet": resnet.VARIANTS,
    "resnet_cifar": resnet_cifar.VARIANTS,
    "wide_resnet": wide_resnet.VARIANTS,
    "densenet": densenet.VARIANTS,
    "highway": highway.VARIANTS,
    "mcdnn": mcdnn.VARIANTS,
    "mlp": mlp.VARIANTS,
}
VARIANTS = {name: build for family in FAMILIES.values() for name, build in family.items()}


def list_models(pattern: str = "*") -> list[str]:
    """Names that match a shell pattern such as `"vgg*"`, family by family."""
    return [name for name in VARIANTS if fnmatch.fnmatchcase(name, pattern)]


def create_model(arch: str, /, **fields) -> nn.Module:
    """The network `arch` as a linen module, whose own name (`name`) is one of the fields.

    Every network has the fields `num_classes`, `dtype` (of the computation; parameters stay
    float32), `remat` (the backward pass recomputes activations instead of storing them) and, but
    for the multilayer perceptrons, `dense` (a map of logits instead of their mean); its class
    documents the others. Its attribute `input_shape` is the (height, width, channels) of its paper;
    other sizes and channel counts work too.

        model = create_model("vgg16", num_classes=10, dtype=jnp.bfloat16)
        variables = model.init(jax.random.key(0), jnp.zeros((1, *model.input_shape)))
        logits = model.apply(variables, images)

    Raises InputError (a ValueError) for an unknown name or field, with the nearest valid one.
    """
    build = VARIANTS[one_of(VARIANTS, arch, "architecture")]
    known = [f.name for f in dataclasses.fields(build.func) if f.name != "parent"]
    for field in fields:
        one_of(known, field, f"field of {arch}")
    if fields.get("num_classes", 1) < 1:
        raise InputError(f"num_classes is {fields['num_classes']}; expected at least 1")
    return build(**fields)
