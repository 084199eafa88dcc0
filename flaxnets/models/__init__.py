"""The networks by name. Each family is one file that ends in a table, `VARIANTS`.

`NAMES` knows them without those files, so that a script answers `--help` before linen is imported.
"""

import dataclasses
import functools
import importlib
from typing import TYPE_CHECKING, Any

from flaxnets.errors import InputError, one_of

if TYPE_CHECKING:
    from flaxnets.models.base import Model

    FAMILIES: dict[str, dict[str, Any]]  # the table of each family
    VARIANTS: dict[str, Any]  # what makes each network, by its name

# The names in the `VARIANTS` of each family, in their order.
FAMILY_NAMES = {
    "lenet": "lenet5 lenet5_1998",
    "alexnet": "alexnet alexnet_2012",
    "alexnet_cifar": "alexnet_cifar alexnet_cifar_local",
    "zfnet": "zfnet",
    "overfeat": "overfeat_fast overfeat_accurate",
    "vgg": "vgg11 vgg11_lrn vgg13 vgg16_c vgg16 vgg19 vgg11_bn vgg13_bn vgg16_bn vgg19_bn",
    "prelu_net": "prelu_net_a prelu_net_b prelu_net_c",
    "nin": "nin_cifar nin_imagenet",
    "googlenet": "googlenet",
    "bn_inception": "bn_inception",
    "inception_v3": "inception_v3",
    "inception_v4": "inception_v4",
    "inception_resnet": "inception_resnet_v1 inception_resnet_v2",
    "resnet": (
        "resnet18 resnet34 plain18 plain34 resnet50 resnet101 resnet152 resnext50_32x4d "
        "resnext101_32x8d resnext101_64x4d wide_resnet50_2 wide_resnet101_2"
    ),
    "resnet_cifar": (
        "resnet20_cifar resnet32_cifar resnet44_cifar resnet56_cifar resnet110_cifar "
        "resnet1202_cifar plain20_cifar plain32_cifar plain44_cifar plain56_cifar "
        "plain110_cifar resnext29_8x64d_cifar resnext29_16x64d_cifar"
    ),
    "preact_resnet": "preact_resnet110_cifar preact_resnet164_cifar preact_resnet1001_cifar",
    "wide_resnet": "wrn_16_4 wrn_28_10 wrn_40_4",
    "densenet": (
        "densenet121 densenet161 densenet169 densenet201 densenet_40_12 densenet_100_12 "
        "densenet_100_24 densenet_bc_100_12 densenet_bc_250_24 densenet_bc_190_40"
    ),
    "squeezenet": "squeezenet1_0 squeezenet1_1",
    "mobilenet_v2": "mobilenet_v2",
    "mobilenet_v3": "mobilenet_v3_large mobilenet_v3_small",
    "shufflenet_v2": "shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0",
    "mnasnet": "mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3",
    "convnext": "convnext_tiny convnext_small convnext_base convnext_large",
    "vit": "vit_b_16 vit_b_32 vit_l_16 vit_l_32 vit_h_14",
    "regnet": (
        "regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf regnet_x_16gf "
        "regnet_x_32gf regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf "
        "regnet_y_16gf regnet_y_32gf regnet_y_128gf"
    ),
    "efficientnet": (
        "efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 "
        "efficientnet_b5 efficientnet_b6 efficientnet_b7 efficientnet_v2_s efficientnet_v2_m "
        "efficientnet_v2_l"
    ),
    "efficientnet_lite": "efficientnet_lite0 efficientnet_lite1 efficientnet_lite2",
    "swin": "swin_t swin_s swin_b swin_v2_t swin_v2_s swin_v2_b",
    "maxvit": "maxvit_t",
    "highway": "highway11_cifar highway19_cifar highway32_cifar highway_mlp plain_mlp",
    "airbench": "airbench94",
    "mcdnn": "mcdnn_mnist",
    "mlp": "softmax_regression perceptron mlp linear_regression",
}
NAMES = tuple(name for names in FAMILY_NAMES.values() for name in names.split())


@functools.cache
def _families() -> dict[str, dict[str, Any]]:
    """Return the table of each family."""
    return {family: __getattr__(family).VARIANTS for family in FAMILY_NAMES}


@functools.cache
def _variants() -> dict[str, Any]:
    """Return what makes each network, by its name."""
    return {name: build for table in _families().values() for name, build in table.items()}


def __getattr__(name: str) -> Any:
    """Import what is asked for: a family's file, or those of all for `FAMILIES` and `VARIANTS`."""
    if name in FAMILY_NAMES:
        return importlib.import_module(f"flaxnets.models.{name}")
    if name in ("FAMILIES", "VARIANTS"):
        return _families() if name == "FAMILIES" else _variants()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def create_model(arch: str, /, **fields) -> "Model":
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
    build = _variants()[one_of(_variants(), arch, "architecture")]
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


def describe(model: "Model") -> tuple[str, dict[str, Any]]:
    """Return the name and the fields with which `create_model` makes this network.

    Raises InputError if the network is not one of the library's.
    """
    descriptions = []
    for name, build in _variants().items():
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
