"""Published weights, files of weights, and how weights are adapted that do not fit as they are."""

import argparse
import collections
import dataclasses
import hashlib
import http.server
import math
import pathlib
import re
import subprocess
import sys
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from flaxnets import (
    InputError,
    WeightsWarning,
    create_model,
    from_torch,
    load_weights,
    pretrained,
    published_weights,
    to_torch,
)
from flaxnets.data.pixels.crop import CenterCrop
from flaxnets.data.pixels.decode import Decode
from flaxnets.data.plan import Plan
from flaxnets.layers import imagenet_to_unit_range
from flaxnets.models import FAMILIES
from flaxnets.weights import PublishedWeights, published
from flaxnets.weights.adaptation import adapt_input_channels
from flaxnets.weights.files import torchvision_keys
from flaxnets.weights.published import WEIGHTS
from networks import HEADS, SMALL, with_marks
from tools.torchvision_import import torchvision

TORCHVISION = torchvision.models.list_models(torchvision.models)


def state_dict(arch: str, in_channels: int | None = None, **fields) -> dict[str, np.ndarray]:
    """Return random weights under torch's keys, for a network that reads `in_channels`."""
    model = create_model(arch, **fields)
    *size, usual = model.input_shape
    images = jnp.zeros((1, *size, in_channels or usual))
    random = np.random.default_rng(0)
    return to_torch(
        jax.tree.map(
            lambda leaf: random.random(leaf.shape, np.float32),
            jax.eval_shape(model.init, jax.random.key(0), images),
        )
    )


def assert_same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        np.testing.assert_array_equal(value, theirs[key], key)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> pathlib.Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/flaxnets/weights"


# --- The table -----------------------------------------------------------------------------------


TORCHVISIONS = [row for row in WEIGHTS if row.package is None]


def test_every_weight_of_torchvision_has_a_row():
    theirs = {
        (arch, entry.name)
        for arch in TORCHVISION
        for entry in torchvision.models.get_model_weights(arch)
    }
    assert {(row.arch, row.name) for row in TORCHVISIONS} == theirs
    assert len(TORCHVISIONS) == len(theirs) == 115


@pytest.mark.parametrize("row", TORCHVISIONS, ids=lambda row: f"{row.arch}-{row.name}")
def test_rows_are_torchvisions(row):
    theirs = torchvision.models.get_model_weights(row.arch)[row.name]
    preset = theirs.transforms()
    assert row.url == theirs.url
    assert [row.sha256] == torch.hub.HASH_REGEX.findall(theirs.url)
    assert row.classes == len(theirs.meta["categories"] or ())
    metrics = theirs.meta["_metrics"]["ImageNet-1K"]
    np.testing.assert_equal([row.top1, row.top5], [metrics["acc@1"], metrics["acc@5"]])
    assert ([row.resize], [row.crop]) == (preset.resize_size, preset.crop_size)
    assert (row.interpolation, True) == (preset.interpolation.value, preset.antialias)
    assert (list(row.mean), list(row.std)) == (preset.mean, preset.std)
    licence = theirs.meta.get("license")
    if licence is None:
        assert row.licence.startswith("BSD-3-Clause")
    else:
        assert row.licence == f"CC-BY-NC-4.0 ({licence})"


@pytest.mark.parametrize("arch", TORCHVISION)
def test_default_is_torchvisions(arch):
    best = torchvision.models.get_model_weights(arch).DEFAULT
    assert published_weights(arch, "DEFAULT").name == best.name


# Fields that torchvision's builders set when weights are given, and their usual values.
USUAL_FIELDS = {"transform_input": False, "image_size": 224}


@pytest.mark.parametrize("row", TORCHVISIONS, ids=lambda row: f"{row.arch}-{row.name}")
def test_fields_are_what_torchvisions_builders_set_for_weights(row, monkeypatch):
    if not any(hasattr(create_model(row.arch), field) for field in USUAL_FIELDS):
        assert row.fields == {}
        return
    enum = torchvision.models.get_model_weights(row.arch)
    monkeypatch.setattr(enum, "get_state_dict", lambda *_, **__: {})
    build = torchvision.models.get_model_builder(row.arch)
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda *_: None)
    with torch.device("meta"):
        module = build(weights=row.name)
    values = {field: getattr(module, field, usual) for field, usual in USUAL_FIELDS.items()}
    assert row.fields == {field: x for field, x in values.items() if x != USUAL_FIELDS[field]}
    assert all(hasattr(create_model(row.arch), field) for field in row.fields)


def test_statistics_without_the_field_equal_the_field():
    pixels = np.random.default_rng(0).random((1, 2, 2, 3), np.float32)
    row = published_weights("googlenet")
    ours, without = row.statistics, (pixels - row.mean) / row.std
    expected = imagenet_to_unit_range(jnp.asarray(without, jnp.float32))
    np.testing.assert_allclose((pixels - ours[0]) / ours[1], expected, atol=1e-6)
    row = published_weights("resnet18")
    assert row.statistics == (row.mean, row.std)


# --- The keys of timm and of older files ---------------------------------------------------------


