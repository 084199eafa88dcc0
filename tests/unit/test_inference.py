"""Trained networks are evaluated, one by one and averaged."""

import functools
import json
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.numpy import save_file
from sklearn.datasets import load_sample_images

from feeds import eval_batches, in_memory
from flaxnets import InputError, classify, create_model, evaluate, to_torch
from flaxnets.data.pixels.resize import cover
from flaxnets.inference.dense import log_multi_scale, multi_scale
from flaxnets.inference.predict import accuracy, mean_of_members, predict
from flaxnets.inference.run import load_run
from flaxnets.initializers import drawn
from flaxnets.recipes import recipe_for
from flaxnets.runs.files import json_text
from flaxnets.training.parallel import DataParallel
from flaxnets.training.state import init_variables
from flaxnets.training.views import mean_log_probabilities
from scripts import refusal
from tools.torchvision_import import torchvision


@pytest.mark.parametrize("mapping", ["shard_map", "pmap"])
def test_every_example_is_predicted_once_in_order_on_any_number_of_devices(mapping):
    source = in_memory("digits")
    recipe = recipe_for("lenet5", source.kind)
    model = create_model("lenet5")
    variables = init_variables(model, (28, 28, 1), recipe, 0)
    images = np.concatenate([b["image"] for b in eval_batches(source, 71, recipe.preprocessing)])
    (mean,), (std,) = source.statistics
    logits: Any = model.apply(variables, (images / np.float32(255) - mean) / std)
    for devices in (1, 8):
        parallel = DataParallel(mapping, jax.devices()[:devices])
        batches = eval_batches(source, 64, recipe.preprocessing)
        log_probabilities, labels = predict(model, variables, batches, source.statistics, parallel)
        np.testing.assert_array_equal(labels, source.labels["test"])
        np.testing.assert_allclose(log_probabilities, jax.nn.log_softmax(logits), atol=1e-5)
    measured = accuracy(log_probabilities, labels)
    assert measured["top1"] == np.mean(np.argmax(logits, 1) == labels)
    expected = -log_probabilities[np.arange(len(labels)), labels].mean()
    assert measured["loss"] == pytest.approx(expected, rel=1e-5)


