"""tools/benchmark.py measures what it says it measures; no test looks at a time."""

import concurrent.futures.process
import csv
import dataclasses
import io
import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, get_args

import jax
import jax.numpy as jnp
import pytest
from benchmarking import (
    common,
    dense,
    growth,
    learning,
    profiling,
    reading,
    speed,
    starting,
    traffic,
)
from PIL import Image

from child_process import check_status
from flaxnets.errors import InputError
from flaxnets.kernels.onednn import library
from flaxnets.kernels.platform import Kernel, formulation
from tools import benchmark

pytestmark = pytest.mark.usefixtures("short_turns")


def work_in_threads(module, monkeypatch) -> None:
    """Let a module start threads where it starts processes."""
    futures = SimpleNamespace(
        ProcessPoolExecutor=lambda count, _: ThreadPoolExecutor(count),
        process=concurrent.futures.process,
    )
    monkeypatch.setattr(module, "concurrent", SimpleNamespace(futures=futures))
    monkeypatch.setattr(module, "quiet", lambda: None)
    monkeypatch.setattr(module, "reuse_memory", lambda: None)


@pytest.fixture
def torch_in_this_process(monkeypatch):
    """Torch is timed in a thread; `test_speed_beside_torchvision` gives it a process."""
    work_in_threads(speed, monkeypatch)


@pytest.mark.parametrize("mode", ["infer", "train"])
@pytest.mark.slow
def test_speed(mode, torch_in_this_process):
    """LeNet-5 has 86,400 + 153,600 multiply-adds in convolutions, 30,720 + 10,080 + 840 after."""
    own = "plain" if mode == "infer" else "float32"
    peers: Any = "torchvision", own
    options = common.Options(mode=mode, batch_size=4, rounds=2, vs=peers)
    row = speed.measure_speed("lenet5", options)
    assert (row["batch_size"], row["image_size"]) == (4, 28)
    assert row["images_per_second"] == pytest.approx(4 / row["seconds"])
    multiply_adds = row["gigaflops"] * 1e9 * row["seconds"] / 2 / 4
    assert multiply_adds == pytest.approx(281_640 * (3 if mode == "train" else 1))
    assert 0 < row["share_of_ceiling"] < 1.5
    assert row[f"ratio_to_{own}"] > 0
    assert row["first_seconds"] > row["seconds"]
    assert row["torch_network"] == "tests/networks"  # torchvision has none
    assert row["ratio"] == pytest.approx(row["seconds"] / row["torch_seconds"])


@pytest.mark.slow
def test_speed_beside_torchvision():
    options = common.Options(mode="infer", batch_size=1, rounds=1, image_size=64)
    row = speed.measure_speed("resnet18", options)
    assert row["torch_network"] == "torchvision"
    assert row["torch_was"] in ("eager channels_last", "eager default")


def test_the_plain_contender_has_no_kernel_of_ours(monkeypatch):
    """Every call is inside the context; jax would trace it again outside."""
    kernels = []
    ours = SimpleNamespace(infer=lambda: kernels.append({*map(formulation, get_args(Kernel))}))
    monkeypatch.setattr(speed, "Ours", lambda arch, options: ours)
    monkeypatch.setattr(speed, "timed", lambda work: work)
    run = speed.plain_contender("lenet5", common.Options(mode="infer"))
    run()
    run()
    assert kernels == [{"plain"}, {"plain"}]


def test_a_turn_is_filled_with_short_calls(monkeypatch):
    """The first call wakes the cores and does not count, unless it fills the turn alone."""
    clock = [0.0]
    monkeypatch.setattr(common, "TURN", 0.3)
    monkeypatch.setattr(common.time, "perf_counter", lambda: clock[0])

    def contender(seconds):
        calls = iter(seconds)

        def work():
            clock[0] += next(calls)

        return common.timed(work), calls

    run, left = contender([0.25, *[0.125] * 9])
    assert run() == 0.125
    assert len(list(left)) == 8
    run, left = contender([0.5, 0.125])
    assert run() == 0.5
    assert list(left) == [0.125]


def test_only_training_has_several_devices():
    for options in (common.Options(mode="infer", devices=2), common.Options(all=True, devices=2)):
        with pytest.raises(InputError, match="--devices is 2; expected 1, because only"):
            benchmark.main(options)


