"""Networks are opened, called, taken apart and saved."""

import ast
import dataclasses
import json
import pathlib
import re
import subprocess
import sys
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file
from sklearn.datasets import load_sample_images

import flaxnets
from flaxnets import (
    InputError,
    WeightsWarning,
    create_model,
    list_models,
    load_weights,
    pretrained,
    to_torch,
)
from flaxnets.data.pixels.crop import CenterCrop
from flaxnets.data.pixels.decode import Decode
from flaxnets.data.pixels.resize import Resize
from flaxnets.data.plan import Plan
from flaxnets.inference import programs
from flaxnets.inference.features import Level, feature_info, pyramid
from flaxnets.inference.network import Network
from flaxnets.inference.results import Card, imagenet_class_names
from flaxnets.initializers import drawn
from flaxnets.models import describe
from flaxnets.summary import summarize, totals
from flaxnets.training.on_device import normalize
from flaxnets.weights import PublishedWeights, loading, published
from scripts import ROOT
from tools.torchvision_import import torchvision

PHOTOS = load_sample_images().images  # uint8 (427, 640, 3)
PAGE = (ROOT / "docs/pretrained.md").read_text()


def initialized(arch: str, in_channels: int = 3, **fields):
    """Return a network with random variables, including the statistics of norms."""
    model = create_model(arch, **fields)
    shape = (1, *model.input_shape[:2], in_channels)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
    random = np.random.default_rng(0)
    return model, jax.tree.map(
        lambda leaf: np.float32(
            random.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape)
            if leaf.ndim > 1
            else random.uniform(0.5, 1, leaf.shape)
        ),
        shapes,
    )


@pytest.fixture(scope="module")
def lenet() -> Network:
    return pretrained(initialized("lenet5"))


def same(ours, theirs) -> None:
    ours, theirs = to_torch(ours), to_torch(theirs)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        np.testing.assert_array_equal(value, theirs[key], key)


# --- The example of the lecture -------------------------------------------------------------------


@torch.no_grad()
def test_fifteen_classes_in_five_lines(tmp_path, monkeypatch, capsys):
    """Run the first code of docs/pretrained.md with random weights of torchvision's network."""
    five_lines = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (code,) = [code for code in five_lines if "top=15" in code]
    assert len([line for line in code.splitlines() if line]) == 4
    torch.manual_seed(0)
    reference = torchvision.models.alexnet().eval()
    reference.classifier[6].weight.data *= 50
    torch.save(reference.state_dict(), tmp_path / "alexnet.pth")
    row = dataclasses.replace(published.published_weights("alexnet"), file="alexnet-")
    monkeypatch.setattr(published, "WEIGHTS", (row,))
    url = (tmp_path / "alexnet.pth").as_uri()
    monkeypatch.setattr(PublishedWeights, "url", property(lambda _: url))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    photo = Image.fromarray(PHOTOS[0])
    photo.save("dog.jpg", format="PNG")
    namespace: dict[str, object] = {}
    exec(compile(code, "docs/pretrained.md", "exec"), namespace)

    transform = torchvision.models.AlexNet_Weights.IMAGENET1K_V1.transforms()
    scores, order = reference(transform(photo)[None])[0].sort(descending=True)
    lines = capsys.readouterr().out.splitlines()
    assert [line[6:] for line in lines] == [imagenet_class_names()[i] for i in order[:15]]
    np.testing.assert_allclose([float(line[:5]) for line in lines], scores[:15], atol=0.006)
    network = namespace["network"]
    assert isinstance(network, Network)
    assert network.card == Card(
        "alexnet IMAGENET1K_V1", "ImageNet-1k", {"top1": 0.56522, "top5": 0.79066},
        network.card.licence,
    )  # fmt: skip
    assert "BSD-3-Clause" in str(network.card.licence)


# --- What can be opened --------------------------------------------------------------------------


