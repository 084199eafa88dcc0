"""Compile a network's functions once, and apply them to pictures in batches."""

import operator
from collections.abc import Callable, Hashable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.data.plan import Plan
from flaxnets.inference.inputs import as_list, as_raw, name_of
from flaxnets.recipes import Statistics

BATCH = 32  # views of pictures that are computed at once

# Variables, views of pictures (N, V, H, W, C) under keys, and statistics -> a tree of (N, ...).
Function: TypeAlias = Callable[[Any, dict[str, jax.Array], Any], Any]
# A raw picture and its name -> its views (V, H, W, C), uint8, under keys, and their statistics.
Prepare: TypeAlias = Callable[[Any, str], tuple[dict[str, np.ndarray], Statistics]]


class Programs:
    """The compiled functions of one network.

    Args:
        variables: the network's variables, the first argument of every function.
        plan: the network's preprocessing.
        prepare: prepares a picture unless `compute` is given another function.
    """

    def __init__(self, variables: Any, plan: Plan, prepare: Prepare) -> None:
        self.variables, self.plan, self.prepare = variables, plan, prepare
        self.compiled: dict[Any, Callable[..., Any]] = {}

    def compute(
        self,
        key: Hashable,
        function: Function,
        pictures: Any,
        prepare: Prepare | None = None,
        size: int | None = None,
    ) -> Any:
        """Return the results of a function for pictures, computed in batches.

        Args:
            key: everything that the function depends on besides its arguments. Its program is kept
                under this key.
            function: the function to compile.
            pictures: one or several.
            prepare: gives views and statistics of a picture. The pictures of a batch must have the
                same statistics.
            size: pictures in a batch, `BATCH` by default. The last of several batches is padded
                with zeros.

        Returns:
            The function's tree of arrays (N, ...), without the first axis for a single picture.
        """
        prepare, size = prepare or self.prepare, size or BATCH
        pictures, is_single = as_list(pictures, self.plan)

        def of_one(*arguments: Any) -> Any:
            return jax.tree.map(lambda x: x[0], function(*arguments))

        if (key, is_single) not in self.compiled:
            self.compiled[key, is_single] = jax.jit(of_one if is_single else function)
        program = self.compiled[key, is_single]
        results = []
        for start in range(0, len(pictures), size):
            prepared = []
            for index, picture in enumerate(pictures[start : start + size], start):
                name = name_of(picture, None if is_single else index)
                prepared.append(prepare(as_raw(picture, self.plan, name), name))
            views, statistics = prepared[0]
            images = {key: np.stack([views[key] for views, _ in prepared]) for key in views}
            rest = size - len(prepared) if start else 0
            if rest:
                images = {key: np.pad(x, [(0, rest)] + [(0, 0)] * 4) for key, x in images.items()}
            arrays = tuple(np.array(values, np.float32) for values in statistics)
            result = program(self.variables, images, arrays)
            if rest:
                result = jax.tree.map(operator.itemgetter(slice(-rest)), result)
            results.append(result)
        if len(results) == 1:
            return results[0]
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *results)