def test_compilation():
    row = speed.measure_compilation("lenet5", common.Options(mode="compile", batch_size=2))
    assert row["compile_seconds"] > 0
    assert 0 < row["loss"] < 10


def test_learning():
    options = common.Options(mode="learn", batch_size=32, steps=40)
    row = learning.measure_learning("mlp", options)
    assert row["goes_down"]
    assert row["last_loss"] < row["first_loss"]
    assert row["steps"] == 40


def test_accuracy():
    """On the digits, ten epochs are enough for 80%, and two are not for 100%."""
    options = common.Options(mode="accuracy", batch_size=64, epochs=10, target=0.8)
    row = learning.measure_accuracy("mlp", options)
    assert row["reached"]
    *before, last = row["accuracies"]
    assert last >= 0.8 > max(before, default=0)
    assert row["epochs"] == len(row["accuracies"]) <= 10
    assert row["images_per_second"] == pytest.approx(row["epochs"] * 22 * 64 / row["seconds"])
    row = learning.measure_accuracy("mlp", dataclasses.replace(options, epochs=2, target=1.0))
    assert not row["reached"]
    assert row["epochs"] == 2


def test_a_profile(monkeypatch):
    """A step of LeNet-5 has three times 281,640 multiply-adds per image.

    Here a copy of 1,000 bytes takes half a second, and a product of 2048 x 2048 numbers two.
    """
    monkeypatch.setattr(profiling, "large_copy", lambda: (1000, lambda: 0.5))
    monkeypatch.setattr(profiling, "matrix_product", lambda dtype: lambda: 2.0)
    row = profiling.measure_profile("lenet5", common.Options(batch_size=8, rounds=1))
    shares = row["operations"]
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert {"dot_general, forward", "dot_general, backward", "convolution, backward"} <= set(shares)
    assert shares.get("unnamed", 0) < 0.2
    parameters = 44_426 * 4  # bytes; each is read and written, as is its momentum
    assert row["gigabytes_moved"] * 1e9 > 4 * parameters
    assert row["gigabytes_per_second"] == pytest.approx(2e-6)
    assert row["seconds_of_memory"] == pytest.approx(row["gigabytes_moved"] * 1e9 / 2000)
    assert row["seconds_of_products"] == pytest.approx(3 * 8 * 281_640 * 2 / 2048**3)


def test_the_time_of_an_operation_counts_once(monkeypatch):
    """It is the time of kernels on a GPU's streams, not of summaries and containers of them."""

    def line(name, *events):
        stats = [[("hlo_op", operation), ("device_ordinal", 0)] for operation, _ in events]
        named = [
            SimpleNamespace(stats=known, duration_ns=seconds * 1e9)
            for known, (_, seconds) in zip(stats, events, strict=True)
        ]
        return SimpleNamespace(name=name, events=[*named, SimpleNamespace(stats=[])])

    kernels = line("Stream #7", ("fusion.1", 3), ("dot.2", 1), ("while.3", 4), ("fusion.1", 3))
    device = [kernels, line("XLA Modules", ("fusion.1", 10))]
    planes = [
        SimpleNamespace(name="/device:GPU:0", lines=device),
        SimpleNamespace(name="/host:CPU", lines=[line("a thread", ("fusion.1", 3))]),
    ]
    data = SimpleNamespace(from_file=lambda path: SimpleNamespace(planes=planes))
    monkeypatch.setattr(jax.profiler, "ProfileData", data)
    program = '  %fusion.1 = f32[2] fusion(%p), metadata={op_name="jit(f)/transpose(jvp(A))/add"}'
    trained = []
    ours: Any = SimpleNamespace(train=lambda: trained.append(jnp.ones(2).block_until_ready()))
    shares, busy = profiling.operations(ours, program)
    assert shares == pytest.approx({"add, backward": 0.9, "unnamed": 0.1})
    assert busy == pytest.approx(10 / len(trained))


def test_operations_are_named_after_their_pass():
    paths = {
        "jit(train_step)/jvp(VGG)/features.0/conv_general_dilated": "conv_general_dilated, forward",
        "jit(train_step)/transpose(jvp(VGG))/features.0/reduce_sum": "reduce_sum, backward",
        "jit(train_step)/add": "add, update",
    }
    assert {path: profiling.kind(path) for path in paths} == paths


