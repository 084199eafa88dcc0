"""Check and time the networks on a GPU within a few minutes, the most important parts first.

    python tools/gpu_check.py --out results --minutes 8 --cifar carried/cifar10.npz
    python tools/gpu_check.py --out results --tiny  # on a CPU, in two minutes
    python tools/gpu_check.py --out results --only speed:vgg19 variants:vgg19

Every figure is written immediately, as a line of JSON in results.jsonl; other output of the parts
goes to log.txt. A part is skipped if the remaining time is too short, and stopped if it exceeds its
own time; the others go on. The exit status is 1 if a part failed.

It needs jax with a GPU, flax, optax, torch, torchvision, scikit-learn and Pillow, and no other
dependency of flaxnets. With simplejpeg, reading is faster. `tools/gpu_carry.py` packs what a
machine without an internet connection lacks.
"""

import sys

if __name__ == "__main__":
    sys.path.append(f"{sys.path[0]}/..")  # for machines on which flaxnets is not installed
    if "--part" not in sys.argv:
        from flaxnets.terminal import quiet

        quiet()

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import platform
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from flaxnets.errors import InputError, one_of
from flaxnets.terminal import one_sentence_errors


@dataclasses.dataclass(frozen=True)
class Part:
    """One part of the check, which runs in a process of its own."""

    name: str  # a key of benchmarking.gpu.PARTS and a network: "speed:resnet50"
    seconds: float  # it is stopped after this time
    together: bool = False  # runs at the same time as others, as it measures no time


EXACT = ("resnet50", "vgg19", "resnext50_32x4d", "densenet121", "googlenet", "alexnet",
         "inception_v3", "wide_resnet50_2", "vit_b_16", "convnext_tiny")  # fmt: skip
PARTS = [
    *(Part(f"logits:{arch}", 100, together=True) for arch in EXACT),
    Part("step:resnet50", 200, together=True),
    Part("speed:resnet50", 200),
    Part("variants:resnet50", 180),
    Part("profile:resnet50", 60),
    Part("cifar", 150),
    Part("feed", 30),
    Part("speed:vgg19", 120),
    Part("variants:vgg19", 80),
    Part("speed:resnext50_32x4d", 150),
    Part("speed:convnext_tiny", 180),
    Part("profile:convnext_tiny", 120),
    Part("depthwise", 120),
    Part("speed:vit_b_16", 120),
    Part("speed:efficientnet_b0", 200),
    Part("speed:mobilenet_v3_large", 170),
    Part("speed:densenet121", 300),
    Part("speed:googlenet", 250),
    Part("speed:alexnet", 100),
    Part("variants:convnext_tiny", 300),
    Part("variants:swin_t", 300),
]
TINY = [
    Part("logits:resnet18", 600, together=True),
    Part("step:resnet18", 600, together=True),
    Part("speed:lenet5", 600),
    Part("variants:lenet5", 600),
    Part("profile:lenet5", 600),
    Part("depthwise", 600),
    Part("cifar", 600),
    Part("feed", 600),
]


class Results:
    """The file of figures, to which several parts write."""

    def __init__(self, directory: pathlib.Path):
        directory.mkdir(parents=True, exist_ok=True)
        self.file = (directory / "results.jsonl").open("a")
        self.log = (directory / "log.txt").open("ab")
        self.start = time.monotonic()
        self.failed = False
        self.running: set[int] = set()  # process groups
        self._lock = threading.Lock()

    def seconds(self) -> float:
        return time.monotonic() - self.start

    @contextlib.contextmanager
    def none_left_running(self) -> Iterator[None]:
        """Stop the parts when this process ends, for whatever reason."""
        try:
            yield
        finally:
            for group in list(self.running):
                os.killpg(group, signal.SIGKILL)

    def write(self, part: str, row: dict[str, Any]) -> None:
        with self._lock:
            line = json.dumps({"part": part, "at": round(self.seconds(), 1), **row})
            print(line, file=self.file, flush=True)
            print(_short(line), flush=True)


def _short(line: str) -> str:
    return line if len(line) < 900 else line[:900] + " ..."


