"""Batch norm by oneDNN, and layer norm as on GPUs, against their formulas, in values and
derivatives.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import parity
from flaxnets.kernels.moments import moments
from flaxnets.kernels.normalization import batch_norm, layer_norm
from flaxnets.kernels.onednn import calls as onednn
from flaxnets.kernels.onednn import library as dnnl
from flaxnets.kernels.onednn import operations
from flaxnets.kernels.platform import compiling_for, plain
from flaxnets.layers import BatchNorm
from parity import bfloat16_only, onednn_only

EPSILON = 1e-3
CHANNELS = 32
SHAPES = [(7, 32), (1, 16), (19, 208), (7, 20)]  # pixels of a side and channels


def formula(x, scale, bias, relu):
    """Ioffe & Szegedy 2015, algorithm 1."""
    mean = x.mean((0, 1, 2))
    variance = jnp.square(x - mean).mean((0, 1, 2))
    y = (x - mean) / jnp.sqrt(variance + EPSILON) * scale + bias
    return jax.nn.relu(y) if relu else y


def by_onednn(x, scale, bias, relu, joined=False):
    """With `joined`, `x` counts as joined maps, whose moments are known."""
    known = moments(x) if joined else None
    return batch_norm(x, scale, bias, EPSILON, relu, known)[0]


def operands(size=7, channels=CHANNELS):
    x = jnp.asarray(parity.images(size, channels=channels)) * 2 + 3
    return x, jnp.linspace(0.5, 1.5, channels), jnp.linspace(-1.0, 1.0, channels)


def is_chosen(*arrays, relu=True, joined=False):
    norm = jax.jit(functools.partial(by_onednn, relu=relu, joined=joined))
    return onednn.BATCH_NORM in norm.lower(*arrays).as_text()


def assert_close(found, expected):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5 * float(jnp.abs(other).max()))


@onednn_only
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("size", "channels"), SHAPES)
def test_values_and_gradients_are_those_of_the_formula(size, channels, relu):
    arrays = operands(size, channels)
    joined = channels % 16 > 0
    assert is_chosen(*arrays, relu=relu, joined=joined)
    y, pull = jax.vjp(jax.jit(functools.partial(by_onednn, relu=relu, joined=joined)), *arrays)
    expected, pull_expected = jax.vjp(functools.partial(formula, relu=relu), *arrays)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    assert_close(pull(jnp.cos(3 * y)), pull_expected(jnp.cos(3 * y)))
    known = moments(arrays[0]) if joined else None
    _, (mean, var) = batch_norm(*arrays, EPSILON, relu, known)
    x = np.asarray(arrays[0], np.float64)
    np.testing.assert_allclose(mean, x.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(var, x.var((0, 1, 2)), rtol=1e-5, atol=1e-9)


@onednn_only
def test_onednn_sees_whole_vectors_of_joined_maps():
    """It computes other numbers of channels too, but slowly."""
    norm = jax.jit(functools.partial(by_onednn, relu=True, joined=True))
    program = norm.lower(*operands(7, 20)).as_text()
    (call,) = [line for line in program.splitlines() if onednn.BATCH_NORM in line]
    assert "x7x7x32xf32>" in call
    assert "x7x7x20xf32>" not in call


@bfloat16_only
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(("size", "channels"), SHAPES)
def test_bfloat16_is_rounded_once(size, channels, relu):
    """Values and the images' gradient are those of the formula in float32, rounded to 2^-8 of a
    value. The vectors' gradients, which are sums over all positions, are not rounded.
    """
    x, scale, bias = operands(size, channels)
    narrow = x.astype(jnp.bfloat16), scale, bias
    wide = narrow[0].astype(jnp.float32), scale, bias
    joined = channels % 16 > 0
    assert is_chosen(*narrow, relu=relu, joined=joined)
    y, pull = jax.vjp(jax.jit(functools.partial(by_onednn, relu=relu, joined=joined)), *narrow)
    expected, pull_expected = jax.vjp(functools.partial(formula, relu=relu), *wide)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=2**-8, atol=1e-5)
    cotangent = jnp.cos(3 * expected).astype(jnp.bfloat16)
    found, wanted = pull(cotangent), pull_expected(cotangent.astype(jnp.float32))
    assert [leaf.dtype for leaf in found] == [jnp.bfloat16, jnp.float32, jnp.float32]
    for one, other, rtol in zip(found, wanted, (2**-8, 1e-4, 1e-4), strict=True):
        atol = 2e-5 * float(jnp.abs(other).max())
        np.testing.assert_allclose(one.astype(jnp.float32), other, rtol=rtol, atol=atol)


@onednn_only
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.slow
def test_derivatives_of_any_order_and_vmap(relu):
    x, *parameters = operands()
    weights = jnp.cos(jnp.arange(x.size)).reshape(x.shape)
    tangents = (jnp.sin(x), *parameters[::-1])

    def gradients(norm):
        return jax.grad(lambda *at: (jnp.sin(norm(*at)) * weights).sum(), (0, 1, 2))

    def second(norm):
        return jax.grad(lambda *at: sum(jnp.sin(g).sum() for g in gradients(norm)(*at)), (0, 1, 2))

    def forward(norm):
        return lambda *at: jax.jvp(norm, at, tangents)

    def forward_twice(norm):
        return lambda *at: jax.jvp(lambda *a: forward(norm)(*a)[1], at, tangents)

    def back_over_forward(norm):
        return jax.grad(lambda *at: (forward(norm)(*at)[1] * weights).sum(), (0, 1, 2))

    def mapped(norm):  # also over one of the parameters
        both = jax.vmap(gradients(norm), in_axes=(0, None, 0))
        return lambda x, scale, bias: both(jnp.stack([x, x**2]), scale, jnp.stack([bias, 2 * bias]))

    ours, expected = (functools.partial(each, relu=relu) for each in (by_onednn, formula))
    for derivative in (second, forward, forward_twice, back_over_forward, mapped):
        found, wanted = (derivative(norm)(x, *parameters) for norm in (ours, expected))
        assert_close(found, wanted)


@onednn_only
def test_what_onednn_does_not_have_or_does_slowly_stays_with_xla():
    x, scale, bias = operands()
    assert is_chosen(x, scale, bias)
    assert not is_chosen(x[:, 0], scale, bias)  # not images
    assert not is_chosen(x[..., :24], scale[:24], bias[:24])  # not whole vectors
    assert not is_chosen(x.astype(jnp.float16), scale, bias)
    assert not is_chosen(*(each.astype(jnp.bfloat16) for each in (x, scale, bias)))
    for context in (compiling_for("gpu"), plain("normalization")):
        with context:
            assert not is_chosen(x, scale, bias)
            found = by_onednn(x, scale, bias, relu=True)
        np.testing.assert_allclose(found, formula(x, scale, bias, relu=True), atol=1e-5)


@onednn_only
def test_another_platform_has_the_formula():
    arrays = operands()
    gradient = jax.jit(jax.grad(lambda *at: jnp.sin(by_onednn(*at, relu=True)).sum()))
    lowered = export.export(gradient, platforms=["cuda"])(*arrays).mlir_module()
    assert onednn.BATCH_NORM not in lowered
    assert "custom_call" not in lowered
    assert "stablehlo.rsqrt" in lowered


@onednn_only
def test_a_symbolic_batch_is_exported():
    _, *parameters = operands()
    (batch,) = export.symbolic_shape("N")
    norm = jax.jit(lambda x: by_onednn(x, *parameters, relu=True))
    images = jax.ShapeDtypeStruct((batch, 7, 7, CHANNELS), jnp.float32)
    x = operands()[0]
    found = export.export(norm)(images).call(x)
    np.testing.assert_allclose(found, formula(x, *parameters, relu=True), atol=1e-5)


@onednn_only
@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=bfloat16_only)])
@pytest.mark.parametrize("relu", [False, True])
def test_nan_stays(relu, dtype):
    """In the channels of the image or the parameter that it stands in; the others are safe."""
    x, scale, bias = operands()
    x = x.astype(dtype)
    x = x.at[1, 2, 3, 5].set(jnp.nan).at[0, 0, 0, 7].set(jnp.inf)
    scale, bias = scale.at[11].set(jnp.nan), bias.at[13].set(jnp.nan)
    assert is_chosen(x, scale, bias, relu=relu)
    y = by_onednn(x, scale, bias, relu)
    for channel in range(CHANNELS):
        is_nan = np.isnan(y[..., channel])
        assert is_nan.all() if channel in (5, 7, 11, 13) else not is_nan.any()


@onednn_only
def test_the_threads_of_other_calls_stay_as_they_were():
    count = dnnl.library().omp_get_max_threads()
    dnnl.library().omp_set_num_threads(6)
    try:
        with operations._half_of_the_threads():
            assert dnnl.library().omp_get_max_threads() == 3
        assert dnnl.library().omp_get_max_threads() == 6
    finally:
        dnnl.library().omp_set_num_threads(count)


@pytest.mark.parametrize("mode", ["evaluation", "training", "known moments", "synchronised"])
@pytest.mark.parametrize("channels", [3, 16])
def test_the_layer_takes_the_relu_along(mode, channels):
    x = jnp.asarray(parity.images(5, channels=channels)) + 1
    axis = "devices" if mode == "synchronised" else None
    norm = BatchNorm(use_running_average=mode == "evaluation", axis_name=axis)
    variables = norm.init(jax.random.key(0), x)
    variables["params"]["bias"] = jnp.linspace(-1.0, 1.0, channels)
    known = (moments(x),) if mode == "known moments" else ()

    def apply(x, **options):
        return norm.apply(variables, x, *known, mutable=["batch_stats"], **options)

    def run(x, **options):
        if axis is None:
            return apply(x, **options)
        return jax.vmap(lambda x: apply(x[None], **options), axis_name=axis)(x)

    y, statistics = run(x)
    positive, same = run(x, relu=True)
    assert (y < 0).any()
    np.testing.assert_allclose(positive, jnp.maximum(y, 0), atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), same, statistics)
    if mode == "synchronised":  # over the mapped images, not each by itself
        alone = norm.clone(axis_name=None)
        whole, _ = alone.apply(variables, x, mutable=["batch_stats"], relu=True)
        np.testing.assert_allclose(positive[:, 0], whole, atol=1e-5)


def layer_norm_formula(x, scale, bias):
    """Ba, Kiros & Hinton 2016, equations 2 to 4."""
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + EPSILON) * scale + bias


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        (functools.partial(layer_norm, epsilon=EPSILON), layer_norm_formula),
        (functools.partial(by_onednn, relu=True), functools.partial(formula, relu=True)),
    ],
    ids=["layer norm", "batch norm with ReLU"],
)
def test_norms_on_gpus_have_the_derivatives_of_their_formulas(ours, expected):
    def derivatives(norm, arrays):
        def loss(*arrays):
            return jnp.sin(norm(*arrays)).sum()

        gradient = jax.grad(loss, (0, 1, 2))
        second = jax.grad(lambda *arrays: jnp.cos(gradient(*arrays)[0]).sum(), (0, 1))(*arrays)
        return norm(*arrays), gradient(*arrays), second, jax.jvp(gradient, arrays, arrays)

    with jax.enable_x64(), compiling_for("gpu"):
        arrays = tuple(each.astype(np.float64) for each in operands())
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10),
            derivatives(ours, arrays),
            derivatives(expected, arrays),
        )


def test_layer_norm_on_gpus_stores_the_moments_and_a_narrow_gradient():
    """The barriers are in the gradient alone: without it, XLA fuses the whole norm."""
    x, scale, bias = (each.astype(jnp.bfloat16) for each in operands())

    def norm(x):
        return layer_norm(x, scale, bias, EPSILON)

    def barriers(function):
        with compiling_for("gpu"):
            program = jax.make_jaxpr(function)(x).jaxpr
        return sorted(
            (str(each.aval.dtype), each.aval.size)
            for equation in program.eqns
            if equation.primitive.name == "optimization_barrier"
            for each in equation.outvars
        )

    pixels = x.size // CHANNELS
    assert barriers(norm) == []
    gradient = barriers(jax.grad(lambda x: norm(x).sum()))
    assert gradient == [("bfloat16", x.size), ("float32", pixels), ("float32", pixels)]
    with plain("normalization"):
        assert barriers(jax.grad(lambda x: norm(x).sum())) == []
