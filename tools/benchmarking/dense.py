"""Measure the map of a larger picture against the same predictions from separate crops."""

import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarking.common import Options, Row, alternate, timed
from flaxnets import create_model
from flaxnets.inference.dense import cell_stride, convolutionize, map_shape
from flaxnets.layers import avg_pool
from flaxnets.recipes import recipe_for
from flaxnets.summary import summarize, totals
from flaxnets.training.state import init_variables


def measure_dense(arch: str, options: Options) -> Row:
    """Return seconds and multiply-adds of the map and of the crops, and their ratios."""
    model = create_model(arch, dtype=jnp.dtype(options.dtype))
    if not hasattr(model, "dense"):
        return {"note": "no map"}
    batch_size = options.batch_size or 8
    *size, channels = model.input_shape
    side = options.image_size or 2 * max(size)
    input_shape = (side, side, channels)
    variables = init_variables(model, model.input_shape, recipe_for(arch, "small images"), 0)
    # A prediction is the mean of the cells of a crop's map, which is often one cell.
    window, grid = map_shape(model, model.input_shape), map_shape(model, input_shape)
    down, right = map(round, cell_stride(model, model.input_shape))
    rows, columns = (cells - span + 1 for cells, span in zip(grid, window, strict=True))
    corners = [(row * down, column * right) for row, column in np.ndindex(rows, columns)]
    # The last crops may reach over the edge, where a network with padding reads zeros.
    hang = [(0, max(0, corners[-1][axis] + size[axis] - side)) for axis in (0, 1)]
    picture = np.random.default_rng(0).normal(size=input_shape).astype(np.float32)
    padded = np.pad(picture, [*hang, (0, 0)])
    dense = convolutionize(model)

    @jax.jit
    def from_map(variables: Any, images: jax.Array) -> jax.Array:
        logits: Any = dense.apply(variables, images)
        return avg_pool(window, 1)(logits)

    from_crop = jax.jit(model.apply)

    def one_map() -> None:
        jax.block_until_ready(from_map(variables, picture[None]))

    def crops() -> None:
        for first in range(0, len(corners), batch_size):
            batch = [
                padded[top : top + size[0], left : left + size[1]]
                for top, left in corners[first : first + batch_size]
            ]
            batch += batch[-1:] * (batch_size - len(batch))  # so that one program is compiled
            jax.block_until_ready(from_crop(variables, np.stack(batch)))

    contenders = {"map": timed(one_map), "crops": timed(crops)}
    seconds = alternate(contenders, options.rounds)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    of_map = totals(summarize(dense, input_shape))["multiply_adds"]
    of_crops = len(corners) * totals(summarize(model, model.input_shape))["multiply_adds"]
    return {
        "image_size": side,
        "predictions": len(corners),
        "map_seconds": median["map"],
        "crops_seconds": median["crops"],
        "seconds_ratio": median["crops"] / median["map"],
        "map_multiply_adds": of_map,
        "crops_multiply_adds": of_crops,
        "multiply_adds_ratio": of_crops / of_map,
    }
