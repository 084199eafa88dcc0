"""Each layer against torch's or XLA's own, in values and gradients."""

import contextlib
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import lax

import parity
from flaxnets import layers
from flaxnets.kernels import pooling
from flaxnets.kernels.onednn import calls as onednn
from flaxnets.kernels.platform import compiling_for
from parity import bfloat16_only, onednn_only


def gradient_like(f, x, *, seed=1):
    """d sum(f(x) * weights) / dx for fixed random weights, and f(x)."""
    y, pull = jax.vjp(f, x)
    weights = np.random.default_rng(seed).standard_normal(y.shape, np.float32)
    return y, pull(jnp.asarray(weights))[0], weights


def assert_equals_torch(ours, theirs, x, tolerance=1e-6):
    """Values and gradients of a layer of ours and a torch module."""
    y, gradient, weights = gradient_like(ours, jnp.asarray(x))
    inputs = parity.nchw(x).requires_grad_()
    expected = theirs(inputs)
    (theirs_gradient,) = torch.autograd.grad((expected * parity.nchw(weights)).sum(), inputs)
    np.testing.assert_allclose(y, expected.detach().numpy().transpose(0, 2, 3, 1), atol=tolerance)
    np.testing.assert_allclose(
        gradient, theirs_gradient.numpy().transpose(0, 2, 3, 1), atol=tolerance
    )


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(
    ("window", "stride", "padding"), [(3, 2, 1), (2, 2, 0), (3, 1, 1), (3, 3, 0)]
)
@pytest.mark.parametrize("size", [7, 8, 10])
def test_max_pool(window, stride, padding, ceil_mode, size):
    assert_equals_torch(
        jax.jit(layers.max_pool(window, stride, padding, ceil_mode=ceil_mode)),
        torch.nn.MaxPool2d(window, stride, padding, ceil_mode=ceil_mode),
        parity.images(size),
    )


def test_max_pool_gives_the_gradient_of_ties_to_the_first_as_torch():
    x = np.random.default_rng(0).integers(0, 2, (2, 8, 8, 3)).astype(np.float32)
    assert_equals_torch(layers.max_pool(3, 2, 1), torch.nn.MaxPool2d(3, 2, 1), x)


@pytest.mark.parametrize("place", [(0, 2), (0, 3), (1, 2), (1, 3)])
def test_max_pool_keeps_nan(place):
    """Wherever it is in its window, and where gradients are asked for too."""
    x = np.zeros((1, 4, 4, 1), np.float32)
    x[0, *place] = np.nan
    pool = layers.max_pool(2)
    for pooled in (pool(jnp.asarray(x)), jax.vjp(pool, jnp.asarray(x))[0]):
        found = np.isnan(pooled)[0, :, :, 0]
        np.testing.assert_array_equal(found, [[False, True], [False, False]])


def test_a_max_pool_without_gradients_is_maxima_alone():
    x = jnp.zeros((1, 8, 8, 3))

    def pool(x):
        return pooling._maxima_by_axes(x, (3, 3), (2, 2))

    def program(function):
        return jax.jit(function).trace(x).lower(lowering_platforms=("cpu",)).as_text()

    assert "stablehlo.select" not in program(pool)
    assert program(pool).count("stablehlo.maximum") == 4  # two of each axis
    assert "stablehlo.select" in program(lambda x: jax.vjp(pool, x)[1](pool(x)))


@pytest.mark.parametrize("formulation", ["_maxima_by_axes", "_maxima_of_cells"])
@pytest.mark.parametrize(
    ("window", "stride"), [((3, 3), (2, 2)), ((2, 2), (2, 2)), ((1, 4), (3, 1))]
)
def test_every_formulation_of_a_max_pool(formulation, window, stride):
    """Those for CPUs and for GPUs treat ties and NaN as torch does."""

    def pool(x):
        return getattr(pooling, formulation)(x, window, stride)

    x = np.random.default_rng(0).integers(0, 3, (2, 8, 9, 3)).astype(np.float32)
    assert_equals_torch(pool, torch.nn.MaxPool2d(window, stride), x, tolerance=0)
    x[0, 3, 4, 1] = np.nan
    expected = torch.nn.MaxPool2d(window, stride)(parity.nchw(x)).numpy().transpose(0, 2, 3, 1)
    assert np.isnan(expected).any()
    for pooled in (pool(jnp.asarray(x)), jax.vjp(pool, jnp.asarray(x))[0]):
        np.testing.assert_array_equal(pooled, expected)


