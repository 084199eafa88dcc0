"""Test preprocessing against torchvision's, views of pictures, and the script classify.py."""

import json
import pathlib
import subprocess
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from sklearn.datasets import load_sample_images

from flaxnets import InputError, create_model, pretrained, to_torch
from flaxnets.classify import Options, main
from flaxnets.data.pixels.crop import CenterCrop
from flaxnets.data.pixels.decode import Decode, as_array
from flaxnets.data.pixels.resize import Resize, cover, scale_short_side
from flaxnets.data.plan import Plan
from flaxnets.data.source import IMAGENET_STATISTICS
from flaxnets.inference.inputs import own_statistics
from flaxnets.inference.options import NetworkOptions
from flaxnets.inference.results import imagenet_class_names
from flaxnets.inference.views import (
    check_views,
    for_views,
    random_crops,
    ten_crop,
    views_of,
)
from flaxnets.initializers import drawn
from flaxnets.recipes import Interpolation
from flaxnets.training.on_device import normalize
from flaxnets.training.views import mean_log_probabilities, view_logits
from scripts import command, errors, output, refusal, script
from tools.torchvision_import import torchvision

SCRIPT = "experiments/classify.py"
PHOTOS = [Image.fromarray(photo) for photo in load_sample_images().images]  # 640 x 427


def preset(crop: int, resize: int = 256, interpolation: Interpolation = "bilinear") -> Plan:
    return Plan((Decode(3), CenterCrop(resize, crop, interpolation)))


def turned(photo):  # a portrait, of odd size
    return photo.rotate(90, expand=True).crop((0, 0, 401, 613))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("crop", "resize"), [(224, 256), (224, 232), (299, 342), (224, 999)])
def test_the_preset_is_torchvisions(crop, resize, interpolation):
    for photo in (*PHOTOS, turned(PHOTOS[0])):
        plan = preset(crop, resize, interpolation)
        view = views_of(np.asarray(photo), plan, "center")["image"]
        reference = torchvision.transforms._presets.ImageClassification(
            crop_size=crop,
            resize_size=resize,
            interpolation=torchvision.transforms.InterpolationMode(interpolation),
        )(photo)
        ours = normalize(jnp.asarray(view), *IMAGENET_STATISTICS)[0]
        np.testing.assert_allclose(ours, reference.permute(1, 2, 0), atol=1e-6)


@pytest.mark.parametrize("crop", [224, 31])
def test_ten_crops_are_torchvisions(crop):
    for photo in (*PHOTOS, turned(PHOTOS[1])):
        scaled = scale_short_side(photo, 256)
        expected = [np.asarray(x) for x in torchvision.transforms.TenCrop(crop)(scaled)]
        np.testing.assert_array_equal(ten_crop(as_array(scaled), crop), expected)
        views = views_of(np.asarray(photo), preset(crop), "ten-crop")
        np.testing.assert_array_equal(views["image"], expected)


def test_random_crops_are_seeded_windows_on_either_side():
    rows, columns = np.mgrid[:40, :30].astype(np.uint8)
    image = np.stack([rows, columns, rows], -1)
    views = random_crops(image, 24, (0, 7), count=500)
    np.testing.assert_array_equal(views, random_crops(image, 24, (0, 7), count=500))
    assert (views != random_crops(image, 24, (0, 8), count=500)).any()
    mirrored = views[:, 0, 0, 1] > views[:, 0, 1, 1]
    assert 200 < mirrored.sum() < 300
    views[mirrored] = views[mirrored, :, ::-1]
    top, left = views[:, 0, 0, 0], views[:, 0, 0, 1]
    assert (set(top), set(left)) == (set(range(17)), set(range(7)))  # the last place too
    for view, row, column in zip(views, top, left, strict=True):
        np.testing.assert_array_equal(view, image[row : row + 24, column : column + 24])


class Grid:
    """A network whose logits are the normalised colours of every 100th pixel."""

    dense = False

    def clone(self, dense=True):
        assert dense
        return self

    def apply(self, variables, images):
        return variables * images[:, ::100, ::100]


