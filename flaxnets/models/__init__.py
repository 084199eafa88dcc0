"""The networks by name. Each family is one file that ends in a table, `VARIANTS`."""

import dataclasses
from typing import Any

from flaxnets.errors import InputError, one_of
from flaxnets.models import (
    airbench,
    alexnet,
    alexnet_cifar,
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
    "alexnet_cifar": alexnet_cifar.VARIANTS,
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
VARIANTS = {name: build for family in FAMILIES.values() for name, build in family.items()}


def create_model(arch: str, /, **fields) -> Model:
    """Return the network `arch` as a linen module without weights.

    Every network has these fields; its class documents the others:

    - `num_classes`: outputs of the head. With 0 the network is headless: it gives features
      `(N, model.num_features)` and has no auxiliary heads.
    - `dtype`: type of the computation; parameters stay float32.
    - `remat`: recompute activations in the backward pass instead of storing them.
    - `dense`: give a map of logits instead of their mean. Multilayer perceptrons and a few others
      lack it.
    - `name`: linen's own name of a module.

    The attribute `input_shape` is the (height, width, channels) of the paper; other sizes and
    numbers of channels work too.

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
        # Set here, because a clone would not belong to the module that is being built.
        fields["aux_logits"] = False
    return build(**fields)


def describe(model: Model) -> tuple[str, dict[str, Any]]:
    """Return the name and the fields with which `create_model` makes this network.

    Raises InputError if the network is not one of the library's.
    """
    descriptions = []
    for name, build in VARIANTS.items():
        if build.func is type(model):
            variant = build()
            fields = [
                f.name for f in dataclasses.fields(variant) if f.name not in ("parent", "name")
            ]
            changed = {
                f: getattr(model, f) for f in fields if getattr(model, f) != getattr(variant, f)
            }
            # Positional arguments of the table cannot be passed twice.
            if changed.keys().isdisjoint(fields[: len(build.args)]):
                descriptions.append((name, changed))
    if not descriptions:
        raise InputError(f"{type(model).__name__} is no network of the library")
    ignored = {"num_classes", "dtype"}  # fields that every name leaves open
    return min(descriptions, key=lambda description: len(description[1].keys() - ignored))