def test_probabilities_that_round_to_zero_are_averaged_as_torch_does_in_float64():
    """The logits of two networks are hundreds, for three views and two more that are maps."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 20, 50)
    scores = random.normal(0, 300, 20)  # mean score of each class over images
    members, expected = [], []
    for _ in range(2):
        views = random.normal(scores, 100, (50, 3, 20)).astype(np.float32)
        maps = random.normal(scores, 100, (50, 2, 4, 5, 20)).astype(np.float32)
        ours = mean_log_probabilities([jnp.asarray(views), jnp.asarray(maps)])
        logs = [torch.tensor(x).double().log_softmax(-1) for x in (views, maps)]
        sums = torch.logsumexp(torch.cat([logs[0], logs[1].amax((2, 3))], 1), 1)
        expected.append(sums - sums.logsumexp(1, keepdim=True))
        np.testing.assert_allclose(ours, expected[-1], rtol=1e-6, atol=1e-4)
        assert (np.exp(ours) == 0).mean() > 0.3  # these would lose their order
        members.append(np.asarray(ours))
    mean = torch.stack(expected).logsumexp(0) - np.log(2)
    ours = mean_of_members(members)
    np.testing.assert_allclose(ours, mean, rtol=1e-6, atol=1e-4)
    measured = accuracy(ours, labels)
    right = torch.tensor(labels)[:, None]
    assert measured["loss"] == pytest.approx(-mean.gather(1, right).mean().item(), rel=1e-6)
    for count in (1, 5):
        expected = (mean.topk(count).indices == right).any(1).double().mean().item()
        assert measured[f"top{count}"] == expected


def test_several_scales_give_the_maxima_of_torchs_log_softmax():
    model = create_model("lenet5")
    variables = drawn(model.init)(jax.random.key(0), np.zeros((1, 28, 28, 1)))
    variables = jax.tree.map(lambda x: 3 * x, variables)  # for logits of hundreds
    x = 10 * np.random.default_rng(0).standard_normal((2, 36, 40, 1), np.float32)
    ours = jax.jit(functools.partial(log_multi_scale, model))(variables, [x])
    logits = [model.clone(dense=True).apply(variables, side) for side in (x, x[:, :, ::-1])]
    maxima = [torch.tensor(np.array(y)).double().log_softmax(-1).amax((1, 2)) for y in logits]
    expected = torch.stack(maxima).logsumexp(0) - np.log(2)
    assert expected.min() < -200
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_equal_log_probabilities_count_by_position():
    logs = np.full((10, 10), -np.inf, np.float32)
    logs[:, 9] = 0
    measured = accuracy(logs, np.arange(10))
    assert measured["top1"] == 0.1
    assert measured["top5"] == 0.5  # the last class, then the first four


def test_json_has_null_instead_of_nan_and_infinity():
    value = {"loss": np.inf, "rows": [(1, -np.inf), {"top1": np.float64("nan"), "top5": 0.5}]}
    assert json.loads(json_text(value)) == {
        "loss": None, "rows": [[1, None], {"top1": None, "top5": 0.5}],
    }  # fmt: skip


def test_a_network_that_gives_nan_is_evaluated_to_valid_json(tmp_path, capsys):
    model = create_model("lenet5")
    variables = drawn(model.init)(jax.random.key(0), np.zeros((1, 28, 28, 1)))
    save_file(to_torch(jax.tree.map(lambda x: np.nan * x, variables)), tmp_path / "nan.safetensors")
    save_file(to_torch(variables), tmp_path / "good.safetensors")
    evaluate.main(evaluate.Options(
        arch=("lenet5",), checkpoint=(tmp_path / "nan.safetensors", tmp_path / "good.safetensors"),
        dataset="digits", json=True,
    ))  # fmt: skip

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    results = json.loads(capsys.readouterr().out, parse_constant=refuse)["results"]
    assert [row["loss"] is None for row in results] == [True, False, True]
    assert [row["top1"] == 0 for row in results] == [True, False, True]


@pytest.mark.slow
def test_columns_are_averaged(tmp_path, train_here, capsys):
    """Evaluate two columns of MCDNN, alone and with averaged probabilities."""
    runs = [tmp_path / f"column{seed}" for seed in range(2)]
    for seed, run in enumerate(runs):
        train_here("--arch", "mcdnn_mnist", "--epochs", 1, "--seed", seed, "--workdir", run)
    capsys.readouterr()
    files = {"output": tmp_path / "result.npz", "confusion": tmp_path / "confusion.png"}
    evaluate.main(evaluate.Options(workdirs=tuple(runs), json=True, **files))
    result = json.loads(capsys.readouterr().out)
    assert (result["examples"], result["dataset"]) == (355, "digits")
    results = result["results"]
    assert results[2]["network"] == "mean of 2"
    for run, result in zip(runs, results, strict=False):
        summary = json.loads((run / "summary.json").read_text())
        assert result["top1"] == pytest.approx(summary["top1"], abs=1e-6)
        assert result["loss"] == pytest.approx(summary["loss"], rel=1e-4)
    with np.load(tmp_path / "result.npz") as file:
        stored = dict(file)
    assert stored["probabilities"].shape == (2, 355, 10)
    logs = stored["log_probabilities"]
    np.testing.assert_array_equal(stored["probabilities"], np.exp(logs))
    best = stored["probabilities"].mean(0).argmax(1)
    assert results[2]["top1"] == pytest.approx(np.mean(best == stored["labels"]))
    assert load_run(runs[0]).classes == tuple("0123456789")
    with Image.open(tmp_path / "confusion.png") as image:
        assert image.size == (600, 480)

    # classify.py gives scans in files the probabilities of the evaluation.
    scans = in_memory("digits").images["test"][..., 0]
    paths = [tmp_path / f"{index}.png" for index in range(0, 355, 50)]
    for path in paths:
        Image.fromarray(scans[int(path.stem)]).convert("RGB").save(path)
    classify.main(classify.Options(tuple(paths), workdir=runs[0], top=10, json=True))
    for result in json.loads(capsys.readouterr().out):
        named = {int(row["class"]): row["probability"] for row in result["classes"]}
        predicted = stored["probabilities"][0, int(pathlib.Path(result["picture"]).stem)]
        np.testing.assert_allclose([named[i] for i in range(10)], predicted, atol=0.02)


def test_runs_that_cannot_be_evaluated(tmp_path):
    with pytest.raises(InputError, match=r"is not the workdir of a training run: it has no config"):
        load_run(tmp_path)
    assert refusal(evaluate.main, evaluate.Options()) == (
        "no network given; expected workdirs of train.py, or --arch NAME with --weights NAME or "
        "--checkpoint FILE"
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder data set with crops of two photographs, 21 of them for testing."""
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for split, count in (("train", 1), ("val", 10)):
        for label, photo in enumerate(load_sample_images().images):
            (root / split / f"class{label}").mkdir(parents=True)
            for index in range(count + label):
                top, left = random.integers(200), random.integers(300)
                height, width = random.integers(40, 200, 2)
                crop = Image.fromarray(photo[top : top + height, left : left + width])
                exif = Image.Exif()
                exif[0x0112] = 6
                crop.save(root / split / f"class{label}" / f"{index:02}.jpg", exif=exif)
    return root


