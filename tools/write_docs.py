"""Write the parts of README.md and docs/ that are made from the code, or say which are stale.

    python tools/write_docs.py          # after a new network, recipe field or measurement
    python tools/write_docs.py --check  # status 1 if a file is not what the code says
    python tools/write_docs.py --counts --drawings # count and draw all networks again

It makes a page for each family, the tables of networks, of values and of measurements, the
notebooks (from the scripts beside them), the list of pages in mkdocs.yml and the drawings of
networks. Counting and drawing take minutes: the counts are kept in docs/networks/counts.json, and
only new networks are counted and drawn.
"""

if __name__ == "__main__":  # first, because the other imports take seconds
    from flaxnets.terminal import quiet

    quiet()

import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Iterator

import tyro
from documenting.drawing import DRAWN, draw
from documenting.families import MADE, family_page, index_page, networks_table, title
from documenting.markdown import ROOT, table
from documenting.measurements import cpu_table, gpu_table
from documenting.notebooks import notebook

from flaxnets import create_model, list_models
from flaxnets.models import FAMILIES
from flaxnets.recipes import recipe_for
from flaxnets.runs.help import GROUPS, rows
from flaxnets.runs.options import Options as TrainOptions
from flaxnets.runs.progress import track
from flaxnets.summary import summarize, totals
from flaxnets.terminal import arguments, one_sentence_errors

COUNTS = "docs/networks/counts.json"
DRAWINGS = "docs/images/networks"


def count(name: str) -> dict[str, int]:
    """Return the parameters of a network, those without auxiliary heads, and the multiply-adds."""
    model = create_model(name)
    sums = totals(summarize(model, model.input_shape))
    keys = ("parameters", "parameters_without_auxiliary", "multiply_adds")
    return {key: int(sums[key]) for key in keys}


def read_counts() -> dict[str, dict[str, int]]:
    path = ROOT / COUNTS
    return json.loads(path.read_text()) if path.exists() else {}


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


def nav() -> str:
    return "".join(f"      - {title(f)}: networks/{f}.md\n" for f in FAMILIES)


def between(path: str, **parts: str) -> str:
    """Return a file with each part's text between the two lines of its name."""
    content = (ROOT / path).read_text()
    for name, text in parts.items():
        pattern = rf"(?ms)^([^\n]*\bbegin {name}\b[^\n]*\n).*?(^[^\n]*\bend {name}\b)"
        content, number = re.subn(pattern, lambda m, text=text: m[1] + text + m[2], content)
        if number != 1:
            raise SystemExit(f"{path} has {number} places for {name}; expected one")
    return content


def pages(counts: dict[str, dict[str, int]]) -> Iterator[tuple[str, str]]:
    """Yield each made file by its path below the root, with its content."""
    for family in FAMILIES:
        yield f"docs/networks/{family}.md", family_page(family, counts)
    yield "docs/networks/index.md", index_page(counts)
    yield "docs/values.md", values_page()
    yield "docs/performance.md", between("docs/performance.md", cpu=cpu_table(), gpu=gpu_table())
    yield "README.md", between("README.md", families=networks_table("docs/networks/", ""))
    yield "mkdocs.yml", between("mkdocs.yml", families=nav())
    for path in sorted((ROOT / "docs/notebooks").glob("*.py")):
        yield f"docs/notebooks/{path.stem}.ipynb", notebook(path)


def stale(counts: dict[str, dict[str, int]]) -> list[str]:
    """Return the files that are not what the code says, those of networks that are gone, and
    drawings that are missing; what drawings show is not looked at.
    """
    made = dict(pages(counts))
    found = [
        path for path, text in made.items()
        if not (ROOT / path).is_file() or (ROOT / path).read_text() != text
    ]  # fmt: skip
    present = {
        str(path.relative_to(ROOT)) for folder in ("docs/networks/*.md", f"{DRAWINGS}/*.svg")
        for path in ROOT.glob(folder)
    }  # fmt: skip
    drawings = {drawing(name) for names in DRAWN.values() for name in names}
    gone = present - made.keys() - drawings
    return found + sorted(gone | (drawings - present))


def drawing(name: str) -> str:
    return f"{DRAWINGS}/{name}.svg"


@dataclasses.dataclass(frozen=True)
class Options:
    check: bool = False
    """Write nothing; name the files that are stale, with status 1."""
    counts: bool = False
    """Count again what is counted already."""
    drawings: bool = False
    """Draw again what is drawn already."""


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
    if options.drawings:
        shutil.rmtree(ROOT / DRAWINGS, ignore_errors=True)
    made = dict(pages(known))
    for path in stale(known):
        file = ROOT / path
        if path in made:
            file.write_text(made[path])
        elif file.exists():
            file.unlink()
        else:
            file.parent.mkdir(exist_ok=True)
            file.write_text(draw(file.stem, create_model(file.stem)))
        print(path)


if __name__ == "__main__":
    with one_sentence_errors():
        main(tyro.cli(Options, args=arguments(), description=__doc__))
