"""Norms by running averages in the kernels of the convolutions in front, as on GPUs."""

import contextlib
import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import parity
from flaxnets import create_model
from flaxnets.inference.dense import probability_maps
from flaxnets.inference.predict import make_predict_step
from flaxnets.initializers import drawn
from flaxnets.kernels import folding
from flaxnets.kernels.folding import folded_norms
from flaxnets.kernels.onednn import operations
from flaxnets.kernels.platform import compiling_for, plain
from flaxnets.layers import BatchNorm, Conv, Sequential, relu, relu_of_sum
from flaxnets.training.parallel import DataParallel
from flaxnets.training.step import make_eval_step
from networks import CASES
from parity import bfloat16_only, computed


@contextlib.contextmanager
def as_on_gpu():
    """As in a prediction step for a GPU; what is traced leaves nothing behind."""
    with compiling_for("gpu"), folded_norms():
        yield
        assert folding._outputs.get() == {}
    assert folding._outputs.get() is None


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
    random = np.random.default_rng(1)
    variables = drawn(model.init)(jax.random.key(0), x)
    return jax.tree.map(lambda leaf: leaf + random.random(leaf.shape, np.float32), variables)


def passes(function, *operands) -> int:
    """Subtractions of means from maps, in norms that are passes of their own."""
    program = jax.jit(function).trace(*operands).lower(lowering_platforms=("cuda",)).as_text()
    return len(re.findall(r"stablehlo.subtract .*tensor<\d+x\d+x\d+x\d+x", program))


def assert_close(found, expected):
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, found, expected)


@pytest.mark.parametrize(("groups", "use_bias"), [(1, False), (2, True)])
def test_values_and_gradients(groups, use_bias):
    """Gradients of images, parameters and statistics are the same, also under `jax.vmap`."""
    block, x = Block(groups, use_bias), jnp.asarray(parity.images(6, channels=4))
    variables = variables_of(block, x)

    def results(variables, x):
        def loss(variables, x):
            outputs: Any = block.apply(variables, x)
            return jnp.square(outputs).mean()

        both = jax.value_and_grad(loss, (0, 1))
        return both(variables, x), jax.vmap(both, (None, 0))(variables, jnp.stack([x, -x]))

    expected = jax.jit(results)(variables, x)
    with as_on_gpu(), jax.checking_leaks():
        found = jax.jit(results)(variables, x)
    assert_close(found, expected)


def test_where_norms_are_folded():
    """On GPUs, inside the context, unless it is switched off. The context is that of the call, not
    of the first trace.
    """
    block, x = Block(), jnp.asarray(parity.images(6, channels=4))
    variables = variables_of(block, x)
    assert passes(block.apply, variables, x) == 3
    with folded_norms():
        assert passes(block.apply, variables, x) == 3
    with compiling_for("gpu"):
        assert passes(block.apply, variables, x) == 3
        with folded_norms():
            assert passes(block.apply, variables, x) == 1  # of the one without a convolution
            with plain("folding"):
                assert passes(block.apply, variables, x) == 3
        assert passes(block.apply, variables, x) == 3


@pytest.mark.parametrize(("step", "norms"), [("evaluation", 19), ("prediction", 19), ("map", 38)])
def test_the_steps_that_fold(step, norms):
    """Every norm of the network, which a map asks twice; their callers need not enter a context."""
    model = create_model("resnet20_cifar")
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    statistics = ((0.5,) * 3, (0.25,) * 3)
    batch = {"image": jnp.zeros((2, 32, 32, 3)), "label": jnp.zeros(2, int), "mask": jnp.ones(2)}
    if step == "map":
        function, operand = functools.partial(probability_maps, model), batch["image"]
    else:
        make = make_eval_step if step == "evaluation" else make_predict_step
        function = DataParallel(devices=jax.devices()[:1]).map(make(model, statistics))
        operand = batch
    before = passes(function, variables, operand)
    with compiling_for("gpu"):
        assert before - passes(function, variables, operand) == norms


def test_a_norm_by_the_batch_stays():
    block, x = Block(use_running_average=False), jnp.asarray(parity.images(6, channels=4))
    variables = variables_of(block, x)

    def results():
        return jax.jit(functools.partial(block.apply, mutable="batch_stats"))(variables, x)

    expected = results()
    with as_on_gpu():
        assert_close(results(), expected)


def test_operations_one_by_one_stay():
    """There the first convolution would be computed and not used."""
    block, x = Block(), jnp.asarray(parity.images(6, channels=4))
    variables = variables_of(block, x)
    with compiling_for("gpu"):
        expected = block.apply(variables, x)
    with as_on_gpu():
        np.testing.assert_array_equal(block.apply(variables, x), expected)


def test_each_convolution_is_computed_once():
    block, x = Block(), jnp.asarray(parity.images(6, channels=4))
    variables = variables_of(block, x)

    def operations() -> float:
        cost: Any = jax.jit(block.apply).lower(variables, x).compile().cost_analysis()
        return cost["flops"]

    with plain():
        unfolded = operations()
    with as_on_gpu():
        folded = operations()
    first = 2 * 2 * 3 * 3 * 9 * 4 * 8  # of the first convolution, for two images
    assert folded < unfolded + first / 2


