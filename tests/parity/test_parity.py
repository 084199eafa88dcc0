"""Every network against an independent implementation in torch, on a CPU."""

import dataclasses
from collections.abc import Collection, Container, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import parity
from flaxnets import create_model, from_torch, list_models
from flaxnets.models import FAMILIES
from networks import CASES, EVERY_NETWORK, SLOW

# Networks whose gradients compile in seconds. Together they have every kind of layer.
QUICK = {
    "lenet5", "mlp", "perceptron", "softmax_regression", "linear_regression", "mcdnn_mnist",
    "nin_cifar", "highway_mlp", "plain_mlp", "highway19_cifar", "resnet20_cifar",
    "densenet_bc_100_12",
}  # fmt: skip
# The first network of each family, or the next one that is not slow.
FIRST = {next((name for name in names if name not in SLOW), "") for names in FAMILIES.values()}


def alike(names: Iterable[str], fast: Container[str], fields: str, *others: str) -> list[Any]:
    """Return the networks in groups, each as a parameter of a test.

    The networks of a group become the same network once the `fields` of their cases cut them. A
    group without a `fast` network is marked slow.
    """
    groups: dict[tuple, list[str]] = {}
    for name in names:
        case = CASES[name]
        model = create_model(name, **({"num_classes": 10} | getattr(case, fields)))
        groups.setdefault((model, *(getattr(case, other) for other in others)), []).append(name)
    return [
        pytest.param(
            group,
            id="+".join(group),
            marks=[] if any(name in fast for name in group) else [pytest.mark.slow],
        )
        for group in groups.values()
    ]


def choices(model) -> tuple:
    """Return what selects the code of a network: its class, and its fields except numbers and
    single letters, such as VGG's "A" to "E".
    """

    def kept(value):
        if isinstance(value, Mapping):
            value = value.items()
        if isinstance(value, Collection) and not isinstance(value, str):
            return frozenset(kept(item) for item in value)
        is_letter = isinstance(value, str) and len(value) == 1
        return type(value) if type(value) in (int, float) or is_letter else value

    fields = dataclasses.fields(model)
    return type(model), *(kept(getattr(model, f.name)) for f in fields if f.init)


def test_every_network_is_compared():
    assert set(CASES) == set(list_models())


def test_a_deeper_network_is_the_code_of_one_whose_gradients_are_compared():
    """Their fields differ only in numbers and letters."""
    compared = {choices(create_model(name)) for name, case in CASES.items() if not case.deeper}
    for name in CASES:
        assert choices(create_model(name)) in compared, name


@pytest.mark.parametrize("name", EVERY_NETWORK)
def test_parameters_are_torchs(name, record_parity):
    """Compare number, keys and shapes of the whole network, without values.

    Logits are bfloat16 here, as asked for; variables stay float32.
    """
    case = CASES[name]
    model = create_model(name, dtype=jnp.bfloat16)
    images = jnp.zeros((2, *model.input_shape))
    logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    record_parity(name, "parameters", count)
    assert count == case.parameters
    assert parity.torch_shapes(variables) == parity.shapes_of_reference(name, case)
    assert (logits.shape, logits.dtype) == ((2, model.num_classes), jnp.bfloat16)
    floats = [leaf for leaf in jax.tree.leaves(variables) if jnp.issubdtype(leaf, jnp.floating)]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("names", alike(CASES, FIRST, "cut_fields", "sizes"))
def test_logits_and_round_trip(names, record_parity):
    name, case = names[0], CASES[names[0]]
    model, reference = parity.build_pair(name, case, **case.cut_fields)
    batches = [parity.images(size, channels=model.input_shape[-1]) for size in case.sizes]
    shapes = parity.initial_shapes(model, batches[0])
    variables = from_torch(reference.state_dict(), shapes)
    for size, x in zip(case.sizes, batches, strict=True):
        if x is not batches[0]:
            assert parity.initial_shapes(model, x) == shapes
        error = parity.logits_error(model, reference, x, variables)
        for name in names:
            native = size == case.sizes[0] and not case.deeper
            record_parity(name, "logits" if native else "logits, odd", error)
        assert error < case.logits_bound
    assert parity.round_trip_is_exact(variables, reference)


BASE = [name for name, case in CASES.items() if not case.deeper]


@pytest.mark.parametrize("names", alike(BASE, QUICK, "train_fields", "train_size", "batch"))
def test_gradients_and_five_sgd_steps(names, record_parity):
    name, case = names[0], CASES[names[0]]
    model, reference = parity.build_pair(name, case, num_classes=10, **case.train_fields)
    channels = model.input_shape[-1]
    batches = [parity.images(case.train_size, case.batch, channels, seed) for seed in range(5)]
    errors = parity.training_errors(model, reference, batches, case.train_optimization)
    for column, error in errors.items():
        for name in names:
            record_parity(name, column, error)
        assert error < case.training_bound, column
