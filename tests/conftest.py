"""Eight virtual CPU devices for the data-parallel tests, and the parity table at the end."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import pytest

worker = os.environ.get("PYTEST_XDIST_WORKER")  # "gw0", "gw1", ...
if worker is not None and hasattr(os, "sched_setaffinity"):
    # A core to each of pytest-xdist's processes: the threads of JAX and torch, one for each core
    # that they see, are otherwise too many and wait for each other.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture
def record_parity(request):
    """`record_parity(name, "logits", error)`: a cell of the table that pytest prints at the end."""

    def record(name: str, column: str, value: float) -> None:
        request.node.user_properties.append(("parity", (name, column, value)))

    return record


def pytest_terminal_summary(terminalreporter):
    table: dict[str, dict[str, float]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:  # the tests may have run in another process (pytest-xdist)
            for key, (name, column, value) in getattr(report, "user_properties", ()):
                if key == "parity":
                    table.setdefault(name, {})[column] = value
    if not table:
        return
    columns = sorted({column for row in table.values() for column in row})
    terminalreporter.section("parity: max error / max value")
    terminalreporter.write_line(f"{'network':32}" + "".join(f"{c:>18}" for c in columns))
    for name, row in sorted(table.items()):
        cells = (
            format(row[c], ",d" if c == "parameters" else ".1e") if c in row else ""
            for c in columns
        )
        terminalreporter.write_line(f"{name:32}" + "".join(f"{cell:>18}" for cell in cells))
