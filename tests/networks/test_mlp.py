"""Linear models and multilayer perceptrons, on rows, on images and on scikit-learn's data."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes
from torch import nn

import parity
from flaxnets import create_model, from_torch
from flaxnets.errors import InputError
from flaxnets.initializers import drawn
from networks import mlp


def initial(model, x):
    return drawn(model.init)(jax.random.key(0), x)


def test_images_of_several_channels_are_flattened_as_in_torch():
    model = create_model("mlp")
    reference = mlp.mlp(8 * 6 * 3, 128, 128, 128, num_classes=10)
    x = np.ascontiguousarray(parity.images(8)[:, :, :6])
    assert parity.logits_error(model, reference, x) < 1e-5


def test_rows_of_features_are_images_of_one_pixel():
    model = create_model("perceptron", num_classes=2)
    rows, _ = load_breast_cancer(return_X_y=True)
    rows = np.asarray(rows, np.float32)
    assert rows.shape == (569, 30)
    variables = initial(model, rows)
    logits: Any = jax.jit(model.apply)(variables, rows)
    assert logits.shape == (569, 2)
    assert np.array_equal(logits, jax.jit(model.apply)(variables, rows[:, None, None]))


@pytest.mark.parametrize(
    ("name", "hidden", "parameters"),
    [("perceptron", (32,), 65 * 32 + 33 * 10), ("mlp", (64, 32), 65 * 64 + 65 * 32 + 33 * 10)],
)
def test_hidden_widths(name, hidden, parameters):
    model = create_model(name, hidden_features=hidden)
    x = jnp.zeros((1, *model.input_shape))
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == parameters


def test_gradient_descent_on_squared_error_finds_least_squares():
    """The diabetes data has 442 patients, ten features and one target; all are standardised."""
    x, target = map(np.asarray, load_diabetes(return_X_y=True))
    x, target = x / x.std(0), (target - target.mean()) / target.std()
    model = create_model("linear_regression")
    assert x.shape[1:] == model.input_shape
    with jax.enable_x64():
        model = model.clone(dtype=jnp.float64)

        def loss(variables):
            outputs: Any = model.apply(variables, x)
            return jnp.square(outputs[:, 0] - target).mean()

        def step(_, variables):
            return jax.tree.map(lambda v, g: v - 0.2 * g, variables, jax.grad(loss)(variables))

        variables = jax.tree.map(lambda v: v.astype(jnp.float64), initial(model, x))
        variables = jax.jit(lambda v: jax.lax.fori_loop(0, 10_000, step, v))(variables)
        weights, (residual,), *_ = np.linalg.lstsq(np.c_[x, np.ones(len(x))], target)
        assert float(loss(variables)) == pytest.approx(residual / len(x), rel=1e-9)
        (layer,) = variables["params"]["classifier"].values()
        learned = np.append(layer["kernel"], layer["bias"])
        assert learned == pytest.approx(weights, abs=1e-6)


def test_weights_go_into_the_network_under_torchs_keys():
    model = create_model("linear_regression")
    weights = {"classifier.0.weight": np.arange(10.0)[None], "classifier.0.bias": np.ones(1)}
    variables = from_torch(weights, initial(model, jnp.zeros((1, 10))))
    outputs: Any = model.apply(variables, jnp.eye(10))
    assert outputs[:, 0].tolist() == list(range(1, 11))


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize(("name", "theirs"), [("sigmoid", nn.Sigmoid), ("tanh", nn.Tanh)])
def test_activations_and_batch_norm_are_torchs(name, theirs, batch_norm):
    """The network of Ioffe & Szegedy 2015, section 4.1, has three hidden layers of 100 units."""
    fields = {"activation": name, "batch_norm": batch_norm, "hidden_features": (100,) * 3}
    reference = functools.partial(
        mlp.mlp, 64, 100, 100, 100, num_classes=10, activation=theirs, batch_norm=batch_norm
    )
    case = parity.Case(0, reference=lambda **_: reference())
    model, reference = parity.build_pair("mlp", case, **fields)
    assert parity.logits_error(model, reference, parity.images(8, channels=1)) < 1e-5
    batches = [parity.images(8, 4, 1, seed) for seed in range(5)]
    for column, error in parity.training_errors(model, reference, batches).items():
        assert error < 1e-9, column


@pytest.mark.parametrize("name", mlp.CASES)
def test_there_is_no_dense_map(name):
    with pytest.raises(InputError, match="unknown field"):
        create_model(name, dense=True)
