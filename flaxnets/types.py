"""Types for annotations: trees, and what options choose among by name.

Nothing is imported here that takes time: the scripts answer `--help` before jax is imported.
"""

from typing import Any, Literal, TypeAlias

PyTree: TypeAlias = Any

Mapping: TypeAlias = Literal["shard_map", "pmap"]
"""Mappings of a step onto devices: `flaxnets.training.parallel`."""

Views: TypeAlias = Literal["center", "ten-crop", "random-10", "multi-scale", "mirror-and-shift"]
"""Views of a picture: `flaxnets.inference.views`."""
AnyViews: TypeAlias = Views | Literal["whole"]
Normalization: TypeAlias = Literal["training", "image"]
