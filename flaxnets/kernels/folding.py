"""A batch norm by running averages as part of the convolution in front of it, for GPUs.

There a norm of its own, between two convolutions, is a pass over the map: time of the memory.
Multiplied into the kernel, its factor costs nothing, and cuDNN's convolution takes what is left, a
bias, along with the ReLU and the sum behind it: ResNet-50's inference moves 0.63 of the bytes.

A convolution says how its output was made, by `remember`, and the norm has it made anew, scaled and
shifted, by `recall`. The first one is then read by nobody, and XLA leaves it out. So it is done
only where a program is traced. TPUs take the norm along by themselves; on CPUs it brought nothing
(see `flaxnets.kernels.convolution`).
"""

import weakref
from collections.abc import Callable

import jax
from jax.core import Tracer

Array = jax.Array
# Of a factor and a shift (C,): the output times the factor plus the shift.
Affine = Callable[[Array, Array], Array]

_how: dict[int, Affine] = {}  # by identity, as long as the array lives: tracers have no hash


def remember(output: Array, affine: Affine) -> None:
    """`affine` makes the convolution's `output` (..., C) anew, scaled and shifted.

    It must not hold the module: through its scope, which holds what later layers leave there, the
    output would live for ever.
    """
    if isinstance(output, Tracer) and jax.default_backend() == "gpu":
        _how[id(output)] = affine
        weakref.finalize(output, _how.pop, id(output))


def recall(x: Array) -> Affine | None:
    """None where `x` is not a convolution's output, or is to stay as it is."""
    return _how.get(id(x))