def main() -> int:
    options = parse()
    parts = TINY if options.tiny else PARTS
    if options.only:
        known = {part.name: part for part in parts}
        parts = [known.get(name, Part(name, 200)) for name in options.only]
    results = Results(options.out)
    results.write("hardware", hardware())
    deadline = 60 * options.minutes
    with tempfile.TemporaryDirectory() as cache, results.none_left_running():
        together = [part for part in parts if part.together]
        work = [
            threading.Thread(
                target=run, args=(part, options, results, deadline, cache), daemon=True
            )
            for part in together
        ]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()
        for part in parts:
            if not part.together:
                run(part, options, results, deadline, cache)
    return int(results.failed)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="directory for the figures")
    parser.add_argument("--minutes", type=float, default=8, help="time for all parts (8)")
    parser.add_argument("--tiny", action="store_true", help="small networks and batches, on a CPU")
    parser.add_argument("--cifar", default="", help="cifar10.npz; digits by default")
    parser.add_argument("--only", nargs="+", metavar="PART", help="only these, e.g. speed:vgg19")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # run one part in this process
    options = parser.parse_args()
    if options.minutes <= 0:
        raise InputError(f"--minutes is {options.minutes}; expected more than 0")
    if options.cifar and not pathlib.Path(options.cifar).is_file():
        raise InputError(
            f"no file {options.cifar}; expected --cifar FILE, which tools/gpu_carry.py writes"
        )
    kinds = sorted({part.name.partition(":")[0] for part in PARTS})
    for name in options.only or ():
        one_of(kinds, name.partition(":")[0], "part")
    return options


def hardware() -> dict[str, Any]:
    """Return the versions of Python and packages, the CPU cores, and the GPU."""
    facts: dict[str, Any] = {"python": platform.python_version(), "cores": os.cpu_count()}
    for package in ("jax", "jaxlib", "flax", "optax", "torch", "torchvision", "numpy"):
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = None
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        facts["gpu"] = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    except OSError:
        facts["gpu"] = None
    return facts


def run(
    part: Part, options: argparse.Namespace, results: Results, deadline: float, cache: str
) -> None:
    """Run a part in its own process, and write the figures that it prints as lines of JSON."""
    left = deadline - results.seconds()
    if left < part.seconds / 3:
        results.write(part.name, {"skipped": f"only {left:.0f} s are left"})
        return
    command = [sys.executable, __file__, "--out", str(options.out), "--part", part.name]
    command += ["--tiny"] * options.tiny + ["--cifar", options.cifar] * bool(options.cifar)
    start = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=results.log, text=True,
        env=environment(part, options.tiny, cache), start_new_session=True,
    )  # fmt: skip
    results.running.add(process.pid)
    seconds = min(part.seconds, left)
    timer = threading.Timer(seconds, os.killpg, (process.pid, signal.SIGKILL))
    timer.start()
    assert process.stdout is not None
    for line in process.stdout:
        results.write(part.name, json.loads(line))
    status = process.wait()
    timer.cancel()
    results.running.discard(process.pid)
    if status:
        results.failed = True
        ended = (
            "stopped after its time"
            if status == -signal.SIGKILL
            else f"failed with status {status}"
        )
        results.write(part.name, {"error": ended})
    results.write(part.name, {"seconds": round(time.monotonic() - start, 1)})


def environment(part: Part, tiny: bool, cache: str) -> dict[str, str]:
    """Return the environment of a part's process.

    It leaves memory of the device to torch's process, and shares compiled programs between parts.
    """
    share = "0.07" if part.together else "0.5"
    variables = os.environ | {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": share,
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1",
        "TORCHINDUCTOR_CACHE_DIR": os.path.join(cache, "inductor"),
    }
    if part.name.startswith("profile"):  # the kernels of CUDA graphs have no names
        variables["XLA_FLAGS"] = "--xla_gpu_enable_command_buffer="
    if tiny:
        variables["JAX_PLATFORMS"] = "cpu"
        variables["CUDA_VISIBLE_DEVICES"] = ""
    return variables


def work(options: argparse.Namespace) -> None:
    """Run one part in this process and print its figures."""
    figures = os.fdopen(os.dup(1), "w")  # other output of packages goes to the log
    os.dup2(2, 1)
    from benchmarking.gpu import PARTS as functions

    name, _, arch = options.part.partition(":")
    for row in functions[name](arch or options.cifar, options.tiny):
        print(json.dumps(row), file=figures, flush=True)


if __name__ == "__main__":
    if "--part" in sys.argv:
        work(parse())
    else:
        with one_sentence_errors():
            sys.exit(main())