def test_a_file_of_weights(lenet, tmp_path):
    save_file(to_torch(lenet.variables), tmp_path / "a.safetensors")
    for weights in (tmp_path / "a.safetensors", str(tmp_path / "a.safetensors")):
        network = pretrained("lenet5", weights)
        same(network.variables, lenet.variables)
        assert network.model == lenet.model
        assert network.preprocessing == Plan((Decode(3), CenterCrop(32, 28)))
        assert network.card == Card(str(tmp_path / "a.safetensors"))
    plan = Plan((Decode(3, "stored"), Resize(28)))
    network = pretrained(
        "lenet5", weights, preprocessing=plan, statistics=((0.5,) * 3, (0.5,) * 3),
        classes="abcdefghij", dtype=jnp.bfloat16,
    )  # fmt: skip
    assert (network.preprocessing, network.statistics) == (plan, ((0.5,) * 3, (0.5,) * 3))
    assert (network.classes, network.model.dtype) == (tuple("abcdefghij"), jnp.bfloat16)
    assert pretrained("lenet5", weights, kind="small images").preprocessing.window == Resize(28)
    network = pretrained("lenet5", weights, num_classes=0)
    assert (network.classes, network(PHOTOS[0]).shape) == ((), (84,))
    assert pretrained("lenet5", weights, orientation="stored").preprocessing.orientation == "stored"


def test_other_channels(lenet, tmp_path):
    save_file(to_torch(lenet.variables), tmp_path / "a.safetensors")
    kernel = to_torch(lenet.variables)["features.0.weight"]
    with pytest.warns(WeightsWarning, match=r"features.0.weight is summed over its 3 channels, as"):
        network = pretrained("lenet5", tmp_path / "a.safetensors", in_channels=1)
    summed = to_torch(network.variables)["features.0.weight"]
    np.testing.assert_array_equal(summed, kernel.sum(1, keepdims=True))
    assert network(PHOTOS[0]).shape == (10,)
    assert network.input_shape == (28, 28, 1)
    with pytest.warns(WeightsWarning, match="scaled from 3 channels, as the images have 5"):
        five = pretrained(
            "lenet5", tmp_path / "a.safetensors", in_channels=5,
            statistics=((0.5,) * 5, (0.2,) * 5), preprocessing=Plan((Decode(5), Resize(28))),
        )  # fmt: skip
    with pytest.raises(InputError, match="reads 5 channels; expected 1 or 3 for a picture"):
        five(PHOTOS[0])
    with (
        pytest.warns(WeightsWarning),
        pytest.raises(InputError, match="the statistics of 5 channels are not known; give sta"),
    ):
        pretrained("lenet5", tmp_path / "a.safetensors", in_channels=5)


def test_published_weights_bring_their_preprocessing(lenet, tmp_path, monkeypatch):
    """So does a file with their name, and a network that scales its images to [-1, 1] itself."""
    row = published.published_weights("googlenet")
    monkeypatch.setattr(published, "WEIGHTS", (dataclasses.replace(row, arch="lenet5"),))
    save_file(to_torch(lenet.variables), tmp_path / "a.safetensors")
    lenet.save(tmp_path / "b.safetensors")
    for network in (
        pretrained("lenet5", tmp_path / "a.safetensors", preprocessing="IMAGENET1K_V1"),
        pretrained(tmp_path / "b.safetensors", preprocessing="IMAGENET1K_V1"),
        pretrained((lenet.model, lenet.variables), preprocessing="IMAGENET1K_V1"),
    ):
        assert network.preprocessing == Plan((Decode(3), CenterCrop(256, 224)))
        assert network.statistics == ((0.5,) * 3, (0.5,) * 3)
    monkeypatch.setattr(published, "WEIGHTS", (row,))
    model, variables = initialized("googlenet", num_classes=2, transform_input=True)
    network = pretrained((model, variables), preprocessing="IMAGENET1K_V1")
    assert network.statistics == (row.mean, row.std)


