"""The formulations of a convolution on CPU against XLA's own, in values and derivatives."""

import functools
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import PartitionSpec

import parity
from flaxnets.kernels import convolution
from flaxnets.kernels.convolution import conv2d
from flaxnets.kernels.matmul import linear
from flaxnets.kernels.onednn import calls as onednn
from flaxnets.kernels.onednn import operations
from flaxnets.kernels.onednn.convolution import conv_by_onednn
from flaxnets.kernels.platform import compiling_for, on_every_platform, plain
from flaxnets.kernels.xla import xla_convolution
from parity import bfloat16_only, computed, onednn_only

# Kernel, stride, padding, dilation, groups, pixels.
CONVOLUTIONS = {
    "pointwise": ((1, 1, 6, 8), (1, 1), (0, 0), (1, 1), 1, 9),
    "pointwise, stride 2": ((1, 1, 6, 8), (2, 2), (0, 0), (1, 1), 1, 9),
    "3x3 on 2x2": ((3, 3, 6, 8), (1, 1), (1, 1), (1, 1), 1, 2),
    "3x3 on 4x4, stride 2": ((3, 3, 6, 8), (2, 2), (1, 1), (1, 1), 1, 4),
    "5x5 on 3x3, dilation 2": ((5, 5, 6, 8), (1, 1), (4, 4), (2, 2), 1, 3),
    "7x1 on 4x4": ((7, 1, 6, 8), (1, 1), (3, 0), (1, 1), 1, 4),
    "two groups": ((3, 3, 32, 96), (1, 1), (1, 1), (1, 1), 2, 7),
    "32 groups of 4, stride 2": ((3, 3, 4, 128), (2, 2), (1, 1), (1, 1), 32, 8),
    "8 groups of 2": ((3, 3, 2, 16), (1, 1), (1, 1), (1, 1), 8, 5),
    "3 groups of 4": ((3, 3, 4, 12), (1, 1), (1, 1), (1, 1), 3, 5),
    "6 groups of 4 to 8": ((3, 3, 4, 48), (1, 1), (1, 1), (1, 1), 6, 5),
    "a group a channel": ((3, 3, 1, 6), (1, 1), (1, 1), (1, 1), 6, 5),
    "a group a channel, 5x3, stride 2": ((5, 3, 1, 6), (2, 2), (2, 0), (1, 1), 6, 12),
    "a group a channel, dilation 2": ((3, 3, 1, 6), (1, 1), (2, 2), (2, 2), 6, 2),
    "a group a channel, two filters each": ((3, 3, 1, 12), (1, 1), (1, 1), (1, 1), 6, 5),
    # Kernels whose gradient comes in strips.
    "wide, a group a channel": ((5, 5, 1, 6), (1, 1), (2, 2), (1, 1), 6, 9),
    "wide, stride 2": ((5, 5, 1, 6), (2, 2), (2, 2), (1, 1), 6, 8),
    "wide, last pixels unread": ((3, 4, 1, 6), (1, 3), (0, 1), (1, 1), 6, 10),
    "7x7 on 2x2, a group a channel": ((7, 7, 1, 6), (1, 1), (3, 3), (1, 1), 6, 2),
}
TO_ONE_PIXEL = {
    "3x3 on 1x1": ((3, 3, 6, 8), (1, 1), (1, 1), (1, 1), 1, 1),
    "3x3 on 2x2, stride 2": ((3, 3, 6, 8), (2, 2), (1, 1), (1, 1), 1, 2),
    "4x3 on 3x3, dilation 2": ((4, 3, 6, 8), (4, 1), (3, 1), (2, 2), 1, 3),
    "as large as the map": ((5, 5, 16, 8), (1, 1), (0, 0), (1, 1), 1, 5),
    "only padding is met": ((1, 1, 6, 8), (7, 7), (2, 2), (1, 1), 1, 3),
    "pointwise on 1x1": ((1, 1, 6, 8), (1, 1), (0, 0), (1, 1), 1, 1),
}
# XLA's own is as good as matrix products there, but not as oneDNN.
LARGE_MAPS = {
    "7x7, stride 2, of pictures": ((7, 7, 3, 16), (2, 2), (3, 3), (1, 1), 1, 31),
    "11x11, stride 4, last pixels unread": ((11, 11, 3, 16), (4, 4), (2, 2), (1, 1), 1, 33),
    "5x5 with dilation and stride": ((5, 5, 3, 5), (3, 3), (2, 2), (2, 2), 1, 20),
    "1x7 and odd channels": ((1, 7, 5, 7), (1, 1), (0, 3), (1, 1), 1, 9),
    # One block of oneDNN's layouts, whichever the processor has: there it is the array's own.
    **{f"{n} features": ((3, 3, 16, n), (1, 1), (1, 1), (1, 1), 1, 9) for n in (8, 16, 32, 64)},
}