def shapes(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """Return arrays of a module on the "meta" device, which take no memory."""
    items = module.state_dict().items()
    return {key: np.broadcast_to(np.False_, value.shape) for key, value in items}


@pytest.mark.parametrize(
    "arch",
    ["vgg11", "vgg11_bn", "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2",
     "densenet121", "inception_v3"],
)  # fmt: skip
def test_timms_keys_and_shapes_become_torchvisions(arch):
    import timm

    fields: dict[str, Any] = {"aux_logits": True} if arch == "inception_v3" else {}
    with torch.device("meta"):
        theirs = shapes(timm.create_model(arch, pretrained=False, **fields))
        fields = {"init_weights": False} if arch == "inception_v3" else {}
        ours = shapes(torchvision.models.get_model(arch, weights=None, **fields))
    renamed = {key: value.shape for key, value in torchvision_keys(theirs).items()}
    assert renamed == {key: value.shape for key, value in ours.items()}


def test_keys_of_torchvisions_densenet_files():
    """The files are older than torchvision's rule against dots in names (models/densenet.py)."""
    with torch.device("meta"):
        expected = shapes(torchvision.models.densenet121())
    of_file = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", k) for k in expected}
    assert "features.denseblock1.denselayer1.norm.1.weight" in of_file
    assert torchvision_keys(dict.fromkeys(of_file, np.zeros(0))).keys() == expected.keys()


def test_keys_after_torchs_wrappers():
    wrapped = {
        "module._orig_mod.fc.weight": np.zeros((2, 3)),
        "_orig_mod.module.fc.bias": np.ones(2),
    }
    assert list(torchvision_keys(wrapped)) == ["fc.weight", "fc.bias"]


# --- Downloads -----------------------------------------------------------------------------------


def small_row(path: pathlib.Path, arch: str = "lenet5") -> PublishedWeights:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return PublishedWeights(arch, "IMAGENET1K_V1", f"{arch}-{digest[:8]}", 1, 2, 28, 28, classes=10)


@pytest.fixture(scope="module")
def lenet(tmp_path_factory) -> tuple[pathlib.Path, dict[str, np.ndarray]]:
    values = state_dict("lenet5")
    path = tmp_path_factory.mktemp("lenet") / "lenet5.pth"
    torch.save({key: torch.from_numpy(value) for key, value in values.items()}, path)
    return path, values


class Server(http.server.ThreadingHTTPServer):
    """Answers every request with `body`, and claims that it has `length` bytes."""

    body, length, status, requests = b"", 0, 200, 0

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server = self.server
            assert isinstance(server, Server)
            server.requests += 1
            self.send_response(server.status)
            self.send_header("Content-Length", str(server.length))
            self.end_headers()
            self.wfile.write(server.body)

        def log_message(self, format, *args):
            pass


@pytest.fixture
def server(lenet, monkeypatch):
    """Replace download.pytorch.org; LeNet-5 is the only published network."""
    path, _ = lenet
    with Server(("127.0.0.1", 0), Server.Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        server.body = path.read_bytes()
        server.length = len(server.body)
        port = server.server_address[1]
        monkeypatch.setattr(published, "WEIGHTS", (small_row(path),))
        url = property(lambda row: f"http://127.0.0.1:{port}/{row.file}.pth")
        monkeypatch.setattr(PublishedWeights, "url", url)
        yield server
        server.shutdown()


def test_the_file_is_downloaded_once_and_kept(server, lenet, cache):
    for _ in range(2):
        assert_same(to_torch(load_weights("lenet5")), lenet[1])
    assert server.requests == 1
    assert [path.name for path in cache.iterdir()] == [f"{published.WEIGHTS[0].file}.pth"]


def test_a_damaged_file_in_the_cache_is_replaced(server, lenet, cache):
    load_weights("lenet5")
    (kept,) = cache.iterdir()
    kept.write_bytes(kept.read_bytes()[:-1])
    assert_same(to_torch(load_weights("lenet5")), lenet[1])
    assert server.requests == 2


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: setattr(s, "body", s.body[:999]), "is damaged or incomplete: its SHA-256 does"),
        (lambda s: setattr(s, "body", b"\0" * s.length), "is damaged or incomplete: its SHA-256"),
        (lambda s: setattr(s, "status", 404), "(HTTP Error 404: Not Found); give a file"),
        (lambda s: (s.shutdown(), s.server_close()), "Connection refused"),
    ],
    ids=["half", "other bytes", "absent", "no network"],
)
def test_a_failed_download_is_one_sentence_and_leaves_nothing(server, cache, change, sentence):
    change(server)
    with pytest.raises(InputError, match=re.escape(sentence)) as raised:
        load_weights("lenet5")
    assert "\n" not in str(raised.value)
    assert not list(cache.iterdir())


def test_a_cache_that_cannot_be_written_is_one_sentence(server, cache):
    cache.parent.parent.write_bytes(b"")  # a file where the directory should be
    with pytest.raises(InputError, match=r"^cannot download http.*\(.*\); give a file on this"):
        load_weights("lenet5")