def test_a_run_of_train(tmp_path, monkeypatch, capsys):
    import convert_torchvision

    from flaxnets import evaluate, train

    monkeypatch.setattr("flaxnets.runs.processes.join", lambda processes: None)
    run = tmp_path / "run"
    arguments = ["--arch", "lenet5", "--epochs", "1", "--workdir", str(run)]
    train.main([*arguments, "--no-compilation-cache"])
    capsys.readouterr()
    network = pretrained(run)
    summary = json.loads((run / "summary.json").read_text())
    accuracy = {name: summary[name] for name in ("top1", "top5", "loss")}
    assert network.card == Card(str(run), "digits", accuracy)
    assert network.classes == tuple("0123456789")
    scan = flaxnets.data.open_source("digits").images["test"][0]
    fed = normalize(jnp.asarray(network.preprocessing(scan)[None]), *network.statistics)
    np.testing.assert_allclose(
        network(scan), network.model.apply(network.variables, fed)[0], atol=1e-5
    )
    network.save(tmp_path / "run.safetensors")
    other = pretrained(tmp_path / "run.safetensors")
    np.testing.assert_array_equal(other(scan), network(scan))
    assert (other.card, other.classes, other.arch) == (network.card, network.classes, "lenet5")
    # Scripts open both and get the same results.
    results = []
    for path in (run, tmp_path / "run.safetensors"):
        evaluate.main(evaluate.Options((path,), json=True, compilation_cache=False))
        ((result,),) = [json.loads(capsys.readouterr().out)["results"]]
        results.append({key: value for key, value in result.items() if key != "network"})
    assert results[0] == results[1]
    assert results[0]["top1"] == pytest.approx(summary["top1"], abs=1e-6)
    convert_torchvision.main("lenet5", tmp_path / "other.safetensors", workdir=run)
    same(pretrained(tmp_path / "other.safetensors").variables, network.variables)
    (run / "summary.json").write_text('{"steps": 1, "top1": 1}')  # for another checkpoint
    assert pretrained(str(run)).card.accuracy == {}


