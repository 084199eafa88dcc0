"""What tools/benchmark.py says it measures; no test looks at a time."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from flaxnets.convolution import conv2d
from tools import benchmark


@pytest.fixture(autouse=True)
def torchvision_import(monkeypatch):
    monkeypatch.syspath_prepend(str(pathlib.Path(benchmark.__file__).parent))


@pytest.mark.parametrize("mode", ["infer", "train"])
def test_speed(mode):
    """86,400 + 153,600 in the convolutions, 30,720 + 10,080 + 840 behind; torchvision has none."""
    options = benchmark.Options(mode=mode, batch_size=4, rounds=2, vs=("torchvision", "plain"))
    row = benchmark.measure_speed("lenet5", options)
    assert (row["batch_size"], row["image_size"]) == (4, 28)
    assert row["images_per_second"] == pytest.approx(4 / row["seconds"])
    multiply_adds = row["gigaflops"] * 1e9 * row["seconds"] / 2 / 4
    assert multiply_adds == pytest.approx(281_640 * (3 if mode == "train" else 1))
    assert 0 < row["share_of_ceiling"] < 1.5
    assert row["ratio_to_plain"] > 0
    assert "ratio" not in row


def test_speed_beside_torchvision():
    options = benchmark.Options(mode="infer", batch_size=1, rounds=1, image_size=64)
    row = benchmark.measure_speed("resnet18", options)
    assert row["torch_was"] in ("eager channels_last", "eager default")
    assert row["ratio"] == pytest.approx(row["seconds"] / row["torch_seconds"])


def test_plain_layers_are_those_of_xla():
    def program():
        convolve = jax.jit(lambda x, kernel: conv2d(x, kernel, padding=(1, 1)))
        return convolve.lower(jnp.zeros((2, 2, 2, 8)), jnp.zeros((3, 3, 8, 8))).as_text()

    assert "stablehlo.convolution" not in program()
    with benchmark.plain_layers():
        assert "stablehlo.convolution" in program()
    assert "stablehlo.convolution" not in program()


def test_compilation():
    row = benchmark.measure_compilation("lenet5", benchmark.Options(mode="compile", batch_size=2))
    assert row["compile_seconds"] > 0
    assert 0 < row["loss"] < 10


def test_learning():
    options = benchmark.Options(mode="learn", batch_size=32, steps=40)
    row = benchmark.measure_learning("mlp", options)
    assert row["goes_down"]
    assert row["last_loss"] < row["first_loss"]
    assert row["steps"] == 40
