"""The options of a run as a person looks for them: in groups, each with its default and where that
comes from. `train.py --help` prints them, and the page of all values is made from them.
"""

import ast
import dataclasses
import inspect
import shutil
import textwrap
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from flaxnets.errors import one_of
from flaxnets.recipes import Preprocessing, Recipe
from flaxnets.runs.options import Options, Processes, RunOptions

# The groups in the order of help, and which class's fields they have unless MOVED says otherwise.
GROUPS = {
    "data": "what is trained on, and how pictures are read",
    "augmentation": "how training images are changed",
    "optimisation": "what is minimised, and how",
    "running": "which network, where and in which precision",
    "saving": "checkpoints, logs and what happens when something goes wrong",
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
WIDTH = 100  # characters of a line of help at most


@dataclasses.dataclass(frozen=True)
class Row:
    """One option."""

    group: str
    name: str
    """On the command line: "--learning-rate"."""
    kind: str
    """What it takes: "NUMBER", "sgd, adamw", or "" for a switch."""
    default: str
    source: str
    """The version of the recipe that says the default, or "library"."""
    text: str


def rows(options: Options) -> list[Row]:
    """Return a row for each option, with the defaults that `options` hold."""
    found = list(_rows(options, options.recipe))
    return [row for group in GROUPS for row in found if row.group == group]


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
            _kind(types_of[field.name]),
            _shown(value),
            version if is_of_recipe and not is_common else "library",
            texts.get(field.name, ""),
        )
    for value in values.values():
        if dataclasses.is_dataclass(value):
            yield from _rows(value, version)


def field_texts(cls: type) -> dict[str, str]:
    """Return the text under each field of a dataclass, in one line."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    texts = {}
    for field, text in zip(tree.body, tree.body[1:], strict=False):
        match field, text:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(value=ast.Constant(str(words))):
                texts[name] = " ".join(words.split())
    return texts


def _kind(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return ", ".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, types.UnionType):
        return _kind(next(part for part in get_args(hint) if part is not type(None)))
    if get_origin(hint) is tuple:
        (first, *_) = get_args(hint)
        return f"{_kind(first)} ..." if get_origin(first) is not tuple else "PATTERN NUMBER ..."
    names = {int: "NUMBER", float: "NUMBER", bool: "", str: "TEXT"}
    return names.get(hint, "PATH")


def _shown(value: Any) -> str:
    if value is None or value in ((), ""):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " ".join(_shown(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def help_text(options: Options, topic: str = "", note: str = "") -> str:
    """Return the help of train.py: every option with its default by groups, or with `topic`, a
    group or "all", what each of its options means.

    Raises InputError for an unknown topic, with the nearest one.
    """
    width = min(shutil.get_terminal_size().columns, WIDTH)
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
            lines += [line for row in members for line in _explained(row, width)]
        else:
            # An option and its default are not parted: their blank becomes one at the end.
            words = [f"{row.name} {_default(row)}".replace(" ", "\0") for row in members]
            text = textwrap.fill("  ".join(words), width, initial_indent="  ",
                                 subsequent_indent="  ", break_on_hyphens=False)  # fmt: skip
            lines += text.replace("\0", " ").splitlines()
    recipe = f"the recipe {options.recipe!r} of {options.arch}"
    start = [
        "usage: python -m flaxnets.train [--arch NAME] [--dataset NAME] [OPTIONS]",
        "",
        *textwrap.wrap(f"Each option with its default; those marked * are values of {recipe}, "
                       f"{'of its paper' if options.recipe == 'paper' else 'of torchvision'} "
                       f"(flaxnets/recipes/), the others the library's.{note}", width),
    ]  # fmt: skip
    topics = ", ".join(GROUPS)
    end = ["", f"--help TOPIC explains the options of a group ({topics}), or all."]
    return "\n".join([*start, *lines, *([] if topic else end)])


def _default(row: Row) -> str:
    return row.default + ("" if row.source == "library" else "*")


def _explained(row: Row, width: int) -> list[str]:
    """Return the lines that say what an option takes and means."""
    name = f"{row.name}, --no-{row.name[2:]}" if not row.kind else f"{row.name} {row.kind}"
    where = row.source if row.source == "library" else f"recipe {row.source}"
    text = f"{row.text} (default: {row.default}; {where})"
    heading = textwrap.wrap(name, width - 2, initial_indent="  ", subsequent_indent="    ")
    body = textwrap.wrap(text, width - 6, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return [*heading, *body]