@pytest.mark.parametrize(
    ("arch", "fields"),
    [
        ("resnet20_cifar", {"depth": 8, "num_classes": 3}),
        ("densenet_bc_100_12", {"depths": (2, 1, 1), "growth_rate": 4, "dtype": jnp.bfloat16}),
        ("overfeat_fast", {"channels": (2,) * 5, "hidden_features": (3, 4), "num_classes": 5}),
        ("softmax_regression", {"input_shape": (9, 9, 3)}),
    ],
)
def test_a_saved_network_opens_with_the_same_bits(arch, fields, tmp_path):
    model, variables = initialized(arch, **fields)
    plan = Plan((Decode(3, "stored"), CenterCrop(300, model.input_shape[0])))
    statistics, card = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)), Card("me", "mine", {"top1": 0.1}, "MIT")
    names = [f"ä{i}" for i in range(model.num_classes)]
    network = pretrained(
        (model, variables), preprocessing=plan, statistics=statistics, classes=names
    )
    network = dataclasses.replace(network, card=card)
    network.save(tmp_path / "a.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    other = pretrained(str(tmp_path / "a.safetensors"))
    same(other.variables, variables)
    for field in ("preprocessing", "statistics", "classes", "card", "arch"):
        assert getattr(other, field) == getattr(network, field), field
    assert describe(other.model) == describe(model)
    np.testing.assert_array_equal(other(PHOTOS[0]), network(PHOTOS[0]))
    # It is also a file of weights under torch's keys.
    with safe_open(tmp_path / "a.safetensors", "numpy") as file:
        assert set(file.keys()) == to_torch(variables).keys()
        assert json.loads(file.metadata()["flaxnets"])["arch"] == arch
    same(load_weights(arch, checkpoint=tmp_path / "a.safetensors", **fields), variables)


def test_every_network_is_described_by_its_name():
    for name in list_models():
        model = create_model(name, num_classes=7, dtype=jnp.bfloat16)
        arch, fields = describe(model)
        assert (arch, create_model(arch, **fields)) == (name, model)


def test_channels_of_a_network_at_hand_are_its_variables():
    network = pretrained(initialized("lenet5", 1))
    assert network.input_shape == (28, 28, 1)
    assert network.statistics == ((0.485,), (0.229,))
    assert network.classes == tuple(f"class {i}" for i in range(10))
    assert network.card == Card("LeNet5 at hand")


class Mean(torch.nn.Module):
    pass


@pytest.mark.parametrize(
    ("open_it", "sentence"),
    [
        (lambda d, n: pretrained("alexnt"), "unknown architecture 'alexnt'; did you mean"),
        (lambda d, n: pretrained("alexnt", "V1"), "unknown architecture 'alexnt'; did you mean"),
        (lambda d, n: pretrained("lenet5"), "no weights of 'lenet5' are published by torchvision"),
        (lambda d, n: pretrained("alexnet", "IMAGENET1K_V3"), "unknown weights of alexnet"),
        (lambda d, n: pretrained("vgg16", "IMAGENET1K_FEATURES"), "the weights IMAGENET1K_FEATURES"
         " of vgg16 are features without classes; give num_classes"),
        (lambda d, n: pretrained("alexnet", in_channels=0), "in_channels is 0; expected at least"),
        (lambda d, n: pretrained(d, in_channels=1), "in_channels cannot be given with a source"),
        (lambda d, n: pretrained("alexnet", ema=True), "the weights IMAGENET1K_V1 of alexnet "
         "have no averages; leave out ema"),
        (lambda d, n: pretrained("lenet5", d / "none.pth"), "no file {}/none.pth"),
        (lambda d, n: pretrained(d / "none"), "{}/none is not the workdir of a training run: it"),
        (lambda d, n: pretrained(d), "{} is not the workdir of a training run: it has no config"),
        (lambda d, n: pretrained(d / "plain.safetensors"), "{}/plain.safetensors does not say "
         "which network its weights belong to"),
        (lambda d, n: pretrained(d / "odd.safetensors"), "{}/odd.safetensors has a header that "
         "network.save did not write"),
        (lambda d, n: pretrained(d / "text"), "{}/text does not say which network"),
        (lambda d, n: pretrained(typing.cast(Any, 7)), "cannot open a network from a value "
         "of type int; expected a name"),
        (lambda d, n: pretrained(d, "IMAGENET1K_V1"), "weights cannot be given with a source"),
        (lambda d, n: pretrained(d, num_classes=3), "num_classes cannot be given with a source"),
        (lambda d, n: pretrained((n.model, {})), "the variables do not fit this LeNet5"),
        (lambda d, n: pretrained((Mean(), {})), "Mean is no network of the library; give prep"),
        (lambda d, n: pretrained((n.model, n.variables), classes=["a"]), "classes has 1 names; "
         "expected 10, one for each output of the network"),
        (lambda d, n: n.save(d / "a.pth"), "unknown suffix of {}/a.pth '.pth'; expected one of"),
        (lambda d, n: n.save(d / "none/a.safetensors"), "cannot write {}/none/a.safetensors"),
        (lambda d, n: dataclasses.replace(n, model=Mean()).save(d / "a.safetensors"), "Mean is no "
         "network of the library"),
        (lambda d, n: n.with_head(0, jax.random.key(0)), "num_classes is 0; expected at least 1"),
        (lambda d, n: n(PHOTOS[0].astype(np.float32)), "the picture is an array of float32 and "
         "shape (427, 640, 3); expected uint8 values 0..255 of shape (height, width, 3)"),
        (lambda d, n: n(PHOTOS[0].transpose(2, 0, 1)), "the picture is an array of uint8 and"),
        (lambda d, n: n([PHOTOS[0], 3]), "picture 1 is of type int; expected a path"),
        (lambda d, n: n([]), "no picture given; expected at least one"),
        (lambda d, n: n([d / "none.jpg"]), "no file {}/none.jpg"),
        (lambda d, n: n(d / "text"), "{}/text is not a picture in a format that Pillow reads"),
        (lambda d, n: n(b"text"), "the picture is not a picture in a format that Pillow reads"),
        (lambda d, n: n.dense([PHOTOS[0]]), "dense reads one picture, but several are given"),
        (lambda d, n: n.dense(np.zeros((4000, 4000, 3), np.uint8)), "4000x4000 pixels are too"),
        (lambda d, n: n.features(PHOTOS[0], ["features.9"]), "unknown layer 'features.9'; did you"),
        (lambda d, n: n.pyramid(PHOTOS[0]), "the network has no map of stride 8; expected one of "
         "1, 2, 4"),
        (lambda d, n: n.classify(PHOTOS[0], 0), "top is 0; expected at least 1"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(open_it, sentence, lenet, tmp_path):
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "plain.safetensors")
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "odd.safetensors", {"flaxnets": "[1]"})
    (tmp_path / "text").write_text("not a picture")
    with pytest.raises(InputError) as raised:
        open_it(tmp_path, lenet)
    assert str(raised.value).startswith(sentence.format(tmp_path))
    assert "\n" not in str(raised.value)


def test_shapes_are_traced_once_for_weights_that_fit(tmp_path, monkeypatch):
    _, variables = initialized("lenet5", 1)
    save_file(to_torch(variables), tmp_path / "a.safetensors")
    traced = []
    trace = loading.trace_shapes
    monkeypatch.setattr(loading, "trace_shapes", lambda *a: traced.append(a) or trace(*a))
    same(pretrained("lenet5", tmp_path / "a.safetensors").variables, variables)
    assert len(traced) == 1


def test_weights_without_their_head(tmp_path):
    """A headless network drops the weights of auxiliary heads too."""
    expected = to_torch(initialized("googlenet", num_classes=3)[1])
    path = tmp_path / "a.safetensors"
    save_file(expected, path)
    loaded = to_torch(load_weights("googlenet", checkpoint=path, num_classes=0))
    assert loaded.keys() == {key for key in expected if not key.startswith(("aux", "fc"))}
    for key, value in loaded.items():
        np.testing.assert_array_equal(value, expected[key], key)


# --- What an open network does -------------------------------------------------------------------


def test_pictures_of_every_kind_give_the_same_logits(lenet, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(PHOTOS[1])
    image.save(tmp_path / "turned.png", exif=exif)
    image.save(tmp_path / "straight.png")
    upright = image.transpose(Image.Transpose.ROTATE_270)
    straight = (image, PHOTOS[1], tmp_path / "straight.png")
    assert len({bytes(np.asarray(lenet(picture))) for picture in straight}) == 1
    pictures = [
        tmp_path / "turned.png",
        str(tmp_path / "turned.png"),
        (tmp_path / "turned.png").read_bytes(),
        Image.open(tmp_path / "turned.png"),
        upright,
        np.asarray(upright),
        upright.convert("RGBA"),
        np.asarray(upright.convert("RGBA")),
    ]
    logits = np.asarray(lenet(pictures))
    assert logits.shape == (8, 10)
    assert len({bytes(row) for row in logits}) == 1
    np.testing.assert_allclose(logits[0], lenet(upright), rtol=1e-4, atol=1e-4)
    assert np.abs(logits[0] - lenet(PHOTOS[1])).max() > 0.1
    # An array of several pictures is several pictures.
    assert lenet(np.stack([PHOTOS[0]] * 2)).shape == (2, 10)
    # As from files, a grey picture is read in colour, and a coloured one in grey if need be.
    grey = image.convert("L")
    np.testing.assert_array_equal(lenet(np.asarray(grey)), lenet(grey.convert("RGB")))
    of_grey = pretrained(initialized("lenet5", 1))
    np.testing.assert_array_equal(of_grey(PHOTOS[1]), of_grey(np.asarray(grey)[..., None]))


def test_logits_are_those_of_the_module_and_programs_are_kept(lenet):
    network = dataclasses.replace(lenet)
    fed = np.stack([network.preprocessing(photo) for photo in PHOTOS])
    x = normalize(jnp.asarray(fed), *network.statistics)
    expected = jax.jit(network.model.apply)(network.variables, x)
    np.testing.assert_allclose(network(PHOTOS), expected, rtol=1e-5, atol=1e-5)
    for _ in range(2):
        network(PHOTOS[0])
        network(PHOTOS)
    sizes = [program._cache_size() for program in network._programs.compiled.values()]
    assert sizes == [1, 1]  # for two pictures, and for one


def test_many_pictures_are_computed_in_batches(lenet, monkeypatch):
    monkeypatch.setattr(programs, "BATCH", 4)
    network = dataclasses.replace(lenet)
    crops = [PHOTOS[0][i : i + 100, i : i + 90] for i in range(10)]
    one_by_one = np.stack([network(crop) for crop in crops])
    compiled = []
    inputs = network._programs.compute(
        "many", lambda v, x, s: compiled.append(1) or x["image"][:, 0], crops
    )
    assert len(compiled) == 1  # the last batch is padded
    np.testing.assert_array_equal(inputs, [network.preprocessing(crop) for crop in crops])
    np.testing.assert_allclose(network(crops), one_by_one, rtol=1e-5, atol=1e-5)


def test_classes_come_with_scores_or_probabilities(lenet):
    logits = np.asarray(lenet(PHOTOS[0]))
    best = lenet.classify(PHOTOS[0], top=3)
    order = np.argsort(-logits)[:3]
    assert [row.index for row in best] == order.tolist()
    assert [row.name for row in best] == [f"class {index}" for index in order]
    np.testing.assert_allclose([row.score for row in best], logits[order], rtol=1e-6)
    np.testing.assert_allclose(
        [row.probability for row in best], jax.nn.softmax(logits)[order], rtol=1e-5
    )
    several = lenet.classify(PHOTOS, top=3)
    assert [row.index for row in several[0]] == order.tolist()
    both = lenet.classify(PHOTOS, top=10, views="ten-crop")
    alone = [lenet.classify(photo, top=10, views="ten-crop") for photo in PHOTOS]
    for rows, other in zip(both, alone, strict=True):
        assert {row.score for row in rows} == {None}
        ours, theirs = ({row.index: row.probability for row in best} for best in (rows, other))
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_network_of_numbers_returns_numbers():
    model, variables = initialized("linear_regression", 1)
    variables = drawn(model.init)(jax.random.key(0), jnp.zeros((1, 10)))
    network = pretrained(
        (model, variables), preprocessing=Plan(), statistics=((0.5,) * 10, (2.0,) * 10)
    )
    network = dataclasses.replace(network, classes=())
    rows = np.random.default_rng(0).normal(size=(3, 10))
    weight = to_torch(variables)
    expected = (rows - 0.5) / 2 @ weight["classifier.0.weight"][0] + weight["classifier.0.bias"]
    np.testing.assert_allclose(network.classify(rows), expected, rtol=1e-5, atol=1e-6)
    assert network.classify(rows[1]) == pytest.approx(expected[1], rel=1e-5)
    with pytest.raises(InputError, match="the picture is an array of <U1; expected a row of num"):
        network.classify(np.array(["a"]))


def test_maps_of_a_picture_of_any_size(lenet):
    x = normalize(jnp.asarray(PHOTOS[0][None, :61, :84]), *lenet.statistics)
    expected = lenet.model.clone(dense=True).apply(lenet.variables, x)[0]
    scores = lenet.dense(PHOTOS[0][:61, :84])
    assert scores.shape == expected.shape == (9, 15, 10)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="MLP reads its input at one size and has no map"):
        pretrained(initialized("softmax_regression")).dense(PHOTOS[0])


def test_features_and_maps_by_name_and_stride(lenet):
    names = ["features.3", "classifier.1"]
    assert set(names) < set(lenet.feature_names)
    outputs = lenet.features(PHOTOS, names)
    assert list(outputs) == names
    assert [value.shape for value in outputs.values()] == [(2, 8, 8, 16), (2, 1, 1, 120)]
    one = lenet.features(PHOTOS[1], names)
    for name in names:
        np.testing.assert_allclose(outputs[name][1], one[name], rtol=1e-4, atol=1e-4)
    assert lenet.feature_info == (
        Level(1, "features.1", 6), Level(2, "features.4", 16), Level(4, "features", 16),
    )  # fmt: skip
    maps = lenet.pyramid(PHOTOS, strides=(4, 1))
    assert [scores.shape for scores in maps] == [(2, 4, 4, 16), (2, 24, 24, 6)]
    np.testing.assert_array_equal(maps[0], lenet.features(PHOTOS, ["features.5"])["features.5"])
    with pytest.raises(InputError, match="MLP reads images of one size and has no maps"):
        pretrained(initialized("softmax_regression")).pyramid(PHOTOS[0])


def test_a_new_head_keeps_all_else():
    model, variables = initialized("nin_cifar", num_classes=4)
    network = pretrained((model, variables))
    for other in (network, dataclasses.replace(network, model=model.headless())):
        new = other.with_head(3, jax.random.key(5), classes="xyz")
        assert new.classes == ("x", "y", "z")
        head, kept = "mlpconv3.cccp2", to_torch(new.variables)
        fresh = to_torch(
            drawn(new.model.init)(jax.random.key(5), jnp.zeros((1, *network.input_shape)))
        )
        for key, value in to_torch(variables).items():
            if key.startswith(head):  # from another program, which rounds in another order
                np.testing.assert_allclose(kept[key], fresh[key], rtol=1e-6)
            else:
                np.testing.assert_array_equal(kept[key], value, key)
        assert kept[f"{head}.weight"].shape[0] == 3
    assert new.card.source == "NIN at hand, with a new head"
    with pytest.raises(InputError, match="classes has 2 names; expected 3, one for each output"):
        network.with_head(3, jax.random.key(0), classes="ab")


def test_a_headless_network_has_no_classes():
    model, variables = initialized("lenet5")
    network = pretrained((model.headless(), {"params": variables["params"]}), **{
        "preprocessing": Plan((Decode(3), Resize(28))), "statistics": ((0.5,) * 3, (0.5,) * 3),
    })  # fmt: skip
    assert network(PHOTOS[0]).shape == (84,)
    with pytest.raises(InputError, match="lenet5 has no head and so no classes"):
        network.classify(PHOTOS[0])


# --- Pyramids ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "levels"),
    [
        ("resnet18", 5), ("resnext50_32x4d", 5), ("vgg16_bn", 6), ("densenet121", 5),
        ("inception_v3", 5), pytest.param("inception_resnet_v2", 5, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_channels_and_strides_are_timms(arch, levels):
    import timm

    with torch.device("meta"):
        theirs: Any = timm.create_model(
            arch, pretrained=False, features_only=True, out_indices=tuple(range(levels))
        ).feature_info  # fmt: skip
    ours = feature_info(create_model(arch))
    assert [level.stride for level in ours] == theirs.reduction()
    assert [level.channels for level in ours] == theirs.channels()


@pytest.mark.parametrize("arch", ["mlp", "highway_mlp"])
def test_networks_without_convolutions_have_no_maps(arch):
    assert feature_info(create_model(arch)) == ()


def test_layers_after_the_deepest_map_are_not_computed():
    """XLA's count of operations equals that of the layers that are needed.

    In float64, convolutions are XLA's own on CPUs too.
    """
    with jax.enable_x64():
        model, variables = initialized("resnet20_cifar", depth=8, dtype=jnp.float64)
        layers = summarize(model, (32, 32, 3))
        for depth in (1, 2, 3):

            def maps(variables, x, depth=depth):
                return pyramid(model, variables, x, [2 ** (depth - 1)])

            program = jax.jit(maps).lower(variables, jnp.zeros((1, 32, 32, 3))).compile()
            deeper = tuple(f"layer{i}" for i in range(depth + 1, 4))
            needed = [layer for layer in layers if not layer.name.startswith((*deeper, "fc"))]
            expected = 2 * totals(needed)["multiply_adds"]
            cost: Any = program.cost_analysis()
            assert cost["flops"] == pytest.approx(expected, rel=0.1)


# --- What the package exports --------------------------------------------------------------------


def test_the_package_lists_its_exports_once():
    tree = ast.parse(pathlib.Path(flaxnets.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {
        str(alias.asname): str(node.module).removeprefix("flaxnets.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == flaxnets._MODULES
    assert flaxnets.__all__ == sorted(imported)
    for name in flaxnets.__all__:
        assert getattr(flaxnets, name).__name__ == name
    code = """
import sys
import typing
from typing import Any
sys.modules["tensorflow"] = sys.modules["torch"] = None
import flaxnets
assert "jax" not in sys.modules
for name in flaxnets.__all__:
    getattr(flaxnets, name)
"""
    subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", code], check=True)
