"""The floating-point type that a run computes in."""

import warnings
from typing import Literal

import jax

from flaxnets.errors import InputWarning
from flaxnets.kernels.platform import platform
from flaxnets.kernels.precision import multiplies_bfloat16

Dtype = Literal["float32", "bfloat16"]


def dtype_of_run(requested: Dtype | Literal["auto"], before: str | None = None) -> Dtype:
    """Return the type that a run computes in, which config.json stores.

    With "auto" a run that is continued keeps its type (`before`). A new run gets bfloat16 if the
    device multiplies it in hardware, and float32 otherwise.

    On a CPU that does not multiply bfloat16 in hardware, a new run computes in float32 although
    bfloat16 was requested, and a warning says so. A run that began in bfloat16 continues in it.
    """
    in_hardware = multiplies_bfloat16()
    if requested == "auto":
        if before in ("float32", "bfloat16"):
            return before
        return "bfloat16" if in_hardware else "float32"
    if requested == "bfloat16" != before and platform() == "cpu" and not in_hardware:
        if jax.process_index() == 0:
            warnings.warn(
                "this CPU does not multiply bfloat16 in hardware; the run computes in float32",
                InputWarning,
                stacklevel=3,
            )
        return "float32"
    return requested
