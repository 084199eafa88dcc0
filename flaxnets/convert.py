"""Convert torch's `state_dict` to Flax variables and back, for every network, by one rule.

The path of a variable, joined by dots, is its torch key, up to the leaf names below. The rank of a
leaf decides how its axes move: `OIHW` of a convolution to `HWIO`, `OI` of a linear layer to `IO`,
and `(O, C * h * w)` of a linear layer over a patch to `(h, w, C, O)`. Leaves whose rank does not
tell their axes are `KEPT` as they are. torch's integer buffers are not variables here, because they
follow from shapes.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax import tree_util

from flaxnets.errors import InputError
from flaxnets.kernels.geometry import relative_position_index

LEAVES = {
    "kernel": "weight",
    "patch_kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
    "partition_bias_table": "relative_position_bias_table",
}
# torch's names of tokens (1, N, D), scales (heads, 1, 1), and tables with a row for each offset.
KEPT = {
    "class_token", "pos_embedding", "logit_scale",
    "relative_position_bias_table", "relative_coords_table",
}  # fmt: skip
POSITIONS = "pos_embedding"
INDEX = "relative_position_index"  # torch's buffer beside a table of offsets
# Our leaves for which torch has an index, and the rank of that index: MaxViT's is a matrix, Swin's
# is flattened.
INDEXED = {"relative_position_bias_table": 1, "relative_coords_table": 1, "partition_bias_table": 2}
FEATURES = 16  # copied at once
LISTED, SHOWN = 5, 100  # number of keys in a message, and length of each in characters
# torch's batch counter, which is unused with a fixed momentum, and what follows from shapes.
IGNORED = ("num_batches_tracked", INDEX)


def _names(path: tuple) -> list[str]:
    """Return the names of a path, `("params", "features", "0", "kernel")`; a name may itself
    contain dots.
    """
    return [str(entry.key) for entry in path]


def _torch_key(path: tuple) -> str:
    _, *modules, leaf = _names(path)
    return ".".join([*modules, LEAVES.get(leaf, leaf)])


def torch_keys(variables: Any) -> Any:
    """Return a tree like `variables` with the torch key of each leaf."""
    return tree_util.tree_map_with_path(lambda path, _: _torch_key(path), variables)


def _is_kept(key: str) -> bool:
    return key.rpartition(".")[2] in KEPT


def _to_flax_axes(key: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if _is_kept(key):
        return value
    if value.ndim == 2 and len(shape) == 4:  # torch flattened the patch in CHW order
        height, width, channels, features = shape
        if value.shape != (features, channels * height * width):
            return value
        value = value.reshape(features, channels, height, width)
    if value.ndim == 4:
        return value.transpose(2, 3, 1, 0)
    return value.T


def fits(key: str, value: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Return whether torch's array of a key has the shape of a variable, once in Flax's layout."""
    return _to_flax_axes(key, value, shape).shape == shape


def _to_torch_axes(path: tuple, value: np.ndarray) -> np.ndarray:
    if _is_kept(_torch_key(path)):
        return value
    if value.ndim == 4:
        value = value.transpose(3, 2, 0, 1)
        return value.reshape(len(value), -1) if _names(path)[-1] == "patch_kernel" else value
    return value.T


def _contiguous(value: np.ndarray, dtype: Any) -> np.ndarray:
    """Return a contiguous copy, made for a few features at a time so that each cache line is read
    once. NumPy's own copy takes three times as long for VGG's first linear layer.
    """
    copy = np.empty(value.shape, dtype)
    for first in range(0, value.shape[-1], FEATURES):
        copy[..., first : first + FEATURES] = value[..., first : first + FEATURES]
    return copy


def as_numpy(value: Any) -> np.ndarray:
    """Return an array, or a torch tensor of any precision, as a NumPy array."""
    if hasattr(value, "detach"):  # a torch tensor; numpy has no bfloat16
        value = value.detach().cpu().float().numpy()
    return np.asarray(value)


def list_keys(kind: str, keys: Sequence[str]) -> str:
    """Return "missing: a, b", or "missing 62 keys, such as a, b, c, d, e"."""
    named = ", ".join(_shown(key) for key in keys[:LISTED])
    few = len(keys) <= LISTED
    return f"{kind}: {named}" if few else f"{kind} {len(keys)} keys, such as {named}"


def _shown(key: str) -> str:
    """Return a key that fits into a sentence, whatever a file uses as one."""
    return key if key.isprintable() and len(key) <= SHOWN else ascii(key)[:SHOWN]