POOLS = [((3, 3), (2, 2), (1, 1)), ((2, 2), (2, 2), (0, 0)), ((3, 3), (1, 1), (1, 1)),
         ((2, 3), (3, 1), (0, 1))]  # fmt: skip


BY_ONEDNN = [
    pytest.param(jnp.float32, marks=onednn_only), pytest.param(jnp.bfloat16, marks=bfloat16_only),
]  # fmt: skip


@contextlib.contextmanager
def by_slices(monkeypatch):
    """Pool as on a CPU without oneDNN."""
    with monkeypatch.context() as patch:
        patch.setattr(onednn, "takes", lambda x: False)
        yield


@pytest.mark.parametrize("dtype", BY_ONEDNN)
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("channels", [3, 64])
@pytest.mark.parametrize(("window", "stride", "padding"), POOLS)
def test_a_max_pool_is_onednns(window, stride, padding, ceil_mode, channels, dtype, monkeypatch):
    """The maxima are exactly those of slices in float32, ties and NaN included.

    A pixel's gradient is a sum over the windows that it is the maximum of, each of whose additions
    is rounded.
    """

    def pool(x):
        return pooling.window_maxima(x, window, stride, padding, ceil_mode=ceil_mode)

    shape = (2, 10, 11, channels)
    x = jnp.asarray(np.random.default_rng(0).integers(-3, 3, shape), dtype)
    assert onednn.MAX_POOL in jax.jit(pool).lower(x).as_text()
    y, pull = jax.vjp(jax.jit(pool), x)
    with by_slices(monkeypatch):
        expected, pull_expected = jax.vjp(pool, x.astype(jnp.float32))
    assert y.dtype == dtype
    np.testing.assert_array_equal(y.astype(jnp.float32), expected)
    cotangent = jnp.sin(jnp.arange(y.size)).reshape(y.shape).astype(dtype)
    (found,), (wanted,) = pull(cotangent), pull_expected(cotangent.astype(jnp.float32))
    (largest,) = pull_expected(jnp.abs(cotangent.astype(jnp.float32)))  # of the sum, at any time
    windows = math.prod(-(-span // step) for span, step in zip(window, stride, strict=True))
    rounding = float(jnp.finfo(dtype).eps) / 2
    bound = 1.01 * (windows - 1) * rounding * np.asarray(largest)
    assert (np.abs(found.astype(jnp.float32) - wanted) <= bound).all()
    for place in ((0, 0, 0, 1), (1, 5, 5, 2), (1, 9, 10, 0)):
        x = x.at[place].set(jnp.nan)
    with by_slices(monkeypatch):
        expected = pool(x.astype(jnp.float32))
    np.testing.assert_array_equal(np.isnan(pool(x)), np.isnan(expected))


def test_joined_maps_are_their_concatenation():
    """Values and gradients, in every type, NaN included."""
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        maps = [jnp.asarray(parity.images(4, channels=n, seed=n), dtype) for n in (3, 8, 1)]
        maps[0] = maps[0].at[0, 0, 0, 0].set(jnp.nan)
        found, pull = jax.vjp(jax.jit(lambda *maps: layers.joined(maps)), *maps)
        expected, pull_expected = jax.vjp(lambda *maps: jnp.concatenate(maps, -1), *maps)
        assert found.dtype == dtype
        cotangent = jnp.cos(jnp.arange(found.size)).reshape(found.shape).astype(dtype)
        both = [jnp.stack([each, 2 * each]) for each in maps]
        mapped = jax.vmap(lambda *maps: layers.joined(maps))(*both)
        for one, other in (
            (found, expected), (mapped[1], 2 * expected),
            *zip(pull(cotangent), pull_expected(cotangent), strict=True),
        ):  # fmt: skip
            np.testing.assert_array_equal(one.astype(jnp.float32), other.astype(jnp.float32))


@pytest.mark.parametrize("dtype", BY_ONEDNN)
def test_a_max_pool_by_onednn_has_all_derivatives(dtype, monkeypatch):
    x = jnp.asarray(parity.images(8, channels=16), dtype)
    pool = layers.max_pool(3, 2, 1)

    def gradient(x):
        return jax.grad(lambda x: jnp.square(pool(x).astype(jnp.float32)).sum())(x)

    def derivatives(x):
        forward = jax.jvp(pool, (x,), (jnp.ones_like(x),))
        return *forward, jax.jvp(gradient, (x,), (x,))[1], jax.vmap(gradient)(x[:, None])

    found = derivatives(x)
    with by_slices(monkeypatch):
        expected = derivatives(x.astype(jnp.float32))
    bound = 2 * float(jnp.finfo(dtype).eps)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        np.testing.assert_allclose(one.astype(jnp.float32), other, rtol=bound, atol=bound)


def test_in_training_on_gpus_maxima_and_their_places_are_computed_once():
    """XLA must not fuse them into their readers, the passes of a norm, say."""
    x = jnp.zeros((2, 9, 9, 4))
    with compiling_for("gpu"):
        pool = layers.max_pool(3, 2, 1)
        program = jax.make_jaxpr(jax.grad(lambda x: pool(x).sum()))(x).jaxpr
    (barrier,) = [e for e in program.eqns if e.primitive.name == "optimization_barrier"]
    assert [v.aval.str_short() for v in barrier.outvars] == ["float32[2,5,5,4]", "uint8[2,5,5,4]"]


@pytest.mark.parametrize(
    ("backend", "platform", "scatters"), [("cpu", "cpu", 0), ("gpu", "cuda", 0), ("tpu", "tpu", 1)]
)
def test_where_the_gradient_of_a_max_pool_is_a_scatter(backend, platform, scatters):
    gradient = jax.jit(jax.grad(lambda x: layers.max_pool(3, 2, 1)(x).sum()))
    with compiling_for(backend):
        traced = gradient.trace(jnp.zeros((1, 8, 8, 3)))
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert program.count("stablehlo.select_and_scatter") == scatters


@pytest.mark.parametrize("relu", [layers.relu, layers.relu_of_sum])
def test_the_gradient_of_relu_needs_its_output_alone(relu):
    jaxpr = jax.make_jaxpr(lambda x, change: jax.jvp(relu, (x,), (change,)))(2.0, 3.0).jaxpr
    (comparison,) = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "eq"]
    assert comparison.invars[0] is jaxpr.outvars[0]
    x = jnp.array([-1.0, -0.0, 0.0, 2.0, jnp.inf, -jnp.inf])
    for function in (lambda f: f(x), lambda f: jax.grad(lambda x: f(x).sum())(x)):
        np.testing.assert_array_equal(function(relu), function(nn.relu))
    assert np.isnan(relu(jnp.nan))
    assert jax.grad(jax.grad(lambda x: relu(x) ** 3))(2.0) == 12


@pytest.mark.parametrize("count_include_pad", [False, True])
def test_avg_pool(count_include_pad):
    assert_equals_torch(
        layers.avg_pool(3, 2, 1, count_include_pad=count_include_pad),
        torch.nn.AvgPool2d(3, 2, 1, count_include_pad=count_include_pad),
        parity.images(8),
    )


@pytest.mark.parametrize(("size", "out"), [(1, 7), (6, 7), (7, 7), (13, 6), (14, 7), (5, 1)])
def test_adaptive_avg_pool(size, out):
    assert_equals_torch(
        layers.adaptive_avg_pool(out), torch.nn.AdaptiveAvgPool2d(out), parity.images(size)
    )


def test_local_response_norm_sums_where_torch_averages():
    assert_equals_torch(
        layers.local_response_norm(5, alpha=0.1, beta=0.75, k=2),
        torch.nn.LocalResponseNorm(5, alpha=0.5, beta=0.75, k=2),
        parity.images(3, channels=8),
    )


def test_batch_norm_keeps_torchs_running_statistics():
    theirs = torch.nn.BatchNorm2d(3)
    ours = layers.BatchNorm(use_running_average=False)
    variables: Any = ours.init(jax.random.key(0), jnp.zeros((2, 4, 4, 3)))
    assert float(variables["batch_stats"]["mean"].sum()) == 0  # initialising is no training step
    for seed in range(3):
        x = parity.images(4, seed=seed) * 3 + 1
        y, variables_new = ours.apply(variables, x, mutable=["batch_stats"])
        variables = {**variables, **variables_new}
        expected = theirs(parity.nchw(x)).detach().numpy().transpose(0, 2, 3, 1)
        np.testing.assert_allclose(y, expected, atol=1e-5)
    for name in ("mean", "var"):
        expected = getattr(theirs, f"running_{name}").numpy()
        np.testing.assert_allclose(variables["batch_stats"][name], expected, rtol=1e-5)


def test_batch_norm_of_maps_side_by_side_whose_moments_are_known():
    """As if it found them itself: values, running statistics, the gradient of each map."""
    maps = [jnp.asarray(parity.images(4, channels=n, seed=n)) * n + 1 for n in (2, 3)]
    norm = layers.BatchNorm(use_running_average=False)
    variables = norm.init(jax.random.key(0), jnp.concatenate(maps, -1))

    def given(maps):
        x = jnp.concatenate(maps, -1)
        pairs = [norm.apply(variables, each, method="moments") for each in maps]
        moments = tuple(jnp.concatenate(both) for both in zip(*pairs, strict=True))
        return norm.apply(variables, x, moments, mutable=["batch_stats"])

    def found(maps):
        return norm.apply(variables, jnp.concatenate(maps, -1), mutable=["batch_stats"])

    def weighted(f):
        weights = jnp.cos(jnp.arange(80.0)).reshape(4, 4, 5)
        return lambda maps: (f(maps)[0] * weights).sum()

    for ours, expected in [
        (given(maps), found(maps)),
        (jax.grad(weighted(given))(maps), jax.grad(weighted(found))(maps)),
    ]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, expected)