def arrays(name):
    cases = CONVOLUTIONS | TO_ONE_PIXEL | LARGE_MAPS
    shape, stride, padding, dilation, groups, size = cases[name]
    geometry = (stride, padding, dilation, groups)
    x = jnp.asarray(parity.images(size, channels=shape[2] * groups))
    return x, jax.random.normal(jax.random.key(0), shape), geometry


def assert_same_derivatives(ours, native, operands):
    @functools.partial(jax.jit, static_argnums=0)
    def derivatives(function, operands, cotangent=None):
        y, pull = jax.vjp(function, *operands)
        return y, pull(jnp.cos(y) if cotangent is None else cotangent)

    y, gradients = derivatives(ours, operands)
    expected, expected_gradients = derivatives(native, operands, jnp.cos(y))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-4)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("name", CONVOLUTIONS | TO_ONE_PIXEL)
def test_convolution_without_onednn_equals_xla(name, monkeypatch):
    monkeypatch.setattr(onednn, "available", lambda: False)
    x, kernel, geometry = arrays(name)
    program = jax.jit(lambda x, kernel: conv2d(x, kernel, *geometry)).lower(x, kernel).as_text()
    groups = geometry[3]
    if groups == 1:
        assert "dot_general" in program
    elif kernel.shape[2:] == (1, groups):
        assert "stablehlo.convolution" not in program
    else:  # a block-diagonal kernel is a product with the identity
        assert ("dot_general" in program) == (kernel.shape[2] < 32)
    assert program.count("feature_group_count = ") == program.count("feature_group_count = 1 ")
    assert_same_derivatives(
        lambda x, kernel: conv2d(x, kernel, *geometry),
        lambda x, kernel: xla_convolution(x, kernel, geometry),
        (x, kernel),
    )


@onednn_only
@pytest.mark.parametrize("name", CONVOLUTIONS | TO_ONE_PIXEL | LARGE_MAPS)
def test_convolution_by_onednn_equals_xla(name):
    x, kernel, geometry = arrays(name)
    assert_same_derivatives(
        lambda x, kernel: conv_by_onednn(x, kernel, geometry),
        lambda x, kernel: xla_convolution(x, kernel, geometry),
        (x, kernel),
    )


@onednn_only
@pytest.mark.parametrize(
    ("name", "has_avx512", "passed"),
    [
        ("32 groups of 4, stride 2", False, (3, 3, 8, 128)),
        ("32 groups of 4, stride 2", True, (3, 3, 4, 128)),
        ("8 groups of 2", False, (3, 3, 8, 16)),
        ("3 groups of 4", False, (3, 3, 4, 12)),  # an odd one would be left
        ("6 groups of 4 to 8", False, (3, 3, 4, 48)),
        ("two groups", False, (3, 3, 32, 96)),
        ("a group a channel", False, (3, 3, 1, 6)),
    ],
)
def test_narrow_groups_fill_a_vector_without_avx512(name, has_avx512, passed, monkeypatch):
    """The kernel that oneDNN gets then has more channels, whose weights are zero."""
    monkeypatch.setattr(convolution, "has_avx512", lambda: has_avx512)
    x, kernel, geometry = arrays(name)
    program = jax.make_jaxpr(lambda x, kernel: conv2d(x, kernel, *geometry))(x, kernel)
    (call,) = (each for each in program.eqns if each.primitive.name == "convolution")
    assert call.invars[1].aval.shape == passed
    assert_same_derivatives(
        lambda x, kernel: conv2d(x, kernel, *geometry),
        lambda x, kernel: xla_convolution(x, kernel, geometry),
        (x, kernel),
    )


