"""Weights from files and torchvision's published ones, as variables ready for `model.apply`.

    variables = load_weights("resnet50", "IMAGENET1K_V2")
    variables = load_weights("vgg16", checkpoint="mine.safetensors")

Published weights come from one of two places. Where torch is installed they are torchvision's own
`.pth` files. Without torch they are the safetensors files in timm's repositories on the Hugging
Face Hub that hold the same weights (tags `tv_in1k` and `tv2_in1k`). Downloads are kept in
`~/.cache/flaxnets/weights` (or below XDG_CACHE_HOME).
"""

import dataclasses
import functools
import hashlib
import http.client
import importlib.util
import math
import pathlib
import re
import sys
import urllib.error
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file

from flaxnets.convert import as_numpy, from_torch, to_torch, torch_keys
from flaxnets.errors import InputError, one_of
from flaxnets.models import create_model
from flaxnets.terminal import cache_directory

SUFFIXES = (".safetensors", ".pth", ".pt")
Source = Literal["torchvision", "timm"]
StateDict = dict[str, np.ndarray]  # torch's keys and layout


class WeightsWarning(UserWarning):
    """The weights do not fit as they are: a part is freshly initialised, or adapted."""


@dataclasses.dataclass(frozen=True)
class PublishedWeights:
    """Weights that torchvision published, and the evaluation behind their published accuracy.

    Images are resized to `resize` pixels on the shorter side (with antialiasing), their central
    `crop` x `crop` pixels taken, brought to 0..1 and normalised by `mean` and `std` (RGB).
    """

    arch: str
    name: str
    """torchvision's, such as "IMAGENET1K_V1"."""
    file: str
    """At download.pytorch.org, without its suffix; it ends in the first digits of its SHA-256."""
    classes: int
    """ImageNet's 1000; 0 if only the features were published."""
    top1: float
    """Per cent of ImageNet's validation images."""
    top5: float
    resize: int
    crop: int
    tag: str | None = None
    """Of timm's repository with the same weights as safetensors."""
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    """Of the network, `create_model(arch, **fields)`, which these weights expect."""
    fresh: str | None = None
    """A regular expression of keys that the file has no values for."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"

    @property
    def url(self) -> str:
        return f"https://download.pytorch.org/models/{self.file}.pth"

    @property
    def sha256(self) -> str:
        """The first digits of the file's SHA-256."""
        return self.file.rpartition("-")[2]

    @property
    def repository(self) -> str | None:
        """On the Hugging Face Hub."""
        return self.tag and f"timm/{self.arch}.{self.tag}"

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation for the network without `fields`: `transform_input` of images that
        `mean` and `std` normalised is the same as 0.5 and 0.5 in their place.
        """
        if self.fields.get("transform_input"):
            return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
        return self.mean, self.std


def list_weights(arch: str) -> list[str]:
    """Names of the published weights of a network; empty for most that torchvision lacks."""
    return [published.name for published in WEIGHTS if published.arch == arch]


def published_weights(arch: str, name: str = "IMAGENET1K_V1") -> PublishedWeights:
    """A row of `WEIGHTS`; the name "DEFAULT" is torchvision's for the most accurate.

    Raises InputError for an unknown network or name.
    """
    create_model(arch)  # a wrong name is answered first
    rows = {published.name: published for published in WEIGHTS if published.arch == arch}
    if not rows:
        raise InputError(
            f"no weights of {arch!r} are published by torchvision; give a checkpoint file"
        )
    if name == "DEFAULT":
        return max((row for row in rows.values() if row.classes), key=lambda row: row.top1)
    return rows[one_of(rows, name, f"weights of {arch}")]


def load_weights(
    arch: str,
    name: str = "IMAGENET1K_V1",
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    checkpoint: str | pathlib.Path | None = None,
    source: Source | None = None,
    seed: int = 0,
    **fields: Any,
) -> Any:
    """The variables of a network with published weights, or with those of a file.

        variables = load_weights("resnet50", "IMAGENET1K_V2")
        logits = create_model("resnet50").apply(variables, images)

    Some weights expect fields of the network (GoogLeNet and Inception v3 `transform_input`):
    `create_model(arch, **published_weights(arch, name).fields)`.

    Args:
        arch: name of the network.
        name: torchvision's name of the weights, or "DEFAULT" for the most accurate.
        num_classes: as many as the weights tell apart unless given; with another number the last
            layer (also of auxiliary heads) is freshly initialised.
        in_channels: as many as the weights read unless given; the kernel of the first convolution
            is summed over its channels for one, repeated and scaled for another number, as in
            timm's `adapt_input_conv` (timm/models/_manipulate.py).
        checkpoint: a file instead of published weights, of any network: .safetensors, or .pth and
            .pt (which need torch), under torch's or timm's keys. Nothing is downloaded.
        source: "torchvision" for its .pth files (need torch), "timm" for safetensors; torchvision
            where torch is installed unless given.
        seed: of what is freshly initialised.
        fields: of the network, as for `create_model`, where they change its variables.

    Returns:
        A tree of NumPy arrays, float32, as `model.init` gives them. Warns (WeightsWarning) if a
        part is not the weights' own.

    Raises:
        InputError: an unknown name; a file that is absent, broken, or of another network; weights
            that cannot be downloaded, or whose SHA-256 is not the published one.
    """
    if num_classes is not None:
        fields["num_classes"] = num_classes
    if in_channels is not None and in_channels < 1:
        raise InputError(f"in_channels is {in_channels}; expected at least 1")
    model: Any = create_model(arch, **fields)
    start = published_weights(arch, name) if checkpoint is None else pathlib.Path(checkpoint)
    return load_into(
        model,
        start,
        model.input_shape,
        num_classes=num_classes,
        in_channels=in_channels,
        source=source,
        seed=seed,
    )


def find_weights(arch: str, given: str) -> PublishedWeights | pathlib.Path:
    """What a user gave on the command line: the name of published weights, or a file."""
    path = pathlib.Path(given)
    return path if path.suffix or path.exists() else published_weights(arch, given)


def load_into(
    model: Any,
    start: PublishedWeights | pathlib.Path,
    input_shape: tuple[int, ...],
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    source: Source | None = None,
    seed: int = 0,
) -> Any:
    """`load_weights` for a network at hand.

    Args:
        model: a network of the library.
        start: published weights or a file.
        input_shape: (height, width, channels) to initialise it with.
        num_classes, in_channels: those of the weights unless given.
    """
    published = isinstance(start, PublishedWeights)
    state_dict = read_weights(fetch(start, source) if published else start)
    fresh = start.fresh if published else None
    if getattr(model, "transform_input", False):  # for RGB only; no variable depends on it
        model = model.clone(transform_input=False)
    shapes = _shapes(model, input_shape)
    if not getattr(model, "aux_logits", True):  # torchvision's files have the heads always
        for key in _shapes(model, input_shape, aux_logits=True).keys() - shapes.keys():
            state_dict.pop(key, None)

    # The heads, and what reads the image, are what changes with their number.
    usual, (*size, channels) = model.num_classes, input_shape
    heads = _changed(shapes, _shapes(model, input_shape, num_classes=usual + 1))
    stem = _changed(shapes, _shapes(model, (*size, channels + 1)))

    renewed = [key for key in shapes if fresh and re.match(fresh, key)]
    given = {len(state_dict[key]) for key in heads if key in state_dict and key not in renewed}
    told = max(given, default=usual)
    num_classes = num_classes or told
    if given - {num_classes}:
        renewed = heads
    for key in stem:
        kernel = state_dict.get(key)
        if kernel is None or kernel.ndim != 4 or shapes[key][2] != input_shape[-1]:
            continue  # no convolution, or a separable one
        read, channels = kernel.shape[1], in_channels or kernel.shape[1]
        if read != channels:
            how = "summed over its" if channels == 1 else "repeated and scaled from"
            _warn(f"{key} is {how} {read} channels for images of {channels}")
            state_dict[key] = adapt_input_channels(kernel, channels)

    model = model.clone(num_classes=num_classes)
    images = jnp.zeros((1, *size, in_channels or channels))
    init = functools.partial(model.init, jax.random.key(seed), images)
    if renewed:
        modules = ", ".join(dict.fromkeys(key.rpartition(".")[0] for key in renewed))
        had = f"{told} classes" if given else "none"
        _warn(f"freshly initialised for {num_classes} classes (the weights have {had}): {modules}")
        state_dict |= _initial(init, set(renewed))
    return from_torch(state_dict, jax.eval_shape(init))


def _warn(sentence: str) -> None:
    warnings.warn(sentence, WeightsWarning, stacklevel=4)  # at the caller of load_weights


def _shapes(model, input_shape, **fields) -> dict[str, tuple[int, ...]]:
    """Flax's shapes under torch's keys."""
    images = jnp.zeros((1, *input_shape))
    like = jax.eval_shape(model.clone(**fields).init, jax.random.key(0), images)
    leaves, keys = jax.tree.leaves(like), jax.tree.leaves(torch_keys(like))
    return {key: leaf.shape for key, leaf in zip(keys, leaves, strict=True)}


def _changed(shapes: dict[str, tuple], others: dict[str, tuple]) -> list[str]:
    return [key for key, shape in shapes.items() if others[key] != shape]


def _initial(init, wanted: set[str]) -> StateDict:
    """`model.init`'s own values of some variables; the compiler leaves the others out."""

    @jax.jit
    def chosen():
        variables = init()
        keys: dict[Any, Any] = flatten_dict(torch_keys(variables))
        values: dict[Any, Any] = flatten_dict(variables)
        return unflatten_dict({p: v for p, v in values.items() if keys[p] in wanted})

    return to_torch(chosen())


