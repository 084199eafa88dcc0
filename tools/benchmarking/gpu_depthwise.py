"""Measure depthwise convolutions on a GPU in several formulations."""

import statistics
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from benchmarking.common import Contender, Row, alternate, spread, timed
from benchmarking.profiling import large_copy
from flaxnets.kernels.convolution import conv_by_positions
from flaxnets.kernels.xla import Geometry, xla_convolution

Array = jax.Array
# Height and width, and channels: ConvNeXt-T's last stage for images of 224 and 384 pixels, and its
# third for 224.
MAPS = ((7, 768), (12, 768), (14, 384))
WINDOW = 7
RESULTS = ("output", "input gradient", "kernel gradient")
WAYS = {"cuDNN": xla_convolution, "positions": conv_by_positions}


def depthwise(_: str, tiny: bool) -> Iterator[Row]:
    """Measure ConvNeXt-T's depthwise convolutions of small maps and their gradients, in bfloat16.

    A row has the milliseconds of one result in one formulation, how many times those of a copy of
    two maps that is, and the relative difference from the first formulation.
    """
    count = 2 if tiny else 256
    copied, copy = large_copy()
    seconds_per_byte = statistics.median(alternate({"copy": copy}, 3)["copy"]) / copied
    for size, channels in [(7, 8)] if tiny else MAPS:
        geometry = ((1, 1), (WINDOW // 2, WINDOW // 2), (1, 1), channels)
        keys = jax.random.split(jax.random.key(0), 3)
        map_shape = (count, size, size, channels)
        x, cotangent = (jax.random.normal(key, map_shape, jnp.bfloat16) for key in keys[:2])
        kernel = jax.random.normal(keys[2], (WINDOW, WINDOW, 1, channels), jnp.bfloat16)
        arrays = (x, kernel, cotangent)
        for result in RESULTS:
            compute = {way: _compiled(convolve, result, geometry) for way, convolve in WAYS.items()}
            values = {way: call(*arrays).astype(jnp.float32) for way, call in compute.items()}
            first = values["cuDNN"]
            contenders = {way: _contender(call, arrays) for way, call in compute.items()}
            for way, seconds in alternate(contenders, 2 if tiny else 3).items():
                median = statistics.median(seconds)
                yield {
                    "size": size,
                    "channels": channels,
                    "batch_size": count,
                    "result": result,
                    "formulation": way,
                    "milliseconds": 1e3 * median,
                    "spread": spread(seconds),
                    "over_copy": median / (2 * x.nbytes * seconds_per_byte),
                    "difference": float(
                        jnp.linalg.norm(values[way] - first) / jnp.linalg.norm(first)
                    ),
                }


def _compiled(
    convolve: Callable[..., Array], result: str, geometry: Geometry
) -> Callable[..., Array]:
    @jax.jit
    def compute(x: Array, kernel: Array, cotangent: Array) -> Array:
        y, gradients = jax.vjp(lambda x, kernel: convolve(x, kernel, geometry), x, kernel)
        return (y, *gradients(cotangent))[RESULTS.index(result)]

    return compute


def _contender(compute: Callable[..., Array], arrays: tuple[Array, ...]) -> Contender:
    """Return a contender that queues calls and waits for the last one."""
    latest = []

    def queue() -> None:
        latest[:] = [compute(*arrays)]

    return timed(queue, lambda: jax.block_until_ready(latest))