def test_timms_vgg_gives_timms_logits(tmp_path):
    """The network has fewer hidden features than timm's builder gives it, and its keys a prefix."""
    import timm
    from timm.layers.classifier import ClassifierHead
    from timm.models.vgg import ConvMlp

    torch.manual_seed(0)
    reference = timm.create_model("vgg11", pretrained=False, mlp_ratio=1 / 512)
    reference.pre_logits, reference.head = ConvMlp(512, 24, 7), ClassifierHead(24, 5)
    reference.eval()
    weights = {f"model.{k}": v.numpy() for k, v in reference.state_dict().items()}
    save_file(weights, tmp_path / "timm.bin")
    fields: dict[str, Any] = {"hidden_features": 24, "num_classes": 5}
    variables = load_weights("vgg11", checkpoint=tmp_path / "timm.bin", **fields)
    images = np.random.default_rng(0).normal(size=(1, 224, 224, 3)).astype(np.float32)
    ours = jax.jit(create_model("vgg11", **fields).apply)(variables, images)
    with torch.no_grad():
        theirs = reference(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_without_torch(server, tmp_path, lenet):
    """A process without torch downloads weights and reads both .pth formats and safetensors."""
    tensors = {key: torch.from_numpy(value) for key, value in lenet[1].items()}
    torch.save(tensors, tmp_path / "chain.pth", _use_new_zipfile_serialization=False)
    save_file(lenet[1], tmp_path / "lenet.safetensors")
    row = published.WEIGHTS[0]
    code = f"""
import sys
sys.modules["torch"] = sys.modules["tensorflow"] = None
import numpy as np
from flaxnets import load_weights, to_torch
from flaxnets.weights import PublishedWeights, published
published.WEIGHTS = (PublishedWeights("lenet5", "IMAGENET1K_V1", {row.file!r}, 1, 2, 28, 28),)
PublishedWeights.url = {row.url!r}
trees = [load_weights("lenet5")]
for name in ("lenet.safetensors", "chain.pth"):
    trees.append(load_weights("lenet5", checkpoint={str(tmp_path)!r} + "/" + name))
for variables in trees:
    print(sum(float(value.sum()) for value in to_torch(variables).values()))
"""
    result = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    expected = sum(float(value.sum()) for value in lenet[1].values())
    assert [float(line) for line in result.stdout.split()] == pytest.approx([expected] * 3)
    assert server.requests == 1


# --- Files, other classes and other channels -----------------------------------------------------


@pytest.mark.parametrize(
    "arch",
    with_marks(
        ("lenet5", "nin_cifar", "highway_mlp", "mcdnn_mnist", "mlp", "bn_inception", "wrn_16_4")
    ),
)
def test_a_file_of_any_network_brings_its_own_class_count(arch, tmp_path):
    values = state_dict(arch, num_classes=7)
    save_file(values, tmp_path / "a.safetensors")
    assert_same(to_torch(load_weights(arch, checkpoint=tmp_path / "a.safetensors")), values)


def test_files_of_training_scripts_and_half_precision(tmp_path, lenet):
    _, values = lenet
    tensors = {f"module.{k}": torch.nn.Parameter(torch.from_numpy(v)) for k, v in values.items()}
    torch.save({"model": tensors, "epoch": 3}, tmp_path / "a.pth")
    assert_same(to_torch(load_weights("lenet5", checkpoint=tmp_path / "a.pth")), values)
    torch.save({key: value.bfloat16() for key, value in tensors.items()}, tmp_path / "b.pt")
    rounded = {k: torch.from_numpy(v).bfloat16().float().numpy() for k, v in values.items()}
    assert_same(to_torch(load_weights("lenet5", checkpoint=tmp_path / "b.pt")), rounded)


def test_other_classes_get_a_fresh_last_layer(tmp_path, lenet):
    _, values = lenet
    path = tmp_path / "a.safetensors"
    save_file(values, path)
    with pytest.warns(WeightsWarning) as warned:
        loaded = load_weights(
            "lenet5", checkpoint=tmp_path / "a.safetensors", num_classes=4, seed=5
        )
    assert [str(warning.message) for warning in warned] == [
        "freshly initialised for 4 classes (the weights have 10 classes): classifier.4"
    ]
    assert warned[0].filename == __file__
    model = create_model("lenet5", num_classes=4)
    initial = to_torch(jax.jit(model.init)(jax.random.key(5), jnp.zeros((1, 28, 28, 1))))
    expected = values | {k: v for k, v in initial.items() if k.startswith("classifier.4.")}
    assert_same(to_torch(loaded), expected)


def family_of(arch: str) -> str:
    (name,) = [name for name, variants in FAMILIES.items() if arch in variants]
    return name


@pytest.mark.parametrize(
    "arch", ["squeezenet1_0", "mobilenet_v3_large", "convnext_tiny", "maxvit_t"]
)
def test_heads_of_any_kind_are_told_apart(arch, tmp_path):
    """Heads are convolutions, or linear layers without bias, after hidden layers and norms."""
    fields, head = SMALL[arch].fields, HEADS[family_of(arch)]
    values = state_dict(arch, num_classes=7, **fields)
    save_file(values, tmp_path / "a.safetensors")
    assert_same(
        to_torch(load_weights(arch, checkpoint=tmp_path / "a.safetensors", **fields)), values
    )
    with pytest.warns(WeightsWarning) as warned:
        loaded = to_torch(
            load_weights(arch, checkpoint=tmp_path / "a.safetensors", num_classes=4, **fields)
        )
    assert [str(warning.message) for warning in warned] == [
        f"freshly initialised for 4 classes (the weights have 7 classes): {head}"
    ]
    shapes = {key: value.shape for key, value in values.items()}
    for key, value in loaded.items():
        if key.startswith(f"{head}."):
            assert value.shape == (4, *shapes[key][1:])
        else:
            np.testing.assert_array_equal(value, values[key], key)
    headless = load_weights(arch, checkpoint=tmp_path / "a.safetensors", num_classes=0, **fields)
    assert_same(
        to_torch(headless), {k: v for k, v in values.items() if not k.startswith(f"{head}.")}
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "heads"),
    [("googlenet", ["aux1.fc2", "aux2.fc2", "fc"]), ("inception_v3", ["AuxLogits.fc", "fc"])],
)
def test_auxiliary_heads_are_fresh_as_well(arch, heads, tmp_path):
    values = state_dict(arch)
    save_file(values, tmp_path / "a.safetensors")
    fields: dict[str, Any] = {"transform_input": True}  # for RGB only; changes no variable
    with pytest.warns(WeightsWarning, match=re.escape(f"1000 classes): {', '.join(heads)}")):
        loaded = to_torch(load_weights(
            arch, checkpoint=tmp_path / "a.safetensors", num_classes=3, **fields
        ))  # fmt: skip
    for key, value in loaded.items():
        if key.rpartition(".")[0] in heads:
            assert len(value) == 3
        else:
            np.testing.assert_array_equal(value, values[key], key)

    loaded = load_weights(arch, checkpoint=tmp_path / "a.safetensors", aux_logits=False)
    without = {key: value for key, value in values.items() if key[:3].lower() != "aux"}
    assert_same(to_torch(loaded), without)


