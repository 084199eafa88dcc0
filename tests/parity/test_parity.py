"""Every network against an independent implementation in torch, on CPU."""

import jax
import jax.numpy as jnp
import pytest

import parity
from flaxnets import create_model, list_models
from networks import CASES


def test_every_network_is_compared():
    assert set(CASES) == set(list_models())


@pytest.mark.parametrize("name", CASES)
def test_parameter_count(name, record_parity):
    model = create_model(name)
    x = jnp.zeros((1, *model.input_shape))
    params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    record_parity(name, "parameters", count)
    assert count == CASES[name].parameters


@pytest.mark.parametrize("name", CASES)
def test_logits_and_round_trip(name, record_parity):
    case = CASES[name]
    model, reference = parity.build_pair(name, case)
    batches = [parity.images(size, channels=model.input_shape[-1]) for size in case.sizes]
    variables = parity.converted(model, reference, batches[0])
    for size, x in zip(case.sizes, batches, strict=True):
        shapes = jax.tree.map(jnp.shape, parity.initial_shapes(model, x))
        assert shapes == jax.tree.map(jnp.shape, variables)
        error = parity.logits_error(model, reference, x, variables)
        record_parity(name, "logits" if size == case.sizes[0] else "logits, odd", error)
        assert error < case.logits_bound
    assert parity.round_trip_is_exact(variables, reference)


@pytest.mark.parametrize("name", CASES)
def test_gradients_and_five_sgd_steps(name, record_parity):
    case = CASES[name]
    model, reference = parity.build_pair(name, case, num_classes=10, **case.train_fields)
    channels = model.input_shape[-1]
    batches = [parity.images(case.train_size, case.batch, channels, seed) for seed in range(5)]
    for column, error in parity.training_errors(model, reference, batches).items():
        record_parity(name, column, error)
        assert error < case.training_bound, column