@pytest.fixture(scope="module")
def two_files(tmp_path_factory):
    """Return a network that reads 28 of 32 pixels, two trees of variables, and their files."""
    model = create_model("lenet5", num_classes=2)
    paths, members = [], []
    for seed in range(2):
        paths.append(tmp_path_factory.mktemp("weights") / f"{seed}.safetensors")
        variables = drawn(model.init)(jax.random.key(seed), np.zeros((1, 28, 28, 3)))
        variables = jax.tree.map(lambda x: 3 * x, variables)  # for logits that differ more
        save_file(to_torch(variables), paths[-1])
        members.append(variables)
    return model, members, tuple(paths)


def expected_probabilities(model, variables, folder, views):
    """Return probabilities with torchvision's transforms; OverFeat's scales with `multi_scale`."""
    transforms = torchvision.transforms
    tensor = transforms.ToTensor()
    normal = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def prepared(crops):
        return np.stack([normal(tensor(crop)).permute(1, 2, 0).numpy() for crop in crops])

    paths = sorted((folder / "val").rglob("*.jpg"))
    pictures = [ImageOps.exif_transpose(Image.open(path)) for path in paths]
    if views == "multi-scale":
        sizes = ((31, 31), (36, 40), (40, 49), (49, 58), (54, 63), (58, 72))
        scales = [prepared([cover(picture, size) for picture in pictures]) for size in sizes]
        scores = jax.jit(functools.partial(multi_scale, model))(variables, scales)
        return scores / scores.sum(1, keepdims=True)
    crops = [transforms.TenCrop(28)(transforms.Resize(32)(picture)) for picture in pictures]
    if views == "center":
        crops = [ten[4:5] for ten in crops]
    logits = model.apply(variables, np.concatenate([prepared(ten) for ten in crops]))
    return jax.nn.softmax(logits).reshape(len(pictures), -1, 2).mean(1)


@pytest.mark.parametrize(
    ("views", "atol"), [("center", 1e-5), ("ten-crop", 1e-5), ("multi-scale", 1e-5)]
)
def test_views_over_a_split(views, atol, folder, two_files, tmp_path, capsys):
    """Eight devices evaluate upright pictures; the last batch has one or five."""
    model, members, paths = two_files
    evaluate.main(evaluate.Options(
        arch=("lenet5",), checkpoint=paths, dataset=f"folder:{folder}", views=views,
        batch_size={"center": 16, "ten-crop": 80, "multi-scale": 32}[views],
        output=tmp_path / "out.npz", json=True, ensemble=views != "center",
    ))  # fmt: skip
    result = json.loads(capsys.readouterr().out)
    assert (result["examples"], result["views"]) == (21, views)
    with np.load(tmp_path / "out.npz") as file:
        stored = dict(file)
    np.testing.assert_array_equal(stored["labels"], [0] * 10 + [1] * 11)
    for variables, probabilities in zip(members, stored["probabilities"], strict=True):
        expected = expected_probabilities(model, variables, folder, views)
        assert expected.std() > 5 * atol
        np.testing.assert_allclose(probabilities, expected, atol=atol)
    rows = [*stored["probabilities"]]
    if views != "center":
        rows.append(stored["probabilities"].mean(0))
    for row, probabilities in zip(result["results"], rows, strict=True):
        assert row["top1"] == np.mean(probabilities.argmax(1) == stored["labels"])
        assert row["top5"] == 1


