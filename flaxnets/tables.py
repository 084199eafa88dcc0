"""Print tables that fit the terminal, without cutting a number."""

import re
import sys
from collections.abc import Sequence
from typing import Any

NUMBER = re.compile(r"[-+\d.,x%e:]*\d[-+\d.,x%e:]*")


def print_table(
    title: str, rows: list[dict[str, Any]], footer: Sequence[dict[str, Any]] = ()
) -> None:
    """Print rows as a table. Its columns are the keys of the first row for which a row has a value.

    On a narrow terminal text wraps. If even the numbers do not fit, each row becomes a list of
    lines.
    """
    from rich.console import Console
    from rich.table import Table

    # If the output is not a terminal, rich would fold the columns at 80 characters.
    width = None if sys.stdout.isatty() else 160
    # Names and paths are printed unchanged: "[red]" and ":dog:" are not markup.
    console = Console(width=width, markup=False, emoji=False, highlight=False)
    keys = [key for key in rows[0] if any(row.get(key) for row in rows)]
    names = [key.replace("_", " ") for key in keys]
    groups = [[[_cell(row.get(key)) for key in keys] for row in group] for group in (rows, footer)]
    widths = _column_widths(names, [*groups[0], *groups[1]], console.width)
    if widths is None:
        console.print(title, soft_wrap=True)
        for cells in (*groups[0], *groups[1]):
            for name, cell in zip(names, cells, strict=True):
                if cell:
                    console.print(f"{name} {cell}", soft_wrap=True)
            console.print()
        return
    table = Table(title=title)
    for key, name, cells in zip(keys, names, widths, strict=True):
        number = type(rows[0][key]) is int
        justify = "right" if number else "left"
        table.add_column(name, justify=justify, width=cells, overflow="fold")
    for group in groups:
        for row in group:
            table.add_row(*row)
        table.add_section()
    console.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return f"{value:,}" if type(value) is int else "yes" if value is True else value or ""


def _column_widths(names: list[str], rows: list[list[str]], available: int) -> list[int] | None:
    """Return the widths of the columns, reduced so that the table fits.

    No number and no word of a column's name is cut; None if the table cannot fit.
    """
    from rich.cells import cell_len

    columns = list(zip(names, zip(*rows, strict=True), strict=True))
    widths = [max(map(cell_len, (name, *cells))) for name, cells in columns]
    smallest = []
    for name, cells in columns:
        numbers = filter(NUMBER.fullmatch, " ".join(cells).split())
        smallest.append(max(map(cell_len, (*name.split(), *numbers))))
    excess = sum(widths) + 3 * len(names) + 1 - available  # a border and two blanks a column
    while excess > 0:
        spare = [width - least for width, least in zip(widths, smallest, strict=True)]
        widest = spare.index(max(spare))
        if not spare[widest]:
            return None
        widths[widest] -= 1
        excess -= 1
    return widths
