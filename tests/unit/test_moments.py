"""Mean and variance over a batch, and norms that are a part of the product whose input has them."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Literal

import parity
from flaxnets import create_model
from flaxnets.initializers import drawn
from flaxnets.kernels import moments, normalization
from flaxnets.kernels.folding import folded_norms
from flaxnets.kernels.platform import Platform, compiling_for, plain
from flaxnets.layers import BatchNorm, Conv
from flaxnets.recipes import recipe_for
from flaxnets.training.objective import make_objective


@pytest.mark.parametrize("formulation", ["_moments_in_turn", "_moments_at_once"])
def test_moments_of_values_far_from_zero(formulation):
    """E[x^2] - E[x]^2 would lose all digits of the variance."""
    x = parity.images(9, channels=3) + np.array([1000, -3000, 5000], np.float32)
    mean, var = getattr(moments, formulation)(jnp.asarray(x), None)
    x = x.astype(np.float64)
    np.testing.assert_allclose(mean, x.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(var, x.var((0, 1, 2)), rtol=1e-5)


def test_moments_at_once_take_one_pass_over_the_map():
    """No sum over the map waits for another one."""
    x = jnp.zeros((4, 9, 9, 3))
    at_once = functools.partial(moments._moments_at_once, axis_name=None)
    behind, sums = set(), 0
    for equation in jax.make_jaxpr(at_once)(x).eqns:
        operands = [each for each in equation.invars if not isinstance(each, Literal)]
        waits = not behind.isdisjoint(operands)
        if equation.primitive.name == "reduce_sum" and operands[0].aval.size == x.size:
            assert not waits
            waits, sums = True, sums + 1
        if waits:
            behind.update(equation.outvars)
    assert sums == 2


def test_both_formulations_of_moments_have_the_same_derivatives():
    def gradients(formulation, x):
        def function(x):
            mean, var = formulation(x, None)
            return (jnp.sin(mean) * jnp.sqrt(var)).sum()

        return jax.grad(function)(x), jax.grad(lambda x: jnp.square(jax.grad(function)(x)).sum())(x)

    with jax.enable_x64():
        x = jnp.asarray(parity.images(5, channels=3).astype(np.float64))
        in_turn = gradients(moments._moments_in_turn, x)
        at_once = gradients(moments._moments_at_once, x)
    for one, other in zip(in_turn, at_once, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


# --------------------------------------------------------------------------- of a matrix product


class Expansion(nn.Module):
    """Two pointwise convolutions that widen the map, with their norms by the batch."""

    dtype: Any = jnp.bfloat16
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x):
        norm = functools.partial(
            BatchNorm, use_running_average=False, axis_name=self.axis_name, dtype=self.dtype
        )
        conv = functools.partial(Conv, kernel_size=1, dtype=self.dtype)
        y = norm(name="bn1")(conv(12, use_bias=False, name="conv1")(x), relu=True)
        return norm(name="bn2")(conv(24, name="conv2")(y))


def operands(dtype=jnp.float32):
    """Return the variables of `Expansion`, of values that matter, and images."""
    x = jnp.asarray(parity.images(9, channels=6, batch=4)) + 1
    variables = drawn(Expansion().init)(jax.random.key(0), x)
    random = np.random.default_rng(1)
    leaves = jax.tree.map(lambda leaf: leaf + random.random(leaf.shape, np.float32), variables)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), (leaves, x))


def results(model, variables, x):
    """Return outputs, new statistics, and gradients of parameters and images."""

    def loss(params, x):
        y, new = model.apply({**variables, "params": params}, x, mutable="batch_stats")
        y = y.astype(x.dtype)
        return (jnp.sin(y) * jnp.cos(jnp.arange(y.size)).reshape(y.shape)).sum(), (y, new)

    gradients, others = jax.grad(loss, (0, 1), has_aux=True)(variables["params"], x)
    return {"gradients": gradients, "others": others}


def folded(function, *arrays):
    """Return the result of a function that is traced as a training step on a GPU."""
    with compiling_for("gpu"), folded_norms("gpu"), jax.checking_leaks():
        return jax.jit(lambda *arrays: function(*arrays))(*arrays)


@pytest.fixture
def products(monkeypatch):
    """The shapes of weights whose outputs' moments are found in the input, in the traced order."""
    shapes: list[tuple[int, int]] = []

    def counted(product, axis_name):
        shapes.append(product.weights.shape)
        return moments.moments_of_product(product, axis_name)

    monkeypatch.setattr(normalization, "moments_of_product", counted)
    return shapes


@pytest.fixture
def of_any_type(monkeypatch):
    """Find them for float64, too, in which formulations can be compared."""
    monkeypatch.setattr(moments, "is_narrow", lambda x: True)