def adapt_input_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """A convolution's kernel (O, C, h, w) for images of another number of channels, as timm has it.

    For one channel the sum over C, so that a grey image gives what it gave as equal channels; for
    other numbers the channels in turn, scaled to keep the size of their sum.
    """
    given = kernel.shape[1]
    if channels == given:
        return kernel
    if channels == 1:
        return kernel.sum(1, keepdims=True)
    repeated = np.tile(kernel, (1, math.ceil(channels / given), 1, 1))[:, :channels]
    return repeated * kernel.dtype.type(given / channels)


# Keys of files to the keys of torchvision's networks.
RENAMED = (
    # timm's VGG, whose linear layers over a map are convolutions (timm/models/vgg.py, `ConvMlp`)
    (r"^pre_logits\.fc1\.", "classifier.0."),
    (r"^pre_logits\.fc2\.", "classifier.3."),
    (r"^head\.fc\.", "classifier.6."),
    # torchvision's DenseNet files, older than its rule against dots in the names of modules
    (r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),
    # torch's wrappers for several devices and for compilation
    (r"^(?:(?:module|_orig_mod)\.)+", ""),
)


def torchvision_keys(state_dict: Mapping[str, np.ndarray]) -> StateDict:
    """The keys of timm and of older files as torchvision has them; other keys stay."""
    renamed = {}
    for key, value in state_dict.items():
        if key.startswith("pre_logits.") and value.ndim == 4:
            value = value.reshape(len(value), -1)
        for pattern, replacement in RENAMED:
            key = re.sub(pattern, replacement, key)
        renamed[key] = value
    return renamed


