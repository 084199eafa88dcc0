"""A norm by running averages as part of the convolution before it, for GPUs.

There a separate norm between two convolutions is a pass over the map, which takes the time of the
memory. Multiplied into the kernel, its factor costs nothing. Its shift is a bias, which cuDNN's
convolution fuses with the ReLU and the sum that follow: ResNet-50's inference moves 0.63 of the
bytes and takes 0.76 of the time (H100, 256 images in bfloat16, jax 0.11.2; CONTRIBUTING.md has the
table). Elsewhere no time was measured: `plain("folding")` or FLAXNETS_PLAIN=folding switches it off
(`flaxnets.kernels.platform`).

    with folded_norms():  # in a function that jax traces: an evaluation or prediction step
        logits = model.apply(variables, images)

Inside, a convolution remembers how its output was made, and a norm that recalls this has the output
made again, scaled and shifted. The first output is then unused, and XLA eliminates it. Operations
that run one by one stay as they are, for nothing would eliminate it there. TPUs fuse the norm by
themselves; on CPUs it did not help (see `flaxnets.kernels.convolution`).
"""

import contextlib
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import jax
from jax.core import Tracer

from flaxnets.kernels.platform import formulation

Array = jax.Array
# Of a factor and a shift (C,): the convolution's output times the factor plus the shift.
Affine = Callable[[Array, Array], Array]

# How the outputs of the innermost context were made, by their `id`: tracers have no hash.
_outputs: ContextVar[dict[int, Affine] | None] = ContextVar("outputs", default=None)
_is_on = jax.make_user_context(False)  # a function that is jitted outside is traced again inside


@contextlib.contextmanager
def folded_norms() -> Iterator[None]:
    """Fold norms by running averages that follow a convolution, in what is traced inside for GPUs.

    What it remembers is gone when the context ends.
    """
    token = _outputs.set({})
    try:
        with _is_on(True):
            yield
    finally:
        _outputs.reset(token)


def remember(output: Array, affine: Affine) -> None:
    """Note that `affine` makes the convolution's `output` (..., C) again, scaled and shifted.

    It must not hold the module: through its scope, which holds what later layers leave there, the
    output would live as long as the context.
    """
    outputs = _outputs.get()
    if outputs is None or formulation("folding") != "gpu" or not isinstance(output, Tracer):
        return
    outputs[id(output)] = affine
    # Another array may have this `id` afterwards, and jax.checking_leaks would find what is held.
    weakref.finalize(output, outputs.pop, id(output))


def recall(x: Array) -> Affine | None:
    """Return how `x` was made, or None where it is no convolution's output or stays as it is."""
    return (_outputs.get() or {}).get(id(x))
