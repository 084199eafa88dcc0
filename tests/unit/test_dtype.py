"""The type that a run computes in."""

import dataclasses
import json
import warnings

import jax
import jax.numpy as jnp
import pytest

from flaxnets.errors import InputWarning
from flaxnets.kernels import precision
from flaxnets.kernels.platform import compiling_for
from flaxnets.runs.assembly import assemble
from flaxnets.train import parse
from flaxnets.training import dtype as training_dtype
from flaxnets.training.dtype import dtype_of_run
from flaxnets.training.parallel import DataParallel


@dataclasses.dataclass
class Device:
    compute_capability: str


@pytest.mark.parametrize(
    ("platform", "device", "expected"),
    [
        ("gpu", Device("7.5"), False), ("gpu", Device("8.0"), True), ("gpu", Device("12.1"), True),
        ("gpu", Device("gfx90a"), False), ("gpu", object(), False), ("tpu", object(), True),
    ],
)  # fmt: skip
def test_which_devices_multiply_bfloat16(platform, device, expected, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [device])
    with compiling_for(platform):
        assert precision.multiplies_bfloat16() is expected


@pytest.mark.parametrize("in_hardware", [False, True])
def test_which_cpus_multiply_bfloat16(in_hardware, monkeypatch):
    monkeypatch.setattr(precision, "computes_bfloat16", lambda: in_hardware)
    assert precision.multiplies_bfloat16() is in_hardware


@pytest.mark.parametrize(
    ("asked", "before", "with_hardware", "without"),
    [
        ("auto", None, "bfloat16", "float32"),
        ("auto", "float32", "float32", "float32"),  # the run goes on as it began
        ("auto", "bfloat16", "bfloat16", "bfloat16"),
        ("auto", 16, "bfloat16", "float32"),  # of a file that no run wrote
        ("float32", None, "float32", "float32"),
        ("bfloat16", "bfloat16", "bfloat16", "bfloat16"),
    ],
)
def test_the_type_of_a_run(asked, before, with_hardware, without, monkeypatch):
    for in_hardware, expected in ((True, with_hardware), (False, without)):
        monkeypatch.setattr(training_dtype, "multiplies_bfloat16", lambda found=in_hardware: found)
        assert dtype_of_run(asked, before) == expected


@pytest.mark.parametrize("before", [None, "float32"])
def test_a_cpu_that_does_not_multiply_bfloat16_computes_in_float32_and_says_so(before, monkeypatch):
    monkeypatch.setattr(training_dtype, "multiplies_bfloat16", lambda: False)
    with pytest.warns(InputWarning) as notes:
        assert dtype_of_run("bfloat16", before) == "float32"
    sentence = "this CPU does not multiply bfloat16 in hardware; the run computes in float32"
    assert [str(note.message) for note in notes] == [sentence]
    with compiling_for("gpu"), warnings.catch_warnings():  # of any age: it has the instructions
        warnings.simplefilter("error")
        assert dtype_of_run("bfloat16", before) == "bfloat16"


def test_a_run_stores_the_type_and_goes_on_in_it(tmp_path, monkeypatch):
    def run(in_hardware):
        monkeypatch.setattr(training_dtype, "multiplies_bfloat16", lambda: in_hardware)
        words = ["--arch", "softmax_regression", "--dtype", "auto", "--workdir", str(tmp_path)]
        return assemble(*parse(words), DataParallel(devices=jax.devices()[:1]))

    first = run(in_hardware=True)
    assert first.model.dtype == jnp.bfloat16
    first.open_workdir().close()
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    again = run(in_hardware=False)
    assert again.model.dtype == jnp.bfloat16
    again.open_workdir().close()  # refuses another run