PROGRAM = """HloModule step

%fused (p.1: bf16[4,8], p.2: f32[8], p.3: pred[4,8]) -> f32[8] {
  %p.1 = bf16[4,8]{1,0} parameter(0)
  %wide = f32[4,8]{1,0} convert(%p.1)
  %p.3 = pred[4,8]{1,0} parameter(2)
  %chosen = f32[4,8]{1,0} select(%p.3, %wide, %wide)
  %row = f32[1,8]{1,0} slice(%chosen), slice={[1:2], [0:8]}
  %flat = f32[8]{0} bitcast(%row)
  %p.2 = f32[8]{0} parameter(1)
  ROOT %sum = f32[8]{0} add(%flat, %p.2), metadata={op_name="jit(step)/add"}
}

%converted (p.4: f32[8]) -> bf16[8] {
  %p.4 = f32[8]{0} parameter(0)
  ROOT %narrow = bf16[8]{0} convert(%p.4)
}

ENTRY %main (x: bf16[4,8], y: f32[8], mask: pred[4,8]) -> (f32[8], u8[3]) {
  %x = bf16[4,8]{1,0} parameter(0)
  %y = f32[8]{0} parameter(1)
  %mask = pred[4,8]{1,0} parameter(2)
  %fusion = f32[8]{0} fusion(%x, %y, %mask), calls=%fused, metadata={op_name="jit(step)/jvp(A)/add"}
  %rounded = bf16[8]{0} fusion(%fusion), calls=%converted
  ROOT %conv = (f32[8]{0}, u8[3]{0}) custom-call(%x, %rounded, %x), custom_call_target="convolution"
}
"""


def test_the_traffic_of_a_program():
    """A fusion that needs one row of four reads 16 bytes of 64 and 8 of 32, whatever comes before
    the slice. An array is read once by an operation. A library's scratch memory does not count.
    """
    moved = [(kind, size) for _, kind, size in traffic.traffic(PROGRAM)]
    rounded, convolution = 32 + 16, 16 + 64 + 32
    assert moved == [
        ("add, forward", 16 + 32 + 8 + 32),
        ("unnamed, update", rounded),
        ("unnamed, update", convolution),
    ]


