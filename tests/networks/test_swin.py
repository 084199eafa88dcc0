"""What comparison with torch's logits does not show about Swin transformers.

These are initial values, the key bias that V2 omits, and V2's table of offsets: a buffer, in
everything that handles variables.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import parity
from flaxnets import create_model, load_weights, to_torch
from flaxnets.initializers import drawn
from flaxnets.recipes import recipe_for
from flaxnets.training.optimizer import averaging_rule, make_optimizer
from flaxnets.training.state import create_state
from networks.swin import NARROW, swin

FIELDS: dict[str, Any] = {**NARROW, "window": 4, "num_classes": 10}
TABLE = "features.1.0.attn.relative_coords_table"
INDEX = "features.1.0.attn.relative_position_index"


@pytest.fixture(scope="module")
def second():
    """Return a narrow Swin V2 and its initial variables."""
    model = create_model("swin_v2_t", **FIELDS)
    return model, drawn(model.init)(jax.random.key(0), jnp.zeros((1, 40, 40, 3)))


@pytest.mark.parametrize("name", ["swin_t", "swin_v2_t"])
def test_initial_values_are_torchvisions(name):
    fields = FIELDS | {"channels": 12}
    model, reference = create_model(name, **fields), swin(name, vary=False, **fields)
    assert parity.unlike_initial_values(model, reference, parity.images(32)) == []


@pytest.mark.parametrize("window", [2, 4, 7, 8])
def test_buffers_are_torchvisions(window):
    """The index is equal, and offsets are equal up to rounding: torch takes logarithms in
    float32.
    """
    fields: dict[str, Any] = {**FIELDS, "window": window, "depths": (1, 1)}
    for name in ("swin_t", "swin_v2_t"):
        buffers = dict(swin(name, vary=False, **fields).named_buffers())
        model = create_model(name, **fields)
        shapes = parity.initial_shapes(model, parity.images(32))
        ours = to_torch(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes))
        assert ours[INDEX].dtype == np.int64
        np.testing.assert_array_equal(ours[INDEX], buffers[INDEX].numpy())
    variables = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["buffers"])
    table = to_torch({"buffers": variables()})[TABLE]
    np.testing.assert_allclose(table, buffers[TABLE].numpy(), rtol=0, atol=2e-7)


def test_the_temperature_has_an_upper_end_and_keys_no_bias():
    """Beyond a logarithm of 100 the scale stays constant, and its gradient is zero. So is the
    gradient of the keys' third of the bias.
    """
    model = create_model("swin_v2_t", **FIELDS)
    reference = swin("swin_v2_t", **FIELDS)
    for key, parameter in reference.named_parameters():
        if key.endswith("logit_scale"):
            parameter.data.uniform_(4, 5)  # log 100 is 4.6
    x = parity.images(44)
    variables = parity.converted(model, reference, x)
    assert parity.logits_error(model, reference, x, variables) < 1e-5

    @jax.jit
    @jax.grad
    def grads(params) -> Any:
        logits: Any = model.apply({**variables, "params": params}, x)
        return logits.sum()

    attention = grads(variables["params"])["features"]["1"]["0"]["attn"]
    query, key, value = np.split(np.asarray(attention["qkv.bias"]), 3)
    assert abs(query).max() > 0 == abs(key).max() < abs(value).max()
    above = variables["params"]["features"]["1"]["0"]["attn"]["logit_scale"] > np.log(100)
    np.testing.assert_array_equal(attention["logit_scale"] == 0, above)


def test_the_table_is_no_parameter_of_a_training_state(second):
    """An optimiser does not see the table. Averages keep it, up to rounding."""
    model, variables = second
    recipe = recipe_for("swin_v2_t", "small images")
    recipe = type(recipe)(**{**vars(recipe), "ema_decay": 0.9})
    optimizer = make_optimizer(recipe, optax.constant_schedule(0.1))
    state = create_state(variables, optimizer, recipe)
    assert "buffers" in state.model_state
    assert TABLE not in to_torch({"params": state.params})
    rule: Any = averaging_rule(recipe, 1)
    newest = {"params": state.params, "model_state": state.model_state}
    average = jax.jit(rule)(state.average, newest, jnp.int32(7))
    np.testing.assert_allclose(
        to_torch(average["model_state"])[TABLE], to_torch(variables)[TABLE], rtol=1e-6
    )
    train = functools.partial(
        model.apply, train=True, mutable=["buffers"], rngs={"dropout": jax.random.key(0)}
    )
    _, updates = jax.eval_shape(train, variables, jnp.zeros((1, 40, 40, 3)))
    assert updates["buffers"].keys() == variables["buffers"].keys()


def test_a_file_of_torchs_is_read_with_its_table(tmp_path, second):
    model, variables = second
    reference = swin("swin_v2_t", **FIELDS)
    reference.get_buffer(TABLE).mul_(2)
    path = tmp_path / "swin.pth"
    torch.save(reference.state_dict(), path)
    ours = load_weights("swin_v2_t", checkpoint=path, **FIELDS)
    assert jax.tree.structure(ours) == jax.tree.structure(variables)
    np.testing.assert_array_equal(to_torch(ours)[TABLE], reference.get_buffer(TABLE).numpy())
    assert parity.logits_error(model, reference, parity.images(40), ours) < 1e-5


def test_it_moves_into_nnx(second):
    model, variables = second
    net = nnx.bridge.ToNNX(model)
    for attribute, value in nnx.bridge.variables.linen_vars_to_nnx_attrs(variables).items():
        setattr(net, attribute, nnx.data(value))
    x = jnp.asarray(parity.images(40))
    logits = nnx.jit(lambda net: net(x))(net)
    np.testing.assert_allclose(logits, jax.jit(model.apply)(variables, x), rtol=1e-5, atol=1e-6)
