"""What follows a convolution as part of it, in evaluation and prediction.

There a separate norm between two convolutions is a pass over the map, which takes the time of the
memory.

- On GPUs a norm by running averages is folded into the convolution before it. Multiplied into the
  kernel, its factor costs nothing. Its shift is a bias, which cuDNN's convolution fuses with the
  ReLU and the sum that follow: ResNet-50's inference moves 0.63 of the bytes and takes 0.76 of the
  time (H100, 256 images in bfloat16, jax 0.11.2; CONTRIBUTING.md has the table).
- On CPUs, in bfloat16 alone, oneDNN's call of the convolution has the norm, a residual sum and the
  ReLU after it (`flaxnets.kernels.convolution`).

`plain("folding")` or FLAXNETS_PLAIN=folding switches it off (`flaxnets.kernels.platform`).

    with folded_norms():  # in a function that jax traces: an evaluation or prediction step
        logits = model.apply(variables, images)

Inside, a convolution remembers how its output was made, and what follows and recalls this has the
output made again with it. The first output is then unused, and XLA eliminates it. Operations that
run one by one stay as they are, for nothing would eliminate it there. TPUs fuse the norm by
themselves.
"""

import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import jax
from jax.core import Tracer

from flaxnets.kernels.platform import formulation

Array = jax.Array
Affine = tuple[Array, Array]  # of each channel (C,): a factor, and a shift that is then added


@dataclasses.dataclass(frozen=True)
class Output:
    """How a convolution's output is made.

    It must not hold the module: through its scope, which holds what later layers leave there, the
    output would live as long as the context.
    """

    # Of an affine, an array of the output's shape that is then added or None, and whether a ReLU
    # follows, where they are fused.
    make: Callable[[Affine | None, Array | None, bool], Array]
    affine: Affine | None = None  # fused already

    def normed(self, affine: Affine, relu: bool) -> Array:
        """Return the output times a factor plus a shift, and with `relu` its ReLU."""
        if formulation("folding") == "gpu":
            y = self.make(affine, None, False)
            return jax.nn.relu(y) if relu else y
        y = self.make(affine, None, relu)
        if not relu:
            remember(y, dataclasses.replace(self, affine=affine))
        return y


# How the outputs of the innermost context were made, by their `id`: tracers have no hash.
_outputs: ContextVar[dict[int, Output] | None] = ContextVar("outputs", default=None)
_is_on = jax.make_user_context(False)  # a function that is jitted outside is traced again inside


@contextlib.contextmanager
def folded_norms() -> Iterator[None]:
    """Fuse what follows a convolution with it, in what is traced inside for GPUs, and in bfloat16
    for CPUs.

    What it remembers is gone when the context ends.
    """
    token = _outputs.set({})
    try:
        with _is_on(True):
            yield
    finally:
        _outputs.reset(token)


def remember(output: Array, made: Output) -> None:
    """Note how a convolution's `output` (..., C) is made."""
    outputs = _outputs.get()
    if outputs is None or formulation("folding") not in ("cpu", "gpu"):
        return
    if not isinstance(output, Tracer):
        return
    outputs[id(output)] = made
    # Another array may have this `id` afterwards, and jax.checking_leaks would find what is held.
    weakref.finalize(output, outputs.pop, id(output))


def recall(x: Array) -> Output | None:
    """Return how `x` was made, or None where it is no convolution's output or stays as it is."""
    made = (_outputs.get() or {}).get(id(x))
    return None if made is None or made.affine is not None else made


def rectified(x: Array, addend: Array | None = None) -> Array | None:
    """Return the ReLU of `x`, or of its sum with `addend`, as part of the convolution that `x` is
    the output of; None where it is none or another pass is as fast.
    """
    made = (_outputs.get() or {}).get(id(x))
    if made is None or formulation("folding") != "cpu":
        return None
    return made.make(made.affine, addend, True)