def read_weights(path: pathlib.Path) -> StateDict:
    """The arrays of a safetensors or torch file, by its suffix, under torchvision's keys.

    Raises InputError if the file is absent, broken, or holds something else.
    """
    if not path.is_file():
        raise InputError(f"no file {path}; tools/convert_torchvision.py writes one")
    one_of(SUFFIXES, path.suffix, f"suffix of {path}")
    read = _read_safetensors if path.suffix == ".safetensors" else _read_torch
    return torchvision_keys(read(path))


def _read_safetensors(path: pathlib.Path) -> StateDict:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is not a complete safetensors file ({error})") from error
    except KeyError as error:
        raise InputError(f"{path} holds numbers that NumPy lacks ({error}); use float32") from error


def _read_torch(path: pathlib.Path) -> StateDict:
    """Checkpoints of training scripts nest the weights under "model" or "state_dict"."""
    if not torch_is_installed():
        raise InputError(
            f"reading {path} takes torch: install it, or convert the file to safetensors where it "
            f"is with tools/convert_torchvision.py"
        )
    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # broken bytes make the unpickler raise almost anything
        raise InputError(
            f"{path} is not a complete file of torch weights, or holds more than tensors"
        ) from error
    for key in ("model", "state_dict"):
        loaded = loaded.get(key, loaded) if isinstance(loaded, dict) else loaded
    named = isinstance(loaded, dict) and all(isinstance(key, str) for key in loaded)
    if not (named and all(isinstance(value, torch.Tensor) for value in loaded.values())):
        raise InputError(f"{path} holds no state_dict; save model.state_dict()")
    return {key: as_numpy(value) for key, value in loaded.items()}


