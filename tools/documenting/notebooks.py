"""A notebook from the script beside it."""

import pathlib
import re
from typing import Any

from flaxnets.runs.files import json_text


def notebook(path: pathlib.Path) -> str:
    """Return the notebook of a script whose cells begin with `# %%`, without outputs."""
    cells = []
    for part in re.split(r"(?m)^# %%", path.read_text())[1:]:
        head, _, body = part.partition("\n")
        is_text = "[markdown]" in head
        if is_text:
            body = re.sub(r"(?m)^# ?", "", body)
        lines = body.strip("\n").splitlines(keepends=True)
        kind: dict[str, Any] = {"cell_type": "markdown"}
        if not is_text:
            kind = {"cell_type": "code", "execution_count": None, "outputs": []}
        cells.append({**kind, "id": f"cell-{len(cells)}", "metadata": {}, "source": lines})
    python = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": python, "language_info": {"name": "python"}}
    whole = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json_text(whole, indent=1) + "\n"
