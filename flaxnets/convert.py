"""torch's `state_dict` <-> Flax variables, for every network, by one rule.

The path of a variable, joined by dots, is its torch key, up to the leaf names below. Axes move by
rank: a convolution's OIHW to HWIO, a linear layer's OI to IO, and a linear layer over a patch of
features from (O, C * h * w) to (h, w, C, O).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax import tree_util

from flaxnets.errors import InputError

LEAVES = {
    "kernel": "weight",
    "patch_kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
FEATURES = 16  # whose axes are moved at once
LISTED, SHOWN = 5, 100  # keys in a message, and characters of each
IGNORED = "num_batches_tracked"  # torch's batch counter: its momentum is fixed, nothing reads it


def _names(path: tuple) -> list[str]:
    """`("params", "features", "0", "kernel")`; a name may itself contain dots."""
    return [str(entry.key) for entry in path]


def _torch_key(path: tuple) -> str:
    _, *modules, leaf = _names(path)
    return ".".join([*modules, LEAVES.get(leaf, leaf)])


def torch_keys(variables: Any) -> Any:
    """A tree like `variables` of the torch key of each leaf."""
    return tree_util.tree_map_with_path(lambda path, _: _torch_key(path), variables)


def _to_flax_axes(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if value.ndim == 2 and len(shape) == 4:  # torch flattened the patch in CHW order
        height, width, channels, features = shape
        if value.shape != (features, channels * height * width):
            return value
        value = value.reshape(features, channels, height, width)
    if value.ndim == 4:
        return value.transpose(2, 3, 1, 0)
    return value.T


def fits(value: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Tell whether an array in torch's layout has a variable's shape in Flax's layout."""
    return _to_flax_axes(value, shape).shape == shape


def _to_torch_axes(value: np.ndarray, leaf: str) -> np.ndarray:
    if value.ndim == 4:
        value = value.transpose(3, 2, 0, 1)
        return value.reshape(len(value), -1) if leaf == "patch_kernel" else value
    return value.T


def _contiguous(value: np.ndarray, dtype: Any) -> np.ndarray:
    """A few features at a time, whose cache lines are then read once: NumPy's own copy takes three
    times as long for VGG's first linear layer.
    """
    copy = np.empty(value.shape, dtype)
    for first in range(0, value.shape[-1], FEATURES):
        copy[..., first : first + FEATURES] = value[..., first : first + FEATURES]
    return copy


def as_numpy(value: Any) -> np.ndarray:
    """An array, or a torch tensor of any precision, as a NumPy array."""
    if hasattr(value, "detach"):  # a torch tensor; numpy has no bfloat16
        value = value.detach().cpu().float().numpy()
    return np.asarray(value)


def list_keys(kind: str, keys: Sequence[str]) -> str:
    """Return "missing: a, b", or "missing 62 keys, such as a, b, c, d, e"."""
    named = ", ".join(_shown(key) for key in keys[:LISTED])
    few = len(keys) <= LISTED
    return f"{kind}: {named}" if few else f"{kind} {len(keys)} keys, such as {named}"


def _shown(key: str) -> str:
    """Return a key that fits into a sentence, whatever a file has as one."""
    return key if key.isprintable() and len(key) <= SHOWN else ascii(key)[:SHOWN]


def from_torch(state_dict: Mapping[str, Any], like: Any) -> Any:
    """The variables of a network from torch's parameters and buffers.

    Args:
        state_dict: torch's keys to NumPy arrays or torch tensors.
        like: the network's variables or their shapes, `jax.eval_shape(model.init, key, images)`.

    Returns:
        A tree like `like` of NumPy arrays of its dtypes, ready for `model.apply`.

    Raises:
        InputError: keys are missing, unused, or of another shape; the message names at most five
            of each kind, and their number.
    """
    paths, treedef = tree_util.tree_flatten_with_path(like)
    unused = {key for key in state_dict if not key.endswith(IGNORED)}
    missing, misshapen, leaves = [], [], []
    for path, leaf in paths:
        key = _torch_key(path)
        if key not in state_dict:
            missing.append(key)
            continue
        unused.discard(key)
        given = as_numpy(state_dict[key])
        value = _to_flax_axes(given, leaf.shape)
        if value.shape != leaf.shape:
            expected = _to_torch_axes(np.empty(leaf.shape, np.bool_), _names(path)[-1]).shape
            misshapen.append(f"{key} {given.shape}, expected {expected}")
            continue
        leaves.append(_contiguous(value, leaf.dtype))
    problems = {"missing": missing, "unused": sorted(unused), "misshapen": misshapen}
    if any(problems.values()):
        listed = "; ".join(list_keys(kind, keys) for kind, keys in problems.items() if keys)
        raise InputError(f"the weights do not fit this network: {listed}")
    return tree_util.tree_unflatten(treedef, leaves)


def to_torch(variables: Any) -> dict[str, np.ndarray]:
    """The inverse of `from_torch`: NumPy arrays under torch's keys, in torch's layout.

    `torch_model.load_state_dict({key: torch.from_numpy(value) ...})` accepts it.
    """
    paths, _ = tree_util.tree_flatten_with_path(variables)
    return {  # copies: a jax array lends NumPy a view that torch must not write to
        _torch_key(path): np.array(_to_torch_axes(np.asarray(value), _names(path)[-1]), order="C")
        for path, value in paths
    }
