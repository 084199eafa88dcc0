"""Prints whether convolutions and batch norms on this machine's CPU are oneDNN's, and why not."""

import os

import jax
import jax.numpy as jnp

from flaxnets.kernels.convolution import conv2d
from flaxnets.kernels.normalization import batch_norm
from flaxnets.kernels.onednn import calls
from flaxnets.kernels.onednn.library import library_version
from flaxnets.kernels.platform import compiling_for


def step(x: jax.Array, kernel: jax.Array, vector: jax.Array) -> jax.Array:
    """Return a number that depends on a convolution and a batch norm with its ReLU."""
    return batch_norm(conv2d(x, kernel), vector, vector, 1e-5, relu=True)[0].mean()


def main() -> None:
    """Trace, compile and run a training step for the CPU, and count the calls in its program."""
    if not calls.available():
        off = os.environ.get("FLAXNETS_ONEDNN") == "0"
        reason = "FLAXNETS_ONEDNN is 0" if off else "the package onednn-cpu-gomp is not installed"
        print(f"oneDNN is not used: {reason}")
        return
    operands = jnp.ones((8, 16, 16, 32)), jnp.ones((3, 3, 32, 32)), jnp.ones(32)
    operands = jax.device_put(operands, jax.devices("cpu")[0])
    with compiling_for("cpu"):
        compiled = jax.jit(jax.grad(step, (0, 1, 2))).lower(*operands).compile()
    jax.block_until_ready(compiled(*operands))
    program = compiled.as_text() or ""
    interface = ".".join(map(str, calls.version))
    print(f"oneDNN {library_version()} is used, by XLA's foreign function interface {interface}")
    for target in (calls.CONVOLUTION, calls.BATCH_NORM):
        count = program.count(f'custom_call_target="{target}"')
        print(f"{target}: {count} calls in a training step of one layer")


if __name__ == "__main__":
    main()
