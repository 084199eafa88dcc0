"""Read files of weights, torch's or safetensors, as arrays under torchvision's keys."""

import collections
import dataclasses
import pathlib
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from flaxnets.convert import list_keys
from flaxnets.errors import InputError, InputWarning
from flaxnets.weights.torch_files import is_torch_file, read_torch_file
from flaxnets.weights.torch_tensors import Tensor

SUFFIXES = (".safetensors", ".pth", ".pt")  # of files that can be written
StateDict = dict[str, np.ndarray]  # torch's keys and layout

# Patterns in the keys of files, and what stands there in the keys of torchvision's networks.
RENAMED = (
    # torch's wrappers for several devices, averages and compilation, at any level
    (r"(?<![^.])(?:module|_orig_mod)\.", ""),
    # timm's VGG, whose linear layers over a map are convolutions (timm/models/vgg.py, `ConvMlp`)
    (r"^pre_logits\.fc1\.", "classifier.0."),
    (r"^pre_logits\.fc2\.", "classifier.3."),
    (r"^head\.fc\.", "classifier.6."),
    # torchvision's DenseNet files, older than its rule against dots in the names of modules
    (r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),
    # torchvision's ViT files of 2021, older than its `ops.MLP`
    (r"(encoder_layer_\d+\.mlp)\.linear_1\.", r"\1.0."),
    (r"(encoder_layer_\d+\.mlp)\.linear_2\.", r"\1.3."),
    # EfficientNet-PyTorch (Melas-Kyriazi), to timm's names; its blocks as below
    (r"^_conv_stem\.", "conv_stem."),
    (r"^_bn0\.", "bn1."),
    (r"^_conv_head\.", "conv_head."),
    (r"^_bn1\.", "bn2."),
    (r"^_fc\.", "classifier."),
)
BLOCK = re.compile(r"_blocks\.(\d+)\.(\w+)\.(.+)")  # EfficientNet-PyTorch numbers all blocks
WITH_EXPANSION = {
    "_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
    "_project_conv": "conv_pwl", "_bn2": "bn3",
}  # fmt: skip
WITHOUT_EXPANSION = {
    "_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2",
}  # fmt: skip
AVERAGES = {"ema", "swa", "average", "averaged", "avg", "shadow"}  # words in the names of averages
AVERAGED = "n_averaged"  # torch.optim.swa_utils.AveragedModel's counter
OPTIMIZER = "param_groups"  # a key in the state of every torch optimizer
MAX_NESTING = 8  # dictionaries inside each other that are searched
MAX_NAME = 255  # characters of a key


class WeightsWarning(InputWarning):
    """The weights of a file are not used exactly as they are.

    Either the file has several sets of weights and one was chosen, or a part was freshly
    initialised, adapted or left out. The message is one sentence. To stop instead:

        warnings.simplefilter("error", flaxnets.WeightsWarning)
    """


def torchvision_keys(state_dict: Mapping[str, np.ndarray]) -> StateDict:
    """Return the arrays with the keys of timm, older files and torch's wrappers renamed to
    torchvision's. Other keys stay as they are.
    """
    renamed = {}
    for key, value in state_dict.items():
        if key.startswith("pre_logits.") and value.ndim == 4:
            value = value.reshape(len(value), -1)
        for pattern, replacement in RENAMED:
            key = re.sub(pattern, replacement, key)
        renamed.setdefault(key, value)
    return _by_stages(renamed)


def _by_stages(state_dict: StateDict) -> StateDict:
    """Return the arrays with EfficientNet-PyTorch's blocks under timm's keys.

    timm numbers blocks within their stage: "_blocks.2." becomes "blocks.1.1.". A stage begins where
    the number of features changes.
    """
    matches = {key: BLOCK.fullmatch(key) for key in state_dict}
    numbers = sorted({int(match[1]) for match in matches.values() if match})
    if not numbers:
        return state_dict
    places, stage, index, features = {}, -1, 0, None
    for number in numbers:
        last = state_dict.get(f"_blocks.{number}._project_conv.weight", np.zeros(0)).shape[:1]
        stage, index = (stage, index + 1) if last == features else (stage + 1, 0)
        places[number], features = f"blocks.{stage}.{index}", last

    def renamed(key: str, match: re.Match[str] | None) -> str:
        if match is None:
            return key
        expands = f"_blocks.{match[1]}._expand_conv.weight" in state_dict
        layers = WITH_EXPANSION if expands else WITHOUT_EXPANSION
        return f"{places[int(match[1])]}.{layers.get(match[2], match[2])}.{match[3]}"

    return {renamed(key, match): state_dict[key] for key, match in matches.items()}


@dataclasses.dataclass(frozen=True)
class _Match:
    """Weights of the network at one place of a file, under a common prefix of their keys."""

    place: str
    prefix: str
    arrays: StateDict
    hits: int

    @property
    def rank(self) -> tuple[int, int]:
        """Rank: more of the network's keys are better, then fewer other keys."""
        return self.hits, -sum(key.startswith(self.prefix) for key in self.arrays)

    @property
    def name(self) -> str:
        return f"{self.place}.{self.prefix}".strip(".")

    @property
    def is_average(self) -> bool:
        words = re.split("[._]", self.name.lower())
        return f"{self.prefix}{AVERAGED}" in self.arrays or not AVERAGES.isdisjoint(words)


