"""The floating-point type that a run computes in."""

import warnings
from typing import Literal

import jax

from flaxnets.errors import InputWarning
from flaxnets.kernels.platform import platform
from flaxnets.kernels.precision import multiplies_bfloat16

Dtype = Literal["float32", "bfloat16"]


def dtype_of_run(asked: Dtype | Literal["auto"], before: str | None = None) -> Dtype:
    """Return the type that a run computes in, which is stored with it.

    "auto" is the type of the run `before` it goes on, or of a new run bfloat16 where the device
    multiplies that in hardware, else float32. On a CPU that does not, a run that asks for bfloat16
    computes in float32, and a warning says so, unless it went on in bfloat16 `before`.
    """
    in_hardware = multiplies_bfloat16()
    if asked == "auto":
        if before in ("float32", "bfloat16"):
            return before
        return "bfloat16" if in_hardware else "float32"
    if asked == "bfloat16" != before and platform() == "cpu" and not in_hardware:
        if jax.process_index() == 0:
            warnings.warn(
                "this CPU does not multiply bfloat16 in hardware; the run computes in float32",
                InputWarning,
                stacklevel=3,
            )
        return "float32"
    return asked
