"""Networks inside flax's NNX: training mode, gradients and running statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from flaxnets import create_model, to_torch
from flaxnets.initializers import drawn
from networks import TRACED

MUTABLE = ["batch_stats", "aux_logits"]


@pytest.mark.parametrize("name", TRACED)
@pytest.mark.slow
def test_a_network_of_each_class_trains_in_shapes(name):
    model = create_model(name, num_classes=7, **TRACED[name])
    x = jnp.zeros((2, *model.input_shape))

    def train():
        net = nnx.bridge.ToNNX(model, rngs=nnx.Rngs(0, dropout=1)).lazy_init(x)
        parameters = nnx.state(net, nnx.Param)

        def loss(net):
            return net(x, train=True, mutable=MUTABLE).sum()

        return net(x), parameters, nnx.grad(loss)(net), nnx.state(net, nnx.BatchStat)

    logits, parameters, gradients, statistics = nnx.eval_shape(train)
    assert logits.shape == (2, 7)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    shapes = [leaf.shape for leaf in jax.tree.leaves(variables["params"])]
    assert [leaf.shape for leaf in jax.tree.leaves(parameters)] == shapes
    assert [leaf.shape for leaf in jax.tree.leaves(gradients)] == shapes
    running = jax.tree.leaves(variables.get("batch_stats", {}))
    assert len(jax.tree.leaves(statistics)) == len(running)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("resnet20_cifar", {"depth": 8}),
        ("densenet_bc_100_12", {"depths": (1, 1, 1), "growth_rate": 4}),  # names with dots
    ],
)
def test_steps_are_linens_own(name, fields):
    """Trained variables move in, and the loss falls. Parameters and running statistics are those of
    linen's steps.
    """
    model = create_model(name, **fields)
    x = jax.random.normal(jax.random.key(1), (4, 16, 16, 3))
    labels = jnp.arange(4)
    variables = drawn(model.init)(jax.random.key(0), x)
    net = nnx.bridge.ToNNX(model)
    for attribute, value in nnx.bridge.variables.linen_vars_to_nnx_attrs(variables).items():
        setattr(net, attribute, nnx.data(value))
    optimizer = nnx.Optimizer(net, optax.sgd(0.1), wrt=nnx.Param)

    def cross_entropy(logits):
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @nnx.jit
    def nnx_step(net, optimizer):
        def loss(net):
            return cross_entropy(net(x, train=True, mutable=["batch_stats"]))

        value, gradients = nnx.value_and_grad(loss)(net)
        optimizer.update(net, gradients)
        return value

    @jax.jit
    def linen_step(variables):
        def loss(params):
            logits, statistics = model.apply(
                variables | {"params": params}, x, train=True, mutable=["batch_stats"]
            )
            return cross_entropy(logits), statistics

        gradients, statistics = jax.grad(loss, has_aux=True)(variables["params"])
        params = jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], gradients)
        return {"params": params, **statistics}

    values = []
    for _ in range(3):
        values.append(float(nnx_step(net, optimizer)))
        variables = linen_step(variables)
    assert values[0] > values[1] > values[2]
    ours, expected = to_torch(linen_variables(net)), to_torch(variables)
    assert ours.keys() == expected.keys()
    for key, value in ours.items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-4, atol=1e-6, err_msg=key)
    evaluated = jax.jit(model.apply)(variables, x)
    np.testing.assert_allclose(nnx.jit(lambda net: net(x))(net), evaluated, rtol=1e-4, atol=1e-5)


def linen_variables(net):
    return nnx.bridge.variables.nnx_attrs_to_linen_vars(
        {k: v for k, v in vars(net).items() if not k.startswith(("to_nnx__", "_pytree__"))}
    )