def torch_is_installed() -> bool:
    return importlib.util.find_spec("torch") is not None


def fetch(published: PublishedWeights, source: Source | None = None) -> pathlib.Path:
    """The file of published weights in the user's cache directory, verified, after downloading it
    if it is not there. Never half a file under its name.

    Raises InputError if that fails, or if the weights are a .pth only and torch is not installed.
    """
    if source is not None:
        one_of(("torchvision", "timm"), source, "source")
    arch, name = published.arch, published.name
    if source == "timm" and published.repository is None:
        raise InputError(f"timm has no weights {name} of {arch}; expected source 'torchvision'")
    if source != "timm" and torch_is_installed():
        return _from_torchvision(published)
    if source == "torchvision" or published.repository is None:
        raise InputError(
            f"the weights {name} of {arch} are published as a .pth, which takes torch: install it, "
            f"or convert them where it is with tools/convert_torchvision.py"
        )
    return _from_hub(published.repository)


def _directory() -> pathlib.Path:
    return cache_directory() / "weights"


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_torchvision(published: PublishedWeights) -> pathlib.Path:
    from torch import hub

    path = _directory() / f"{published.file}.pth"
    if path.is_file() and _sha256(path).startswith(published.sha256):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        hub.download_url_to_file(published.url, str(path), published.sha256, sys.stderr.isatty())
    except RuntimeError as error:  # torch.hub's only one: the hash
        raise InputError(
            f"{published.url} came broken or incomplete: its SHA-256 does not begin with "
            f"{published.sha256}; try again"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
        raise InputError(_failed(published.url, error)) from error
    return path


def _from_hub(repository: str) -> pathlib.Path:
    import huggingface_hub

    file, directory = "model.safetensors", _directory() / "huggingface"
    cached = huggingface_hub.try_to_load_from_cache(repository, file, cache_dir=directory)
    found = isinstance(cached, str)
    if found and _is_intact(pathlib.Path(cached)):
        return pathlib.Path(cached)
    try:
        path = pathlib.Path(
            huggingface_hub.hf_hub_download(
                repository, file, cache_dir=directory, force_download=found
            )
        )
    except Exception as error:  # its HTTP client's too, which changes between its versions
        raise InputError(_failed(f"{file} of hf.co/{repository}", error)) from error
    if not _is_intact(path):
        path.resolve().unlink()
        raise InputError(
            f"{file} of hf.co/{repository} came broken or incomplete: its SHA-256 is not the "
            f"hub's; try again"
        )
    return path


def _is_intact(path: pathlib.Path) -> bool:
    """The hub names a large file by its SHA-256, and the client links to a file of that name."""
    digest = path.resolve().name
    return not re.fullmatch("[0-9a-f]{64}", digest) or _sha256(path) == digest


def _failed(what: str, error: Any) -> str:
    if type(error) is urllib.error.URLError:
        error = error.reason
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"cannot download {what} ({reason}); give a file on this machine instead"


# torchvision/models/*.py, `Weights`: its own evaluation with the preprocessing beside it. The file
# of GoogLeNet has auxiliary heads, which were not trained.
V1, V2 = "IMAGENET1K_V1", "IMAGENET1K_V2"
FEATURES = "IMAGENET1K_FEATURES"
TV1, TV2 = "tv_in1k", "tv2_in1k"
# fmt: off
_ROWS = (
    # architecture, name, file, classes, top-1, top-5 (%), resize, crop (pixels), timm's tag
    ("alexnet",          V1, "alexnet-owt-7be5be79",         1000, 56.522, 79.066, 256, 224, None),
    ("vgg11",            V1, "vgg11-8a719046",               1000, 69.020, 88.628, 256, 224, TV1),
    ("vgg13",            V1, "vgg13-19584684",               1000, 69.928, 89.246, 256, 224, TV1),
    ("vgg16",            V1, "vgg16-397923af",               1000, 71.592, 90.382, 256, 224, TV1),
    ("vgg16", FEATURES, "vgg16_features-amdegroot-88682ab5", 0, math.nan, math.nan, 256, 224, None),
    ("vgg19",            V1, "vgg19-dcbb9e9d",               1000, 72.376, 90.876, 256, 224, TV1),
    ("vgg11_bn",         V1, "vgg11_bn-6002323d",            1000, 70.370, 89.810, 256, 224, TV1),
    ("vgg13_bn",         V1, "vgg13_bn-abd245e5",            1000, 71.586, 90.374, 256, 224, TV1),
    ("vgg16_bn",         V1, "vgg16_bn-6c64b313",            1000, 73.360, 91.516, 256, 224, TV1),
    ("vgg19_bn",         V1, "vgg19_bn-c79401a0",            1000, 74.218, 91.842, 256, 224, TV1),
    ("googlenet",        V1, "googlenet-1378be20",           1000, 69.778, 89.530, 256, 224, None),
    ("inception_v3",     V1, "inception_v3_google-0cc3c7bd", 1000, 77.294, 93.450, 342, 299, TV1),
    ("densenet121",      V1, "densenet121-a639ec97",         1000, 74.434, 91.972, 256, 224, TV1),
    ("densenet161",      V1, "densenet161-8d451a50",         1000, 77.138, 93.560, 256, 224, TV1),
    ("densenet169",      V1, "densenet169-b2777c0a",         1000, 75.600, 92.806, 256, 224, TV1),
    ("densenet201",      V1, "densenet201-c1103571",         1000, 76.896, 93.370, 256, 224, TV1),
    ("resnet18",         V1, "resnet18-f37072fd",            1000, 69.758, 89.078, 256, 224, TV1),
    ("resnet34",         V1, "resnet34-b627a593",            1000, 73.314, 91.420, 256, 224, TV1),
    ("resnet50",         V1, "resnet50-0676ba61",            1000, 76.130, 92.862, 256, 224, TV1),
    ("resnet50",         V2, "resnet50-11ad3fa6",            1000, 80.858, 95.434, 232, 224, TV2),
    ("resnet101",        V1, "resnet101-63fe2227",           1000, 77.374, 93.546, 256, 224, TV1),
    ("resnet101",        V2, "resnet101-cd907fc2",           1000, 81.886, 95.780, 232, 224, TV2),
    ("resnet152",        V1, "resnet152-394f9c45",           1000, 78.312, 94.046, 256, 224, TV1),
    ("resnet152",        V2, "resnet152-f82ba261",           1000, 82.284, 96.002, 232, 224, TV2),
    ("resnext50_32x4d",  V1, "resnext50_32x4d-7cdf4587",     1000, 77.618, 93.698, 256, 224, TV1),
    ("resnext50_32x4d",  V2, "resnext50_32x4d-1a0047aa",     1000, 81.198, 95.340, 232, 224, TV2),
    ("resnext101_32x8d", V1, "resnext101_32x8d-8ba56ff5",    1000, 79.312, 94.526, 256, 224, TV1),
    ("resnext101_32x8d", V2, "resnext101_32x8d-110c445d",    1000, 82.834, 96.228, 232, 224, TV2),
    ("resnext101_64x4d", V1, "resnext101_64x4d-173b62eb",    1000, 83.246, 96.454, 232, 224, TV1),
    ("wide_resnet50_2",  V1, "wide_resnet50_2-95faca4d",     1000, 78.468, 94.086, 256, 224, TV1),
    ("wide_resnet50_2",  V2, "wide_resnet50_2-9ba9bcbe",     1000, 81.602, 95.758, 232, 224, TV2),
    ("wide_resnet101_2", V1, "wide_resnet101_2-32ee1156",    1000, 78.848, 94.284, 256, 224, TV1),
    ("wide_resnet101_2", V2, "wide_resnet101_2-d733dc28",    1000, 82.510, 96.020, 232, 224, TV2),
)
# fmt: on
# What differs from the defaults.
_PARTICULARS = {
    ("vgg16", FEATURES): {
        "fresh": r"classifier\.",
        "mean": (0.48235, 0.45882, 0.40784),
        "std": (1 / 255, 1 / 255, 1 / 255),
    },
    ("googlenet", V1): {"fields": {"transform_input": True}},
    ("inception_v3", V1): {"fields": {"transform_input": True}},
}
WEIGHTS = tuple(PublishedWeights(*row, **_PARTICULARS.get(row[:2], {})) for row in _ROWS)
