"""Norms by running averages in the kernels of the convolutions in front, as on GPUs."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import parity
from flaxnets.kernels import folding
from flaxnets.kernels.onednn import calls as onednn
from flaxnets.layers import BatchNorm, Conv, Sequential, relu
from networks import CASES


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    yield
    assert not folding._how


def as_on_gpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


class Block(nn.Module):
    """A norm with its ReLU, one without, and one that has no convolution in front."""

    groups: int = 1
    use_bias: bool = False
    use_running_average: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        conv = functools.partial(Conv, use_bias=self.use_bias, dtype=self.dtype)
        norm = functools.partial(
            BatchNorm, use_running_average=self.use_running_average, dtype=self.dtype
        )
        y = norm(name="bn1")(conv(8, 3, 2, 1, groups=self.groups, name="conv1")(x), relu=True)
        y = Sequential([conv(4, 1), norm()], name="downsample")(y)
        return norm(name="bn2")(relu(y))


def variables_of(model, x):
    """With statistics that matter."""
    variables = model.init(jax.random.key(0), x)
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    change = [jax.random.uniform(key, each.shape) for key, each in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, [a + b for a, b in zip(leaves, change, strict=True)])


def passes(function, *operands) -> int:
    """Subtractions of means from maps, in norms that are passes of their own."""
    program = jax.jit(function).trace(*operands).lower(lowering_platforms=("cuda",)).as_text()
    return len(re.findall(r"stablehlo.subtract .*tensor<\d+x\d+x\d+x\d+x", program))


def assert_close(found, expected):
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, found, expected)


@pytest.mark.parametrize(("groups", "use_bias"), [(1, False), (2, True)])
def test_values_and_gradients(groups, use_bias, monkeypatch):
    """Of images, parameters and statistics, also under `jax.vmap`."""
    block, x = Block(groups, use_bias), jnp.asarray(parity.images(6, channels=4))
    variables = variables_of(block, x)

    def results(variables, x):
        def loss(variables, x):
            return jnp.square(block.apply(variables, x)).mean()

        both = jax.value_and_grad(loss, (0, 1))
        return both(variables, x), jax.vmap(both, (None, 0))(variables, jnp.stack([x, -x]))

    expected = jax.jit(results)(variables, x)
    assert passes(block.apply, variables, x) == 3
    as_on_gpu(monkeypatch)
    assert passes(block.apply, variables, x) == 1  # of the one without a convolution
    with jax.checking_leaks():
        found = jax.jit(lambda *operands: results(*operands))(variables, x)  # traced anew
    assert_close(found, expected)


def test_a_norm_by_the_batch_stays(monkeypatch):
    block, x = Block(use_running_average=False), jnp.asarray(parity.images(6, channels=4))
    variables = variables_of(block, x)

    def results():
        return jax.jit(functools.partial(block.apply, mutable="batch_stats"))(variables, x)

    expected = results()
    as_on_gpu(monkeypatch)
    assert_close(results(), expected)


def test_operations_one_by_one_stay(monkeypatch):
    """There the first convolution would be computed for nobody."""
    block, x = Block(), jnp.asarray(parity.images(6, channels=4))
    variables = variables_of(block, x)
    expected = block.apply(variables, x)
    as_on_gpu(monkeypatch)
    np.testing.assert_array_equal(block.apply(variables, x), expected)


@parity.onednn_only
def test_each_convolution_is_computed_once(monkeypatch):
    block, x = Block(), jnp.asarray(parity.images(6, channels=4))
    as_on_gpu(monkeypatch)
    variables = variables_of(block, x)
    program = jax.jit(block.apply).lower(variables, x).compile().as_text()
    assert program.count(f'custom_call_target="{onednn.CONVOLUTION}"') == 2


def test_bfloat16_is_as_exact(monkeypatch):
    """Beside float32: rounding the kernel with its factor costs no digit."""
    x = jnp.asarray(parity.images(16, channels=4))
    half = Block(dtype=jnp.bfloat16)
    variables = variables_of(half, x)
    exact = Block().apply(variables, x)

    def error():
        forward = jax.jit(lambda *operands: half.apply(*operands))  # traced anew
        return jnp.abs(forward(variables, x) - exact).mean()

    apart = error()
    as_on_gpu(monkeypatch)
    assert 0 < error() < 1.2 * apart


@pytest.mark.parametrize("name", ["vgg11_bn", "resnext50_32x4d"])
def test_logits(name, monkeypatch):
    as_on_gpu(monkeypatch)
    case = CASES[name]
    model, reference = parity.build_pair(name, case)
    assert parity.logits_error(model, reference, parity.images(64)) < case.logits_bound
