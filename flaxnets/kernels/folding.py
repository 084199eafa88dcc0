"""Fuse what follows a convolution into it.

A separate norm between two convolutions passes over the map and is bound by memory.

- On GPUs a norm by running averages is folded into the convolution before it. Multiplied into the
  kernel, its factor costs nothing. Its shift becomes a bias, which cuDNN's convolution fuses with
  the ReLU and the sum that follow. ResNet-50's inference moves 0.63 of the bytes and takes 0.76 of
  the time (H100, 256 images in bfloat16, jax 0.11.2; docs/performance.md has the table).
- In training on GPUs, in 16 bits, the same is done with a norm by the batch's moments if it follows
  a pointwise convolution that widens the map: the moments of its output are found in its narrower
  input (`flaxnets.kernels.moments`). ResNet-50's training step moves 0.8 of the bytes.
- On CPUs, only in bfloat16, oneDNN's call of the convolution includes the following norm, residual
  sum and ReLU (`flaxnets.kernels.convolution`). Training does without.

`plain("folding")` or FLAXNETS_PLAIN=folding switches folding off (`flaxnets.kernels.platform`).

    with folded_norms():  # in a function that jax traces: an evaluation or prediction step
        logits = model.apply(variables, images)
    with folded_norms("gpu"):  # a training step
        logits, state = model.apply(variables, images, train=True, mutable="batch_stats")

Inside this context a convolution remembers how to recompute its output. What follows recalls this
and recomputes the output with itself included. The first output is then unused, and XLA eliminates
it. Operations that run one by one are not folded, because nothing would eliminate the first output.
TPUs fuse the norm by themselves.
"""

import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import jax
from jax.core import Tracer

from flaxnets.kernels.platform import Platform, formulation

Array = jax.Array
Affine = tuple[Array, Array]  # a factor and a shift, which is then added, of each channel (C,)


@dataclasses.dataclass(frozen=True)
class Product:
    """A convolution that is a matrix product at each position: `x` (N, H, W, C) times `weights`
    (C, O), plus `bias` (O,) if it has one.
    """

    x: Array
    weights: Array
    bias: Array | None


@dataclasses.dataclass(frozen=True)
class Output:
    """A way to recompute a convolution's output.

    It must not hold the module. The module's scope holds what later layers leave there, so the
    output would live as long as the context.
    """

    # Takes what to fuse: an affine or None, an array of the output's shape to add or None, and
    # whether a ReLU follows.
    make: Callable[[Affine | None, Array | None, bool], Array]
    affine: Affine | None = None  # what is fused already
    product: Product | None = None  # the convolution as a matrix product, if it is one

    def normed(self, affine: Affine) -> Array:
        """Return the output times a factor plus a shift. `rectified` can fuse in what follows."""
        y = self.make(affine, None, False)
        remember(y, dataclasses.replace(self, affine=affine))
        return y


# How to recompute the outputs of the innermost context, by their `id`, because tracers have no
# hash.
_outputs: ContextVar[dict[int, Output] | None] = ContextVar("outputs", default=None)
# The platforms that fold. It makes jax trace a function again inside the context.
_folding = jax.make_user_context(())


@contextlib.contextmanager
def folded_norms(*platforms: Platform) -> Iterator[None]:
    """Fuse what follows a convolution into it, in what is traced inside for GPUs, or in bfloat16
    for CPUs; or only for the given `platforms`.

    What the context remembers is released when it ends.
    """
    token = _outputs.set({})
    try:
        with _folding(platforms or ("cpu", "gpu")):
            yield
    finally:
        _outputs.reset(token)


def remember(output: Array, made: Output) -> None:
    """Remember how to recompute a convolution's `output` (..., C)."""
    outputs = _outputs.get()
    if outputs is None or formulation("folding") not in _folding.value:
        return
    if not isinstance(output, Tracer):
        return
    outputs[id(output)] = made
    # A later array may get the same `id`, and jax.checking_leaks would report what is still held.
    weakref.finalize(output, outputs.pop, id(output))


def recall(x: Array) -> Output | None:
    """Return how to recompute `x`, or None if it is not a convolution's output or already has its
    norm.
    """
    made = (_outputs.get() or {}).get(id(x))
    return None if made is None or made.affine is not None else made


def rectified(x: Array, addend: Array | None = None) -> Array | None:
    """Return the ReLU of `x`, or of its sum with `addend`, computed by the convolution whose output
    is `x`.

    Return None if `x` is not such an output, or where a separate pass is as fast.
    """
    made = (_outputs.get() or {}).get(id(x))
    if made is None or formulation("folding") != "cpu":
        return None
    return made.make(made.affine, addend, True)
