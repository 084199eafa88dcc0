"""The platform that programs are traced for, and a switch that keeps XLA's own operations.

A kernel chooses its formulation by `formulation` when it is traced. Every formulation is right on
every platform. A program that runs on another platform than it was traced for is slower, never
wrong. By default programs are traced for jax's default backend; contexts change this:

    with compiling_for("gpu"):  # on a machine without one
        lowered = jax.jit(step).trace(state, batch).lower(lowering_platforms=("cuda",))
    with plain("pooling", "activation"):  # XLA's own pools and ReLUs; plain() for all kernels
        step(state, batch)

jax's caches know these contexts (`jax.make_user_context`). A jitted function that is called inside
one is traced again, and outside it is what it was before. A context therefore belongs around the
calls of a jitted function, not around `jax.jit`. It applies to one thread.

`on_every_platform` is for a program for several platforms at once, which is traced once for each.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import jax
from jax import lax

from flaxnets.errors import one_of

Platform = Literal["cpu", "gpu", "tpu"]
Kernel = Literal["activation", "attention", "convolution", "folding", "normalization", "pooling"]

_platform = jax.make_user_context(None)
_plain = jax.make_user_context(frozenset())


def platform() -> Platform:
    """Return the platform that programs are traced for: that of the innermost `compiling_for`, or
    jax's default backend.

    For a platform that is none of `Platform`, kernels take XLA's operations.
    """
    name: Any = _platform.value or jax.default_backend()
    return name


@contextlib.contextmanager
def compiling_for(name: Platform) -> Iterator[None]:
    """Trace what is called inside for a platform, whether or not this machine has it.

    Raises InputError for an unknown platform.
    """
    with _platform(one_of(get_args(Platform), name, "platform")):
        yield


@contextlib.contextmanager
def plain(*kernels: Kernel) -> Iterator[None]:
    """Trace what is called inside with XLA's own operations for these kernels, or for all if none
    is named.

    FLAXNETS_PLAIN in the environment, such as "folding,pooling", does this for a whole process.

    Raises InputError for an unknown kernel.
    """
    with _plain(_plain.value | _checked(kernels or get_args(Kernel))):
        yield


def formulation(kernel: Kernel) -> Platform | Literal["plain"]:
    """Return the platform whose formulation a kernel is traced in, or "plain" for XLA's own.

    Raises InputError if FLAXNETS_PLAIN names an unknown kernel.
    """
    is_plain = kernel in _plain.value or kernel in _plain_in_the_environment()
    return "plain" if is_plain else platform()


@functools.cache
def _plain_in_the_environment() -> frozenset[str]:
    names = os.environ.get("FLAXNETS_PLAIN", "").split(",")
    return _checked([name.strip() for name in names if name.strip()], " in FLAXNETS_PLAIN")


def _checked(kernels: Sequence[str], place: str = "") -> frozenset[str]:
    return frozenset(one_of(get_args(Kernel), name, f"kernel{place}") for name in kernels)


def on_every_platform(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` for a program that is lowered for several platforms (`jax.export`).

    It is traced for each platform, and the program selects one of the traces where it runs.
    """

    def traced_for(name: Platform) -> Callable[..., Any]:
        def trace(*operands: Any) -> Any:
            with compiling_for(name):
                return function(*operands)

        return trace

    gpu = traced_for("gpu")
    branches = {"cpu": traced_for("cpu"), "cuda": gpu, "rocm": gpu, "tpu": traced_for("tpu")}
    return lambda *operands: lax.platform_dependent(*operands, **branches)


def on_cuda(function: Callable[..., Any], default: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` for programs that run on an NVIDIA GPU, `default` for all others."""
    return lambda *operands: lax.platform_dependent(*operands, cuda=function, default=default)


def has_cuda() -> bool:
    """Return whether this machine's devices are NVIDIA's GPUs, whatever is traced for."""
    return "cuda" in jax.devices()[0].client.platform_version