def test_multi_scale_is_the_mean_of_the_largest_probabilities_at_six_sizes():
    views = views_of(np.asarray(PHOTOS[0]), preset(221), "multi-scale")
    sizes = [(245, 245), (281, 317), (317, 389), (389, 461), (425, 497), (461, 569)]
    assert [x.shape for x in views.values()] == [(2, *size, 3) for size in sizes]
    grid: Any = Grid()
    model = for_views(grid, "multi-scale")
    logits = [
        view_logits(model, 3.0, jnp.asarray(x[None] / np.float32(255))) for x in views.values()
    ]
    vectors = []
    for size in sizes:
        picture = cover(PHOTOS[0], size)
        for pixels in (np.asarray(picture), np.asarray(picture)[:, ::-1]):
            scores = np.exp(3 * (pixels[::100, ::100] / 255))
            vectors.append((scores / scores.sum(-1, keepdims=True)).max((0, 1)))
    expected = np.mean(vectors, 0) / np.sum(np.mean(vectors, 0))
    np.testing.assert_allclose(np.exp(mean_log_probabilities(logits)[0]), expected, rtol=1e-5)


def test_overfeats_maps_have_the_sizes_of_table_5():
    model = for_views(create_model("overfeat_accurate"), "multi-scale")
    x = views_of(np.asarray(PHOTOS[0]), preset(221), "multi-scale")
    variables = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 221, 221, 3)))
    sizes = [
        jax.eval_shape(model.apply, variables, jax.ShapeDtypeStruct(view.shape, float)).shape[1:3]
        for view in x.values()
    ]
    assert sizes == [(3, 3), (6, 9), (9, 15), (15, 21), (18, 24), (21, 30)]


@pytest.mark.parametrize("views", ["ten-crop", "random-10", "multi-scale"])
def test_a_network_that_reads_the_whole_picture_has_one_view_of_it(views):
    whole = Plan((Decode(3), Resize(28)))
    check_views("center", whole)
    with pytest.raises(InputError, match="reads the whole picture at 28x28 pixels and has no"):
        check_views(views, whole)


def test_the_pictures_own_statistics_are_the_lectures():
    image = turned(PHOTOS[0])
    x = torchvision.transforms.ToTensor()(image)
    expected = 0.5 + 0.5 * (x - x.mean()) / x.std()
    ours = normalize(jnp.asarray(as_array(image)), *own_statistics(image))
    np.testing.assert_allclose(ours, expected.permute(1, 2, 0), atol=2e-5)
    one_colour = Image.new("RGB", (9, 9), (3, 3, 3))
    ours = normalize(jnp.asarray(as_array(one_colour)), *own_statistics(one_colour))
    np.testing.assert_allclose(ours, 0.5, atol=1e-6)


def test_class_names_are_torchvisions():
    meta = torchvision.models.AlexNet_Weights.IMAGENET1K_V1.meta
    assert list(imagenet_class_names()) == meta["categories"]


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory):
    """Return torchvision's network with larger logits than at initialisation, and its file."""
    torch.manual_seed(0)
    reference = torchvision.models.alexnet().eval()
    reference.classifier[6].weight.data *= 50
    path = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    torch.save(reference.state_dict(), path)
    return reference, path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for name, photo in zip(("china.png", "flower.tiff"), PHOTOS, strict=True):
        photo.save(folder / name)
    return [folder / "china.png", folder / "flower.tiff"]


def classified(capsys, *pictures, **options):
    main(Options(pictures, json=True, **options))
    return json.loads(capsys.readouterr().out)


