"""Read the options of a script and explain them: the text under a field is its help.

`--help` shows them in groups, as a person looks for them. train.py has more options than a screen
has lines, and its own help in `flaxnets.runs.help`.
"""

import ast
import dataclasses
import inspect
import shlex
import shutil
import sys
import textwrap
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from flaxnets.terminal import program

WIDTH = 100  # most characters in a line of help
LABEL = 22  # characters of the column of names
Parsed = TypeVar("Parsed")


def parsed(
    options: type[Parsed],
    words: Sequence[str],
    description: str | None,
    groups: Mapping[str, Sequence[str]],
) -> Parsed:
    """Return a script's options, read from the words of its command line.

    With `--help` among the words the options are printed, and the process ends.

    Args:
        options: dataclass of the options; the text under a field is its help.
        words: the arguments of the command line.
        description: the docstring of the script.
        groups: names of the fields in each group, in the order of help.
    """
    if "-h" in words or "--help" in words:
        print(script_help(options, description or "", groups))
        sys.exit()
    return tyro.cli(options, args=words, prog=" ".join(program()))


def script_help(options: type, description: str, groups: Mapping[str, Sequence[str]]) -> str:
    """Return the help of a script: usage, description, and the options in groups.

    The arguments are those of `parsed`.
    """
    width, texts, labels = help_width(), field_texts(options), _labels(options)
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    usage = ["usage:", *program()]
    for name, label in labels.items():
        if defaults[name] is dataclasses.MISSING:
            usage.append(label)
        elif not label.startswith("--"):
            usage.append(f"[{label}]")
    lines = [" ".join([*usage, "[OPTIONS]"]), ""]
    for paragraph in textwrap.dedent(description).strip().split("\n\n"):
        is_example = paragraph.startswith(" ")
        lines += [*(paragraph.splitlines() if is_example else textwrap.wrap(paragraph, width)), ""]
    for group, names in groups.items():
        lines.append(f"{group}:")
        for name in names:
            is_shown = defaults[name] not in (None, (), dataclasses.MISSING)
            default = f" Default: {shown_value(defaults[name])}."
            text = texts[name] + (default if is_shown and defaults[name] is not False else "")
            body = textwrap.wrap(text, width - LABEL - 4, break_on_hyphens=False)
            label = f"  {labels[name]:{LABEL}}"
            lines.append(f"{label}  {body.pop(0)}" if len(label) == LABEL + 2 else label)
            lines += [" " * (LABEL + 4) + line for line in body]
        lines.append("")
    return "\n".join(lines).rstrip()


def _labels(options: type) -> dict[str, str]:
    """Return what a user types for each field: "--top NUMBER", "--json" or "PICTURES ..."."""
    labels = {}
    hints, plain = get_type_hints(options, include_extras=True), get_type_hints(options)
    for field in dataclasses.fields(options):
        name, kind = field.name, kind_of_value(plain[field.name])
        flag = f"--{name.strip('_').replace('_', '-')}"
        if tyro.conf.Positional in getattr(hints[name], "__metadata__", ()):
            labels[name] = name.upper() + (" ..." if kind.endswith("...") else "")
        elif kind:
            labels[name] = f"{flag} {kind}"
        else:
            labels[name] = f"{flag}, --no-{flag[2:]}" if field.default else flag
    return labels


def field_texts(cls: type) -> dict[str, str]:
    """Return the text under each field of a dataclass and its bases, as one line."""
    texts = {}
    for base in reversed(cls.__mro__):
        if "__dataclass_fields__" not in vars(base):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            match field, text:
                case ast.AnnAssign(target=ast.Name(name)), ast.Expr(value=ast.Constant(str(words))):
                    texts[name] = " ".join(words.split())
    return texts


def kind_of_value(hint: Any) -> str:
    """Return what a user types for a value of a type: "NUMBER", "sgd, adamw"; "" for a switch."""
    if get_origin(hint) is Literal:
        return ", ".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, types.UnionType):
        return ", ".join(kind_of_value(part) for part in get_args(hint) if part is not type(None))
    if get_origin(hint) is tuple:
        (first, *_) = get_args(hint)
        return "PATTERN NUMBER ..." if get_origin(first) is tuple else f"{kind_of_value(first)} ..."
    names = {int: "NUMBER", float: "NUMBER", bool: "", str: "TEXT"}
    return names.get(hint, "PATH")


def shown_value(value: Any) -> str:
    """Return a default as a user types it; "none" for no value."""
    if value is None or value in ((), ""):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " ".join(shown_value(part) for part in value)
    # A pattern such as * is quoted, as a shell needs it.
    return f"{value:g}" if isinstance(value, float) else shlex.quote(str(value))


def help_width() -> int:
    """Return the characters in a line of help: those of the terminal, `WIDTH` at most."""
    return min(shutil.get_terminal_size().columns, WIDTH)