@pytest.mark.parametrize("name", TO_ONE_PIXEL)
def test_a_convolution_to_one_pixel_is_one_matrix_product(name):
    """With oneDNN, which would multiply the padding too, and without."""
    x, kernel, geometry = arrays(name)
    convolve = jax.jit(lambda x, kernel: conv2d(x, kernel, *geometry))
    program = convolve.lower(x, kernel).as_text()
    assert program.count("dot_general") == 1
    assert onednn.CONVOLUTION not in program
    assert convolve(x, kernel).shape == (len(x), 1, 1, kernel.shape[3])
    assert_same_derivatives(
        convolve, lambda x, kernel: xla_convolution(x, kernel, geometry), (x, kernel)
    )
    none = x[:0].astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    assert convolve(*none).dtype == jnp.bfloat16


@onednn_only
@pytest.mark.parametrize("name", CONVOLUTIONS | LARGE_MAPS)
def test_onednn_takes_the_others(name):
    x, kernel, geometry = arrays(name)

    def is_chosen(x, kernel):
        convolve = jax.jit(lambda x, kernel: conv2d(x, kernel, *geometry))
        return onednn.CONVOLUTION in convolve.lower(x, kernel).as_text()

    # Narrow types are computed in float32.
    for others in (x, x.astype(jnp.bfloat16), x.astype(jnp.float16)):
        narrow = kernel.astype(others.dtype)
        assert is_chosen(others, narrow)
        outputs: Any = jax.eval_shape(
            lambda x, kernel: conv2d(x, kernel, *geometry), others, narrow
        )
        assert outputs.dtype == others.dtype
    assert not is_chosen(x[:0], kernel)
    assert conv2d(x[:0], kernel, *geometry).dtype == x.dtype


@pytest.fixture(params=[pytest.param(True, marks=onednn_only), False], ids=["onednn", "xla"])
def library(request, monkeypatch):
    """With oneDNN, and with XLA's operations alone."""
    if not request.param:
        monkeypatch.setattr(onednn, "available", lambda: False)
    return request.param


def rounding_errors(y, exact, dtype):
    """The errors of `y`, and half of the distance between neighbours of `dtype` at `exact`."""
    half = 0.5 * np.exp2(np.floor(np.log2(np.abs(exact))) - jnp.finfo(dtype).nmant)
    return np.abs(np.asarray(y, np.float64) - exact), half


def assert_rounded_once(y, exact, dtype):
    """The nearest value of `dtype`, but for sums in float32; the errors are those of rounding."""
    assert y.dtype == dtype
    error, half = rounding_errors(y, exact, dtype)
    assert (error <= half + 1e-5 * np.abs(exact).max()).all()
    of_rounding, _ = rounding_errors(exact.astype(dtype), exact, dtype)
    ratio = np.sqrt(np.square(error).mean() / np.square(of_rounding).mean())
    assert ratio == pytest.approx(1, abs=1e-3)


