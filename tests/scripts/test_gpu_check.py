"""Every part of tools/gpu_check.py gives its figures, here on a CPU; no test looks at a time."""

import contextlib
import io
import json
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from benchmarking import gpu, gpu_data
from PIL import Image

from flaxnets import InputError
from prepared import Tiny, noise
from tools import gpu_carry, gpu_check

pytestmark = pytest.mark.usefixtures("short_turns")


class Small(Tiny):
    """A data set with two splits that have the names of CIFAR-10's."""

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(7), "test": self._generate_examples(3)}


def rows(directory):
    parts = {}
    for line in (directory / "results.jsonl").read_text().splitlines():
        row = json.loads(line)
        parts.setdefault(row.pop("part"), []).append(row)
    return parts


def check_logits(exact):
    assert exact["logits_error"] < 1e-5
    assert exact["folded_error"] < 1e-5
    assert exact["bfloat16_correlation"] > 0.999


def check_step(step):
    assert step["params_error"] == step["statistics_error"] == step["mappings_differ"] == 0
    for part in ("params", "statistics"):  # ResNet-18 has no norm that could be folded
        narrow = step[f"bfloat16_{part}_error_of_the_update"]
        assert 0 < narrow == step[f"unfolded_bfloat16_{part}_error_of_the_update"]


def check_speed(train, infer):
    assert (train["mode"], infer["mode"]) == ("train", "infer")
    for row in (train, infer):
        ours, theirs = row["ours_images_per_second"], row["torch.compile_images_per_second"]
        assert row["speed_over_torch"] == pytest.approx(ours / theirs)


def check_variants(*variants):
    assert [(row["mode"], row["variant"]) for row in variants] == [
        ("infer", "ours"), ("infer", "unfolded"), ("infer", "xla_stem"),
        ("train", "ours"), ("train", "unfolded"), ("train", "xla_norms"), ("train", "xla_pools"),
        ("train", "xla_relu"), ("train", "xla_stem"),
    ]  # fmt: skip


def check_profile(busy, shares, *longest):
    assert sum(shares["shares"].values()) <= 1
    assert len(longest) == 10
    assert busy["busy_seconds"] * 1e3 >= sum(row["milliseconds"] for row in longest)


def check_depthwise(*measured):
    assert len(measured) == 6  # three results in two formulations
    assert all(row["difference"] < 0.01 for row in measured)
    exact = [row for row in measured if row["formulation"] == "positions"]
    assert [row["result"] for row in exact] == ["output", "input gradient", "kernel gradient"]


def check_cifar(learnt):
    assert learnt["epochs"] == len(learnt["accuracies"]) == 1


def check_feed(*measured):
    assert [row["of"] for row in measured] == ["JPEG", "memory"]


FIGURES = {
    "logits": check_logits, "step": check_step, "speed": check_speed, "variants": check_variants,
    "profile": check_profile, "depthwise": check_depthwise, "cifar": check_cifar,
    "feed": check_feed,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("part", gpu_check.TINY, ids=lambda part: part.name)
def test_every_part_gives_its_figures(part):
    """As lines of JSON, here in this process."""
    kind, _, arch = part.name.partition(":")
    lines = [json.dumps(row) for row in gpu.PARTS[kind](arch, True)]
    FIGURES[kind](*map(json.loads, lines))


@pytest.mark.slow
def test_parts_are_processes_of_which_one_may_fail(tmp_path):
    """What does not fit into the time is left out."""
    command = [sys.executable, gpu_check.__file__, "--out", str(tmp_path), "--tiny", "--only"]
    early = subprocess.run([*command, "cifar", "--minutes", "0.01"], capture_output=True)
    assert early.returncode == 0
    wrong = subprocess.run([*command, "profile:no_network", "feed"], capture_output=True)
    assert wrong.returncode == 1
    measured = rows(tmp_path)
    assert [set(row) for row in measured["cifar"]] == [{"at", "skipped"}]
    assert measured["profile:no_network"][0]["error"] == "failed with status 1"
    assert "unknown architecture 'no_network'" in (tmp_path / "log.txt").read_text()
    assert [row.get("of") for row in measured["feed"]] == ["JPEG", "memory", None]
    assert measured["feed"][-1]["seconds"] > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--minutes", "0"], "--minutes is 0.0; expected more than 0"),
        (["--cifar", "absent.npz"], "no file absent.npz; expected --cifar"),
        (["--only", "sped:vgg19"], "unknown part 'sped'; did you mean 'speed'"),
    ],
)
def test_bad_values_are_refused(arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--out", str(tmp_path), *arguments])
    with pytest.raises(InputError, match=sentence):
        gpu_check.main()


def processes_of(directory) -> int:
    """Return how many processes have the directory in their command."""
    count = 0
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # a process that has just ended
            count += str(directory).encode() in path.read_bytes()
    return count


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")
def test_an_interrupt_leaves_no_part_running(tmp_path):
    command = [sys.executable, gpu_check.__file__, "--out", str(tmp_path), "--tiny"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        while processes_of(tmp_path) < 3:  # the two parts that run together
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert (errors, process.returncode) == ("interrupted\n", 130)
    while processes_of(tmp_path):
        time.sleep(0.1)


def test_images_travel_without_loss(tmp_path):
    """PNGs as WebP, which is smaller; images of other encodings as they are stored."""
    builder: Any = Small(data_dir=tmp_path)
    builder.download_and_prepare()
    file = tmp_path / "small.npz"
    packed = gpu_carry.packed(builder)
    np.savez_compressed(file, **packed)
    assert packed["ends_train"][-1] == len(packed["encoded_train"])
    with np.load(gpu_data.decoded(str(file))) as arrays:
        images, labels = arrays["x_train"], arrays["y_train"]
        assert (len(images), len(arrays["x_test"])) == (7, 3)
    examples = tfds.as_numpy(builder.as_dataset("train"))
    stored = {example["image"].tobytes() for example in examples}
    assert {image.tobytes() for image in images} == stored
    assert {image.tobytes() for image in images} == {noise(16, 16, i).tobytes() for i in range(7)}
    assert sorted(labels) == [0, 0, 0, 0, 1, 1, 1]
    assert packed["encoded_train"].tobytes().count(b"WEBP") == 7
    buffer = io.BytesIO()
    Image.fromarray(noise(16, 16, 0)).save(buffer, "JPEG")
    assert gpu_carry.smaller(buffer.getvalue()) == buffer.getvalue()