@pytest.mark.usefixtures("of_any_type")
def test_norms_of_products_are_exact(products):
    """Outputs, statistics, gradients and their derivatives are those of norms with passes of their
    own; also under `jax.vmap`, and over a mapped axis.
    """

    def derivatives(model, variables, x):
        run = functools.partial(results, model)
        second = jax.grad(lambda x: jnp.sin(run(variables, x)["gradients"][1]).sum())(x)
        mapped = jax.vmap(run, (None, 0))(variables, jnp.stack([x, -x]))
        _, forward = jax.jvp(functools.partial(run, variables), (x,), (jnp.cos(x),))
        return run(variables, x), second, mapped, forward

    def synchronised(model, variables, x):
        parts = x.reshape(2, -1, *x.shape[1:])
        return jax.vmap(lambda x: model.apply(variables, x, mutable="batch_stats"),
                        axis_name="devices")(parts)  # fmt: skip

    with jax.enable_x64():
        arrays = operands(jnp.float64)
        for function, axis_name in ((derivatives, None), (synchronised, "devices")):
            run = functools.partial(function, Expansion(jnp.float64, axis_name))
            expected = jax.jit(run)(*arrays)
            assert products == []
            found = folded(run, *arrays)
            assert set(products) == {(6, 12), (12, 24)}
            products.clear()
            jax.tree.map(
                functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-10),
                found,
                expected,
            )


def test_in_bfloat16_they_are_as_exact_as_passes():
    """Beside float32, in the root mean square."""
    arrays = operands()
    exact = jax.jit(functools.partial(results, Expansion(jnp.float32)))(*arrays)
    run = functools.partial(results, Expansion())

    def errors(tree):
        return jax.tree.map(
            lambda a, b: float(jnp.linalg.norm((a - b).ravel()) / jnp.linalg.norm(b.ravel())),
            tree,
            exact,
        )

    apart, within = errors(jax.jit(run)(*arrays)), errors(folded(run, *arrays))
    means = {name: [np.mean(jax.tree.leaves(e[name])) for e in (within, apart)] for name in exact}
    assert all(0 < ours < 1.2 * theirs for ours, theirs in means.values()), means


@pytest.mark.usefixtures("of_any_type")
def test_constant_channels_have_no_variance():
    """Rounding would make it negative, and the norm NaN."""
    x = jnp.full((4, 5, 5, 3), 1e3) * jnp.array([0.1, 1.7, 3.3])
    weights = jnp.asarray(parity.images(8, channels=3)[0, 0].T)
    product = moments.Product(x, weights, bias=None)
    mean, variance = moments.moments_of_product(product)
    np.testing.assert_allclose(mean, x[0, 0, 0] @ weights, rtol=1e-5)
    assert (variance >= 0).all()
    assert (variance <= 1e-6 * jnp.square(x).max()).all()


def test_which_norms_are_folded(products):
    """In 16 bits, after a pointwise convolution with twice the channels of its input."""

    def count(conv, dtype=jnp.bfloat16, platforms: tuple[Platform, ...] = ("gpu",)):
        norm = BatchNorm(use_running_average=False, dtype=dtype)
        module = nn.Sequential([conv.clone(dtype=dtype), norm])
        x = jnp.zeros((2, 6, 6, 4), dtype)
        shapes = jax.eval_shape(module.init, jax.random.key(0), x)
        with compiling_for("gpu"), folded_norms(*platforms):
            jax.eval_shape(
                lambda variables, x: module.apply(variables, x, mutable="batch_stats"), shapes, x
            )
        number = len(products)
        products.clear()
        return number

    assert count(Conv(8, 1)) == 1
    assert count(Conv(8, 1), platforms=()) == 1
    assert count(Conv(8, 1), platforms=("cpu",)) == 0
    assert count(Conv(8, 1), jnp.float32) == 0
    for other in (Conv(7, 1), Conv(8, 3), Conv(8, 1, stride=2), Conv(8, 1, padding=1),
                  Conv(8, 1, groups=2)):  # fmt: skip
        assert count(other) == 0
    with plain("folding"):
        assert count(Conv(8, 1)) == 0


@pytest.mark.parametrize(
    ("name", "widening"), [("resnet50", 17), ("mobilenet_v2", 17), ("resnet18", 0)]
)
def test_the_training_step_folds(name, widening, products):
    """Each bottleneck's last convolution and the first shortcut; each expansion."""
    model = create_model(name, dtype=jnp.bfloat16)
    objective = make_objective(model, recipe_for(name, "small images"))
    batch = {"image": jnp.zeros((2, 32, 32, 3)), "label": jnp.zeros(2, int)}
    variables = jax.eval_shape(model.init, jax.random.key(0), batch["image"])
    step = jax.grad(objective, has_aux=True)

    def trace():
        state = {"batch_stats": variables["batch_stats"]}
        jax.eval_shape(step, variables["params"], state, batch, jax.random.key(0))
        number = len(products)
        products.clear()
        return number

    assert trace() == 0
    with compiling_for("gpu"):
        assert trace() == widening
        with plain("folding"):
            assert trace() == 0


def test_a_gpu_multiplies_in_parts():
    """As many as have tiles for all of its cores, if they divide the positions. XLA must not join
    them.
    """
    for shape, parts in (((256, 56, 56, 64), 128), ((256, 14, 14, 256), 32), ((3, 5, 5, 64), 1)):
        x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
        program = jax.make_jaxpr(moments._sums_of_products.fun)(x).jaxpr
        (product,) = [e for e in program.eqns if e.primitive.name == "dot_general"]
        assert product.outvars[0].aval.shape == (parts, shape[-1], shape[-1])
        assert product.outvars[0].aval.dtype == jnp.float32
        (barrier,) = [e for e in program.eqns if e.primitive.name == "optimization_barrier"]
        assert barrier.invars == product.outvars
