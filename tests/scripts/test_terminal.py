"""Test the scripts on a terminal: Ctrl-C, closed outputs, narrow windows, names with markup."""

import contextlib
import fcntl
import os
import pathlib
import pty
import re
import signal
import struct
import subprocess
import sys
import termios

import pytest
from rich.console import Console

from flaxnets import InputError, terminal
from flaxnets.runs import progress
from flaxnets.tables import print_table
from scripts import ROOT, command, errors, output, script

SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for directory in ("experiments", "tools")
    for path in (ROOT / directory).glob("*.py")
    if "__main__" in path.read_text() and path.stem != "gpu_check"  # imports no package
)
MODULES = [f"flaxnets.{name}" for name in ("train", "classify", "evaluate", "dense")]
TRAIN = "experiments/train.py"
INTERRUPTED = "interrupted\n"


def started(arguments, **options):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(arguments, **pipes, **options)


def test_what_scripts_import_first_takes_no_time():
    late = ("jax", "flax", "numpy", "rich", "tensorflow", "matplotlib")
    program = f"import sys, flaxnets.terminal; print([m for m in {late} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "[]\n"


# Ctrl-C


@pytest.fixture
def without_packages(tmp_path):
    """Return an environment in which the first import of a package prints a line and hangs."""
    assert {TRAIN, "experiments/classify.py", "tools/benchmark.py"} <= set(SCRIPTS)
    for name in ("jax", "numpy", "torch", "matplotlib", "tyro"):
        (tmp_path / f"{name}.py").write_text(
            "import time\nprint('importing', flush=True)\ntime.sleep(99)\n"
        )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path}


@pytest.mark.parametrize("name", [*SCRIPTS, *MODULES])
def test_control_c_during_imports_is_one_line(name, without_packages):
    start = [sys.executable, "-m", name] if name in MODULES else command(name)
    with started(start, env=without_packages) as process:
        assert output(process).readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate() == ("", INTERRUPTED)
    assert process.returncode == 130


AT_WORK = """
from flaxnets.terminal import one_sentence_errors, quiet
quiet()
with one_sentence_errors():
    print("working")
    {work}
"""


@pytest.mark.parametrize(
    ("work", "times", "sentence"),
    [
        ("import time; time.sleep(99)", 1, INTERRUPTED),
        # Compiled code; meanwhile no handler in Python runs.
        (
            "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)",
            2,
            "interrupted twice: ended at once; what was saved before is intact\n",
        ),
    ],
)
def test_control_c_at_work_is_one_line(work, times, sentence):
    program = [sys.executable, "-c", AT_WORK.format(work=work)]
    with started(program) as process:
        assert output(process).readline() == "working\n"
        for _ in range(times):
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.3)
            process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("", sentence)
    assert process.returncode == 130


SAVING_FOR_EVER = f"""
import runpy, sys, time
from flaxnets.runs.checkpoints import Checkpoints
save = Checkpoints.save
def slowly(self, state, *rest):
    save(self, state, *rest)
    if int(state.step) > 22:
        print("saving", flush=True)
        time.sleep(99)
Checkpoints.save = slowly
sys.argv = sys.argv[1:]
runpy.run_path({str(ROOT / TRAIN)!r}, run_name="__main__")
"""


@pytest.mark.slow
def test_control_c_twice_while_saving_leaves_what_was_saved(tmp_path):
    arguments = ["--arch", "softmax_regression", "--workdir", tmp_path, "--epochs"]
    training = [sys.executable, "-c", SAVING_FOR_EVER, *command(TRAIN, *arguments, 9)[1:]]
    with started(training) as process:
        assert output(process).readline().startswith("epoch 1/9")
        assert output(process).readline() == "saving\n"
        for _ in range(2):
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.3)
            process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == (
            "", "interrupted twice: ended at once; what was saved before is intact\n"
        )  # fmt: skip
    assert process.returncode == 130
    again = script(TRAIN, *arguments, 3)
    assert (again.returncode, again.stderr) == (0, "")
    # The second epoch is there if its checkpoint was complete.
    went_on = r"(epoch 2/3 .*\n)?epoch 3/3 .*\nsoftmax_regression .* after 3 epochs; .*\n"
    assert re.fullmatch(went_on, again.stdout)


