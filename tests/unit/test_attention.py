"""Attention by cuDNN: when it is chosen, and how its operands are padded. And what XLA multiplies
on GPUs where cuDNN's is not chosen.
"""

import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.kernels import attention as kernel
from flaxnets.kernels.attention import attention
from flaxnets.kernels.platform import compiling_for, plain


@dataclasses.dataclass
class Client:
    platform_version: str = "cuda 13000"


@dataclasses.dataclass
class Device:
    client: Client = dataclasses.field(default_factory=Client)
    compute_capability: str = "9.0"


def operands(queries=9, keys=9, channels=16, dtype: Any = jnp.bfloat16, batch: Any = (2,)):
    arrays = jax.random.split(jax.random.key(0), 3)
    lengths = (queries, keys, keys)
    return [
        jax.random.normal(key, (*batch, length, 3, channels)).astype(dtype)
        for key, length in zip(arrays, lengths, strict=True)
    ]


@pytest.fixture
def cudnn(monkeypatch):
    """Replace cuDNN's kernel by XLA's; return the operands' shapes of its calls."""
    calls, by_jax = [], jax.nn.dot_product_attention

    def by_xla(*operands, implementation, **options):
        assert implementation == "cudnn"
        calls.append((*(x.shape for x in operands), sorted(options)))
        return by_jax(*operands, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
    return calls


@pytest.mark.parametrize(("queries", "keys"), [(9, 9), (8, 8), (8, 5), (7, 8)])
def test_padded_operands_change_neither_values_nor_gradients(queries, keys, cudnn):
    arrays = operands(queries, keys, dtype=jnp.float32)
    found, pull = jax.vjp(kernel._by_cudnn, *arrays)
    expected, pull_expected = jax.vjp(kernel._by_xla, *arrays)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    for ours, theirs in zip(pull(expected), pull_expected(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    ((query, key, value, options),) = cudnn
    even = (keys + keys % 2, 3, 16)
    assert (query[1:], key[1:], value[1:]) == ((queries + queries % 2, 3, 16), even, even)
    lengths = ["key_value_seq_lengths", "query_seq_lengths"] if queries % 2 or keys % 2 else []
    assert options == [*lengths, "scale"]


CASES = {
    "for cuDNN": ({}, Device(), True),
    "Ampere": ({}, Device(compute_capability="8.0"), True),
    "float16": ({"dtype": jnp.float16}, Device(), True),
    "before Ampere": ({}, Device(compute_capability="7.5"), False),
    "AMD": ({}, Device(Client("rocm 6")), False),
    "float32": ({"dtype": jnp.float32}, Device(), False),
    "windows": ({"batch": (2, 4)}, Device(), False),
    "many channels": ({"channels": 136}, Device(), False),
    "channels that are no multiple of 8": ({"channels": 12}, Device(), False),
}


def chooses_cudnn(*arrays, **options) -> bool:
    """Return whether attention is traced with a branch for cuDNN."""
    jaxpr = jax.make_jaxpr(lambda *arrays: attention(*arrays, **options))(*arrays)
    return "platform_index" in str(jaxpr)


@pytest.mark.parametrize("case", CASES)
def test_when_cudnn_is_chosen(case, cudnn, monkeypatch):
    fields, device, expected = CASES[case]
    arrays = operands(**fields)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    with compiling_for("gpu"):
        assert chooses_cudnn(*arrays) == expected


def test_when_xla_is_kept(cudnn, monkeypatch):
    arrays = operands()
    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    assert not chooses_cudnn(*arrays)  # for a CPU
    with compiling_for("gpu"):
        assert not chooses_cudnn(*arrays, bias=jnp.zeros((9, 9)))
        with plain("attention"):
            assert not chooses_cudnn(*arrays)
        batch = jax.export.symbolic_shape("N")
        symbolic = [jax.ShapeDtypeStruct((*batch, *x.shape[1:]), x.dtype) for x in arrays]
        assert not chooses_cudnn(*symbolic)
        assert chooses_cudnn(*arrays)


def test_a_program_traced_for_cudnn_runs_on_a_cpu(cudnn, monkeypatch):
    arrays = operands()
    expected = attention(*arrays)
    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    with compiling_for("gpu"):
        assert chooses_cudnn(*arrays)
        found = jax.jit(lambda *arrays: attention(*arrays))(*arrays)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("with_bias", [False, True])
def test_narrow_gradients_on_gpus_are_products_of_narrow_operands(with_bias):
    arrays = operands(batch=(2, 4))
    if with_bias:
        arrays.append(jax.random.normal(jax.random.key(1), (1, 1, 3, 9, 9)))

    def loss(*arrays):
        return jnp.sin(attention(*arrays).astype(jnp.float32)).sum()

    gradient = jax.grad(loss, tuple(range(len(arrays))))

    def found(*contexts):
        with contextlib.ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context)
            program = jax.make_jaxpr(gradient)(*arrays)
            products = [e for e in program.eqns if e.primitive.name == "dot_general"]
            types = {operand.aval.dtype for e in products for operand in e.invars}
            return attention(*arrays), gradient(*arrays), types

    values, gradients, types = found(compiling_for("gpu"))
    plain_values, plain_gradients, plain_types = found(compiling_for("gpu"), plain("attention"))
    assert (types, plain_types) == (
        {jnp.dtype("bfloat16")},
        {*map(jnp.dtype, ("bfloat16", "float32"))},
    )
    np.testing.assert_array_equal(values, plain_values)

    exact = gradient(*(x.astype(jnp.float32) for x in arrays))

    def errors(gradients):
        pairs = zip(gradients, exact, strict=True)
        return np.array([np.linalg.norm(g - e) / np.linalg.norm(e) for g, e in pairs])

    assert max(errors(gradients)) < 0.01
    assert max(errors(gradients) / errors(plain_gradients)) < 1.5


def test_weights_are_rounded_to_the_type_of_the_values():
    """Those of narrow queries and keys are not, if the values are wide."""
    query, key, value = operands(batch=(2, 4))
    wide = value.astype(jnp.float32)
    with compiling_for("gpu"):
        found = attention(query, key, wide)
        with plain("attention"):
            np.testing.assert_array_equal(found, attention(query, key, wide))
    rounded = attention(query, key, value)
    assert (found.dtype, rounded.dtype) == (jnp.float32, jnp.bfloat16)
    assert jnp.abs(found - rounded).max() < 0.02