def from_torch(state_dict: Mapping[str, Any], like: Any) -> Any:
    """Return the variables of a network from torch's parameters and buffers.

        model = create_model("resnet18")
        like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
        variables = from_torch(torch_model.state_dict(), like)

    Args:
        state_dict: torch's keys to NumPy arrays or torch tensors, in torch's layout.
        like: the network's variables or their shapes, `jax.eval_shape(model.init, key, images)`.

    Returns:
        A tree with the structure and dtypes of `like`, of NumPy arrays, ready for `model.apply`.

    Raises:
        InputError: keys are missing, unused, or of another shape. The message names at most five of
            each kind, and their number.
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
        theirs = as_numpy(state_dict[key])
        value = _to_flax_axes(key, theirs, leaf.shape)
        if value.shape != leaf.shape:
            expected = _to_torch_axes(path, np.empty(leaf.shape, np.bool_)).shape
            misshapen.append(f"{key} {theirs.shape}, expected {expected}")
            continue
        leaves.append(_contiguous(value, leaf.dtype))
    problems = {"missing": missing, "unused": sorted(unused), "misshapen": misshapen}
    if any(problems.values()):
        listed = "; ".join(list_keys(kind, keys) for kind, keys in problems.items() if keys)
        raise InputError(f"the weights do not fit this network: {listed}")
    return tree_util.tree_unflatten(treedef, leaves)


def to_torch(variables: Any) -> dict[str, np.ndarray]:
    """Return NumPy arrays under torch's keys, in torch's layout: the inverse of `from_torch`.

        arrays = to_torch(variables)
        torch_model.load_state_dict({key: torch.from_numpy(a) for key, a in arrays.items()})

    Counters (`num_batches_tracked`) are not among them; `load_state_dict` does not need them.
    """
    paths, _ = tree_util.tree_flatten_with_path(variables)
    state_dict = {}
    for path, value in paths:
        key, leaf = _torch_key(path), _names(path)[-1]
        # The copy is needed because a jax array lends NumPy a view, which torch must not write to.
        state_dict[key] = np.array(_to_torch_axes(path, np.asarray(value)), order="C")
        if leaf in INDEXED:
            index = relative_position_index((math.isqrt(math.prod(value.shape[:-1])) + 1) // 2)
            module = key.rpartition(".")[0]
            state_dict[f"{module}.{INDEX}"] = index if INDEXED[leaf] == 2 else index.ravel()
    return state_dict


def fit_positions(
    state_dict: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """Return torch's parameters with position embeddings that have the network's number of
    positions.

    Args:
        state_dict: torch's keys to arrays.
        shapes: the shapes of the network's variables under the same keys.

    Returns:
        The state dict. Every `pos_embedding` of another length than the network's is interpolated
        (`interpolate_positions`).

    Raises:
        InputError: the positions of one side do not form a square map.
    """

    def fitted(key: str, value: Any) -> Any:
        is_embedding = key.rpartition(".")[2] == POSITIONS and key in shapes and value.ndim == 3
        if not is_embedding or value.shape[1] == shapes[key][1]:
            return value
        return interpolate_positions(as_numpy(value), shapes[key][1])

    return {key: fitted(key, value) for key, value in state_dict.items()}


def interpolate_positions(embedding: np.ndarray, length: int) -> np.ndarray:
    """Return position embeddings of a square map, interpolated to another square map: Dosovitskiy
    et al. 2020 (arXiv:2010.11929), section 3.2, for images of another size.

    The interpolation is bicubic and keeps the corners, as torchvision's `interpolate_embeddings`.
    The first embedding is that of the class token and is kept.

    Args:
        embedding: (1, 1 + n^2, features).
        length: 1 + m^2.

    Returns:
        (1, length, features) of the same type.

    Raises:
        InputError: one of the lengths is not a square plus one.
    """
    old, new = math.isqrt(embedding.shape[1] - 1), math.isqrt(length - 1)
    for side, count in ((old, embedding.shape[1]), (new, length)):
        if side**2 + 1 != count:
            raise InputError(
                f"{POSITIONS} has {count} positions; expected a square and one for the class "
                f"token, such as {side**2 + 1}"
            )
    weights = _cubic_weights(old, new)
    grid = embedding[0, 1:].astype(np.float64).reshape(old, old, -1)
    grid = np.einsum("io,jp,opd->ijd", weights, weights, grid, optimize=True)
    grid = grid.reshape(1, new**2, -1).astype(embedding.dtype)
    return np.concatenate([embedding[:, :1], grid], 1)


def _cubic_weights(old: int, new: int, sharpness: float = -0.75) -> np.ndarray:
    """Return the weights (new, old) with which `new` points interpolate `old` points between the
    same two ends, by Keys's cubic convolution with torch's sharpness. Beyond the ends the last
    value is repeated.
    """
    places = np.arange(new) * ((old - 1) / max(new - 1, 1))
    first = np.floor(places).astype(int)
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        distance = np.abs(places - (first + tap))
        near = ((sharpness + 2) * distance - (sharpness + 3)) * distance**2 + 1
        far = sharpness * (((distance - 5) * distance + 8) * distance - 4)
        share = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
        np.add.at(weights, (np.arange(new), np.clip(first + tap, 0, old - 1)), share)
    return weights
