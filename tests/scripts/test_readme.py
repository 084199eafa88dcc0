"""The code under "Reuse" in README.md, word for word."""

import re
import subprocess
import sys

import pytest

from scripts import ROOT, script

REUSE = (ROOT / "README.md").read_text().split("## Reuse")[1].split("\n## ")[0]
PYTHON = re.findall(r"```python\n(.*?)```", REUSE, re.DOTALL)
SHELL = re.findall(r"```bash\n(.*?)```", REUSE, re.DOTALL)


@pytest.mark.slow
def test_the_examples_in_one_process():
    *examples, loading = PYTHON
    assert len(examples) == 4
    assert "exported.call" in loading
    namespace: dict[str, object] = {}
    for example in examples:
        exec(compile(example, "README.md", "exec"), namespace)


@pytest.mark.slow
def test_the_exported_file_runs_without_the_library(tmp_path):
    _, name, *arguments = SHELL[0].split()
    assert name == "tools/export.py"
    exported = script(name, *arguments, cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert exported.stdout.startswith("resnet18.stablehlo: ResNet on Nx64x64x3 float32")
    absent = "import sys\nsys.modules['flax'] = sys.modules['flaxnets'] = None\n"
    subprocess.run([sys.executable, "-c", absent + PYTHON[-1]], cwd=tmp_path, check=True)
    weights = 4 * 11_699_112  # of ResNet-18 with its statistics, which all platforms share
    assert (tmp_path / "resnet18.stablehlo").stat().st_size < 1.1 * weights


def test_what_cannot_be_exported():
    refused = script("tools/export.py", "--out", "none")
    assert refused.returncode == 2
    assert refused.stderr == "error: nothing to export; expected --arch NAME or --workdir DIR\n"