def test_batch_norm_has_the_derivatives_of_its_formula():
    """Ioffe & Szegedy 2015, algorithm 1, with a mean far from zero; first and second ones."""
    x = jnp.asarray(parity.images(5, channels=3)) + 3
    weights = jnp.cos(jnp.arange(x.size)).reshape(x.shape)
    params = {"scale": jnp.array([0.5, 1.0, 2.0]), "bias": jnp.array([0.1, 0.0, -1.0])}
    layer = layers.BatchNorm(use_running_average=False)
    stats = layer.init(jax.random.key(0), x)["batch_stats"]

    def ours(x, params):
        variables = {"params": params, "batch_stats": stats}
        return layer.apply(variables, x, mutable=["batch_stats"])[0]

    def formula(x, params):
        mean = x.mean((0, 1, 2))
        variance = jnp.square(x - mean).mean((0, 1, 2))
        return (x - mean) / jnp.sqrt(variance + 1e-5) * params["scale"] + params["bias"]

    def gradients(norm):
        return jax.grad(lambda *at: (jnp.sin(norm(*at)) * weights).sum(), (0, 1))

    def second(norm):
        def size(*at):
            return sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(gradients(norm)(*at)))

        return jax.grad(size, (0, 1))

    for derivative in (gradients, second):
        found, expected = (derivative(norm)(x, params) for norm in (ours, formula))
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(
                one, other, rtol=1e-4, atol=1e-4 * float(jnp.abs(other).max())
            )


