"""Write the parts of README.md and docs/ that are made from the code, or say which are stale.

    python tools/write_docs.py          # after a new network, recipe field or measurement
    python tools/write_docs.py --check  # status 1 if a file is not what the code says
    python tools/write_docs.py --counts # count parameters and multiply-adds of all networks again

It makes a page for each family, the tables of networks, of values and of measurements, the
notebooks (from the scripts beside them) and the list of pages in mkdocs.yml. Counting all networks
takes minutes; the counts are kept in docs/networks/counts.json, and only new networks are counted.
"""

if __name__ == "__main__":  # first, because the other imports take seconds
    from flaxnets.terminal import quiet

    quiet()

import collections
import csv
import dataclasses
import importlib
import inspect
import json
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any

import tyro

from flaxnets import create_model, list_models
from flaxnets.models import FAMILIES
from flaxnets.recipes import recipe_for
from flaxnets.recipes.papers import PAPERS
from flaxnets.runs.files import json_text
from flaxnets.runs.help import GROUPS, rows
from flaxnets.runs.options import Options as TrainOptions
from flaxnets.runs.progress import track
from flaxnets.summary import summarize, totals
from flaxnets.terminal import arguments, one_sentence_errors
from flaxnets.weights.published import WEIGHTS
from summarize import PUBLISHED

ROOT = pathlib.Path(__file__).parents[1]
COUNTS = "docs/networks/counts.json"
MEASURED = "docs/measurements/cpu.csv"
SPEED = ("beside", "pixels", "batch", "inference", "training")
MADE = "<!-- made by tools/write_docs.py; change the code that it reads instead -->"
# Authors and a year, as the families' docstrings cite them.
CITED = re.compile(
    r"(?!The )((?:van der )?[A-Z][\w-]+"
    r"(?:(?:, (?:van der )?[A-Z][\w-]+)*,? & (?:van der )?[A-Z][\w-]+| et al\.)?)"
    r" ((?:19|20)\d\d)\b"
)
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
# Papers that are not on arXiv.
LINKS = {
    "LeCun et al. 1998": "https://doi.org/10.1109/5.726791",
    "Krizhevsky et al. 2012": "https://papers.nips.cc/paper/4824-imagenet-classification-with-deep-"
    "convolutional-neural-networks",
}


def docstring(family: str) -> str:
    return inspect.getdoc(importlib.import_module(f"flaxnets.models.{family}")) or ""


def title(family: str) -> str:
    """Return what a family is called: how its docstring begins."""
    return re.split(r":| \(|\.\s|\n\n| as |; ", docstring(family))[0].replace("\n", " ").rstrip(".")


def papers(family: str) -> list[str]:
    """Return the papers that the family's docstring cites, as links where they have an address."""
    text = " ".join(docstring(family).split())
    found = list(CITED.finditer(text))
    ends = [match.start() for match in found[1:]] + [len(text)]
    cited: dict[str, str | None] = {}
    for match, end in zip(found, ends, strict=False):
        authors = match[1].split(",")
        first = match[1] if len(authors) < 2 else f"{authors[0]} et al."
        name, number = f"{first} {match[2]}", ARXIV.search(text[match.end() : end])
        link = f"https://arxiv.org/abs/{number[1]}" if number else LINKS.get(name)
        cited[name] = cited.get(name) or link
    linked = [f"[{name}]({link})" for name, link in cited.items() if link]
    return linked or list(cited)


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


def count(name: str) -> dict[str, int]:
    """Return the parameters of a network, those without auxiliary heads, and the multiply-adds."""
    model = create_model(name)
    sums = totals(summarize(model, model.input_shape))
    keys = ("parameters", "parameters_without_auxiliary", "multiply_adds")
    return {key: int(sums[key]) for key in keys}


def read_counts() -> dict[str, dict[str, int]]:
    path = ROOT / COUNTS
    return json.loads(path.read_text()) if path.exists() else {}


def published_counts() -> dict[str, tuple[str, int | str]]:
    """Return the published number of parameters of a network, after its source."""
    return {
        name: (source, number) for source, given in PUBLISHED.items()
        for name, number in given.items()
    }  # fmt: skip


def measurements() -> dict[str, list[dict[str, str]]]:
    """Return the rows of the CPU's table for each network."""
    with open(ROOT / MEASURED, newline="") as file:
        found = collections.defaultdict(list)
        for row in csv.DictReader(file):
            found[row["network"]].append(row)
    return dict(found)


def with_links(text: str) -> str:
    """Return a docstring as Markdown, with arXiv's numbers as links."""
    return ARXIV.sub(lambda m: f"[{m[0]}](https://arxiv.org/abs/{m[1]})", text)


def size_of(model: Any) -> str:
    return "x".join(map(str, model.input_shape))