def test_weights_for_larger_images_bring_their_size(tmp_path, monkeypatch):
    """SWAG's vision transformers have longer position embeddings, which are not taken for heads."""
    narrow: dict[str, Any] = {"layers": 1, "features": 8, "mlp_features": 8, "heads": 2}
    values = state_dict("vit_b_16", image_size=384, **narrow)
    path = tmp_path / "vit.pth"
    torch.save({key: torch.from_numpy(value) for key, value in values.items()}, path)
    row = published_weights("vit_b_16", "IMAGENET1K_SWAG_E2E_V1")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    row = dataclasses.replace(row, file=f"vit_b_16_swag-{digest[:8]}")
    monkeypatch.setattr(published, "WEIGHTS", (row,))
    monkeypatch.setattr(PublishedWeights, "url", property(lambda _: path.as_uri()))
    network = pretrained("vit_b_16", row.name, **narrow)
    assert_same(to_torch(network.variables), values)
    assert_same(to_torch(load_weights("vit_b_16", row.name, **narrow)), values)
    assert network.preprocessing == Plan((Decode(3), CenterCrop(384, 384, "bicubic")))
    assert str(network.card.licence).startswith("CC-BY-NC-4.0")
    fresh = "freshly initialised for 3 classes (the weights have 1000 classes): heads.head"
    moved = "encoder.pos_embedding is interpolated from 577 to 197 positions, for images of another"
    for side, resize, sentences in ((384, 438, [fresh]), (224, 256, [f"{moved} size", fresh])):
        with pytest.warns(WeightsWarning) as warned:
            other = pretrained("vit_b_16", path, num_classes=3, image_size=side, **narrow)
        assert [str(warning.message) for warning in warned] == sentences
        assert other.preprocessing == Plan((Decode(3), CenterCrop(resize, side)))
        assert other(np.zeros((400, 500, 3), np.uint8)).shape == (3,)


def test_features_alone_leave_the_classifier_fresh(tmp_path, monkeypatch):
    """torchvision's file has NaN for the classifier."""
    values = state_dict("vgg16", hidden_features=8)
    for key, value in values.items():
        if key.startswith("classifier."):
            value.fill(math.nan)
    path = tmp_path / "vgg16.pth"
    torch.save({key: torch.from_numpy(value) for key, value in values.items()}, path)
    row = published_weights("vgg16", "IMAGENET1K_FEATURES")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    row = dataclasses.replace(row, file=f"vgg16_features-{digest[:8]}")
    monkeypatch.setattr(published, "WEIGHTS", (row,))
    monkeypatch.setattr(PublishedWeights, "url", property(lambda _: path.as_uri()))
    with pytest.warns(WeightsWarning, match=r"\(the weights have none\): classifier.0, .*\.6$"):
        loaded = to_torch(
            load_weights("vgg16", "IMAGENET1K_FEATURES", num_classes=3, hidden_features=8)
        )
    assert all(np.isfinite(value).all() for value in loaded.values())
    assert loaded["classifier.6.weight"].shape == (3, 8)
    for key, value in values.items():
        if key.startswith("features."):
            np.testing.assert_array_equal(loaded[key], value, key)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 8])
def test_input_channels_are_adapted_as_timm_does(channels):
    from timm.models import adapt_input_conv

    kernel = np.random.default_rng(0).normal(size=(5, 3, 2, 2)).astype(np.float32)
    theirs = adapt_input_conv(channels, torch.from_numpy(kernel.copy())).numpy()
    np.testing.assert_allclose(adapt_input_channels(kernel, channels), theirs, rtol=2e-7)