@bfloat16_only
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("name", ["pointwise, stride 2", "32 groups of 4, stride 2", *LARGE_MAPS])
def test_bfloat16_by_onednn_is_rounded_once(name, with_bias):
    """The result is float32's of the rounded operands but for one rounding (2^-9 of a value) and
    the order of sums; so are the gradients, that of the kernel, in float32, without it.
    """
    x, kernel, geometry = arrays(name)
    x, bias = x.astype(jnp.bfloat16), jnp.linspace(-1, 1, kernel.shape[3])

    def output(x, kernel, bias):
        return conv2d(x, kernel, *geometry, bias=bias if with_bias else None)

    def gradients(x, kernel, bias):
        y, pull_back = jax.vjp(output, x, kernel, bias)
        return pull_back(
            jnp.round(4 * jnp.sin(jnp.arange(y.size).reshape(y.shape))).astype(y.dtype)
        )

    program = str(jax.make_jaxpr(gradients)(x, kernel, bias))
    assert program.count("= convolution[") == 3 + with_bias  # one of them is unused
    rounded = kernel.astype(jnp.bfloat16).astype(jnp.float32)
    wide = x.astype(jnp.float32), rounded, bias
    y, expected = output(x, kernel, bias), output(*wide)
    assert y.dtype == jnp.bfloat16
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=2**-8, atol=1e-5 * scale)
    found, wanted = gradients(x, kernel, bias), gradients(*wide)
    assert [leaf.dtype for leaf in found] == [jnp.bfloat16, jnp.float32, jnp.float32]
    for ours, theirs, rtol in zip(found, wanted, (2**-8, 1e-4, 2**-8), strict=True):
        scale = float(jnp.abs(theirs).max())
        np.testing.assert_allclose(ours.astype(jnp.float32), theirs, rtol=rtol, atol=1e-4 * scale)


@bfloat16_only
def test_bfloat16_is_mapped_and_differentiated_as_float32():
    """`jax.vmap` and second derivatives, with a bias and without."""
    x, kernel, geometry = arrays("1x7 and odd channels")
    bias = jnp.linspace(-1, 1, kernel.shape[3])
    for shift in (None, bias):

        def loss(x, kernel, shift=shift):
            return jnp.square(conv2d(x, kernel, *geometry, bias=shift).astype(jnp.float32)).sum()

        def curvature(x, kernel, loss=loss):
            grad = jax.grad(lambda kernel: loss(x, kernel))
            return jax.jvp(grad, (kernel,), (kernel,))[1]

        for function in (curvature, jax.vmap(curvature, (None, 0))):
            kernels = kernel if function is curvature else jnp.stack([kernel, 2 * kernel])
            wide = function(x, kernels)
            narrow = function(x.astype(jnp.bfloat16), kernels)
            assert float(jnp.abs(narrow - wide).max() / jnp.abs(wide).max()) < 0.02


@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CONVOLUTIONS | TO_ONE_PIXEL | LARGE_MAPS)
def test_a_convolution_with_its_bias_is_rounded_once(name, dtype, library):
    x, kernel, geometry = arrays(name)
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    bias = jax.random.normal(jax.random.key(1), kernel.shape[-1:])
    with jax.enable_x64():
        wide = [jnp.asarray(np.asarray(each, np.float64)) for each in (x, kernel, bias)]
        exact = np.asarray(xla_convolution(wide[0], wide[1], geometry) + wide[2])
    y = jax.jit(lambda x, kernel, bias: conv2d(x, kernel, *geometry, bias=bias))(x, kernel, bias)
    assert_rounded_once(y, exact, dtype)
    if name != "only padding is met":
        product = conv2d(x, kernel, *geometry)
        error, half = rounding_errors(product + bias.astype(dtype), exact, dtype)  # twice
        assert (error > 1.2 * half).any()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_matrix_product_with_its_bias_is_rounded_once(dtype):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((64, 300), (300, 100), (100,))
    x, kernel, bias = (jax.random.normal(*pair) for pair in zip(keys, shapes, strict=True))
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    exact = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64) + np.asarray(bias)
    y = jax.jit(linear)(x, kernel, bias)
    assert_rounded_once(y, exact, dtype)
    error, half = rounding_errors(x @ kernel + bias.astype(dtype), exact, dtype)
    assert (error > 1.2 * half).any()