@torch.no_grad()
def test_top_fifteen_are_torchs(alexnet, files, capsys):
    reference, path = alexnet
    transform = torchvision.models.AlexNet_Weights.IMAGENET1K_V1.transforms()
    logits = reference(torch.stack([transform(photo) for photo in PHOTOS]))
    scores, order = logits.sort(descending=True)
    names = imagenet_class_names()
    network = {"arch": "alexnet", "checkpoint": path, "top": 15}
    main(Options(tuple(files), **network))
    printed = capsys.readouterr().out.splitlines()
    for index, file in enumerate(files):
        title, *lines = printed[16 * index : 16 * index + 16]
        assert title == str(file)
        assert [line[6:] for line in lines] == [names[i] for i in order[index, :15]]
        values = [float(line[:5]) for line in lines]
        np.testing.assert_allclose(values, scores[index, :15], atol=0.006)

    main(Options((files[0],), probabilities=True, **network))
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"{logits[0].softmax(0).max():7.2%} {names[order[0, 0]]}"

    crops = torchvision.transforms.TenCrop(224)(scale_short_side(PHOTOS[0], 256))
    views = torch.stack([torchvision.transforms.ToTensor()(crop) for crop in crops])
    views = torchvision.transforms.Normalize(transform.mean, transform.std)(views)
    mean = reference(views).softmax(1).mean(0)
    (found,) = classified(capsys, files[0], **network, views="ten-crop")
    assert [row["index"] for row in found["classes"]] == mean.argsort(descending=True)[:15].tolist()
    assert {row["score"] for row in found["classes"]} == {None}
    best = [row["probability"] for row in found["classes"]]
    np.testing.assert_allclose(best, mean.sort(descending=True)[0][:15], rtol=1e-4)

    x = torchvision.transforms.ToTensor()(PHOTOS[1])[None]
    lecture = reference(0.5 + 0.5 * (x - x.mean()) / x.std())[0].sort(descending=True)
    (found,) = classified(capsys, files[1], **network, views="whole", normalize="image")
    rows = found["classes"]
    assert [row["index"] for row in rows] == lecture.indices[:15].tolist()
    np.testing.assert_allclose([row["score"] for row in rows], lecture.values[:15], rtol=1e-3)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Return the file of a network for grey images of 28 pixels and seven classes."""
    path = tmp_path_factory.mktemp("small") / "small.safetensors"
    model = create_model("lenet5", num_classes=7)
    variables = drawn(model.init)(jax.random.key(0), np.zeros((1, 28, 28, 1)))
    save_file(to_torch(variables), path)
    return path


def test_classes_and_channels_are_read_off_the_file(small, tmp_path, files, capsys):
    network = pretrained("lenet5", small)
    assert network.preprocessing == Plan((Decode(1), CenterCrop(32, 28)))
    assert network.statistics == ((0.485,), (0.229,))
    (found,) = classified(capsys, files[0], arch="lenet5", checkpoint=small, top=99)
    assert sorted(row["class"] for row in found["classes"]) == [f"class {i}" for i in range(7)]
    assert sum(row["probability"] for row in found["classes"]) == pytest.approx(1, abs=1e-5)

    names = tmp_path / "names.txt"
    names.write_text("a\nb\nc\nd\ne\nf\ng\n")
    options = NetworkOptions(arch="lenet5", checkpoint=small, class_names=names)
    assert options.open().classes == tuple("abcdefg")
    names.write_bytes(b"\xef\xbb\xbfa\r\nb\r\nc\r\nd\r\ne\r\nf\r\n\xc3\xa9\r\n")  # Windows' Notepad
    assert options.open().classes == tuple("abcdefé")
    names.write_text("a\nb\n")
    with pytest.raises(InputError, match=r"names.txt has 2 lines; expected 7, one for each class"):
        options.open()


def test_odd_pictures(small, tmp_path, capsys):
    network = {"arch": "lenet5", "checkpoint": small}
    Image.new("RGB", (1, 1), (9, 99, 199)).save(tmp_path / "one.png")
    (found,) = classified(capsys, tmp_path / "one.png", **network, normalize="image")
    assert np.isfinite(found["classes"][0]["score"])
    PHOTOS[0].resize((20_000, 40)).save(tmp_path / "wide.jpg")
    (found,) = classified(capsys, tmp_path / "wide.jpg", **network, views="ten-crop")
    assert found["classes"][0]["probability"] > 1 / 7
    Image.new("RGB", (300_000, 1)).save(tmp_path / "line.png")
    (found,) = classified(capsys, tmp_path / "line.png", **network)
    assert np.isfinite(found["classes"][0]["score"])
    with pytest.raises(SystemExit):
        main(Options((tmp_path / "line.png",), **network, views="ten-crop"))
    assert "line.png: a picture of 300000x1 pixels is too long" in capsys.readouterr().err
    PHOTOS[0].resize((20_000, 400)).save(tmp_path / "wider.jpg")
    with pytest.raises(SystemExit):
        main(Options((tmp_path / "wider.jpg",), **network, views="whole"))
    assert "wider.jpg: 20000x400 pixels are too many to be read at" in capsys.readouterr().err


def write_bad_pictures(folder):
    (folder / "directory.jpg").mkdir()
    (folder / "text.jpg").write_text("not a picture")
    (folder / "empty.png").touch()
    for suffix in ("jpg", "png", "gif", "webp"):
        PHOTOS[0].save(folder / f"cut.{suffix}")
        whole = (folder / f"cut.{suffix}").read_bytes()
        (folder / f"cut.{suffix}").write_bytes(whole[: len(whole) // 2])
    Image.new("1", (20_000, 10_000)).save(folder / "huge.png")
    Image.fromarray(np.ones((4, 4), np.float32)).save(folder / "float.tiff")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("absent.jpg", "no file {}"),
        ("directory.jpg", "{} is a directory; expected a picture"),
        ("text.jpg", "{} is not a picture in a format that Pillow reads"),
        ("empty.png", "{} is not a picture in a format that Pillow reads"),
        ("cut.jpg", "{} is not a complete picture"),
        ("cut.png", "{} is not a complete picture"),
        ("cut.gif", "{} is not a complete picture"),
        ("cut.webp", "{} is not a"),
        ("huge.png", "{} is too large a picture; scale it down first"),
    ],
)
def test_bad_pictures(name, sentence, small, tmp_path, capsys):
    write_bad_pictures(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(Options((tmp_path / name,), arch="lenet5", checkpoint=small))
    assert ended.value.code == 2
    printed, said = capsys.readouterr()
    assert printed == ""
    assert said.startswith("error: " + sentence.format(tmp_path / name))
    assert said.count("\n") == 1


def test_one_bad_picture_among_many_costs_no_other_its_result(small, files, tmp_path, capsys):
    bad = tmp_path / "text.jpg"
    bad.write_text("not a picture")
    pictures = (files[0], bad, tmp_path / "absent.jpg", files[1])
    network = {"arch": "lenet5", "checkpoint": small, "top": 2}
    alone = [classified(capsys, file, **network)[0] for file in files]
    sentences = [
        f"{bad} is not a picture in a format that Pillow reads", f"no file {tmp_path}/absent.jpg",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main(Options(pictures, json=True, **network))
    assert ended.value.code == 2
    printed, said = capsys.readouterr()
    broken = [
        {"picture": str(path), "error": sentence}
        for path, sentence in zip(pictures[1:3], sentences, strict=True)
    ]
    assert json.loads(printed) == [alone[0], *broken, alone[1]]
    assert said == ""

    with pytest.raises(SystemExit) as ended:
        main(Options(pictures, **network))
    assert ended.value.code == 2
    printed, said = capsys.readouterr()
    assert printed.splitlines()[::3] == list(map(str, files))
    assert said.splitlines() == [f"error: {sentence}" for sentence in sentences]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"ema": True, "weights": "IMAGENET1K_V1"}, "no network given; expected --arch NAME or"),
        ({"arch": "alexnt"}, "unknown architecture 'alexnt'; did you mean 'alexnet'?"),
        ({"arch": "alexnet"}, "no weights of alexnet given; expected --weights NAME or"),
        (
            {"arch": "alexnet", "weights": "IMAGENET1K_V7"},
            "unknown weights of alexnet 'IMAGENET1K_V7'; did you mean 'IMAGENET1K_V1'?",
        ),
        (
            {"arch": "alexnet", "workdir": pathlib.Path("x")},
            "--workdir names a network with its weights; leave out --arch, --weights, "
            "--checkpoint and --ema",
        ),
        ({"arch": "alexnet", "top": 0}, "--top is 0; expected at least 1"),
    ],
)
def test_bad_options(options, sentence, files):
    with pytest.raises(InputError) as raised:
        main(Options(tuple(files), **options))
    assert str(raised.value).startswith(sentence)


def test_scores_and_classes_are_a_line_each(small, files, capsys):
    main(Options((files[0],), arch="lenet5", checkpoint=small, top=3))
    assert [line[6:11] for line in capsys.readouterr().out.splitlines()] == ["class"] * 3


def test_weights_of_another_network_are_one_sentence(small, files):
    assert refusal(main, Options((files[0],), arch="nin_cifar", checkpoint=small)).startswith(
        "the weights do not fit this network: missing 18 keys, such as "
    )


@pytest.mark.slow
def test_the_script_says_one_sentence(small, files, tmp_path):
    with subprocess.Popen(
        command(SCRIPT, "--arch", "lenet5", "--checkpoint", small, "--", files[0]),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as unread:  # fmt: skip
        output(unread).close()
        assert (unread.wait(), errors(unread).read()) == (1, "")
    (tmp_path / "text.jpg").write_text("not a picture")
    text = script(SCRIPT, tmp_path / "text.jpg", "--arch", "lenet5", "--checkpoint", small)
    assert (text.returncode, text.stdout) == (2, "")
    assert text.stderr.count("\n") == 1