@pytest.mark.parametrize(
    ("own", "wanted", "change"),
    [
        (3, 1, "summed over its 3"),
        (3, 5, "repeated and scaled from 3"),
        (1, 3, "repeated and scaled from 1"),
    ],
)
def test_other_channels_adapt_the_first_convolution(own, wanted, change, tmp_path):
    values = state_dict("lenet5", own)
    save_file(values, tmp_path / "a.safetensors")
    variables = load_weights("lenet5", checkpoint=tmp_path / "a.safetensors")
    assert_same(to_torch(variables), values)  # by default, as many as the weights read
    with pytest.warns(WeightsWarning) as warned:
        adapted = load_weights("lenet5", checkpoint=tmp_path / "a.safetensors", in_channels=wanted)
    sentence = f"features.0.weight is {change} channels, as the images have {wanted}"
    assert [str(warning.message) for warning in warned] == [sentence]
    kernel = adapt_input_channels(values["features.0.weight"], wanted)
    assert_same(to_torch(adapted), values | {"features.0.weight": kernel})
    grey = np.random.default_rng(1).random((1, 28, 28, 1), np.float32)
    logits: Any = [
        create_model("lenet5").apply(variables, np.repeat(grey, channels, -1))
        for variables, channels in [(adapted, wanted), (from_torch(values, like(own)), own)]
    ]
    if (own, wanted) != (3, 5):  # five channels weigh the three unevenly
        np.testing.assert_allclose(*logits, rtol=1e-5)


def like(channels: int):
    return jax.eval_shape(
        create_model("lenet5").init, jax.random.key(0), jnp.zeros((1, 28, 28, channels))
    )


# --- Checkpoints of training scripts --------------------------------------------------------------


def tensors(values: dict[str, np.ndarray], prefix: str = "", factor: float = 1) -> dict[str, Any]:
    return {
        prefix + key: torch.from_numpy(value * np.float32(factor)) for key, value in values.items()
    }


def averaged(values: dict[str, np.ndarray], prefix: str = "") -> dict[str, Any]:
    """Return half of each value, under the keys of `torch.optim.swa_utils.AveragedModel`."""
    counter = {f"{prefix}n_averaged": torch.tensor(3)}
    return counter | tensors(values, f"{prefix}module.", 0.5)


