"""Shifted and mirrored views of an image are averaged; a convolution whitens patches."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from flaxnets import InputError, create_model, data, evaluate, pretrained
from flaxnets.initializers import drawn
from flaxnets.recipes import recipe_for
from flaxnets.runs.feed import training_examples
from flaxnets.runs.files import read_json
from flaxnets.training.on_device import crop_and_flip, normalize
from flaxnets.training.parallel import DataParallel
from flaxnets.training.step import make_eval_step
from flaxnets.training.views import MIRROR_AND_SHIFT, mirror_and_shift
from flaxnets.training.whitening import whitening_kernel

PIXELS = (0.5,), (0.25,)


def test_the_six_views_of_an_image():
    image = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    views = mirror_and_shift(image)
    assert views.shape == (6, 3, 4, 1)
    np.testing.assert_array_equal(views, np.asarray(mirror_and_shift(jnp.asarray(image[None])))[0])
    expected = [
        [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]],
        [[5, 4, 5, 6], [1, 0, 1, 2], [5, 4, 5, 6]],
        [[5, 6, 7, 6], [9, 10, 11, 10], [5, 6, 7, 6]],
    ]
    for index, rows in enumerate(np.array(expected)):
        np.testing.assert_array_equal(views[2 * index, ..., 0], rows)
        np.testing.assert_array_equal(views[2 * index + 1, ..., 0], rows[:, ::-1])
    assert sum(MIRROR_AND_SHIFT) == 1


def test_evaluation_in_views_is_the_weighted_mean_of_probabilities():
    model = create_model("lenet5", num_classes=3)
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 1), np.uint8)
    variables = drawn(model.init)(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    batch = {"image": images, "label": np.arange(5, dtype=np.int32) % 3, "mask": np.ones(5, "f4")}
    parallel = DataParallel(devices=jax.devices()[:1])
    step = parallel.map(make_eval_step(model, PIXELS, views="mirror-and-shift"))
    sums, examples = step(variables, parallel.shard(batch))
    mean = np.zeros((5, 3))
    for share, view in zip(MIRROR_AND_SHIFT, mirror_and_shift(images).swapaxes(0, 1), strict=True):
        logits: Any = model.apply(variables, normalize(jnp.asarray(view), *PIXELS))
        mean += share * np.asarray(jax.nn.softmax(logits), np.float64)
    losses = -np.log(mean[np.arange(5), batch["label"]])
    np.testing.assert_allclose(examples["loss"], losses, rtol=1e-5)
    assert float(sums["loss"]) == pytest.approx(losses.sum(), rel=1e-5)


def test_pixels_beyond_the_edge_are_reflected():
    images = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), np.uint8)
    offsets, mirrored = np.array([[0, 0], [4, 1], [2, 2], [3, 4]]), np.array([1, 0, 1, 0], bool)
    ours = crop_and_flip(
        jnp.asarray(images), jnp.asarray(offsets), jnp.asarray(mirrored), 2, "reflect"
    )
    padded = np.pad(images, [(0, 0), (2, 2), (2, 2), (0, 0)], "reflect")
    for image, crop, (y, x), side in zip(padded, ours, offsets, mirrored, strict=True):
        window = image[y : y + 6, x : x + 5]
        np.testing.assert_array_equal(crop, window[:, ::-1] if side else window)


def test_whitened_patches_have_no_correlations():
    random = np.random.default_rng(0)
    images = random.normal(size=(64, 9, 9, 2)) @ np.array([[1.0, 0.5], [0.0, 2.0]])
    images = (images + np.roll(images, 1, 1)).astype(np.float32)  # neighbours are alike
    kernel = whitening_kernel(images, (2, 2, 2, 16))
    np.testing.assert_array_equal(kernel[..., 8:], -kernel[..., :8])
    patches = np.stack([images[:, i : i + 8, j : j + 8] for i in (0, 1) for j in (0, 1)], 3)
    outputs = patches.reshape(-1, 8) @ kernel.reshape(8, 16)[:, :8]
    np.testing.assert_allclose(outputs.T @ outputs / len(outputs), np.eye(8), atol=2e-3)
    with pytest.raises(InputError, match="are whitened by 16 filters"):
        whitening_kernel(images, (2, 2, 2, 24))


@pytest.mark.slow
def test_a_run_whitens_its_first_convolution_and_freezes_it(tmp_path, train_here, capsys):
    """The summary has the accuracy over views that evaluate.py computes."""
    digits: Any = load_digits()
    images, labels = digits.images[..., None].astype(np.uint8) * 15, digits.target
    x, y = np.split(images, [384, 512]), np.split(labels, [384, 512])
    np.savez(tmp_path / "few.npz", x_train=x[0], y_train=y[0], x_test=x[1], y_test=y[1])
    few, run = f"npz:{tmp_path / 'few.npz'}", tmp_path / "run"
    train_here("--arch", "airbench94", "--dataset", few, "--epochs", 1, "--batch-size", 96,
               "--workdir", run)  # fmt: skip
    network = pretrained(run)
    source = data.open_source(few)
    recipe = recipe_for("airbench94", source.kind)
    examples = training_examples(source, recipe.preprocessing)
    fed = np.asarray(normalize(jnp.asarray(examples), *network.statistics))
    params = network.variables["params"]
    expected = whitening_kernel(fed, params["whiten"]["kernel"].shape)
    np.testing.assert_allclose(params["whiten"]["kernel"], expected, rtol=1e-5, atol=1e-5)
    assert float(abs(params["whiten"]["bias"]).max()) > 0
    for group in ("1", "2", "3"):
        np.testing.assert_array_equal(params["layers"][group]["norm1"]["scale"], 1.0)
    summary = read_json(run / "summary.json")
    capsys.readouterr()
    evaluate.main(evaluate.Options(workdirs=(run,), views="mirror-and-shift", json=True))
    result = json.loads(capsys.readouterr().out)["results"][0]
    assert result["top1"] == pytest.approx(summary["views_top1"])
    assert summary["views_top1"] != summary["top1"]


def test_only_the_kernel_of_a_convolution_whitens(tmp_path, train_here):
    with pytest.raises(InputError, match=r"'fc\.weight' is not the kernel of a convolution; exp"):
        train_here("--arch", "lenet5", "--whiten", "fc.weight", "--workdir", tmp_path / "run")


def test_the_recipe_is_jordans():
    """Our loss is a mean; Jordan's rates and decays are for a sum over 2000 images."""
    recipe = recipe_for("airbench94", "small images")
    rates, decays = dict(recipe.rate_factors), dict(recipe.decay_factors)
    assert recipe.learning_rate * rates["*.bias"] == pytest.approx(0.053 * 2000)
    assert recipe.learning_rate * rates["head.weight"] == pytest.approx(0.67 * 2000)
    assert recipe.weight_decay * 0.053 * 2000 == pytest.approx(2e-6 * 2000)
    assert recipe.weight_decay * decays["head.weight"] * 0.67 * 2000 == pytest.approx(2e-6 * 2000)
    assert dataclasses.replace(recipe, epochs=1).check() is None