def family_page(family: str, counts: dict[str, dict[str, int]]) -> str:
    """Return the page of a family: its paper, its networks and what is known of them."""
    names, given = list(FAMILIES[family]), published_counts()
    rows_of, speeds = [], []
    for name in names:
        sums = counts[name]
        source, number = given.get(name, ("", ""))
        shown = f"{number:,}" if isinstance(number, int) else number
        rows_of.append([
            f"`{name}`", size_of(create_model(name)), f"{sums['parameters']:,}",
            f"{shown} ({source})" if source else "", f"{sums['multiply_adds'] / 1e6:,.1f}",
        ])  # fmt: skip
        speeds += [
            [f"`{name}`", *(row[key] for key in SPEED)] for row in measurements().get(name, [])
        ]
    heads = ["network", "input", "parameters", "published", "multiply-adds, millions"]
    parts = [
        MADE, f"# {title(family)}", with_links(docstring(family)),
        f"Code: [`flaxnets/models/{family}.py`](../../flaxnets/models/{family}.py).",
        "## Networks",
        "Parameters include auxiliary heads. Multiply-adds are those of the convolutions and "
        "linear layers for one image of the size given, without auxiliary heads.",
        table(heads, rows_of),
    ]  # fmt: skip
    weights = [row for row in WEIGHTS if row.arch in names]
    if weights:
        parts += ["## Published weights", "Accuracies are the publisher's, in per cent of the "
                  "validation images of ImageNet, at the resize and crop given.",
                  table(["network", "weights", "resize", "crop", "top-1", "top-5"], [
                      [f"`{w.arch}`", f"`{w.name}`", w.resize, w.crop,
                       f"{w.top1:.2f}" if w.classes else "features only",
                       f"{w.top5:.2f}" if w.classes else ""] for w in weights])]  # fmt: skip
    trained = recipe_lines(names)
    if trained:
        parts += ["## Recipes", "The defaults of `train.py` (`--arch NAME --help` shows all; the "
                  "code names the section that each comes from).",
                  table(["networks", "images", "batch", "epochs", "optimizer", "rate", "schedule",
                         "weight decay", "pixels"], trained)]  # fmt: skip
    if speeds:
        parts += ["## Speed on a CPU", "Our time divided by torch's; "
                  "[conditions](../performance.md#on-a-cpu).",
                  table(["network", *SPEED], speeds)]  # fmt: skip
    parts += ["## Fields", "Every field of `create_model`, with its default; "
              "[the API](../api.md) describes those that all networks have."]  # fmt: skip
    for cls in dict.fromkeys(build.func for build in FAMILIES[family].values()):
        parts += [f"### {cls.__name__}", f"```text\n{signature(cls)}\n```",
                  with_links(inspect.getdoc(cls) or "")]  # fmt: skip
    return "\n\n".join(part.strip() for part in parts) + "\n"


def signature(cls: type) -> str:
    """Return a module's own fields with their defaults."""
    fields = [f for f in dataclasses.fields(cls) if f.name not in ("parent", "name")]
    lines = []
    for field in fields:
        value = field.default
        if value is dataclasses.MISSING:
            lines.append(field.name)
        else:
            shown = getattr(value, "__name__", None) or repr(value)
            lines.append(f"{field.name} = {shown}")
    return "\n".join(lines)


def recipe_lines(names: list[str]) -> list[list[Any]]:
    """Return a line of the paper's recipe for each group of networks that share it."""
    groups: dict[Any, list[str]] = {}
    for kind, recipes in PAPERS.items():
        for name in names:
            if name in recipes:
                groups.setdefault((kind, recipe_for(name, kind)), []).append(name)
    return [
        [few(members), kind, r.batch_size, r.epochs, r.optimizer, f"{r.learning_rate:g}",
         r.schedule, f"{r.weight_decay:g}", r.preprocessing.image_size]
        for (kind, r), members in groups.items()
    ]  # fmt: skip


def networks_table(folder: str, code: str) -> str:
    """Return the table of families; `folder` has their pages, `code` leads to the root."""
    lines = [
        [f"[{title(family)}]({folder}{family}.md)", few(list(variants)),
         "; ".join(papers(family)), f"[`{family}.py`]({code}flaxnets/models/{family}.py)"]
        for family, variants in FAMILIES.items()
    ]  # fmt: skip
    return table(["family", "networks", "papers", "file"], lines)


def index_page(counts: dict[str, dict[str, int]]) -> str:
    lines = []
    best: dict[str, Any] = {}
    for row in WEIGHTS:
        if row.classes and (row.arch not in best or row.top1 > best[row.arch].top1):
            best[row.arch] = row
    for family, variants in FAMILIES.items():
        for name in variants:
            sums, row = counts[name], best.get(name)
            lines.append([
                f"[`{name}`]({family}.md)", size_of(create_model(name)),
                f"{sums['parameters'] / 1e6:,.2f}", f"{sums['multiply_adds'] / 1e6:,.1f}",
                f"{row.top1:.2f}" if row else "",
            ])  # fmt: skip
    return "\n\n".join([
        MADE, "# The networks",
        "Every family is one file beside its paper. `flaxnets.list_models()` gives the names.",
        networks_table("", "../../"),
        "## All of them",
        "Parameters and multiply-adds in millions, for one image of the size given; top-1 accuracy "
        "in per cent of the best published weights, as published.",
        table(["network", "input", "parameters", "multiply-adds", "top-1"], lines, 3),
    ])  # fmt: skip