def beside(values: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return what training scripts save with the weights. An optimizer has tensors too."""
    momentum = {n: {"momentum_buffer": t} for n, t in enumerate(tensors(values).values())}
    return {
        "epoch": 3, "arch": "lenet5", "metric": np.float64(71.2), "scaler": {},
        "args": argparse.Namespace(lr=0.1, output=pathlib.PurePosixPath("/x")),
        "optimizer": {"state": momentum, "param_groups": [{"lr": 0.1, "params": [0, 1]}]},
        "lr_scheduler": {"milestones": collections.Counter({30: 1}), "_last_lr": [0.1]},
        "criterion": {"weight": torch.ones(10)},
    }  # fmt: skip


@pytest.mark.parametrize(
    "checkpoint",
    [
        lambda v: {"model": tensors(v), **beside(v)},
        lambda v: {**beside(v), "state_dict": tensors(v, "module.")},
        lambda v: {"net": tensors(v)},
        lambda v: {"a": {"model_state_dict": tensors(v)}, "rng": torch.get_rng_state()},
        lambda v: tensors(v, "model."),
        lambda v: tensors(v, "net.") | {"net.bn.num_batches_tracked": torch.tensor(1)},
        lambda v: {"state_dict": tensors(v, "model.backbone._orig_mod.")},
        lambda v: {k.replace("features.", "features.module."): t for k, t in tensors(v).items()},
        lambda v: {"weights": v},  # NumPy arrays
        lambda v: collections.OrderedDict(tensors(v)),
        lambda v: {"step": 7, **tensors(v)},
        lambda v: {
            "a\nb": torch.ones(1),
            "x" * 300: torch.ones(1),
            "name": np.array("a"),
            "spectrum": torch.ones(2, dtype=torch.complex64),
            **tensors(v),
        },
    ],
    ids=range(12),
)
@pytest.mark.parametrize("suffix", [".pth.tar", ".ckpt"])
def test_weights_are_found_in_checkpoints(checkpoint, suffix, tmp_path, lenet):
    torch.save(checkpoint(lenet[1]), tmp_path / f"a{suffix}")
    assert_same(to_torch(load_weights("lenet5", checkpoint=tmp_path / f"a{suffix}")), lenet[1])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".bin", ""])
def test_the_bytes_decide_what_a_file_is(suffix, tmp_path, lenet):
    path = tmp_path / f"a{suffix}"
    for save in (
        lambda: save_file(lenet[1], path),
        lambda: torch.save(tensors(lenet[1]), path),
        lambda: torch.save(tensors(lenet[1]), path, _use_new_zipfile_serialization=False),
    ):
        save()
        assert_same(to_torch(load_weights("lenet5", checkpoint=path)), lenet[1])


@pytest.mark.parametrize(
    ("checkpoint", "raw", "average"),
    [
        (lambda v: {"model": tensors(v), "model_ema": averaged(v)}, "model", "model_ema"),
        (
            lambda v: {"state_dict": tensors(v), "state_dict_ema": tensors(v, factor=0.5)},
            "state_dict", "state_dict_ema",
        ),
        (lambda v: averaged(v, "teacher.") | tensors(v, "model."), "model", "teacher"),
        (lambda v: tensors(v, "ema_model.", 0.5) | tensors(v), "at its top", "ema_model"),
    ],
    ids=["torchvision", "timm", "in one dictionary", "beside keys without prefix"],
)  # fmt: skip
def test_raw_and_average_weights(checkpoint, raw, average, tmp_path, lenet):
    path, values = tmp_path / "a.pth", lenet[1]
    torch.save(checkpoint(values) | {"args": argparse.Namespace(lr=0.1)}, path)
    with pytest.warns(WeightsWarning) as warned:
        loaded = load_weights("lenet5", checkpoint=path)
    assert_same(to_torch(loaded), values)
    assert [str(warning.message) for warning in warned] == [
        f"{path} holds raw weights ({raw}) and average weights ({average}); the raw ones are "
        "used, ema=True uses the averages"
    ]
    assert warned[0].filename == __file__
    halves = {key: value * np.float32(0.5) for key, value in values.items()}
    assert_same(to_torch(load_weights("lenet5", checkpoint=path, ema=True)), halves)


def test_average_weights_alone(tmp_path, lenet):
    torch.save(averaged(lenet[1]), tmp_path / "a.pth")
    halves = {key: value * np.float32(0.5) for key, value in lenet[1].items()}
    for ema in (False, True):
        loaded = load_weights("lenet5", checkpoint=tmp_path / "a.pth", ema=ema)
        assert_same(to_torch(loaded), halves)
    with pytest.raises(InputError, match=r"lenet5.pth holds no average weights, only raw ones; le"):
        load_weights("lenet5", checkpoint=lenet[0], ema=True)


def test_of_two_networks_the_one_that_fits_is_taken(tmp_path):
    small, large = state_dict("resnet20_cifar"), state_dict("resnet32_cifar")
    torch.save({"teacher": tensors(large), "student": tensors(small)}, tmp_path / "a.pth")
    for arch, values in [("resnet20_cifar", small), ("resnet32_cifar", large)]:
        assert_same(to_torch(load_weights(arch, checkpoint=tmp_path / "a.pth")), values)


def test_what_is_left_out_is_named(tmp_path, lenet):
    extra = {f"loss.{name}": torch.ones(2) for name in "abcdef"}
    torch.save(tensors(lenet[1], "model.") | extra, tmp_path / "a.pth")
    with pytest.warns(WeightsWarning) as warned:
        loaded = load_weights("lenet5", checkpoint=tmp_path / "a.pth")
    assert_same(to_torch(loaded), lenet[1])
    assert str(warned[0].message) == (
        f"{tmp_path / 'a.pth'}: only keys with the prefix 'model.' are used; ignored 6 keys, such "
        "as loss.a, loss.b, loss.c, loss.d, loss.e"
    )


# --- What a file lacks ----------------------------------------------------------------------------


def without_head(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: value for key, value in values.items() if not key.startswith("classifier.4.")}


@pytest.mark.parametrize(
    ("change", "missing", "left"),
    [
        (lambda v: without_head(v), "", ""),
        (
            lambda v: without_head(v) | {"classifier.4.1.weight": np.ones((7, 84), np.float32)},
            "; instead: classifier.4.1.weight", "; left out: classifier.4.1.weight",
        ),
        (
            lambda v: without_head(v) | {"head.weight": np.ones((7, 84), np.float32)},
            "; instead: head.weight", "; left out: head.weight",
        ),
        (lambda v: v | {"classifier.4.weight": np.ones((7, 50), np.float32)}, "", ""),
    ],
    ids=["none", "deeper", "another name", "another shape"],
)  # fmt: skip
def test_a_file_without_a_head(change, missing, left, tmp_path, lenet):
    path = tmp_path / "a.safetensors"
    save_file(change(lenet[1]), path)
    with pytest.raises(InputError) as raised:
        load_weights("lenet5", checkpoint=path)
    assert str(raised.value) == (
        f"{path} has no classification head (missing: classifier.4.bias, classifier.4.weight"
        f"{missing}); give num_classes for a fresh one, or train one from these weights "
        f"(init from)"
    )
    with pytest.warns(WeightsWarning) as warned:
        loaded = to_torch(load_weights("lenet5", checkpoint=path, num_classes=10, seed=3))
    assert [str(warning.message) for warning in warned] == [
        f"freshly initialised for 10 classes (the weights have none): classifier.4{left}"
    ]
    fresh = to_torch(
        jax.jit(create_model("lenet5").init)(jax.random.key(3), np.zeros((1, 28, 28, 1)))
    )
    assert_same(loaded, fresh | without_head(lenet[1]))


def test_a_classifier_of_other_layers_starts_afresh(tmp_path):
    """People replace VGG's classifier in this way; the layers that fit are kept."""
    values = state_dict("vgg11", hidden_features=8)
    other = {k: v for k, v in values.items() if not k.startswith("classifier.6.")}
    other["classifier.3.weight"] = np.ones((5, 8), np.float32)
    save_file(other, tmp_path / "a.safetensors")
    fields: dict[str, Any] = {"hidden_features": 8, "num_classes": 5}
    with pytest.warns(
        WeightsWarning, match=r"5 classes \(the weights have none\): classifier.3, c"
    ):
        loaded = to_torch(load_weights("vgg11", checkpoint=tmp_path / "a.safetensors", **fields))
    assert loaded["classifier.3.weight"].shape == (8, 8)
    assert loaded["classifier.6.weight"].shape == (5, 8)
    for key, value in values.items():
        if key.startswith(("features.", "classifier.0.")):
            np.testing.assert_array_equal(loaded[key], value, key)


@pytest.mark.parametrize("num_classes", [None, 10])
def test_another_network_is_not_one_without_a_head(num_classes, tmp_path):
    values = state_dict("resnet32_cifar")
    for name, change in [
        ("deeper", {}),
        ("headless", {"fc.weight": None, "fc.bias": None}),
        ("wider", {"layer1.0.conv1.weight": np.ones((32, 16, 3, 3), np.float32), "fc.bias": None}),
    ]:
        changed = {k: v for k, v in (values | change).items() if v is not None}
        save_file(changed, tmp_path / f"{name}.safetensors")
        with pytest.raises(InputError, match="the weights do not fit this network: "):
            load_weights(
                "resnet20_cifar", checkpoint=tmp_path / f"{name}.safetensors",
                num_classes=num_classes,
            )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "modules"), [("googlenet", "aux1, aux2"), ("inception_v3", "AuxLogits")]
)
def test_a_file_without_auxiliary_heads(arch, modules, tmp_path):
    complete = state_dict(arch)
    values = {k: v for k, v in complete.items() if not k.lower().startswith("aux")}
    path = tmp_path / "a.safetensors"
    save_file(values, path)
    with pytest.warns(WeightsWarning) as warned:
        loaded = to_torch(load_weights(arch, checkpoint=path, num_classes=1000))
    assert [str(warning.message) for warning in warned] == [
        f"freshly initialised (the weights have no such auxiliary heads): {modules}"
    ]
    assert loaded.keys() == complete.keys()
    assert_same({key: loaded[key] for key in values}, values)
    network = pretrained(arch, path)
    assert_same(to_torch(network.variables), values)
    assert len(network.classes) == 1000


