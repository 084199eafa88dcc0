"""Find networks by name, family, size and published weights."""

import fnmatch
import functools

import jax
import jax.numpy as jnp

from flaxnets.errors import InputError, one_of
from flaxnets.models import FAMILIES, create_model
from flaxnets.weights import list_weights


def list_models(
    pattern: str = "*",
    *,
    family: str | None = None,
    pretrained: bool = False,
    smaller_than: float | None = None,
) -> list[str]:
    """Return the names of the networks that match all filters, family by family.

        list_models("vgg*")
        list_models(family="resnet", pretrained=True)
        list_models("*_cifar", smaller_than=1e6)

    Args:
        pattern: a shell pattern, such as "vgg*". The list is empty where no name matches.
        family: "vgg", "resnet" and so on: the files of `flaxnets.models`.
        pretrained: list only networks with published weights (`list_weights`).
        smaller_than: exclusive upper limit of the number of parameters. They are counted with the
            network's own classes and image size, without running statistics. Counting reads
            shapes alone, once in a process. It takes half a second for most networks and several
            seconds for those of a thousand layers.

    Raises InputError for an unknown family or a limit that no network can meet.
    """
    if smaller_than is not None and not smaller_than > 0:
        raise InputError(f"smaller_than is {smaller_than}; expected a number of parameters above 0")
    families = [one_of(FAMILIES, family, "family")] if family is not None else FAMILIES
    names = [
        name
        for variants in map(FAMILIES.__getitem__, families)
        for name in variants
        if fnmatch.fnmatchcase(name, pattern) and (list_weights(name) or not pretrained)
    ]
    if smaller_than is None:
        return names
    return [name for name in names if count_parameters(name) < smaller_than]


@functools.cache
def count_parameters(arch: str) -> int:
    """Return the number of parameters of the network that `create_model(arch)` makes, from shapes
    alone.
    """
    model = create_model(arch)
    images = jax.ShapeDtypeStruct((1, *model.input_shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
