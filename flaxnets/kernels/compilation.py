"""How XLA compiles a program for CPUs whose layers have many different shapes.

XLA's CPU backend makes one kernel of equal fusions, but makes each kernel with its newer emitters,
which take three times as long as the older ones. Those make a kernel of every fusion. Of 48
different fusions, 0.70 s of a core become 0.21 s; of 400 equal ones, 0.18 s would become 1.9 s. In
most networks the blocks of a stage are equal; in a DenseNet hardly two layers are. Kernels of both
emitters are equally fast.
"""

import functools
from typing import Any

import jax

from flaxnets.kernels.platform import platform

# A DenseNet for small images has 86 shapes or more and fewer than four parameters of each; an
# EfficientNet-B7 has 79 and nine of each.
MANY_SHAPES = 80
FEW_OF_EACH = 4
# The older emitters, and as many LLVM modules as two cores compile at once instead of 32.
OLDER_EMITTERS = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 2}


def compiler_options(params: Any) -> dict[str, Any]:
    """Return the options of XLA (`jax.jit(..., compiler_options=...)`) for a program of a network.

    Args:
        params: the network's parameters, or their shapes.
    """
    leaves = jax.tree.leaves(params)
    shapes = {leaf.shape for leaf in leaves}
    differ = len(shapes) >= MANY_SHAPES and len(leaves) < FEW_OF_EACH * len(shapes)
    return OLDER_EMITTERS if differ and platform() == "cpu" and _are_known() else {}


@functools.cache
def _are_known() -> bool:
    """Return whether this version of XLA has the options; it raises for one that it lacks."""
    try:
        jax.jit(lambda x: x).lower(0.0).compile(compiler_options=OLDER_EMITTERS)
    except jax.errors.JaxRuntimeError:
        return False
    return True