@pytest.mark.parametrize("auxiliary", [True, False])
def test_the_published_googlenet_converts(auxiliary, tmp_path, monkeypatch):
    """torchvision's file has auxiliary heads; its network with weights does not."""
    import convert_torchvision

    arguments = {"num_classes": 10, "aux_logits": auxiliary, "init_weights": False}
    module = torchvision.models.googlenet(**arguments)
    values = {k: v.numpy() for k, v in module.state_dict().items() if "num_batches" not in k}
    torch.save(module.state_dict(), tmp_path / "googlenet.pth")
    row = small_row(tmp_path / "googlenet.pth", "googlenet")
    monkeypatch.setattr(published, "WEIGHTS", (row,))
    url = (tmp_path / "googlenet.pth").as_uri()
    monkeypatch.setattr(PublishedWeights, "url", property(lambda _: url))
    out = tmp_path / "out.safetensors"
    convert_torchvision.main("googlenet", out, weights="IMAGENET1K_V1")
    assert_same(load_file(out), values)


def test_scripts_choose_the_averages(tmp_path, lenet):
    from flaxnets import evaluate
    from flaxnets.inference.options import NetworkOptions
    from flaxnets.recipes import recipe_for
    from flaxnets.runs.initial import initial_weights
    from flaxnets.runs.options import Options

    path, values = tmp_path / "a.pth", lenet[1]
    torch.save({"model": tensors(values), "model_ema": averaged(values)}, path)
    halves = {key: value * np.float32(0.5) for key, value in values.items()}
    network = NetworkOptions(arch="lenet5", checkpoint=path, ema=True).open()
    assert_same(to_torch(network.variables), halves)
    options = evaluate.Options(arch=("lenet5",), checkpoint=(path,), ema=True)
    (named,) = evaluate._named_weights(options)
    assert_same(to_torch(named.open("small images").variables), halves)

    options = Options(recipe_for("lenet5", "small images"), "lenet5", init_from=str(path), ema=True)
    model, own = create_model("lenet5"), ((0.5,), (0.5,))
    initial = initial_weights(options, model, (28, 28, 1), own)
    assert_same(to_torch(initial.variables), halves)
    assert initial.notes == ()
    raw = dataclasses.replace(options, ema=False)
    initial = initial_weights(raw, model, (28, 28, 1), own)
    assert_same(to_torch(initial.variables), values)
    (note,) = initial.notes
    assert "the raw ones are used, ema=True uses" in note
    for refused in (
        lambda: NetworkOptions(workdir=tmp_path, ema=True).open(),
        lambda: NetworkOptions(arch="alexnet", weights="IMAGENET1K_V1", ema=True).open(),
        lambda: evaluate._named_weights(evaluate.Options(ema=True)),
        lambda: initial_weights(
            dataclasses.replace(options, init_from=None), model, (28, 28, 1), own
        ),
    ):
        with pytest.raises(InputError, match=r"expected --|leave out|expected a file"):
            refused()


# --- Bad input -----------------------------------------------------------------------------------


