"""Test the scripts as a user runs them."""

import functools
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import parity
from feeds import in_memory
from flaxnets import data
from flaxnets import train as train_script
from flaxnets.errors import InputWarning
from networks import CASES
from scripts import ROOT, command, output, refusal, script
from tools import convert_torchvision, show_augmentation

SUMMARY = {
    "arch", "dataset", "parameters", "epochs", "steps", "top1", "top5", "loss",
    "images_per_second", "seconds", "devices", "versions", "command", "skipped_steps", "bad_images",
}  # fmt: skip


def train(*arguments, **options):
    return script("experiments/train.py", "--arch", "lenet5", *arguments, **options)


def start_training(workdir):
    """Start a training run with too many epochs to finish."""
    arguments = ["--arch", "lenet5", "--epochs", 4000, "--workdir", workdir]
    run = command("experiments/train.py", *arguments)
    return subprocess.Popen(run, text=True, stdout=subprocess.PIPE)


@pytest.mark.slow
def test_training_prints_only_our_lines_and_resumes_after_a_kill(tmp_path, train_here, capsys):
    workdir = tmp_path / "run"
    first = train("--epochs", 2, "--workdir", workdir, "--profile", 3)
    assert first.returncode == 0, first.stderr
    assert first.stderr == ""
    lines = first.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[:2]] == ["epoch 1/2", "epoch 2/2"]
    assert lines[2].startswith("lenet5 on digits: top-1 ")
    assert len(lines) == 3
    names = {path.name for path in workdir.iterdir()}
    assert names >= {"config.json", "metrics.jsonl", "summary.json"}
    for picture in ("learning_curve", "training_images", "worst_predictions"):
        assert (workdir / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    assert list((workdir / "tensorboard").iterdir())
    assert list((workdir / "profile").rglob("*.trace.json.gz"))
    summary = json.loads((workdir / "summary.json").read_text())
    assert set(summary) == SUMMARY
    assert (summary["parameters"], summary["steps"]) == (44_426, 44)

    # Killed at some time after its third epoch, it continues there and not from the start.
    with start_training(workdir) as running:
        for line in output(running):
            if line.startswith("epoch    6"):
                break
        running.send_signal(signal.SIGKILL)
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["epoch"]
    train_here("--arch", "lenet5", "--epochs", last + 2, "--workdir", workdir)
    first_line = int(capsys.readouterr().out.split("/")[0].removeprefix("epoch"))
    assert 2 < first_line <= last + 1
    rows = (workdir / "metrics.jsonl").read_text().splitlines()
    epochs = [json.loads(row)["epoch"] for row in rows]
    assert epochs == list(range(1, last + 3))

    refused = refusal(train_here, "--arch", "vgg11", "--workdir", workdir)
    assert "holds a run with arch 'lenet5', not 'vgg11'" in refused


@pytest.fixture
def cells(train_here, tmp_path, monkeypatch, capsys):
    """`cells(...)`: the cells of the tables that a dry run with these arguments prints, by row."""
    monkeypatch.chdir(tmp_path)

    def printed(*arguments):
        train_here("--dry-run", *arguments)
        assert not list(tmp_path.iterdir())
        lines = capsys.readouterr().out.splitlines()
        return [[cell.strip() for cell in line.strip("│┃").split("│")] for line in lines]

    return printed


def test_a_dry_run_tells_what_the_run_would_be_and_writes_nothing(cells):
    modern = ["--recipe", "torchvision-v2", "--batch-size", 32, "--optimizer", "lamb"]
    found = cells("--arch", "lenet5", *modern, "--epochs", 10)
    for row in (
        ["optimizer", "lamb"],
        ["mixup", "0.2"],
        ["policy", "trivial_augment_wide"],
        ["classifier.0", "Linear", "1x1x120", "30,840", "30,720", "120"],
        ["steps of an epoch", str(1442 // 32)],
        ["steps", str(10 * (1442 // 32))],
        ["parameters", f"{44_426 * 4 / 1e6:.1f}"],
        ["moving average", f"{44_426 * 4 / 1e6:.1f}"],
        ["optimiser", f"{44_426 * 8 / 1e6:.1f}"],
    ):
        assert row in found


@pytest.mark.parametrize(("parallel", "kept"), [("shard_map", 1442 * 64), ("pmap", 0)])
def test_a_dry_run_counts_the_images_that_stay_on_the_device(parallel, kept, cells):
    found = cells("--arch", "mlp", "--batch-size", 8, "--parallel", parallel)
    megabytes = dict(row for row in found if len(row) == 2)
    assert megabytes["data set"] == f"{kept / 1e6:.1f}"
    assert megabytes["parameters"] == f"{42_634 * 4 / 1e6:.1f}"


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_an_epoch_of_many_passes_is_said_at_the_start(dry, train_here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.warns(InputWarning) as notes:
        train_here("--arch", "softmax_regression", "--batch-size", 4326, "--epochs", 1, *dry)
    assert [str(note.message) for note in notes] == [
        "a batch of 4326 images is larger than the data set, so that each epoch is one step and 3 "
        "passes over the 1442 training examples; choose a batch size of at most 1442"
    ]


@pytest.mark.slow
def test_control_c_saves_and_says_how_to_go_on(tmp_path):
    with start_training(tmp_path) as running:
        output(running).readline()
        time.sleep(0.2)
        running.send_signal(signal.SIGINT)
        last = output(running).read().splitlines()[-1]
    assert running.returncode == 130
    assert last.startswith("stopped and saved at step ")
    assert last.endswith("--epochs 4000 --workdir " + str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--arch", "lenet6"], "unknown architecture 'lenet6'; did you mean 'lenet5'?"),
        (["--batch-size", "0"], "batch size is 0; expected a positive number"),
        (["--init-from", "none.safetensors"], "no file none.safetensors; expected a file"),
        (["--dataset", "folder:nowhere"], "no directory nowhere; a folder data set needs"),
        (["--dataset", "diabetes"], "lenet5 does not read rows of features; expected one of so"),
        (["--image-size", "8"], "the images are too small for this network: a window of"),
        (["--train-size", "8"], "the images are too small for this network: a window of"),
        (["--gradient-accumulation", "3"], "batch size 64 does not divide over 1 device in 3 par"),
        (["--no-decay", "layer1.*"], "no decay 'layer1.*' matches no parameter; expected"),
        (["--max-bad-images", "-1"], "max bad images is -1; expected zero or more"),
        (
            ["--decoded-gigabytes", "-1"],
            "decoded gigabytes is -1.0; expected a finite number, zero or more",
        ),
        (["--keep", "0"], "keep is 0; expected at least 1 checkpoint"),
        (["--recipe", "torchvision-v1"], "recipe torchvision-v1 does not train lenet5; exp"),
        (
            ["--arch", "softmax_regression", "--train-size", "6"],
            "train size is 6, but softmax_regression reads images of a single size; expected 8 or",
        ),
        (
            ["--arch", "perceptron", "--dataset", "diabetes", "--loss", "cross_entropy"],
            "the labels of diabetes are numbers, not classes, and the loss is cross_entropy; exp",
        ),
    ],
)
def test_bad_input_gets_one_sentence(arguments, sentence, train_here, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refusal(train_here, "--arch", "lenet5", *arguments).startswith(sentence)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--arch", "lenet6"], "error: unknown architecture 'lenet6'; did you mean 'lenet5'?\n"),
        pytest.param(
            ["--image-size", "8"],
            "error: the images are too small for this network: a window of",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_bad_input_ends_the_script_with_status_2(arguments, sentence, tmp_path):
    result = train(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith(sentence)
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("dataset", "arch", "facts"),
    [
        ("digits", "vgg19", ["--image-size 32*"]),
        ("folder:nowhere", "vgg19", ["--image-size 224"]),
        ("npz:none.npz", "vgg19", ["--image-size 32*"]),
        ("cifar10", "vgg19", ["--image-size 32*"]),
        ("diabetes", "perceptron", ["--loss squared_error*"]),
        ("imagenet2012", "vgg19", ["photographs, because help does not open imagenet2012"]),
    ],
)
def test_help_opens_no_data_set(dataset, arch, facts, monkeypatch, capsys):
    """Help does not import TensorFlow either: the data set's name decides the defaults."""

    def opened(*_):
        raise AssertionError("a data set was opened")

    monkeypatch.setattr(data, "open_source", opened)
    monkeypatch.setitem(sys.modules, "flaxnets.data.tfds", None)
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        train_script.main(["--arch", arch, "--dataset", dataset, "--help"])
    assert not ended.value.code
    text = " ".join(capsys.readouterr().out.split())
    for fact in facts:
        assert fact in text
    assert ("help does not open" in text) == (data.kind_of(dataset) is None)


@pytest.mark.parametrize("name", ["digits", "breast_cancer", "diabetes"])
def test_the_name_of_a_bundled_data_set_tells_its_kind_and_labels(name):
    source = data.open_source(name)
    assert data.kind_of(name) == source.kind
    assert data.has_classes(name) == bool(source.class_names)


@pytest.mark.slow
def test_what_is_in_memory_is_trained_on_without_tensorflow(tmp_path):
    """Nor with the packages that read photographs. Several runs in one process."""
    source = in_memory("digits")
    arrays: dict[str, Any] = {
        f"{letter}_{split}": part[split]
        for letter, part in (("x", source.images), ("y", source.labels))
        for split in source.sizes
    }
    np.savez(tmp_path / "scans.npz", **arrays)
    mlp, lenet = ["--arch", "mlp", "--epochs", "2"], ["--arch", "lenet5"]
    runs = [
        [*mlp, "--dataset", "digits"], [*mlp, "--dataset", "npz:scans.npz"],
        [*mlp, "--dataset", "breast_cancer"], [*lenet, "--epochs", "8"],
        [*lenet, "--policy", "rand_augment", "--epochs", "1", "--workdir", "other"],
        [*mlp, "--dataset", "cifar10"],
    ]  # fmt: skip
    program = f"""
import sys
for absent in ("tensorflow", "tensorflow_datasets", "cv2", "simplejpeg"):
    sys.modules[absent] = None
from flaxnets.terminal import quiet
quiet()
from flaxnets.train import run
for arguments in {runs}:
    sys.argv[1:] = arguments
    run()
"""
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (result.stderr, result.returncode) == (
        "error: the data set 'cifar10' needs tensorflow and tensorflow_datasets; run pip install "
        "'flaxnets[tfds]', or choose digits, breast_cancer, diabetes, folder:PATH or npz:PATH\n",
        2,
    )
    sentences = [line for line in result.stdout.splitlines() if "top-1" in line and ": " in line]
    *small, enlarged, changed = [line for line in sentences if not line.startswith("epoch")]
    assert len(small) == 3
    for sentence in small:
        assert re.search(r": top-1 [89]\d\.\d\d%, top-5 .* after 2 epochs; see runs/mlp-", sentence)
    assert re.search(r": top-1 9\d\.\d\d%, top-5 ", enlarged)
    assert changed.endswith("after 1 epochs; see other")


def test_numbers_are_predicted_through_the_same_script(tmp_path, train_here, capsys):
    asked = ["--arch", "perceptron", "--dataset", "diabetes", "--epochs", 20]
    train_here(*asked, "--workdir", tmp_path / "run")
    assert "perceptron on diabetes: mean squared error 0." in capsys.readouterr().out
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert set(summary) == SUMMARY - {"top1", "top5"}
    assert summary["parameters"] == 11 * 128 + 129
    assert summary["loss"] < 0.8  # 1: the mean for everyone
    assert (tmp_path / "run/learning_curve.png").read_bytes().startswith(b"\x89PNG")


def test_weights_travel_from_torch_and_back(tmp_path, train_here, capsys):
    """A .pth becomes safetensors and back with equal bits, and train.py starts from the file."""
    convert = functools.partial(convert_torchvision.main, "lenet5")
    _, reference = parity.build_pair("lenet5", CASES["lenet5"])
    torch.save({"model": reference.state_dict()}, tmp_path / "a.pth")
    convert(tmp_path / "b.safetensors", checkpoint=tmp_path / "a.pth")
    printed = capsys.readouterr().out
    assert printed.endswith("b.safetensors: lenet5, 44,426 parameters in 10 arrays\n")
    convert(tmp_path / "c.pth", checkpoint=tmp_path / "b.safetensors")
    loaded = torch.load(tmp_path / "c.pth", weights_only=True)
    for key, value in reference.state_dict().items():
        assert torch.equal(loaded[key], value)
        np.testing.assert_array_equal(load_file(tmp_path / "b.safetensors")[key], value.numpy())

    still = ["--epochs", 1, "--learning-rate", "1e-12", "--weight-decay", 0]
    train_here("--arch", "lenet5", *still, "--workdir", tmp_path / "run",
               "--init-from", tmp_path / "b.safetensors")  # fmt: skip
    out = tmp_path / "d.safetensors"
    convert(out, workdir=tmp_path / "run")
    for key, value in load_file(out).items():
        np.testing.assert_allclose(value, loaded[key], atol=1e-8)

    (tmp_path / "half.safetensors").write_bytes((tmp_path / "b.safetensors").read_bytes()[:5000])
    out = tmp_path / "e.safetensors"
    for options, sentence in [
        ({"checkpoint": tmp_path / "half.safetensors"}, "is not a complete safetensors file"),
        ({"checkpoint": tmp_path / "none.pth"}, "no file"),
        ({"weights": "IMAGENET1K_V9"}, "no weights of 'lenet5' are published"),
        ({}, "no weights given; expected --checkpoint, --weights or --workdir"),
        ({"average": 3}, "--average needs the checkpoints of a run; expected --workdir DIR"),
    ]:
        assert sentence in refusal(convert, out, **options)
    assert not out.exists()


def test_the_augmentation_is_drawn(tmp_path):
    policy = ["--policy", "rand_augment", "--interpolation", "bilinear"]
    show_augmentation.main([*policy, "--out", str(tmp_path / "grid.png")])
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library allocates")
@pytest.mark.slow
def test_freed_memory_is_kept_unless_the_environment_forbids_it():
    """A thread of XLA reuses the pages of its last intermediate result of 128 MiB."""
    program = """
import resource, statistics
import jax, jax.numpy as jnp
from flaxnets.terminal import reuse_memory
reuse_memory()
import flaxnets.data.tfds
largest = jax.jit(lambda x, y: (jnp.tile(x, (1, 8)) @ y).max())
x, y = jnp.ones((4096, 1024)), jnp.ones((8192, 8))
faults = []
for _ in range(11):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    largest(x, y).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(statistics.median(faults))
"""
    kept, given_back = (
        int(subprocess.check_output([sys.executable, "-c", program], env=os.environ | variables))
        for variables in ({}, {"FLAXNETS_KEEP_MEMORY": "0"})
    )
    assert 10 * kept < given_back


@pytest.mark.slow
def test_tensorflow_waits_for_the_first_output():
    """TensorFlow's threads would have their own arenas before `reuse_memory` is called."""
    program = """
import runpy, sys
sys.path.insert(0, "tools")
for path in ("experiments/train.py", "experiments/evaluate.py", "tools/benchmark.py"):
    runpy.run_path(path, run_name="imported")
    assert "tensorflow" not in sys.modules, path
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
