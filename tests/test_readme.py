"""The code under "Reuse" in README.md, word for word."""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
REUSE = (ROOT / "README.md").read_text().split("## Reuse")[1].split("\n## ")[0]
PYTHON = re.findall(r"```python\n(.*?)```", REUSE, re.DOTALL)
SHELL = re.findall(r"```bash\n(.*?)```", REUSE, re.DOTALL)


def test_the_examples_in_one_process():
    *examples, loading = PYTHON
    assert len(examples) == 3
    assert "exported.call" in loading
    namespace: dict[str, object] = {}
    for example in examples:
        exec(compile(example, "README.md", "exec"), namespace)


def test_the_exported_file_runs_without_the_library(tmp_path):
    command, loading = SHELL[0].split()[1:], PYTHON[-1]
    assert command[0] == "tools/export.py"
    exported = subprocess.run(
        [sys.executable, ROOT / command[0], *command[1:]],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert exported.returncode == 0, exported.stderr
    assert exported.stdout.startswith("resnet18.stablehlo: ResNet on Nx64x64x3 float32")
    absent = "import sys\nsys.modules['flax'] = sys.modules['flaxnets'] = None\n"
    subprocess.run([sys.executable, "-c", absent + loading], cwd=tmp_path, check=True)


def test_what_cannot_be_exported():
    refused = subprocess.run(
        [sys.executable, ROOT / "tools/export.py", "--out", "none"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 2
    assert refused.stderr == "error: nothing to export; expected --arch NAME or --workdir DIR\n"
