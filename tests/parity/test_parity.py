"""Every network against an independent implementation in torch, on CPU."""

import jax
import jax.numpy as jnp
import pytest

import parity
from flaxnets import create_model, from_torch, list_models
from networks import CASES, EVERY_NETWORK

# Compiled in seconds; between them every kind of layer.
QUICK = {
    "lenet5", "mlp", "perceptron", "softmax_regression", "linear_regression", "mcdnn_mnist",
    "nin_cifar", "highway_mlp", "plain_mlp", "highway19_cifar", "resnet20_cifar",
    "densenet_bc_100_12", "vgg11",
}  # fmt: skip


def trained_alike() -> list[list[str]]:
    """Return the networks in groups that are one and the same network once `train_fields` cut
    them to a few blocks.
    """
    groups: dict[tuple, list[str]] = {}
    for name, case in CASES.items():
        model = create_model(name, num_classes=10, **case.train_fields)
        groups.setdefault((model, case.train_size, case.batch), []).append(name)
    return list(groups.values())


def test_every_network_is_compared():
    assert set(CASES) == set(list_models())


@pytest.mark.parametrize("name", EVERY_NETWORK)
def test_parameter_count_logits_and_round_trip(name, record_parity):
    case = CASES[name]
    model, reference = parity.build_pair(name, case, **case.cut_fields)
    batches = [parity.images(size, channels=model.input_shape[-1]) for size in case.sizes]
    shapes = parity.initial_shapes(model, batches[0])
    variables = from_torch(reference.state_dict(), shapes)
    if case.cut_fields:
        count = parity.parameters_of_whole(name, case)
    else:
        count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    record_parity(name, "parameters", count)
    assert count == case.parameters
    for size, x in zip(case.sizes, batches, strict=True):
        if x is not batches[0]:
            shapes = parity.initial_shapes(model, x)
        assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, variables)
        error = parity.logits_error(model, reference, x, variables)
        record_parity(name, "logits" if size == case.sizes[0] else "logits, odd", error)
        assert error < case.logits_bound
    assert parity.round_trip_is_exact(variables, reference)


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(names, id=names[0], marks=[] if names[0] in QUICK else [pytest.mark.slow])
        for names in trained_alike()
    ],
)
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
