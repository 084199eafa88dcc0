"""Measure and plot how a training step grows: with batch, resolution, depth and devices."""

import dataclasses
import pathlib
from collections.abc import Sequence

from matplotlib.figure import Figure

from benchmarking.common import Options, Row

BATCH_SIZES = (1, 2, 4, 8, 16)
IMAGE_SIZES = (64, 96, 128, 160, 224, 288)  # pixels
DEPTHS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
DEVICES = (1, 2, 4, 8)  # virtual ones share the cores of one CPU: only mapping costs more


def series(arch: str, options: Options) -> list[tuple[Row, str, Options]]:
    """Return the measurements of a network: labels of the row, name of the network, options."""
    alone = dataclasses.replace(options, mode="train", vs=())
    usual = dataclasses.replace(alone, batch_size=options.batch_size or 8)

    def vary(name: str, base: Options, field: str, values: Sequence[int]):
        label = {"series": name, "of": arch}
        return [(label, arch, dataclasses.replace(base, **{field: n})) for n in values]

    return [
        *vary("batch", alone, "batch_size", BATCH_SIZES),
        *vary("batch, remat", dataclasses.replace(alone, remat=True), "batch_size", BATCH_SIZES),
        *vary("resolution", usual, "image_size", IMAGE_SIZES),
        *vary("devices", usual, "devices", DEVICES),
        *(({"series": "depth", "of": arch}, name, usual) for name in DEPTHS),
    ]


def draw(rows: list[Row], path: pathlib.Path) -> None:
    """Draw one row of plots for each network."""
    networks = list(dict.fromkeys(row["of"] for row in rows))
    figure = Figure(figsize=(22, 4 * len(networks)), layout="constrained")
    axes = figure.subplots(len(networks), 5, squeeze=False)

    def plot(axis, of: str, title: str, x: str, y: str, *names: str) -> None:
        for name in names:
            points = [row for row in rows if (row["of"], row["series"]) == (of, name)]
            axis.plot([p[x] for p in points], [p[y] for p in points], "o-", label=name)
        axis.set(
            title=title, xlabel=x.replace("_", " "), ylabel=y.replace("_", " "), ylim=(0, None)
        )
        axis.grid(alpha=0.3)
        if len(names) > 1:
            axis.legend()

    for arch, (batch, memory, resolution, depth, devices) in zip(networks, axes, strict=True):
        both = ("batch", "batch, remat")
        plot(batch, arch, f"{arch}: a training step", "batch_size", "seconds", *both)
        plot(memory, arch, f"{arch}: memory", "batch_size", "peak_gigabytes", *both)
        plot(resolution, arch, f"{arch}: resolution", "image_size", "seconds", "resolution")
        plot(depth, arch, "depth", "arch", "seconds", "depth")
        plot(devices, arch, f"{arch}: virtual devices, one CPU", "devices", "seconds", "devices")
    figure.savefig(path)