def test_narrow_types_have_the_gradients_of_float32(library):
    """A convolution and a matrix product, both with biases, differ by rounding to 8 bits alone."""
    x, kernel, geometry = arrays("7x7, stride 2, of pictures")
    bias = jax.random.normal(jax.random.key(1), kernel.shape[-1:])
    weights = jax.random.normal(jax.random.key(2), (16, 5))
    operands = (x, kernel, bias, weights, bias[:5])

    def gradients(dtype):
        def loss(x, kernel, bias, weights, shift):
            x, kernel, weights = (each.astype(dtype) for each in (x, kernel, weights))
            y = conv2d(x, kernel, *geometry, bias=bias)
            return jnp.square(linear(y, weights, shift).astype(jnp.float32)).mean()

        return jax.jit(jax.grad(loss, range(5)))(*operands)

    for found, expected in zip(gradients(jnp.bfloat16), gradients(jnp.float32), strict=True):
        assert found.dtype == jnp.float32
        error = parity.relative_error(found, expected)
        assert 0 < error < 2e-2


@onednn_only
def test_onednn_takes_a_kernel_as_it_lies_where_that_is_its_own_layout():
    lengths = {}
    for features in (8, 16, 32, 64, 128):
        shapes = (1, 9, 9, 16), (3, 3, 16, features), (1, 9, 9, features)
        made = operations.Convolution("output", shapes, (1, 1, 1, 1, 1, 1, 1))
        lengths[features] = len(made.steps)  # the convolution, behind a reorder or not
    assert min(lengths.values()) == 1
    assert lengths[128] == 2


@onednn_only
@pytest.mark.parametrize(
    ("name", "calls"),
    [("a group a channel", 1), ("wide, stride 2", 2), ("7x7 on 2x2, a group a channel", 3)],
)
def test_the_gradient_of_a_wide_depthwise_kernel_comes_in_strips(name, calls, monkeypatch):
    """A strip has at most three columns, to which oneDNN's fast code is limited."""
    x, kernel, geometry = arrays(name)
    y, pull = jax.vjp(lambda kernel: conv_by_onednn(x, kernel, geometry), kernel)
    jax.block_until_ready(y)  # so that this convolution is not counted
    made = computed(operations.Convolution, monkeypatch)
    jax.block_until_ready(jax.jit(pull)(y))
    assert len(made) == calls


@onednn_only
@pytest.mark.parametrize("name", ["5x5 with dilation and stride", "wide, stride 2"])
def test_onednn_has_forward_mode_and_second_derivatives(name):
    x, kernel, geometry = arrays(name)

    def gradients(convolve):
        def loss(x, kernel):
            return jnp.sin(convolve(x, kernel)).sum()

        return jax.grad(loss, (0, 1))

    def second(convolve):
        def norm(x, kernel):
            return sum(jnp.cos(each).sum() for each in gradients(convolve)(x, kernel))

        return jax.grad(norm, (0, 1))(x, kernel)

    def ours(x, kernel):
        return conv_by_onednn(x, kernel, geometry)

    def native(x, kernel):
        return xla_convolution(x, kernel, geometry)

    for found, expected in zip(second(ours), second(native), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
    tangents = (jnp.cos(x), jnp.sin(kernel))
    _, found = jax.jvp(ours, (x, kernel), tangents)
    _, expected = jax.jvp(native, (x, kernel), tangents)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    # jax.vmap over images, and over kernels, as for gradients of single examples.
    for axes in ((0, None), (None, 0), (0, 0)):
        operands = (x[:, None] if axes[0] == 0 else x, kernel if axes[1] is None else kernel[None])
        if axes[1] == 0:
            operands = (operands[0], jnp.repeat(operands[1], len(x), 0))
        found = jax.vmap(gradients(ours), axes)(*operands)
        expected = jax.vmap(gradients(native), axes)(*operands)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-3)