def test_synchronised_batch_norm_equals_one_large_batch():
    x = parity.images(4, batch=8)
    norm = layers.BatchNorm(use_running_average=False, axis_name="batch")
    variables = norm.init(jax.random.key(0), x)
    apply = jax.pmap(
        lambda part: norm.apply(variables, part, mutable=["batch_stats"]), axis_name="batch"
    )
    y, updates = apply(x.reshape(4, 2, 4, 4, 3))
    whole: Any
    expected, whole = norm.clone(axis_name=None).apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose(y.reshape(x.shape), expected, atol=1e-5)
    for name in ("mean", "var"):
        np.testing.assert_allclose(
            updates["batch_stats"][name][3], whole["batch_stats"][name], rtol=1e-5, atol=1e-6
        )


def test_a_call_replaces_the_fields_of_a_batch_norm():
    """As the training step's interceptor does, to freeze and to synchronise norms."""
    x = jnp.asarray(parity.images(4, batch=8)) + 1
    parts = x.reshape(4, 2, 4, 4, 3)
    norm = layers.BatchNorm(use_running_average=False)
    variables = norm.init(jax.random.key(0), x)

    def results(module, **arguments):
        return module.apply(variables, x, mutable=["batch_stats"], **arguments)

    def synchronised(module, **arguments):
        def apply(part):
            normed = module.apply(variables, part, mutable=["batch_stats"], **arguments)
            return normed, module.apply(variables, part, method="moments", **arguments)

        return jax.vmap(apply, axis_name="parts")(parts)

    equal = functools.partial(jax.tree.map, np.testing.assert_array_equal)
    averaged = norm.clone(use_running_average=True)
    equal(results(norm, use_running_average=True), results(averaged))
    equal(results(averaged, use_running_average=False), results(norm))
    equal(synchronised(norm, axis_name="parts"), synchronised(norm.clone(axis_name="parts")))


