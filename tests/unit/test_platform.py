"""For which platform programs are traced, and which kernels stay XLA's own."""

import pathlib
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import parity
from flaxnets import layers
from flaxnets.errors import InputError
from flaxnets.kernels import platform as kernels_platform
from flaxnets.kernels.convolution import conv2d
from flaxnets.kernels.folding import folded_norms
from flaxnets.kernels.onednn import calls as onednn
from flaxnets.kernels.platform import (
    Kernel,
    compiling_for,
    formulation,
    on_every_platform,
    plain,
    platform,
)

ROOT = pathlib.Path(__file__).parents[2]
CONTEXTS: dict[str, Any] = {
    "platform": lambda: compiling_for("gpu"),
    "one kernel": lambda: plain("pooling"),
    "all kernels": plain,
    "folding": folded_norms,
}


def test_jaxs_default_backend_unless_a_context_says_otherwise():
    assert platform() == jax.default_backend() == "cpu"
    with compiling_for("gpu"):
        assert platform() == "gpu"
        with compiling_for("tpu"):
            assert platform() == "tpu"
        with pytest.raises(InputError), compiling_for("cpu"):
            raise InputError("of what is traced")
        assert platform() == "gpu"
    assert platform() == "cpu"


def test_kernels_are_plain_one_by_one_or_all():
    kernels = set(get_args(Kernel))

    def plain_ones():
        return {kernel for kernel in kernels if formulation(kernel) == "plain"}

    assert plain_ones() == set()
    with plain("pooling"):
        assert plain_ones() == {"pooling"}
        with plain("activation", "folding"), compiling_for("gpu"):
            assert plain_ones() == {"pooling", "activation", "folding"}
            assert formulation("convolution") == "gpu"
    with plain():
        assert plain_ones() == kernels
    assert plain_ones() == set()


@pytest.fixture
def environment(monkeypatch):
    """Set FLAXNETS_PLAIN, which is read once."""

    def set_plain(value):
        kernels_platform._plain_in_the_environment.cache_clear()
        monkeypatch.setenv("FLAXNETS_PLAIN", value)

    yield set_plain
    kernels_platform._plain_in_the_environment.cache_clear()


def test_kernels_are_plain_in_a_whole_process(environment):
    environment("folding, pooling")
    assert formulation("folding") == formulation("pooling") == "plain"
    assert formulation("activation") == "cpu"
    environment("")
    assert formulation("folding") == "cpu"


def test_unknown_names_get_one_sentence(environment):
    wrong: list[Any] = ["cuda", "pool"]
    with pytest.raises(InputError, match="unknown platform 'cuda'; expected one of cpu, gpu, tpu"):
        compiling_for(wrong[0]).__enter__()
    with pytest.raises(InputError, match="unknown kernel 'pool'; did you mean 'pooling'"):
        plain(wrong[1]).__enter__()
    environment("foldng")
    with pytest.raises(InputError, match="kernel in FLAXNETS_PLAIN 'foldng'; did you mean 'fold"):
        formulation("pooling")


@pytest.mark.parametrize("name", CONTEXTS)
def test_jaxs_caches_know_the_contexts(name):
    """A jitted function is traced once inside and once outside, wherever it was traced first."""
    for first_inside in (False, True):
        traced = []

        @jax.jit
        def function(x, traced=traced):
            traced.append(None)
            return x

        for number, inside in enumerate([first_inside, not first_inside] * 2, 1):
            if inside:
                with CONTEXTS[name]():
                    function(1.0)
            else:
                function(1.0)
            assert len(traced) == min(number, 2)


def loss_of_a_stack(x, kernel):
    """Return a number that needs one operation of every kernel that differs between platforms."""
    norm = layers.BatchNorm(use_running_average=False)
    x = conv2d(x, kernel, padding=(1, 1))
    x, _ = norm.init_with_output(jax.random.key(0), x)
    x = layers.relu_of_sum(layers.relu(x) - 0.1)
    return jnp.square(layers.avg_pool(2)(layers.max_pool(3, 1, 1)(x))).mean()


def test_every_formulation_is_right_on_every_platform():
    """Programs that were traced for another platform, and plain ones, run here."""
    x = jnp.asarray(parity.images(8, channels=16))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 16, 32)) / 12
    step = jax.jit(jax.value_and_grad(loss_of_a_stack, (0, 1)))
    expected = step(x, kernel)
    for context in (compiling_for("gpu"), compiling_for("tpu"), plain()):
        with context:
            found = step(x, kernel)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
                     found, expected)  # fmt: skip


@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
def test_plain_kernels_are_operations_of_xla(backend):
    x, kernel = jnp.zeros((2, 8, 8, 16)), jnp.zeros((3, 3, 16, 32))
    step = jax.jit(jax.value_and_grad(loss_of_a_stack, (0, 1)))

    def program():
        return step.lower(x, kernel).as_text()

    with compiling_for(backend), plain():
        found = program()
    assert "custom_call" not in found
    assert found.count("stablehlo.convolution") == 3
    assert found.count("stablehlo.reduce_window") >= 2
    assert found.count("stablehlo.select_and_scatter") == 1

    def gradient(function):
        return str(jax.make_jaxpr(jax.grad(function))(1.0))

    for relu in (layers.relu, layers.relu_of_sum):
        assert gradient(relu) != gradient(jax.nn.relu)
        with plain("activation"):
            assert gradient(lambda x, relu=relu: relu(x)) == gradient(lambda x: jax.nn.relu(x))


def test_a_program_for_several_platforms_has_the_formulation_of_each(monkeypatch):
    """It is `function` as it is traced for the platform it runs on, in values and operations. A
    call of oneDNN cannot be exported.
    """
    monkeypatch.setattr(onednn, "takes", lambda *_: False)
    pool = layers.max_pool(3, 2, 1)

    def gradient(x):
        return jax.grad(lambda x: jnp.square(pool(x)).sum())(x)

    def lowered(function, name):
        traced = jax.jit(function).trace(jnp.zeros((2, 8, 8, 3)))
        return traced.lower(lowering_platforms=(name,)).as_text().count("select_and_scatter")

    every = on_every_platform(gradient)
    assert [lowered(every, name) for name in ("cpu", "cuda", "rocm", "tpu")] == [0, 0, 0, 1]
    x = jnp.asarray(parity.images(8))
    for platforms, scatters in ((("cpu", "cuda"), False), (("cpu", "cuda", "tpu"), True)):
        exported = export.export(jax.jit(every), platforms=platforms)(x)
        assert ("stablehlo.select_and_scatter" in exported.mlir_module()) == scatters
    np.testing.assert_allclose(exported.call(x), gradient(x), rtol=1e-6)


def test_nothing_else_asks_jax_for_the_platform_or_patches_it():
    asking = ("default_backend", "platform_dependent", "patch.object(jax")
    files = [path for part in ("flaxnets", "experiments", "tools") for path in
             (ROOT / part).rglob("*.py")]  # fmt: skip
    found = {path.name for path in files if any(name in path.read_text() for name in asking)}
    assert found == {"platform.py"}