@onednn_only
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("check_vma", [False, True])
def test_convolution_inside_shard_map(devices, check_vma):
    x, kernel, geometry = arrays("two groups")
    x = jnp.concatenate([x] * devices)
    mesh = jax.sharding.Mesh(jax.devices()[:devices], ("batch",))
    part, whole = PartitionSpec("batch"), PartitionSpec()

    def loss(x, kernel):
        return jax.lax.pmean(jnp.square(conv2d(x, kernel, *geometry)).mean(), "batch")

    mapped = jax.jit(
        jax.shard_map(loss, mesh=mesh, in_specs=(part, whole), out_specs=whole, check_vma=check_vma)
    )
    expected = jnp.square(xla_convolution(x, kernel, geometry)).mean()
    np.testing.assert_allclose(mapped(x, kernel), expected, rtol=1e-5)
    by_onednn = onednn.CONVOLUTION in mapped.lower(x, kernel).as_text()
    assert by_onednn == (devices == 1 and not check_vma)


@pytest.mark.parametrize(
    ("name", "dtype"), [("two groups", "float32"), ("7x7, stride 2, of pictures", "bfloat16")]
)
def test_a_symbolic_batch_is_exported_for_all_platforms(name, dtype):
    """One file for any machine: no call of a library that another one may lack."""
    x, kernel, geometry = arrays(name)
    (batch,) = export.symbolic_shape("N")
    convolve = jax.jit(on_every_platform(lambda x: conv2d(x, kernel, *geometry)))
    images = jax.ShapeDtypeStruct((batch, *x.shape[1:]), dtype)
    exported = export.export(convolve, platforms=("cpu", "cuda"))(images)
    expected = xla_convolution(x, kernel, geometry)
    found = exported.call(x.astype(dtype)).astype(jnp.float32)
    rtol, atol = (1e-5, 1e-4) if dtype == "float32" else (2**-7, 2**-6 * float(expected.std()))
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)


@onednn_only
def test_a_failure_inside_onednn_is_an_exception(monkeypatch):
    def fail(description):
        raise RuntimeError("dnnl_primitive_create of oneDNN failed with status 1")

    monkeypatch.setattr(onednn, "_convolution", fail)
    x, kernel, geometry = arrays("two groups")
    with pytest.raises(Exception, match="dnnl_primitive_create of oneDNN failed with status 1"):
        jax.block_until_ready(conv2d(x, kernel, *geometry))


