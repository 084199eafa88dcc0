"""Describe the options of train.py in groups, each with its default and the source of that.

`train.py --help` prints them, and the documentation's page of all values is made from them.
"""

import dataclasses
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, get_type_hints

from flaxnets.data import has_classes, kind_of
from flaxnets.errors import one_of
from flaxnets.recipes import Preprocessing, Recipe, Version
from flaxnets.runs.options import Options, Processes, RunOptions, default_values
from flaxnets.script_help import field_texts, help_width, kind_of_value, shown_value

# The groups in the order of help. The group of a field is that of its class in HOME, unless MOVED
# names another.
GROUPS = {
    "data": "the data set, and how pictures are read",
    "augmentation": "changes of training images",
    "optimisation": "the loss, the optimiser and its schedule",
    "running": "the network, its start, precision and devices",
    "saving": "the workdir, checkpoints, logs and failures",
}
HOME = {
    Options: "running", Recipe: "optimisation", Preprocessing: "augmentation",
    RunOptions: "saving", Processes: "running",
}  # fmt: skip
MOVED = {
    "dataset": "data", "data_dir": "data", "max_bad_images": "data", "decoded_gigabytes": "data",
    "image_size": "data", "resize": "data", "interpolation": "data", "orientation": "data",
    "pixels": "data", "random_erasing": "augmentation", "mixup": "augmentation",
    "cutmix": "augmentation", "workdir": "saving", "on_nan": "saving", "views": "data",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Row:
    """One option."""

    group: str
    name: str
    """Name on the command line: "--learning-rate"."""
    kind: str
    """Kind of its value: "NUMBER", "sgd, adamw", or "" for a switch."""
    default: str
    source: str
    """Version of the recipe that has the default, or "library"."""
    text: str


def rows(options: Options) -> list[Row]:
    """Return a row for each option of train.py, with the values of `options` as defaults."""
    all_rows = list(_rows(options, options.recipe))
    return [row for group in GROUPS for row in all_rows if row.group == group]


def _rows(part: Any, version: str) -> Iterator[Row]:
    texts, types_of = field_texts(type(part)), get_type_hints(type(part))
    values = {field: getattr(part, field.name) for field in dataclasses.fields(part)}
    for field, value in values.items():
        if dataclasses.is_dataclass(value):
            continue
        is_of_recipe = isinstance(part, Recipe | Preprocessing)
        is_common = field.default is not dataclasses.MISSING and value == field.default
        yield Row(
            MOVED.get(field.name, HOME[type(part)]),
            f"--{field.name.replace('_', '-')}",
            kind_of_value(types_of[field.name]),
            shown_value(value),
            version if is_of_recipe and not is_common else "library",
            texts.get(field.name, ""),
        )
    for value in values.values():
        if dataclasses.is_dataclass(value):
            yield from _rows(value, version)


def help_text(topic: str = "", *, dataset: str, arch: str, recipe: Version, **chosen: Any) -> str:
    """Return the help of train.py for a network, a recipe and a data set, which is not opened.

    Args:
        topic: the word after `--help`, if any: a group or "all". Another option is no topic.
        dataset: name of the data set, which decides the kind of data.
        arch: name of the network.
        recipe: version of the recipe.
        chosen: values of other options.

    Raises:
        InputError: the topic or the network is unknown, or the recipe does not fit.
    """
    kind, note = kind_of(dataset), ""
    if kind is None:
        kind = "photographs"
        note = f" The defaults are for photographs, because help does not open {dataset}."
    values = default_values(arch, kind, recipe, has_classes=has_classes(dataset))
    options = Options(values, dataset=dataset, arch=arch, recipe=recipe, **chosen)
    return explained(options, "" if topic.startswith("-") else topic, note)


def explained(options: Options, topic: str = "", note: str = "") -> str:
    """Return a list of every option with its default, or an explanation of the options of a topic.

    The topic is a group or "all". `note` is another sentence on the defaults.

    Raises InputError for an unknown topic, with the nearest one.
    """
    width = help_width()
    groups: dict[str, list[Row]] = {group: [] for group in GROUPS}
    for row in rows(options):
        groups[row.group].append(row)
    if topic:
        one_of((*GROUPS, "all"), topic, "topic of help")
    lines = []
    for group, members in groups.items():
        if topic not in ("", "all", group):
            continue
        lines += ["", f"{group}: {GROUPS[group]}"]
        if topic:
            lines += [line for row in members for line in _meaning(row, width)]
        else:
            lines += _in_columns([f"{row.name} {_default(row)}" for row in members], width)
    origin = "its paper" if options.recipe == "paper" else "torchvision's training command"
    about = (
        f"Every option is shown with its default. A star marks a value of the recipe "
        f"{options.recipe!r} of {options.arch}, taken from {origin} (see flaxnets/recipes/); all "
        f"others are the library's.{note}"
    )
    start = [
        "usage: python -m flaxnets.train [--arch NAME] [--dataset NAME] [OPTIONS]",
        "example: python -m flaxnets.train --arch resnet18 --dataset folder:~/pictures",
        "",
        *textwrap.wrap(about, width),
    ]
    end = [
        "",
        *textwrap.wrap(f"--help GROUP explains the options of a group ({', '.join(GROUPS)}); "
                       f"--help all explains all of them.", width),
    ]  # fmt: skip
    return "\n".join([*start, *lines, *([] if topic else end)])


def _in_columns(cells: Sequence[str], width: int) -> list[str]:
    """Return lines with the cells, row by row, in as many aligned columns as fit in `width`."""

    def widths(count: int) -> list[int]:
        return [max(map(len, cells[column::count])) for column in range(count)]

    counts = range(len(cells), 0, -1)
    count = next((n for n in counts if sum(widths(n)) + 2 * n <= width), 1)
    padded = [cell.ljust(widths(count)[i % count]) for i, cell in enumerate(cells)]
    return ["  " + "  ".join(padded[i : i + count]).rstrip() for i in range(0, len(padded), count)]


def _default(row: Row) -> str:
    return row.default + ("" if row.source == "library" else "*")


def _meaning(row: Row, width: int) -> list[str]:
    """Return the lines that explain one option of train.py."""
    name = f"{row.name}, --no-{row.name[2:]}" if not row.kind else f"{row.name} {row.kind}"
    source = row.source if row.source == "library" else f"recipe {row.source}"
    text = row.text
    if (row.default, row.source) != ("none", "library"):
        text += f" (default: {row.default}; {source})"
    heading = textwrap.wrap(name, width - 2, initial_indent="  ", subsequent_indent="    ")
    body = textwrap.wrap(text, width - 6, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return [*heading, *body]