def test_traffic_without_the_plugin(monkeypatch):
    def no_plugin(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr(traffic.topologies, "get_topology_desc", no_plugin)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setenv("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "")  # restored
    with pytest.raises(InputError, match=r"--mode traffic needs jax's CUDA plugin"):
        traffic.measure_traffic("lenet5", common.Options(mode="traffic"))


def test_what_crops_share_is_counted():
    """LeNet-5's map of 56x56 pixels has 8x8 predictions, counted by hand."""
    row = dense.measure_dense("lenet5", common.Options(mode="dense", rounds=1))
    convolutions = 52 * 52 * 6 * 25 + 22 * 22 * 16 * 25 * 6
    assert row["map_multiply_adds"] == convolutions + 64 * (256 * 120 + 120 * 84 + 84 * 10)
    assert row["crops_multiply_adds"] == 64 * 281_640
    assert row["predictions"] == 64
    assert row["seconds_ratio"] == row["crops_seconds"] / row["map_seconds"] > 0
    assert dense.measure_dense("mlp", common.Options()) == {"note": "no map"}


@pytest.mark.slow
def test_reading_of_images_in_memory():
    options = common.Options(mode="data", batch_size=8, steps=3, rounds=1)
    row = reading.measure_reading("resnet18", options)
    assert row["image_size"] == 8  # of the digits
    assert row["ratio_to_torchvision"] == pytest.approx(
        row["images_per_second"] / row["torchvision_per_second"]
    )
    assert "ratio_to_libjpeg_turbo" not in row


@pytest.fixture
def pictures(tmp_path) -> str:
    """Return a folder data set with one JPEG for training and one for testing."""
    buffer = io.BytesIO()
    Image.new("RGB", (80, 60), (200, 30, 10)).save(buffer, "jpeg")
    for path in ("train/red", "val/red"):
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "one.jpg").write_bytes(buffer.getvalue())
    return f"folder:{tmp_path}"


@pytest.mark.slow
def test_reading_of_photographs(pictures):
    options = common.Options(
        mode="data", batch_size=4, steps=2, rounds=1, image_size=32, dataset=pictures
    )
    row = reading.measure_reading("resnet18", options)
    assert row["image_size"] == 32
    assert row["ratio_to_libjpeg_turbo"] > 0
    assert row["decoded_once_per_second"] > 0


@pytest.mark.slow
def test_a_start(pictures, monkeypatch):
    """Pictures are read without TensorFlow."""
    commands, seconds = [], starting._seconds

    def recorded(command, environment):
        commands.append(command)
        return seconds(command, environment)

    monkeypatch.setattr(starting, "_seconds", recorded)
    row = starting.measure_start("lenet5", common.Options(mode="start", dataset=pictures))
    assert commands[-1] == ["-c", starting.IMPORTS, *starting.LATE[:-1]]
    assert 0 < row["second_start_output_seconds"] < row["second_start_step_seconds"]
    assert row["second_start_step_beyond_imports"] == pytest.approx(
        row["second_start_step_seconds"] - row["imports_seconds"]
    )


@pytest.mark.slow
def test_a_start_that_fails_is_a_sentence():
    with pytest.raises(InputError, match="unknown data set 'digit'; did you mean 'digits'"):
        starting.measure_start("mlp", common.Options(mode="start", dataset="digit"))


def test_a_start_that_is_killed_is_a_sentence():
    killed = ["-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
    with pytest.raises(InputError, match=r"killed by signal 9.* a smaller --batch-size"):
        starting._seconds(killed, os.environ)


def test_a_script_that_fails_has_said_why():
    check_status("x.py", 0)
    with pytest.raises(InputError, match=r"^x\.py failed; see its message above$"):
        check_status("x.py", 2)


def test_a_batch_divides_over_the_devices():
    with pytest.raises(InputError, match="batch size 3 does not divide over 2 devices"):
        speed.measure_speed("mlp", common.Options(batch_size=3, devices=2))


@pytest.mark.slow
def test_all_is_a_table(tmp_path, monkeypatch, torch_in_this_process, capsys):
    """Ours is timed in this process too; the next test starts one for it."""
    work_in_threads(benchmark, monkeypatch)
    out = tmp_path / "all.csv"
    benchmark.main(common.Options(arch=("mlp",), all=True, rounds=1, out=out))
    table = capsys.readouterr().out.splitlines()[-3:]
    cells = [line.strip("|").split("|") for line in table]
    assert len({len(line) for line in cells}) == 1
    assert [cell.strip() for cell in cells[-1][:4]] == ["mlp", "tests/networks", "8", "64"]
    lines = out.read_text().splitlines()
    hardware = json.loads(lines[0].removeprefix("# "))
    assert "torchvision" in hardware["versions"]
    assert ("avx512_bf16" in hardware["vectors"]) == library.computes_bfloat16()
    assert [row["mode"] for row in csv.DictReader(lines[1:])] == ["infer", "train"]


def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_process_is_a_sentence_and_what_was_measured_stays(tmp_path, monkeypatch):
    out = tmp_path / "rows.json"
    benchmark.main(common.Options(arch=("mlp",), mode="compile", out=out))
    monkeypatch.setattr(benchmark, "measure", killed)
    before = out.read_bytes()
    with pytest.raises(InputError, match="the process that measured mlp was killed"):
        benchmark.main(common.Options(arch=("mlp",), mode="compile", out=out))
    assert out.read_bytes() == before


def test_batches_of_the_table():
    """They have 12 G multiply-adds, at 1.81 G, 19.6 G and 281,640 per image."""
    sizes = [speed.suitable_batch_size(name) for name in ("resnet18", "vgg19", "lenet5")]
    assert sizes == [8, 4, 64]


def test_growth_is_drawn(tmp_path):
    """Every series has a plot; the numbers are invented, because real ones take long."""
    rows = [
        {**label, "arch": arch, "batch_size": n, "image_size": n, "devices": options.devices}
        | {"seconds": 1.0, "peak_gigabytes": 1.0}
        for n, (label, arch, options) in enumerate(growth.series("resnet50", common.Options()))
    ]
    assert {row["series"] for row in rows} == {
        "batch", "batch, remat", "resolution", "devices", "depth",
    }  # fmt: skip
    growth.draw(rows, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
