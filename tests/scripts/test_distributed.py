"""Test several processes as one run: two on one machine, with two virtual devices each."""

import dataclasses
import itertools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from feeds import eval_batches, train_batches
from flaxnets import InputError, create_model, train
from flaxnets.data import open_source
from flaxnets.recipes import Preprocessing, recipe_for
from flaxnets.runs import processes as processes_
from flaxnets.runs.checkpoints import Checkpoints
from flaxnets.runs.processes import Processes
from flaxnets.runs.progress import TIMED
from flaxnets.training.optimizer import make_optimizer
from flaxnets.training.parallel import DataParallel
from flaxnets.training.state import create_state, init_variables
from scripts import command, output

SMALL = Preprocessing(image_size=28, resize=28, pad=2)
TEST_EXAMPLES = 355
SMOOTH = "softmax_regression"  # no ReLU and no max pool


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def start_two(arguments, options, environment=lambda index: {}):
    """Start train.py twice, with `options(index)` and `environment(index)`."""
    cpu = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2"}
    return [
        subprocess.Popen(
            command("experiments/train.py", *arguments, *options(index)),
            env=os.environ | cpu | environment(index),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip


def outputs(processes):
    try:
        return [(*process.communicate(timeout=280), process.returncode) for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.fixture
def train_on_four_devices(monkeypatch):
    """Return a function that runs train.py's main in this process."""
    four = jax.devices()[:4]
    patched = "flaxnets.training.parallel.DataParallel"
    monkeypatch.setattr(patched, lambda mapping: DataParallel(mapping, four))
    monkeypatch.setattr("flaxnets.runs.processes.join", lambda processes: None)
    return lambda *arguments: train.main([str(argument) for argument in arguments])


def variables(workdir):
    return jax.tree.leaves(Checkpoints(workdir / "checkpoints").restore_variables())


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(ours: pathlib.Path, theirs: pathlib.Path):
    """Two processes and one process sum gradients in different orders.

    Parameters of a SMOOTH network agree to 1e-6, and equally many test examples are right. No such
    bound holds for every network. Rounding moves parameters by 1e-7. If that decides which value of
    a max pool's window is the largest, or the sign before a ReLU, the gradient jumps, and so do the
    parameters: LeNet-5 with seed 4 differed by 1.4e-3 after two epochs.
    """
    for a, b in zip(variables(ours), variables(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    assert len(rows(ours)) == len(rows(theirs))
    for a, b in zip(rows(ours), rows(theirs), strict=True):
        for name in a.keys() - {*TIMED}:
            assert a[name] == pytest.approx(b[name], abs=1e-5), name
        for name in ("test_top1", "test_top5"):
            assert round(a[name] * TEST_EXAMPLES, 6) == round(b[name] * TEST_EXAMPLES, 6)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path, train_on_four_devices):
    """Parameters, metrics and checkpoint agree, and only process 0 prints."""
    address = f"localhost:{free_port()}"
    values = ["--arch", SMOOTH, "--epochs", 2, "--schedule", "plateau"]
    arguments = [*values, "--workdir"]
    started = start_two(
        [*arguments, tmp_path / "two", "--coordinator", address, "--num-processes", 2],
        lambda index: ["--process-id", index],
    )
    train_on_four_devices(*arguments, tmp_path / "one")
    (first, errors, status), others = outputs(started)
    assert (errors, status) == ("", 0)
    assert others == ("", "", 0)
    lines = first.splitlines()
    assert [line.split("  ")[0] for line in lines[:2]] == ["epoch 1/2", "epoch 2/2"]
    assert lines[2].startswith(f"{SMOOTH} on digits: top-1 ")
    assert len(lines) == 3
    assert_same_run(tmp_path / "two", tmp_path / "one")
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert {path.name for path in (tmp_path / "two").iterdir()} == names
    assert len(list((tmp_path / "two/tensorboard").iterdir())) == 1
    summary = json.loads((tmp_path / "two/summary.json").read_text())
    assert len(summary["devices"]) == 4


@pytest.mark.slow
def test_a_signal_to_one_stops_all_and_one_process_goes_on(tmp_path, train_on_four_devices):
    """Processes that JAX finds, as under srun, save a stopped run at the same step.

    One process with four devices continues it to the result of a run that was never stopped.
    """
    values = ["--arch", SMOOTH, "--schedule", "constant"]
    arguments = [*values, "--parallel", "pmap", "--workdir"]
    slurm = {
        "SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2", "JAX_COORDINATOR_PORT": str(free_port()),
    }  # fmt: skip
    started = start_two(
        [*arguments, tmp_path / "cut", "--epochs", 4000],
        lambda index: [],
        lambda index: {**slurm, "SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)},
    )
    assert output(started[0]).readline().startswith("epoch    1/4000")
    started[1].send_signal(signal.SIGTERM)
    (first, errors, status), others = outputs(started)
    assert (errors, status) == ("", 130)
    assert others == ("", "", 130)
    stopped = first.splitlines()[-1]
    assert stopped.startswith("stopped and saved at step ")
    step = int(stopped.split()[5])
    assert step == Checkpoints(tmp_path / "cut/checkpoints").latest_step

    epochs = step // 22 + 1
    for name in ("cut", "whole"):
        train_on_four_devices(*arguments, tmp_path / name, "--epochs", epochs)
    assert [row["epoch"] for row in rows(tmp_path / "cut")] == list(range(1, epochs + 1))
    for a, b in zip(variables(tmp_path / "cut"), variables(tmp_path / "whole"), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_refusal_in_one_process_ends_all(tmp_path):
    address = f"localhost:{free_port()}"
    shared = ["--arch", "lenet5", "--workdir", tmp_path, "--coordinator", address]
    started = start_two(
        [*shared, "--num-processes", 2], lambda index: ["--process-id", index, "--seed", index]
    )
    first, second = outputs(started)
    assert first == ("", "", 2)
    sentence = f"workdir {tmp_path} holds a run with seed 0, not 1; choose another workdir"
    assert second == ("", f"error: {sentence} or remove this one\n", 2)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "lock"}


@pytest.mark.parametrize(
    ("processes", "sentence"),
    [
        (Processes("localhost:1", 2), "belong together; .* missing: process id"),
        (Processes(process_id=0), "missing: coordinator, num processes"),
        (Processes("localhost", 2, 0), "coordinator is 'localhost'; expected HOST:PORT, such as"),
        (Processes("localhost:70000", 2, 0), "coordinator is 'localhost:70000'; expected HOST:"),
        (Processes("localhost:1", 2, 2), "process id is 2 .* is 2; expected .* from 0 to 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(processes, sentence):
    with pytest.raises(InputError, match=sentence):
        processes_.join(processes)


def test_a_single_task_of_a_launcher_is_a_run_of_its_own(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    processes_.join(Processes())
    assert not jax.distributed.is_initialized()


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_processes_that_do_not_meet_end_with_one_sentence(index):
    address = f"localhost:{free_port()}"
    code = (
        "from flaxnets.runs.processes import Processes, join;"
        f"join(Processes('{address}', 2, {index}), timeout=1)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2
    sentence = f"error: the processes of this run did not meet at {address} within 1 seconds; check"
    assert [line for line in result.stderr.splitlines() if "error:" in line][-1].startswith(
        sentence
    )


# Data


@pytest.fixture
def pictures(tmp_path) -> str:
    """Return a folder of PNG files of noise: 7 for training and 3 for testing."""
    rng = np.random.default_rng(0)
    for directory, count in (("train/a", 4), ("train/b", 3), ("val/a", 1), ("val/b", 2)):
        (tmp_path / directory).mkdir(parents=True)
        for number in range(count):
            image = Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8))
            image.save(tmp_path / directory / f"{number}.png")
    return f"folder:{tmp_path}"


@pytest.mark.parametrize("name", ["digits", "recoloured", "folder"])
@pytest.mark.parametrize("start_step", [0, 5])
def test_the_batch_of_all_processes_does_not_depend_on_their_number(name, start_step, pictures):
    """Batches are bit-equal, across the ends of several passes."""
    if name == "digits":
        source, batch_size, preprocessing = open_source("digits"), 400, SMALL
    elif name == "recoloured":
        preprocessing = dataclasses.replace(SMALL, policy="trivial_augment_wide")
        source, batch_size = open_source("digits"), 400
    else:
        source, batch_size, preprocessing = open_source(pictures), 4, Preprocessing(32, 36)

    def of_all(count):
        streams = [
            train_batches(
                source,
                batch_size,
                preprocessing,
                seed=3,
                start_step=start_step,
                shard=(index, count),
            )
            for index in range(count)
        ]
        steps = itertools.islice(zip(*streams, strict=True), 9)
        return [
            {k: np.concatenate([part[k] for part in parts]) for k in parts[0]} for parts in steps
        ]

    expected = of_all(1)
    for count in (2, 4):
        for ours, theirs in zip(of_all(count), expected, strict=True):
            assert ours.keys() == theirs.keys()
            for key, values in theirs.items():
                np.testing.assert_array_equal(ours[key], values)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_folder_is_evaluated_once(count, pictures):
    source = open_source(pictures)
    preprocessing = Preprocessing(image_size=32, resize=36)
    parts = [list(eval_batches(source, 4, preprocessing, shard=(i, count))) for i in range(count)]
    assert len({len(part) for part in parts}) == 1
    seen = [
        image.tobytes()
        for part in parts for batch in part
        for image in batch["image"][batch["mask"] == 1]
    ]  # fmt: skip
    assert len(seen) == len(set(seen)) == 3


class Numbered(tfds.core.GeneratorBasedBuilder):
    """Make photographs that differ in width."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
        label = tfds.features.ClassLabel(names=["left", "right"])
        features = tfds.features.FeaturesDict({"image": image, "label": label})
        return tfds.core.DatasetInfo(
            builder=self, features=features, supervised_keys=("image", "label")
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(7), "validation": self._generate_examples(5)}

    def _generate_examples(self, count):
        for i in range(count):
            yield i, {"image": np.full((2, 100 + i, 3), i, np.uint8), "label": i % 2}


@pytest.fixture(scope="module")
def three_files(tmp_path_factory) -> str:
    directory = str(tmp_path_factory.mktemp("tfds"))
    config = tfds.download.DownloadConfig(num_shards=3)
    Numbered(data_dir=directory).download_and_prepare(download_config=config)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_records_are_shared_by_file_or_else_one_by_one(count, three_files):
    """Two processes share three files unequally; each of four reads records of all files."""
    source: Any = open_source("numbered", three_files)
    assert [len(source.splits[split].filepaths) for split in ("train", "test")] == [3, 3]
    for split, size in (("train", 7), ("test", 5)):
        for seed in (None, 1):
            streams = [list(source._records(split, (i, count), seed)) for i in range(count)]
            shares = [source.share(split, (i, count)) for i in range(count)]
            assert [len(stream) for stream in streams] == shares
            seen = {record.numpy() for stream in streams for record in stream}
            assert len(seen) == sum(shares) == size
    preprocessing = Preprocessing(image_size=32, resize=36)
    parts = [
        list(eval_batches(source, 2 * count, preprocessing, shard=(i, count))) for i in range(count)
    ]
    assert len({len(part) for part in parts}) == 1
    values = [
        int(image[0, 0, 0])
        for part in parts for batch in part
        for image in batch["image"][batch["mask"] == 1]
    ]  # fmt: skip
    assert sorted(values) == [0, 1, 2, 3, 4]
    batch = next(train_batches(source, 2 * count, preprocessing, shard=(count - 1, count)))
    assert batch["image"].shape == (2, 32, 32, 3)


# Checkpoints


def test_a_checkpoint_of_four_devices_is_read_on_one_and_on_eight(tmp_path):
    recipe = recipe_for("lenet5", "small images")
    optimizer = make_optimizer(recipe, lambda _: 0.1)
    state = create_state(
        init_variables(create_model("lenet5"), (28, 28, 1), recipe, 0), optimizer, recipe
    )
    four = DataParallel(devices=jax.devices()[:4])
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(four.replicate(state), {"steps": 3.0}, error=1.0)
    checkpoints.close()
    for devices in (1, 8):
        parallel = DataParallel(devices=jax.devices()[:devices])
        like = jax.tree.map(
            lambda leaf, to=parallel.replicated: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=to
            ),
            state,
        )
        restored, position = Checkpoints(tmp_path).restore(like)
        assert position == {"steps": 3.0}
        for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
            assert len(ours.sharding.device_set) == devices
            np.testing.assert_array_equal(ours, theirs)