def test_bfloat16_computes_in_bfloat16_with_float32_parameters():
    layer = layers.Sequential(
        [
            layers.Conv(4, 3, dtype=jnp.bfloat16),
            layers.BatchNorm(use_running_average=False, dtype=jnp.bfloat16),
            layers.max_pool(2),
            layers.Linear(5, patch=(3, 3), dtype=jnp.bfloat16),
        ]
    )
    y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 8, 8, 3)))
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    "function",
    [
        layers.avg_pool(3, 2, 1),
        layers.avg_pool(3, 2, 1, count_include_pad=False),
        layers.local_response_norm(5, alpha=0.1),
    ],
)
def test_sums_of_bfloat16_are_rounded_once(function):
    x = jnp.asarray(parity.images(9, channels=8), jnp.bfloat16)
    y, expected = function(x), function(x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(y, expected)
    assert y.dtype == jnp.bfloat16


def test_a_stack_in_bfloat16_deviates_no_more_than_torchs_autocast():
    """Twelve convolutions with large biases: rounded twice each, 1.4 times as much."""
    torch.manual_seed(0)
    theirs = torch.nn.Sequential(
        *(m for _ in range(12) for m in (torch.nn.Conv2d(16, 16, 3, padding=1), torch.nn.ReLU()))
    )
    for module in theirs.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
            assert module.bias is not None
            torch.nn.init.normal_(module.bias)
    conv = functools.partial(layers.Conv, 16, 3, padding=1, dtype=jnp.bfloat16)
    ours = layers.Sequential(tuple(f for _ in range(12) for f in (conv(), layers.relu)))
    x = parity.images(16, channels=16, batch=8)
    y = np.asarray(ours.apply(parity.converted(ours, theirs, x), x), np.float64)
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            autocast = theirs(parity.nchw(x)).double().numpy().transpose(0, 2, 3, 1)
        exact = theirs.double()(parity.nchw(x).double()).numpy().transpose(0, 2, 3, 1)
    deviation, of_torch = (np.sqrt(np.square(each - exact).mean()) for each in (y, autocast))
    assert deviation < 1.02 * of_torch


LAYERS = {
    "conv": layers.Conv(8, 3, padding=1),
    "conv to one pixel": layers.Conv(8, 12),
    "grouped conv": layers.Conv(16, 3, groups=2),
    "conv in bfloat16": layers.Conv(8, 3, dtype=jnp.bfloat16),
    "linear": layers.Linear(5),
    "linear in bfloat16": layers.Linear(5, dtype=jnp.bfloat16),
    "patch": layers.Linear(5, patch=(12, 12)),
    "patch of a larger map": layers.Linear(5, patch=(3, 3)),
    "norm": layers.BatchNorm(use_running_average=False),
    "norm of 6 channels": nn.Sequential(
        [layers.Conv(6, 1), layers.BatchNorm(use_running_average=False)]
    ),
    "norm by running averages": layers.BatchNorm(use_running_average=True),
    "recomputed": layers.Sequential([layers.Conv(8, 3), layers.relu], remat=True),
    "max pool": layers.max_pool(2),
    "padded max pool": layers.max_pool(3, 2, 1),
    "max pool over the edge": layers.max_pool(3, 2, ceil_mode=True),
    "average pool": layers.avg_pool(3, 2, 1, count_include_pad=False),
    "adaptive pool": layers.adaptive_avg_pool(5),
    "relu": layers.relu,
    "relu of a sum": layers.relu_of_sum,
    "response norm": layers.local_response_norm(),
    "unit range": lambda x: layers.imagenet_to_unit_range(x[..., :3]),
    "mean": layers.average_positions,
}


def values_and_gradients(name):
    layer: Any = LAYERS[name]
    x = jnp.asarray(parity.images(12, channels=16))
    if not isinstance(layer, nn.Module):
        y, pull = jax.vjp(layer, x)
        return y, pull(jnp.cos(y))
    variables = layer.init(jax.random.key(0), x)
    rest = {key: value for key, value in variables.items() if key != "params"}

    def apply(params, x):
        return layer.apply({"params": params, **rest}, x, mutable=["batch_stats"])[0]

    y, pull = jax.vjp(apply, variables["params"], x)
    return y, pull(jnp.cos(y))


without_switches = functools.cache(values_and_gradients)


@pytest.mark.slow
@pytest.mark.parametrize("switch", parity.SWITCHES)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_work_under_jaxs_switches(name, switch):
    """Not only work: values and gradients, from initial values on, are what they are without."""
    expected = without_switches(name)
    with parity.SWITCHES[switch]():
        ours = values_and_gradients(name)
    # bfloat16 has 8 bits
    rtol, atol = (1e-2, 1e-2) if "bfloat16" in name else (1e-5, 1e-4)
    for one, other in zip(*map(jax.tree.leaves, (ours, expected)), strict=True):
        one, other = (np.asarray(x, np.float32) for x in (one, other))
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", LAYERS)
def test_variables_are_float32_whatever_the_flag(name):
    layer = LAYERS[name]
    if isinstance(layer, nn.Module):
        with jax.enable_x64():
            x = jnp.zeros((1, 12, 12, 16), jnp.float64)
            variables = jax.eval_shape(layer.init, jax.random.key(0), x)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_sequential_names_modules_by_their_index():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            inner = layers.Sequential([nn.relu, layers.Conv(2, 1)])
            return layers.Sequential([layers.Conv(3, 1), nn.relu, inner], name="features")(x)

    params = Net().init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))["params"]
    assert set(params) == {"features"}
    assert set(params["features"]) == {"0", "2"}
    assert set(params["features"]["2"]) == {"1"}