# Outputs that are closed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("closed", "name", "arguments"),
    [
        (">&-", "tools/summarize.py", ["--arch", "lenet5"]),
        ("2>&-", "tools/summarize.py", ["--arch", "lenet5"]),
        (">&- 2>&- <&-", TRAIN, ["--arch", "softmax_regression", "--epochs", "1"]),
    ],
)
def test_a_closed_output_is_quiet(closed, name, arguments, tmp_path):
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *command(name, *arguments)]
    result = subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert bool(result.stdout) == (closed == "2>&-")
    runs = [path.parent.name for path in tmp_path.rglob("summary.json")]
    assert runs == (["softmax_regression-digits"] if name == TRAIN else [])


@pytest.mark.slow
def test_a_reader_that_leaves_ends_a_run_quietly(tmp_path):
    run = command(TRAIN, "--arch", "softmax_regression", "--epochs", 4000, "--workdir", tmp_path)
    with started(run) as process:
        assert output(process).readline().startswith("epoch    1/4000")
        output(process).close()
        assert errors(process).read() == ""
    assert process.returncode == 1


def test_a_name_that_the_terminal_lacks_is_escaped():
    program = [sys.executable, "-c", AT_WORK.format(work=r"print('\u72ac caf\u00e9 \udce9')")]
    latin = os.environ | {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    result = subprocess.run(program, env=latin, capture_output=True)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == b"working\n\\u72ac caf\xe9 \\udce9\n"


# Narrow terminals


def on_terminal(program, columns):
    """Return the lines that a program shows on a terminal; each state of a bar is a line."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    run = [sys.executable, "-c", "from flaxnets.terminal import *\nquiet()\n" + program]
    with subprocess.Popen(
        run, env=environment | {"TERM": "xterm"}, stdin=its, stdout=its, stderr=its
    ) as process:
        os.close(its)
        shown = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while piece := os.read(ours, 4096):
                shown += piece
    os.close(ours)
    assert process.returncode == 0, shown
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    return [line.rstrip() for line in re.split(r"[\r\n]+", text)]


RUN = """
from flaxnets.runs.progress import terminal_progress
sums = {"loss": 4.6, "top1": 0.5, "steps": 2.0}
row = {"epoch": 1, "train_loss": 2.25, "train_top1": 0.125, "test_loss": 12.5, "test_top1": 1.0,
       "images_per_second": 86420.0}
with terminal_progress("resnet50 on digits", 44_000, 0) as show:
    show(12_345, sums, 86_420.0)
    show.epoch(row, 10)
"""


EPOCH = "epoch 1/10 train loss 2.2500 top-1 12.50% test loss 12.5000 top-1 100.00% 86420 images/s"


@pytest.mark.parametrize(
    ("columns", "bar"),
    [
        pytest.param(
            120,
            "resnet50 on digits ━━━━━╸━━━━━━━━━━━━━━ 12345/44000 loss 2.3000  top-1 25.00% 86420 "
            "images/s -:--:--",
            marks=pytest.mark.slow,
        ),
        (80, "resnet50 on digits 12345/44000 loss 2.3000  top-1 25.00% 86420 images/s -:--:--"),
        pytest.param(
            72,
            "resnet50 on digits 12345/44000 loss 2.3000  top-1 25.00% 86420 images/s",
            marks=pytest.mark.slow,
        ),
        pytest.param(40, "12345/44000 loss 2.3000  top-1 25.00%", marks=pytest.mark.slow),
        (20, "12345/44000"),
    ],
)
def test_numbers_of_a_run_are_never_cut(columns, bar):
    lines = on_terminal(RUN, columns)
    assert max(map(len, lines)) <= columns
    assert bar in lines
    assert not [line for line in lines if "…" in line]
    assert EPOCH in " ".join(" ".join(lines).split())


TABLE = """
from flaxnets.tables import print_table
rows = [{"name": "layers.0", "shape": (8, 8, 16), "parameters": 1_002_416},
        {"name": "a longer name", "shape": (1, 1, 10), "parameters": 850}]
print_table("network", rows, [{"name": "total", "parameters": 1_003_266}])
"""


def test_numbers_of_a_table_are_never_cut():
    def cells(columns):
        lines = on_terminal(TABLE, columns)
        assert max(map(len, lines)) <= columns
        return [[cell.strip() for cell in line.split("│")][1:-1] for line in lines if "│" in line]

    assert cells(80) == [
        ["layers.0", "8x8x16", "1,002,416"],
        ["a longer name", "1x1x10", "850"],
        ["total", "", "1,003,266"],
    ]
    assert cells(36) == [
        ["layers.0", "8x8x16", "1,002,416"],
        ["a longer", "1x1x10", "850"],
        ["name", "", ""],
        ["total", "", "1,003,266"],
    ]
    assert on_terminal(TABLE, 24) == [
        "network",
        "name layers.0", "shape 8x8x16", "parameters 1,002,416",
        "name a longer name", "shape 1x1x10", "parameters 850",
        "name total", "parameters 1,003,266", "",
    ]  # fmt: skip


# Names that would be markup

MARKUP = "pics[red]:dog:[/]"


def test_tables_and_bars_show_names_as_they_are(capsys):
    print_table(MARKUP, [{"name": MARKUP, "number": 1}])
    title, *_, row, _ = capsys.readouterr().out.splitlines()
    assert title.strip() == MARKUP
    assert [cell.strip() for cell in row.split("│")] == ["", MARKUP, "1", ""]

    bars = progress.Bars([progress.column("{task.description}")], [], console=Console(width=99))
    bars.add_task(MARKUP)
    with bars.console.capture() as shown:
        bars.console.print(bars)
    assert shown.get().strip() == MARKUP


# The user's directories


def test_an_empty_variable_is_an_absent_one(monkeypatch):
    home = pathlib.Path("/of/user")
    monkeypatch.setenv("HOME", str(home))
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert terminal.cache_directory() == home / ".cache/flaxnets"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert terminal.cache_directory() == pathlib.Path("/elsewhere/flaxnets")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "")
    monkeypatch.setattr(terminal.pwd, "getpwuid", lambda _: type("User", (), {"pw_dir": "/listed"}))
    assert terminal.cache_directory() == pathlib.Path("/listed/.cache/flaxnets")


WITHOUT_HOME = f"""
import os, pwd, runpy, sys
def unknown(_):
    raise KeyError
pwd.getpwuid = unknown
os.environ.pop("HOME", None)
sys.argv = sys.argv[1:]
runpy.run_path({str(ROOT / TRAIN)!r}, run_name="__main__")
"""


@pytest.mark.slow
def test_a_run_without_home_and_cache_says_so_in_one_line(tmp_path):
    arguments = ["--arch", "softmax_regression", "--epochs", "1", "--workdir", "run"]
    training = [sys.executable, "-c", WITHOUT_HOME, *command(TRAIN, *arguments)[1:]]
    environment = os.environ | {"XDG_CACHE_HOME": "", "TFDS_DATA_DIR": "", "HOME": ""}
    result = subprocess.run(training, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr == (
        "warning: no cache directory (neither XDG_CACHE_HOME nor HOME names one); every start "
        "compiles its programs again until XDG_CACHE_HOME names a directory that can be written\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_home_directory_is_expanded_wherever_it_is_typed(monkeypatch):
    monkeypatch.setenv("HOME", "/of/user")
    typed = ["~/a.png", "--workdir=~/run", "--data-dir=~", "folder:~/pics", "--dataset=npz:~/a.npz",
             "--class=a~/b", "x~", "--class=~~~"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["script.py", *typed])
    assert terminal.arguments() == [
        "/of/user/a.png", "--workdir=/of/user/run", "--data-dir=/of/user", "folder:/of/user/pics",
        "--dataset=npz:/of/user/a.npz", "--class=a~/b", "x~", "--class=~~~",
    ]  # fmt: skip
    monkeypatch.setenv("HOME", terminal.NO_HOME)
    with pytest.raises(InputError, match=r"cannot expand ~/a.png: no home directory is known"):
        terminal.arguments()
