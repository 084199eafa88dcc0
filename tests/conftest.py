"""Eight virtual CPU devices for the data-parallel tests, and the parity table at the end."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

PARITY: dict[str, dict[str, float]] = {}


@pytest.fixture
def record_parity():
    """`record_parity(name, "logits", error)`: a cell of the table that pytest prints at the end."""
    return lambda name, column, value: PARITY.setdefault(name, {}).update({column: value})


def pytest_terminal_summary(terminalreporter):
    if not PARITY:
        return
    columns = sorted({column for row in PARITY.values() for column in row})
    terminalreporter.section("parity: max error / max value")
    terminalreporter.write_line(f"{'network':32}" + "".join(f"{c:>18}" for c in columns))
    for name, row in PARITY.items():
        cells = (
            format(row[c], ",d" if c == "parameters" else ".1e") if c in row else ""
            for c in columns
        )
        terminalreporter.write_line(f"{name:32}" + "".join(f"{cell:>18}" for cell in cells))