def values_page() -> str:
    """Return the page of all values: each field of the recipe and of a run, by groups."""
    recipe = recipe_for("resnet50", "photographs")
    table_rows = rows(TrainOptions(recipe, "resnet50"))
    parts = [
        MADE, "# All values",
        "Every option of `train.py`. The default is the library's or, where it has a star, that of "
        "ResNet-50's recipe for photographs; other networks have their own "
        "(`python experiments/train.py --arch NAME --help`). In Python they are the fields of "
        "`flaxnets.recipes.Recipe`, its `Preprocessing`, and `flaxnets.runs.options.Options`.",
    ]  # fmt: skip
    for group, text in GROUPS.items():
        lines = [
            [f"`{row.name}`", row.kind or "switch",
             f"`{row.default}`" + ("" if row.source == "library" else " *"),
             row.text.replace("|", "\\|").replace("<", "&lt;").replace("*.", "\\*.")]
            for row in table_rows if row.group == group
        ]  # fmt: skip
        parts += [f"## {group.capitalize()}", f"{text[0].upper()}{text[1:]}.",
                  table(["option", "takes", "default", "meaning"], lines)]  # fmt: skip
    return "\n\n".join(part.strip() for part in parts) + "\n"


def cpu_table() -> str:
    lines = [[f"`{row['network']}`", *list(row.values())[1:]]
             for given in measurements().values() for row in given]  # fmt: skip
    heads = ["network", "beside", "pixels", "batch", "inference", "training", "first step, s"]
    return table(heads, lines, 5)


def nav() -> str:
    return "".join(f"      - {title(f)}: networks/{f}.md\n" for f in FAMILIES)


def between(path: str, name: str, text: str) -> str:
    """Return a file with `text` between its two lines of the name."""
    content = (ROOT / path).read_text()
    pattern = rf"(?ms)^([^\n]*\bbegin {name}\b[^\n]*\n).*?(^[^\n]*\bend {name}\b)"
    new, number = re.subn(pattern, lambda m: m[1] + text + m[2], content)
    if number != 1:
        raise SystemExit(f"{path} has {number} places for {name}; expected one")
    return new


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


def pages(counts: dict[str, dict[str, int]]) -> Iterator[tuple[str, str]]:
    """Yield each made file by its path below the root, with its content."""
    for family in FAMILIES:
        yield f"docs/networks/{family}.md", family_page(family, counts)
    yield "docs/networks/index.md", index_page(counts)
    yield "docs/values.md", values_page()
    yield "docs/performance.md", between("docs/performance.md", "cpu", cpu_table())
    yield "README.md", between("README.md", "families", networks_table("docs/networks/", ""))
    yield "mkdocs.yml", between("mkdocs.yml", "families", nav())
    for path in sorted((ROOT / "docs/notebooks").glob("*.py")):
        yield f"docs/notebooks/{path.stem}.ipynb", notebook(path)


def stale(counts: dict[str, dict[str, int]]) -> list[str]:
    """Return the files that are not what the code says, and those of families that are gone."""
    made = dict(pages(counts))
    found = [
        path for path, text in made.items()
        if not (ROOT / path).is_file() or (ROOT / path).read_text() != text
    ]  # fmt: skip
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "docs/networks").glob("*.md")}
    return found + sorted(there - made.keys())


@dataclasses.dataclass(frozen=True)
class Options:
    check: bool = False
    """Write nothing; name the files that are stale, with status 1."""
    counts: bool = False
    """Count again what is counted already."""


def main(options: Options) -> None:
    known = {} if options.counts else read_counts()
    names = list_models()
    missing = [name for name in names if name not in known]
    if options.check:
        wrong = [COUNTS] if missing or known.keys() - set(names) else stale(known)
        for path in wrong:
            print(f"{path} is stale; python tools/write_docs.py writes it")
        sys.exit(bool(wrong))
    known |= {name: count(name) for name in track(missing, "counting", transient=True)}
    known = {name: known[name] for name in names}
    text = ",\n".join(f"{json.dumps(name)}: {json.dumps(sums)}" for name, sums in known.items())
    (ROOT / COUNTS).write_text("{\n" + text + "\n}\n")
    for path in stale(known):
        made = dict(pages(known)).get(path)
        if made is None:
            (ROOT / path).unlink()
        else:
            (ROOT / path).write_text(made)
        print(path)


if __name__ == "__main__":
    with one_sentence_errors():
        main(tyro.cli(Options, args=arguments(), description=__doc__))
