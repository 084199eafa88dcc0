"""What was measured, read from docs/measurements/, as tables."""

import collections
import csv
import dataclasses
import json
from typing import Any

from documenting.markdown import ROOT, table

FOLDER = ROOT / "docs/measurements"
SPEED = ("beside", "pixels", "batch", "inference", "training")
PASSES = {"train": "training", "infer": "inference"}


def rows(name: str) -> dict[str, list[dict[str, str]]]:
    """Return the rows of a table of measurements, `name` without ending, for each network."""
    with open(FOLDER / f"{name}.csv", newline="") as file:
        found = collections.defaultdict(list)
        for row in csv.DictReader(file):
            found[row["network"]].append(row)
    return dict(found)


def cpu_table() -> str:
    """Return the table of all networks timed on a CPU."""
    lines = [[f"`{row['network']}`", *list(row.values())[1:]]
             for given in rows("cpu").values() for row in given]  # fmt: skip
    heads = ["network", "beside", "pixels", "batch", "inference", "training", "first step, s"]
    return table(heads, lines, 5)


def cpu_lines(names: list[str]) -> list[list[Any]]:
    """Return the CPU's lines of some networks."""
    measured = rows("cpu")
    return [[f"`{name}`", *(row[key] for key in SPEED)]
            for name in names for row in measured.get(name, [])]  # fmt: skip


def accuracy_lines(names: list[str]) -> list[list[Any]]:
    """Return what networks of the list reached in our own training."""
    measured = rows("accuracy")
    return [
        [f"`{name}`", row["data"], row["runs"], row["median"],
         f"{row['lowest']} to {row['highest']}" if row["lowest"] else "", row["conditions"]]
        for name in names for row in measured.get(name, [])
    ]  # fmt: skip


@dataclasses.dataclass
class GPU:
    """A network's speed in one pass, training or inference."""

    network: str
    mode: str
    batch: int
    images_per_second: float
    over_torch: float  # times torch.compile's rate
    byte_share: float  # of the rate that copying its bytes would allow
    product_share: float  # of the rate that its multiply-adds alone would allow


def gpu_rows() -> list[GPU]:
    """Return the speeds on an H100: our newest time, beside that of torch.compile, with which the
    bounds were measured.
    """
    found: dict[tuple[str, str], tuple[GPU, dict[str, Any]]] = {}
    for line in (FOLDER / "h100.jsonl").read_text().splitlines():
        row = json.loads(line)
        part, _, network = row["part"].partition(":")
        key = network, row.get("mode", "")
        if part == "speed" and "speed_over_torch" in row:
            speed = GPU(
                network, row["mode"], row["batch_size"], row["ours_images_per_second"],
                row["speed_over_torch"], row["share_of_byte_bound"], row["share_of_product_bound"],
            )  # fmt: skip
            found[key] = speed, row
        elif part == "variants" and row["variant"] == "ours" and key in found:
            speed, beside = found[key]
            rate = row["batch_size"] / row["seconds"]
            speed.over_torch = rate / beside["torch.compile_images_per_second"]
            speed.product_share *= rate / speed.images_per_second
            speed.byte_share = (
                row["gigabytes_moved"] / row["seconds"] / beside["gigabytes_per_second"]
            )
            speed.images_per_second = rate
    networks = list(dict.fromkeys(network for network, _ in found))
    return sorted(
        (speed for speed, _ in found.values()), key=lambda speed: networks.index(speed.network)
    )


def gpu_lines(names: list[str]) -> list[list[Any]]:
    """Return the GPU's lines of some networks."""
    return [
        [f"`{row.network}`", PASSES[row.mode], row.batch, _rounded(row.images_per_second),
         f"{row.over_torch:.2f}", f"{row.byte_share:.2f}", f"{row.product_share:.2f}"]
        for row in gpu_rows() if row.network in names
    ]  # fmt: skip


GPU_HEADS = ["network", "pass", "batch", "images/s", "times torch.compile's",
             "share of the byte bound", "of the product bound"]  # fmt: skip


def gpu_table() -> str:
    """Return the table of all networks timed on a GPU."""
    return table(GPU_HEADS, gpu_lines([row.network for row in gpu_rows()]), 5)


def _rounded(rate: float) -> str:
    """Return a rate with four digits."""
    return f"{float(f'{rate:.4g}'):,.0f}"