def test_random_views_depend_on_the_seed_and_not_on_the_batch(folder, two_files, tmp_path, capsys):
    def probabilities(seed, batch_size):  # also checks the output
        evaluate.main(evaluate.Options(
            arch=("lenet5",), checkpoint=two_files[2][:1], dataset=f"folder:{folder}",
            views="random-10", seed=seed, batch_size=batch_size, output=tmp_path / "out.npz",
        ))  # fmt: skip
        with np.load(tmp_path / "out.npz") as file:
            stored = dict(file)
        right = np.mean(stored["probabilities"][0].argmax(1) == stored["labels"])
        title, row = capsys.readouterr().out.splitlines()
        assert title == f"21 test examples of folder:{folder}, turned upright"
        assert row.startswith(f"top-1 {right:7.2%}  top-5 100.00%  loss ")
        assert row.endswith(f"  {two_files[2][0]}")
        return stored["probabilities"]

    first = probabilities(0, 80)
    np.testing.assert_allclose(probabilities(0, 160), first, atol=1e-6)
    assert np.abs(probabilities(1, 80) - first).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"arch": ("lenet5",)}, "no data set given; expected --dataset NAME"),
        ({"dataset": "digits"}, "weights are given, but no network; expected --arch NAME"),
        (
            {"arch": ("lenet5", "alexnet", "vgg11"), "dataset": "digits"},
            "--checkpoint has 2 values for 3 networks; expected one for all or one for each",
        ),
        (
            {"arch": ("lenet5",), "dataset": "digits"},
            "{} has 2 classes, but 'digits' has 10; expected a --dataset with the network's "
            "classes",
        ),
        (
            {"output": pathlib.Path("absent/out.npz")},
            "cannot write absent/out.npz: there is no directory absent; create it first",
        ),
        (
            {"confusion": pathlib.Path("out.pngg")},
            "unknown format of a figure 'pngg'; did you mean 'png'?",
        ),
    ],
)
def test_what_cannot_be_evaluated(options, sentence, two_files):
    _, _, paths = two_files
    with pytest.raises(InputError) as raised:
        evaluate.main(evaluate.Options(checkpoint=paths, **options))
    assert str(raised.value) == sentence.format(paths[0])


def test_a_broken_picture_of_a_split_is_named(folder, two_files, tmp_path):
    broken = tmp_path / "copy"
    shutil.copytree(folder, broken)
    path = broken / "val/class0/03.jpg"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"val/class0/03.jpg is not a complete picture"):
        evaluate.main(evaluate.Options(
            arch=("lenet5",), checkpoint=two_files[2], dataset=f"folder:{broken}",
            views="ten-crop",
        ))  # fmt: skip


def test_images_read_whole_have_no_views(tmp_path):
    path = tmp_path / "ten.safetensors"
    model = create_model("lenet5")
    variables = drawn(model.init)(jax.random.key(0), np.zeros((1, 28, 28, 1)))
    save_file(to_torch(variables), path)
    options = {"arch": ("lenet5",), "checkpoint": (path,), "dataset": "digits"}
    with pytest.raises(InputError) as raised:
        evaluate.main(evaluate.Options(**options, views="ten-crop"))
    assert str(raised.value) == (
        "this network reads the whole picture at 28x28 pixels and has no ten-crop "
        "views; expected 'center' or 'mirror-and-shift'"
    )