def test_bfloat16_is_as_exact():
    """Beside float32: rounding the kernel with its factor costs no digit."""
    x = jnp.asarray(parity.images(16, channels=4))
    half = Block(dtype=jnp.bfloat16)
    variables = variables_of(half, x)
    exact: Any = Block().apply(variables, x)

    @jax.jit
    def error():
        outputs: Any = half.apply(variables, x)
        return jnp.abs(outputs - exact).mean()

    apart = error()
    with as_on_gpu():
        assert 0 < error() < 1.2 * apart


@pytest.mark.parametrize("name", ["vgg11_bn", "resnext50_32x4d"])
def test_logits(name):
    case = CASES[name]
    model, reference = parity.build_pair(name, case)
    with as_on_gpu():
        error = parity.logits_error(model, reference, parity.images(64))
    assert error < case.logits_bound


class Residual(nn.Module):
    """A biased convolution with its ReLU; two with norms, in a residual block; a norm alone."""

    dtype: jnp.dtype = jnp.bfloat16

    @nn.compact
    def __call__(self, x):
        norm = functools.partial(BatchNorm, use_running_average=True, dtype=self.dtype)
        conv = functools.partial(Conv, 16, 3, padding=1, dtype=self.dtype)
        x = relu(conv(name="conv0")(x))
        y = norm(name="bn1")(conv(use_bias=False, name="conv1")(x), relu=True)
        y = norm(name="bn2")(conv(groups=2, name="conv2")(y))
        return norm(name="bn3")(relu_of_sum(y, x))


def in_bfloat16(seed=0):
    """The network, its variables, and images."""
    block, x = Residual(), jnp.asarray(parity.images(9, channels=4, seed=seed))
    return block, variables_of(block, x), x


@bfloat16_only
def test_in_bfloat16_a_cpus_convolutions_have_what_follows(monkeypatch):
    """Each is computed once, with its operands, and more exactly than the operations one by one."""
    block, variables, x = in_bfloat16()

    def folded(variables, x):
        with folded_norms():
            return block.apply(variables, x)

    exact: Any = Residual(jnp.float32).apply(variables, x)
    jax.block_until_ready(exact)  # so that its convolutions are not counted
    calls = computed(operations.Convolution, monkeypatch)
    ours = jax.jit(folded)(variables, x).block_until_ready()
    # Each has input, kernel, output, scratchpad and its ReLU's slope. They add a bias; factor and
    # shift of a norm; both and the residual sum.
    arguments = [len(call.steps[-1].arguments) for call in calls]
    assert arguments == [5 + 1, 5 + 2, 5 + 1 + 2 + 1]
    apart = jax.jit(block.apply)(variables, x)
    assert ours.dtype == apart.dtype == jnp.bfloat16
    error = np.abs(ours.astype(jnp.float32) - exact)
    assert 0 < error.mean() < np.abs(apart.astype(jnp.float32) - exact).mean()
    assert error.max() < 2**-6 * np.abs(exact).max()


@bfloat16_only
def test_in_bfloat16_gradients_and_vmap_are_those_of_the_operations():
    """Beside float32 they are as exact as those of the operations one by one. A fixed bound would
    not hold: rounding moves values across the zero of a ReLU.
    """
    block, variables, x = in_bfloat16()

    def gradients(model, variables, x, fold=True):
        def loss(variables, x):
            with folded_norms() if fold else contextlib.nullcontext():
                return jnp.square(model.apply(variables, x).astype(jnp.float32)).mean()

        return jax.grad(loss, (0, 1))(variables, x)

    exact = jax.jit(functools.partial(gradients, Residual(jnp.float32)))(variables, x)

    def error(tree):
        """Return the root mean square error beside float32, relative, as a mean over the arrays."""
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(tree))
        ratios = jax.tree.map(lambda a, b: jnp.linalg.norm(a - b) / jnp.linalg.norm(b), tree, exact)
        return np.mean(jax.tree.leaves(ratios))

    apart = error(jax.jit(functools.partial(gradients, block, fold=False))(variables, x))
    assert 0 < error(jax.jit(functools.partial(gradients, block))(variables, x)) < 1.5 * apart
    mapped = jax.jit(jax.vmap(functools.partial(gradients, block), (None, 0)))
    both = mapped(variables, jnp.stack([x, x]))
    assert 0 < error(jax.tree.map(lambda leaf: leaf[1], both)) < 1.5 * apart


@bfloat16_only
def test_in_bfloat16_nan_stays():
    """In the windows of the pixel that it stands in, through sums and ReLUs."""
    block, variables, x = in_bfloat16()
    x = x.at[1, 0, 0, 2].set(jnp.nan)

    @jax.jit
    def folded(variables, x):
        with folded_norms():
            return block.apply(variables, x)

    found = np.isnan(folded(variables, x))
    np.testing.assert_array_equal(found[1, :4, :4], True)  # of three convolutions
    assert not found[0].any()
    assert not found[1, 4:].any()
    assert not found[1, :, 4:].any()
