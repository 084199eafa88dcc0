"""Text in Markdown, and where the repository begins."""

import pathlib
import re
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


def few(names: list[str]) -> str:
    """Return at most five names, or the first and the last with how many there are."""
    if len(names) > 5:
        return f"`{names[0]}` ... `{names[-1]}` ({len(names)})"
    return ", ".join(f"`{name}`" for name in names)


def table(heads: list[str], lines: list[list[Any]], numbers: int = 0) -> str:
    """Return a Markdown table; its last `numbers` columns are set to the right."""
    rules = ["---"] * (len(heads) - numbers) + ["---:"] * numbers
    cells = [heads, rules, *lines]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in cells) + "\n"


def with_links(text: str) -> str:
    """Return a docstring as Markdown, with arXiv's numbers as links."""
    return ARXIV.sub(lambda m: f"[{m[0]}](https://arxiv.org/abs/{m[1]})", text)