def test_linear_over_a_patch_is_a_convolution_on_larger_maps():
    layer = layers.Linear(5, patch=(2, 3))
    x = jnp.asarray(parity.images(4))
    variables = layer.init(jax.random.key(0), x[:, :2, :3])
    whole: Any = layer.apply(variables, x)
    assert whole.shape == (2, 3, 2, 5)
    for row in range(3):
        for column in range(2):
            patch = x[:, row : row + 2, column : column + 3]
            one: Any = layer.apply(variables, patch)
            assert one.shape == (2, 1, 1, 5)
            np.testing.assert_allclose(whole[:, row, column], one[:, 0, 0], atol=1e-5)


def test_initialisation_is_torchs():
    """torch's defaults: kernel and bias uniform in +-1/sqrt(fan_in)."""
    for layer, x, fan_in in [
        (layers.Conv(4000, 3, padding=1), jnp.zeros((1, 4, 4, 8)), 72),
        (layers.Conv(4000, 3, padding=1, groups=4), jnp.zeros((1, 4, 4, 8)), 18),
        (layers.Linear(4000), jnp.zeros((1, 50)), 50),
        (layers.Linear(4000, patch=(2, 2)), jnp.zeros((1, 2, 2, 5)), 20),
    ]:
        for leaf in jax.tree.leaves(layer.init(jax.random.key(0), x)["params"]):
            bound = fan_in**-0.5
            assert 0.99 * bound < float(jnp.abs(leaf).max()) <= bound
            assert abs(float(jnp.square(leaf).mean()) * 3 / bound**2 - 1) < 0.05


@pytest.mark.parametrize(
    "layer",
    [layers.Conv(2, 5), layers.max_pool(5), layers.avg_pool(5), layers.Linear(2, patch=(5, 5))],
)
def test_too_small_images_get_one_sentence(layer):
    apply = (
        layer if not isinstance(layer, nn.Module) else lambda x: layer.init(jax.random.key(0), x)
    )
    with pytest.raises(ValueError, match="too small for this network: a window of 5x5"):
        apply(jnp.zeros((1, 4, 9, 3)))


def test_lax_is_not_asked_for_same_padding():
    """torch pads by pixels; XLA's SAME differs at stride 2."""
    layer = layers.Conv(
        1, 3, 2, 1, kernel_init=nn.initializers.ones, bias_init=nn.initializers.zeros
    )
    x = jnp.ones((1, 4, 4, 1))
    y: Any = layer.apply(layer.init(jax.random.key(0), x), x)
    same = lax.conv_general_dilated(
        x, jnp.ones((3, 3, 1, 1)), (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_array_equal(y[0, :, :, 0], [[4, 6], [6, 9]])
    assert float(jnp.abs(y - same).max()) > 0
