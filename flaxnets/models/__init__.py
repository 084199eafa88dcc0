"""The networks by name. Each family is one file that ends in a table, `VARIANTS`."""

import dataclasses
from typing import Any

from flaxnets.errors import InputError, one_of
from flaxnets.models import (
    airbench,
    alexnet,
    bn_inception,
    convnext,
    densenet,
    efficientnet,
    efficientnet_lite,
    googlenet,
    highway,
    inception_resnet,
    inception_v3,
    inception_v4,
    lenet,
    maxvit,
    mcdnn,
    mlp,
    mnasnet,
    mobilenet_v2,
    mobilenet_v3,
    nin,
    overfeat,
    preact_resnet,
    prelu_net,
    regnet,
    resnet,
    resnet_cifar,
    shufflenet_v2,
    squeezenet,
    swin,
    vgg,
    vit,
    wide_resnet,
    zfnet,
)
from flaxnets.models.base import Model

FAMILIES = {
    "lenet": lenet.VARIANTS,
    "alexnet": alexnet.VARIANTS,
    "zfnet": zfnet.VARIANTS,
    "overfeat": overfeat.VARIANTS,
    "vgg": vgg.VARIANTS,
    "prelu_net": prelu_net.VARIANTS,
    "nin": nin.VARIANTS,
    "googlenet": googlenet.VARIANTS,
    "bn_inception": bn_inception.VARIANTS,
    "inception_v3": inception_v3.VARIANTS,
    "inception_v4": inception_v4.VARIANTS,
    "inception_resnet": inception_resnet.VARIANTS,
    "resnet": resnet.VARIANTS,
    "resnet_cifar": resnet_cifar.VARIANTS,
    "preact_resnet": preact_resnet.VARIANTS,
    "wide_resnet": wide_resnet.VARIANTS,
    "densenet": densenet.VARIANTS,
    "squeezenet": squeezenet.VARIANTS,
    "mobilenet_v2": mobilenet_v2.VARIANTS,
    "mobilenet_v3": mobilenet_v3.VARIANTS,
    "shufflenet_v2": shufflenet_v2.VARIANTS,
    "mnasnet": mnasnet.VARIANTS,
    "convnext": convnext.VARIANTS,
    "vit": vit.VARIANTS,
    "regnet": regnet.VARIANTS,
    "efficientnet": efficientnet.VARIANTS,
    "efficientnet_lite": efficientnet_lite.VARIANTS,
    "swin": swin.VARIANTS,
    "maxvit": maxvit.VARIANTS,
    "highway": highway.VARIANTS,
    "airbench": airbench.VARIANTS,
    "mcdnn": mcdnn.VARIANTS,
    "mlp": mlp.VARIANTS,
}
LINENS_OWN = ("parent", "name")  # fields of every module
VARIANTS = {name: build for family in FAMILIES.values() for name, build in family.items()}


def create_model(arch: str, /, **fields) -> Model:
    """The network `arch` as a linen module, whose own name (`name`) is one of the fields.

    Every network has the fields `num_classes`, `dtype` (of the computation; parameters stay
    float32), `remat` (the backward pass recomputes activations instead of storing them) and, but
    for the multilayer perceptrons, `dense` (a map of logits instead of their mean); its class
    documents the others. Its attribute `input_shape` is the (height, width, channels) of its paper;
    other sizes and channel counts work too. With `num_classes=0` the network is headless and gives
    `(N, model.num_features)`, without auxiliary heads.

        model = create_model("vgg16", num_classes=10, dtype=jnp.bfloat16)
        variables = model.init(jax.random.key(0), jnp.zeros((1, *model.input_shape)))
        logits = model.apply(variables, images)

    Raises InputError (a ValueError) for an unknown name or field, with the nearest valid one.
    """
    build = VARIANTS[one_of(VARIANTS, arch, "architecture")]
    known = [f.name for f in dataclasses.fields(build.func) if f.name != "parent"]
    for field in fields:
        one_of(known, field, f"field of {arch}")
    num_classes = fields.get("num_classes")
    if num_classes is not None and num_classes < 0:
        raise InputError(f"num_classes is {num_classes}; expected at least 1, or 0 for no head")
    if num_classes == 0 and "aux_logits" in known:
        fields["aux_logits"] = False  # not by a clone, which is no part of the module that asks
    return build(**fields)


def describe(model: Model) -> tuple[str, dict[str, Any]]:
    """Return the name and the fields with which `create_model` makes this network.

    Raises InputError if it is none of the library's.
    """
    descriptions = []
    for name, build in VARIANTS.items():
        if build.func is type(model):
            variant = build()
            fields = [
                f.name for f in dataclasses.fields(variant) if f.name not in ("parent", "name")
            ]
            own = {f: getattr(model, f) for f in fields if getattr(model, f) != getattr(variant, f)}
            if own.keys().isdisjoint(fields[: len(build.args)]):  # those cannot be given again
                descriptions.append((name, own))
    if not descriptions:
        raise InputError(f"{type(model).__name__} is no network of the library")
    free = {"num_classes", "dtype"}  # which a name says nothing about
    return min(descriptions, key=lambda described: len(described[1].keys() - free))
