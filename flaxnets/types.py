"""Types of trees, and names that options choose among.

This module imports nothing slow, so that the scripts answer `--help` before jax is imported.
"""

from typing import Any, Literal, TypeAlias

PyTree: TypeAlias = Any

DeviceMapping: TypeAlias = Literal["shard_map", "pmap"]
"""Mappings of a step onto devices: `flaxnets.training.parallel`."""

Views: TypeAlias = Literal["center", "ten-crop", "random-10", "multi-scale", "mirror-and-shift"]
"""Views of a picture: `flaxnets.inference.views`."""
AnyViews: TypeAlias = Views | Literal["whole"]
Normalization: TypeAlias = Literal["training", "image"]