def read_weights(path: pathlib.Path, keys: Collection[str], *, ema: bool = False) -> StateDict:
    """Return a network's arrays from a safetensors or torch file; its bytes decide which it is.

    The weights may be in any dictionary of a checkpoint, after any prefix of their keys. The
    dictionary and prefix with the most keys of the network are used. Other keys are left out.

    Args:
        path: the file.
        keys: torch's keys of the network.
        ema: use the average weights. Otherwise the raw ones are used if the file has both.

    Returns:
        Arrays in torch's layout and the file's number types, under torchvision's keys, including
        those that the network does not have. Arrays of torch files are read-only views of the file.
        Warns (WeightsWarning) if the raw weights are used of a file that has averages too.

    Raises:
        InputError: the file is missing, broken, or holds something else.
    """
    if not path.is_file():
        raise InputError(f"no file {path}; expected a file of weights, .safetensors or .pth")
    state_dicts = list(_state_dicts(_read(path)))
    if not state_dicts:
        raise InputError(f"{path} holds no state_dict; save model.state_dict() with torch.save")
    matches = [match for place, arrays in state_dicts for match in _matches(place, arrays, keys)]
    most = max((match.hits for match in matches), default=0)
    matches = [match for match in matches if 2 * match.hits >= most]
    averages = [match for match in matches if match.is_average]
    raw = [match for match in matches if not match.is_average]
    if ema and not averages:
        raise InputError(f"{path} holds no average weights, only raw ones; leave out ema")
    if not matches:  # weights of another network: from_torch names the missing keys
        return max((arrays for _, arrays in state_dicts), key=len)
    chosen = max(averages if ema or not raw else raw, key=lambda match: match.rank)
    if averages and not chosen.is_average:
        warn(
            f"{path} holds raw weights ({chosen.name or 'at its top'}) and average weights "
            f"({averages[0].name}); the raw ones are used, ema=True uses the averages",
            above=3,
        )
    prefixes = {match.prefix for match in matches if match.place == chosen.place}
    outside = [k for k in chosen.arrays if not k.startswith(tuple(prefixes)) and not _is_counter(k)]
    if outside:
        ignored = list_keys("ignored", outside)
        warn(f"{path}: only keys with the prefix {chosen.prefix!r} are used; {ignored}", above=3)
    start = len(chosen.prefix)
    inner = tuple(prefix for prefix in prefixes if len(prefix) > start)  # of other weights
    return torchvision_keys(
        {
            key[start:]: array
            for key, array in chosen.arrays.items()
            if key.startswith(chosen.prefix) and not key.startswith(inner) and not _is_counter(key)
        }
    )


def _is_counter(key: str) -> bool:
    return key.rpartition(".")[2] == AVERAGED


def warn(sentence: str, above: int) -> None:
    """Warn with the line of the caller of load_weights, which is `above` calls above the caller of
    this function.
    """
    warnings.warn(sentence, WeightsWarning, stacklevel=above + 2)


def _read(path: pathlib.Path) -> Any:
    """Return what a file holds: a torch object, or a dictionary of arrays."""
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror})") from error
    if is_torch_file(start):
        return read_torch_file(path)
    if start[8:9] == b"{":  # safetensors: 8 bytes of length, then its header in JSON
        return _read_safetensors(path)
    raise InputError(
        f"{path} is neither a torch file nor a safetensors file; expected one that torch.save or "
        "safetensors wrote"
    )


def _read_safetensors(path: pathlib.Path) -> StateDict:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(
            f"{path} is not a complete safetensors file ({error}); download or save it again"
        ) from error
    except KeyError as error:
        raise InputError(
            f"{path} holds numbers of a type that NumPy lacks ({error}); save them in float32"
        ) from error


def _state_dicts(saved: Any) -> Iterator[tuple[str, StateDict]]:
    """Yield the place, such as "model", and the arrays of each dictionary that has arrays.

    The states of optimizers are skipped: their arrays have keys like those of the network.
    """
    waiting, seen = collections.deque([("", saved, 0)]), set()
    while waiting:
        place, value, depth = waiting.popleft()
        if not isinstance(value, dict) or OPTIMIZER in value or id(value) in seen:
            continue
        seen.add(id(value))
        named = {k: v for k, v in value.items() if _is_name(k)}
        arrays = {k: v.array() if isinstance(v, Tensor) else v for k, v in named.items()}
        arrays = {k: v for k, v in arrays.items() if _is_real(v)}
        if arrays:
            yield place, torchvision_keys(arrays)
        if depth < MAX_NESTING:
            waiting.extend((f"{place}.{k}".strip("."), v, depth + 1) for k, v in named.items())


def _is_name(key: Any) -> bool:
    return isinstance(key, str) and len(key) <= MAX_NAME and key.isprintable()


def _is_real(value: Any) -> bool:
    """Return whether a value is an array of real numbers; bfloat16 and float8 have the kind V."""
    return isinstance(value, np.ndarray) and value.dtype.kind in "biufV"


def _matches(place: str, arrays: StateDict, keys: Collection[str]) -> Iterator[_Match]:
    """Yield each prefix after which keys of the network stand, with the number of such keys."""
    depth = max(key.count(".") for key in keys) + 1
    hits: collections.Counter[str] = collections.Counter()
    for key in arrays:
        parts = key.split(".")
        for first in range(max(len(parts) - depth, 0), len(parts)):
            if ".".join(parts[first:]) in keys:
                hits["".join(f"{part}." for part in parts[:first])] += 1
    for prefix, count in hits.items():
        yield _Match(place, prefix, arrays, count)