@onednn_only
def test_a_process_ends_with_convolutions_under_way():
    """One result is held and another is not when the process ends. Between two calls XLA computes
    for a second or so.
    """
    program = """
import jax, jax.numpy as jnp
from flaxnets.kernels.onednn import calls as onednn
from flaxnets.kernels.convolution import conv2d
assert onednn.available()
x, kernel = jnp.ones((8, 112, 112, 64)), jnp.ones((3, 3, 64, 64))
gradients = jax.jit(jax.grad(lambda *pair: jnp.square(conv2d(*pair)).mean(), (0, 1)))
jax.block_until_ready(gradients(x, kernel))
held = gradients(x, kernel)
gradients(x, kernel)

@jax.jit
def far_apart(x):
    x = conv2d(x, kernel, padding=(1, 1))
    for _ in range(20):
        x = jnp.cumsum(jnp.sin(x), 3)
    return conv2d(x, kernel)

jax.block_until_ready(far_apart(x))
far_apart(x)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_onednn_is_left_out_where_asked():
    program = "from flaxnets.kernels.onednn import calls as onednn; print(onednn.available())"
    environment = os.environ | {"FLAXNETS_ONEDNN": "0"}
    found = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "False"


def test_gpu_and_tpu_keep_the_convolution_of_xla():
    """The formulations are for CPU alone: programs for other platforms have XLA's convolutions,
    even one that was traced for a CPU with a call of oneDNN.
    """
    x, kernel = jnp.zeros((2, 8, 8, 128)), jnp.zeros((3, 3, 8, 128))
    geometry = ((1, 1), (1, 1), (1, 1), 16)

    def program(convolve, traced_for, platform):
        def loss(x, kernel):
            return jnp.sin(convolve(x, kernel)).sum()

        both = jax.jit(jax.value_and_grad(loss, (0, 1)))
        with compiling_for(traced_for):
            return both.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()

    native = program(lambda x, kernel: xla_convolution(x, kernel, geometry), "gpu", "cuda")
    pairs = [("gpu", "cuda"), ("tpu", "tpu"), ("cpu", "cpu")]
    pairs += [("cpu", "cuda"), ("cpu", "tpu")] if onednn.available() else []
    ours = {pair: program(lambda x, kernel: conv2d(x, kernel, *geometry), *pair) for pair in pairs}
    on_cpu = ours.pop(("cpu", "cpu"))
    grouped = "feature_group_count = 16"
    for found in ours.values():
        assert found.count("stablehlo.convolution") == 3
        assert found.count(grouped) == native.count(grouped) > 0
        assert "custom_call" not in found
        assert "dot_general" not in found
    assert grouped not in on_cpu


@pytest.mark.parametrize("size", [(7, 9), (16, 13)], ids=str)
@pytest.mark.parametrize("window", [(3, 3), (7, 7), (5, 3)], ids=str)
@pytest.mark.parametrize("stride", [(2, 2), (4, 4), (2, 3)], ids=str)
@pytest.mark.parametrize("padding", [(0, 0), (3, 2)], ids=str)
def test_a_stride_is_channels(size, window, stride, padding):
    random = np.random.default_rng(0)
    geometry = (stride, padding, (1, 1), 1)
    with jax.enable_x64(True):
        x, kernel = random.normal(size=(2, *size, 3)), random.normal(size=(*window, 3, 5))

        def value_and_gradients(function):
            def loss(x, kernel):
                y = function(x, kernel, geometry)
                return jnp.sin(y).sum(), y

            gradients, y = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(x, kernel)
            return y, gradients

        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-11),
            value_and_gradients(convolution.conv_of_blocks),
            value_and_gradients(xla_convolution),
        )


def test_narrow_first_layers_on_gpus_have_their_stride_as_channels():
    x, kernel = jnp.ones((2, 32, 32, 3), jnp.bfloat16), jnp.ones((7, 7, 3, 8))

    def has_blocks(x):
        program = jax.make_jaxpr(lambda x: conv2d(x, kernel, (2, 2)))(x)
        return "[2,16,16,12]" in str(program)

    assert not has_blocks(x)
    with compiling_for("gpu"):
        assert has_blocks(x)
        assert not has_blocks(x.astype(jnp.float32))
        with plain("convolution"):
            assert not has_blocks(x)


DEPTHWISE = [
    name for name, (shape, *_, groups, _) in CONVOLUTIONS.items() if shape[2:] == (1, groups)
]


@pytest.mark.parametrize("name", DEPTHWISE)
def test_a_depthwise_convolution_is_a_product_over_positions(name):
    x, kernel, geometry = arrays(name)
    assert_same_derivatives(
        lambda x, kernel: convolution.conv_by_positions(x, kernel, geometry),
        lambda x, kernel: xla_convolution(x, kernel, geometry),
        (x, kernel),
    )


@pytest.mark.parametrize(
    ("window", "size", "is_product"), [(7, 7, True), (7, 10, True), (7, 12, False), (5, 7, False)]
)
def test_wide_depthwise_kernels_of_small_maps_are_products_on_gpus(window, size, is_product):
    x, kernel = jnp.ones((2, size, size, 4), jnp.bfloat16), jnp.ones((window, window, 1, 4))
    geometry = ((1, 1), (window // 2, window // 2), (1, 1), 4)

    def is_product_here():
        program = str(jax.make_jaxpr(lambda x: conv2d(x, kernel, *geometry))(x))
        return "dot_general" in program and "conv_general_dilated" not in program

    with compiling_for("gpu"):
        assert is_product_here() == is_product
        with plain("convolution"):
            assert not is_product_here()
    with compiling_for("tpu"):
        assert not is_product_here()
