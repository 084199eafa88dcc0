"""Evaluation of trained networks, one by one and averaged."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from flaxnets import InputError, create_model, data
from flaxnets.inference.predict import accuracy, predict
from flaxnets.inference.run import load_run
from flaxnets.recipes import recipe_for
from flaxnets.training.parallel import DataParallel
from flaxnets.training.state import init_variables

ROOT = pathlib.Path(__file__).parent.parent


def script(name, *arguments):
    command = [sys.executable, str(ROOT / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("mapping", ["shard_map", "pmap"])
def test_every_example_is_predicted_once_in_order_on_any_number_of_devices(mapping):
    source = data.open_source("digits")
    recipe = recipe_for("lenet5", source.kind)
    model = create_model("lenet5")
    variables = init_variables(model, (28, 28, 1), recipe, 0)
    images = np.concatenate(
        [b["image"] for b in data.eval_batches(source, 71, recipe.preprocessing)]
    )
    (mean,), (std,) = source.statistics
    logits = model.apply(variables, (images / np.float32(255) - mean) / std)
    for devices in (1, 8):
        parallel = DataParallel(mapping, jax.devices()[:devices])
        batches = data.eval_batches(source, 64, recipe.preprocessing)
        probabilities, labels = predict(model, variables, batches, source.statistics, parallel)
        np.testing.assert_array_equal(labels, source.labels["test"])
        np.testing.assert_allclose(probabilities, jax.nn.softmax(logits), atol=1e-6)
    found = accuracy(probabilities, labels)
    assert found["top1"] == np.mean(np.argmax(logits, 1) == labels)
    expected = -np.log(probabilities[np.arange(len(labels)), labels]).mean()
    assert found["loss"] == pytest.approx(expected, rel=1e-5)


def test_columns_are_averaged(tmp_path):
    """Three columns of MCDNN: the mean of their probabilities, and each alone."""
    runs = [tmp_path / f"column{seed}" for seed in range(3)]
    for seed, run in enumerate(runs):
        trained = script(
            "experiments/train.py", "--arch", "mcdnn_mnist", "--epochs", 2,
            "--seed", seed, "--workdir", run,
        )  # fmt: skip
        assert trained.returncode == 0, trained.stderr
    files = ["--out", tmp_path / "result.json", "--predictions", tmp_path / "result.npz"]
    evaluated = script("experiments/evaluate.py", *runs, *files)
    assert evaluated.returncode == 0, evaluated.stderr
    lines = evaluated.stdout.splitlines()
    assert lines[0] == "355 test examples of digits"
    assert lines[-1].endswith("mean of 3")
    results = json.loads((tmp_path / "result.json").read_text())["results"]
    for run, result in zip(runs, results, strict=False):
        summary = json.loads((run / "summary.json").read_text())
        assert result["top1"] == pytest.approx(summary["top1"], abs=1e-6)
        assert result["loss"] == pytest.approx(summary["loss"], rel=1e-4)
    stored = np.load(tmp_path / "result.npz")
    assert stored["probabilities"].shape == (3, 355, 10)
    best = stored["probabilities"].mean(0).argmax(1)
    assert results[3]["top1"] == pytest.approx(np.mean(best == stored["labels"]))
    assert load_run(runs[0]).class_names == tuple("0123456789")


def test_runs_that_cannot_be_evaluated(tmp_path):
    with pytest.raises(InputError, match=r"is not the workdir of a training run: it has no config"):
        load_run(tmp_path)
    refused = script("experiments/evaluate.py")
    assert refused.returncode == 2
    assert refused.stderr == "error: no run given; expected directories that train.py wrote\n"
