"""The pages of the networks: one for each family, and one that lists them all."""

import dataclasses
import importlib
import inspect
import re
from typing import Any

from documenting.drawing import DRAWN
from documenting.markdown import ARXIV, few, table, with_links
from documenting.measurements import GPU_HEADS, SPEED, accuracy_lines, cpu_lines, gpu_lines
from flaxnets import create_model
from flaxnets.models import FAMILIES
from flaxnets.recipes import recipe_for
from flaxnets.recipes.papers import PAPERS
from flaxnets.weights.published import WEIGHTS
from summarize import PUBLISHED

MADE = "<!-- made by tools/write_docs.py; change the code that it reads instead -->"
# Authors and a year, as the families' docstrings cite them.
CITED = re.compile(
    r"(?!The )((?:van der )?[A-Z][\w-]+"
    r"(?:(?:, (?:van der )?[A-Z][\w-]+)*,? & (?:van der )?[A-Z][\w-]+| et al\.)?)"
    r" ((?:19|20)\d\d)\b"
)
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


def published_counts() -> dict[str, tuple[str, int | str]]:
    """Return the published number of parameters of a network, after its source."""
    return {
        name: (source, number) for source, given in PUBLISHED.items()
        for name, number in given.items()
    }  # fmt: skip


def size_of(model: Any) -> str:
    return "x".join(map(str, model.input_shape))


def family_page(family: str, counts: dict[str, dict[str, int]]) -> str:
    """Return the page of a family: its paper, its networks and what is known of them."""
    names, drawn = list(FAMILIES[family]), DRAWN[family]
    parts = [
        MADE, f"# {title(family)}", with_links(docstring(family)),
        f"Code: [`flaxnets/models/{family}.py`](../../flaxnets/models/{family}.py).",
        *section("Networks", "Parameters include auxiliary heads. Multiply-adds are those of the "
                 "convolutions and linear layers for one image of the size given, without "
                 "auxiliary heads.",
                 ["network", "input", "parameters", "published", "multiply-adds, millions"],
                 count_lines(names, counts), 3),
        "## Drawings" if len(drawn) > 1 else "## Drawing",
        "A box is a layer with the norm and activation after it. The left column has the shape of "
        "the maps (height, width and channels) and what their layers cost for one image; the right "
        "one has the layers' names, which are torch's. `tools/draw_network.py` draws any network.",
        *(f"![{name} from its input to its output](../images/networks/{name}.svg)"
          for name in drawn),
        *section("Published weights", "Accuracies are the publisher's, in per cent of the "
                 "validation images of ImageNet, at the resize and crop given.",
                 ["network", "weights", "resize", "crop", "top-1", "top-5"], weight_lines(names),
                 4),
        *section("Our own results", "Top-1 accuracy on the test images, in per cent: the median "
                 "of the runs.", ["network", "data", "runs", "top-1", "range", "conditions"],
                 accuracy_lines(names)),
        *section("Recipes", "The defaults of `train.py` (`--arch NAME --help` shows all; the "
                 "code names the section that each comes from).",
                 ["networks", "images", "batch", "epochs", "optimizer", "rate", "schedule",
                  "weight decay", "pixels"], recipe_lines(names)),
        *section("Speed on a CPU", "Our time divided by torch's; below 1 is faster. "
                 "[Conditions](../performance.md#on-a-cpu).", ["network", *SPEED],
                 cpu_lines(names), 4),
        *section("Speed on a GPU", "An H100, bfloat16. "
                 "[Conditions](../performance.md#on-a-gpu).", GPU_HEADS, gpu_lines(names), 4),
        "## Fields", "Every field of `create_model`, with its default; [the API](../api.md) "
        "describes those that all networks have.",
    ]  # fmt: skip
    for cls in dict.fromkeys(build.func for build in FAMILIES[family].values()):
        parts += [f"### {cls.__name__}", f"```text\n{signature(cls)}\n```",
                  with_links(inspect.getdoc(cls) or "")]  # fmt: skip
    return "\n\n".join(part.strip() for part in parts) + "\n"


def section(heading: str, text: str, heads: list[str], lines: Any, numbers: int = 0) -> list[str]:
    """Return a section with a table, or nothing if it has no lines."""
    return [f"## {heading}", text, table(heads, lines, numbers)] if lines else []


def count_lines(names: list[str], counts: dict[str, dict[str, int]]) -> list[list[Any]]:
    """Return the size of each network, beside the published number of its parameters."""
    published, lines = published_counts(), []
    for name in names:
        sums = counts[name]
        source, number = published.get(name, ("", ""))
        shown = f"{number:,}" if isinstance(number, int) else number
        lines.append([
            f"`{name}`", size_of(create_model(name)), f"{sums['parameters']:,}",
            f"{shown} ({source})" if source else "", f"{sums['multiply_adds'] / 1e6:,.1f}",
        ])  # fmt: skip
    return lines


def weight_lines(names: list[str]) -> list[list[Any]]:
    """Return the published weights of the networks, with their accuracies."""
    return [
        [f"`{w.arch}`", f"`{w.name}`", w.resize, w.crop,
         f"{w.top1:.2f}" if w.classes else "features only", f"{w.top5:.2f}" if w.classes else ""]
        for w in WEIGHTS if w.arch in names
    ]  # fmt: skip


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