def broken(directory: pathlib.Path) -> None:
    save_file({"a": np.zeros(1000, np.float32)}, directory / "a.safetensors")
    torch.save({"a": torch.zeros(5000)}, directory / "a.pth")
    for name in ("a.safetensors", "a.pth"):
        content = (directory / name).read_bytes()
        (directory / f"half_{name}").write_bytes(content[: len(content) // 2])
    torch.save([1, 2], directory / "list.pth")
    torch.save({0: torch.zeros(2)}, directory / "numbers.pth")
    torch.save(pathlib.PurePosixPath("a"), directory / "object.pth")
    torch.save(torch.nn.Linear(1, 1), directory / "module.pth")
    np.savez(directory / "b.npz", a=np.zeros(3))
    (directory / "page.pth").write_bytes(b"<html>Not Found</html>")
    (directory / "directory.pth").mkdir()
    save_file(state_dict("mcdnn_mnist"), directory / "mcdnn.safetensors")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"arch": "vgg17"}, "unknown architecture 'vgg17'; did you mean 'vgg16'?"),
        (
            {"arch": "vgg16", "name": "IMAGENET1K_V2"},
            "unknown weights of vgg16 'IMAGENET1K_V2'; did you mean 'IMAGENET1K_V1'?",
        ),
        ({}, "no weights of 'lenet5' are published by torchvision; give a checkpoint file"),
        ({"num_classes": -1}, "num_classes is -1; expected at least 1, or 0 for no head"),
        ({"in_channels": 0}, "in_channels is 0; expected at least 1"),
        ({"dens": True}, "unknown field of lenet5 'dens'; did you mean 'dense'?"),
        (
            {"checkpoint": "none.pth"},
            "no file none.pth; expected a file of weights, .safetens",
        ),
        ({"checkpoint": "directory.pth"}, "no file directory.pth; expected"),
        ({"checkpoint": "half_a.safetensors"}, "half_a.safetensors is not a complete safetensors"),
        ({"checkpoint": "half_a.pth"}, "half_a.pth is not a complete file of torch weights"),
        ({"checkpoint": "page.pth"}, "page.pth is neither a torch file nor a safetensors file"),
        (
            {"checkpoint": "object.pth"},
            "object.pth holds no state_dict; save model.state_dict()",
        ),
        ({"checkpoint": "module.pth"}, "module.pth holds 'torch.nn.modules.linear.Linear', which"),
        ({"checkpoint": "list.pth"}, "list.pth holds no state_dict; save model.state_dict()"),
        (
            {"checkpoint": "numbers.pth"},
            "numbers.pth holds no state_dict; save model.state_dict()",
        ),
        ({"checkpoint": "a.npz"}, "a.npz is neither a torch file nor a safetensors file"),
        ({"checkpoint": "b.npz"}, "b.npz is a zip file that torch.save did not write"),
        (
            {"checkpoint": "a.pth"},
            "the weights do not fit this network: missing 10 keys, such as classifier.0.bias, "
            "classifier.0.weight, classifier.2.bias, classifier.2.weight, classifier.4.bias; "
            "unused: a",
        ),
        ({"checkpoint": "mcdnn.safetensors"}, "the weights do not fit this network: "),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "checkpoint" in arguments:
        broken(tmp_path)
        (tmp_path / "a.npz").write_bytes(b"")
    with pytest.raises(InputError, match="^" + re.escape(sentence)) as raised:
        load_weights(**{"arch": "lenet5", **arguments})
    assert "\n" not in str(raised.value)


# --- experiments/train.py ------------------------------------------------------------------------


def test_training_starts_from_a_published_name(server, lenet, capsys, tmp_path, monkeypatch):
    """Other classes get the features of the file, a fresh head, and a line that says so."""
    from flaxnets import train
    from flaxnets.runs.checkpoints import Checkpoints

    _, values = lenet
    four = {k: v[:4] if k.startswith("classifier.4.") else v for k, v in values.items()}
    path = tmp_path / "a.pth"
    torch.save({key: torch.from_numpy(value) for key, value in four.items()}, path)
    server.body = path.read_bytes()
    server.length = len(server.body)
    monkeypatch.setattr(published, "WEIGHTS", (small_row(path),))
    monkeypatch.setattr(sys, "argv", ["train.py"])
    start = ["--arch", "lenet5", "--init-from", "IMAGENET1K_V1", "--freeze", "features.*"]
    train.main([*start, "--epochs", "1", "--workdir", str(tmp_path / "run")])
    sentence = "freshly initialised for 10 classes (the weights have 4 classes): classifier.4\n"
    assert sentence in capsys.readouterr().out
    trained = to_torch(Checkpoints(tmp_path / "run/checkpoints").restore_variables())
    for key in ("features.0.weight", "features.3.bias"):
        np.testing.assert_array_equal(trained[key], four[key])


@pytest.mark.parametrize(("arch", "mean"), [("resnet18", 0.485), ("inception_v3", 0.5)])
def test_training_normalises_as_the_published_weights_expect(arch, mean, monkeypatch):
    from flaxnets.recipes import recipe_for
    from flaxnets.runs.initial import initial_weights
    from flaxnets.runs.options import Options

    monkeypatch.setattr("flaxnets.runs.initial.load_model", lambda *_, **__: (None,) * 3)
    options = Options(recipe_for(arch, "photographs"), arch, init_from="IMAGENET1K_V1")
    model, own = create_model(arch, num_classes=2), ((0.4,) * 3, (0.2,) * 3)
    assert initial_weights(options, model, (64, 64, 3), own).statistics[0][0] == mean
    assert initial_weights(options, model, (64, 64, 1), own).statistics == own  # no RGB
    options = dataclasses.replace(options, init_from="a.safetensors")
    assert initial_weights(options, model, (64, 64, 3), own).statistics == own
