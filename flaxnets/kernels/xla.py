"""XLA's own convolution, which every formulation must equal, and the size of its output."""

import jax
from jax import lax

from flaxnets.kernels.geometry import Pair

Array = jax.Array
Geometry = tuple[Pair, Pair, Pair, int]  # stride, padding, dilation, groups


def xla_convolution(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """Return the convolution in XLA's own operation."""
    stride, padding, dilation, groups = geometry
    return lax.conv_general_dilated(
        x,
        kernel,
        stride,
        [(pad, pad) for pad in padding],
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def output_map(x: Array, kernel: Array, geometry: Geometry) -> Pair:
    """Return the height and width of the convolution's output."""
    sizes = zip(x.shape[1:3], kernel.shape[:2], *geometry[:3], strict=True)
    height, width = (
        (n + 2 * pad - (cells - 1) * spread - 1) // step + 1
        for n, cells, step, pad, spread in sizes
    )
    return height, width
