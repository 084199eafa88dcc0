"""Measure the gain of pretraining: on eight classes of CIFAR-10, for two others with few pictures.

    python tools/measure_transfer.py --data-dir DIR

A network is trained on eight classes, then on the other two with the same number of steps in three
ways: from scratch, from the weights of the eight classes, and from these with everything frozen
except the head. All are runs of train.py on folders of pictures that this tool writes.
"""

if __name__ == "__main__":  # first, because the other imports take seconds
    from flaxnets.terminal import quiet

    quiet()

import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import tyro
from PIL import Image

from child_process import check_status
from flaxnets import data
from flaxnets.data.source import InMemory
from flaxnets.errors import InputError
from flaxnets.runs.files import json_text
from flaxnets.terminal import arguments, one_sentence_errors

ROOT = pathlib.Path(__file__).parent.parent
SPLITS = {"train": "train", "test": "val"}


def write_folder(source: InMemory, root: pathlib.Path, classes: list[int], train: int) -> None:
    """Write a folder data set of some classes.

    `root/train/<class>/` has `train` pictures of each class, `root/val/<class>/` all test pictures.
    """
    for split, directory in SPLITS.items():
        for label in classes:
            folder = root / directory / source.class_names[label]
            folder.mkdir(parents=True)
            members = np.flatnonzero(source.labels[split] == label)
            for index in members[: train if split == "train" else None]:
                Image.fromarray(np.squeeze(source.images[split][index])).save(
                    folder / f"{index:05}.png"
                )


def run(script: str, *arguments: object) -> None:
    """Run a script. Raises InputError if it fails."""
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    check_status(script, subprocess.run(command, check=False).returncode)


def main(
    arch: str = "resnet20_cifar",
    dataset: str = "cifar10",
    data_dir: str | None = None,
    pictures: int = 4000,
    few: int = 50,
    epochs: int = 3,
    few_epochs: int = 15,
    freeze: tuple[str, ...] = ("conv1.*", "bn1.*", "layer*"),
    out: pathlib.Path | None = None,
) -> None:
    """Measure the accuracy on two classes with and without pretraining on the others.

    Args:
        arch: name of the network.
        dataset: data set of small images with at least three classes; the last two are kept for
            the second training.
        data_dir: directory of prepared TensorFlow Datasets; by default TFDS_DATA_DIR.
        pictures: pictures of each class for pretraining.
        few: training pictures of each of the last two classes.
        epochs: epochs of pretraining.
        few_epochs: epochs of training on the last two classes.
        freeze: patterns of torch keys of everything except the head.
        out: JSON file for the accuracies.
    """
    source = data.open_source(dataset, data_dir)
    if not isinstance(source, InMemory) or source.kind != "small images":
        raise InputError(
            f"the data set {dataset!r} has {source.kind}; expected one of small images, such as "
            "cifar10"
        )
    last = len(source.class_names) - 2
    train = ["experiments/train.py", "--arch", arch, "--schedule", "cosine"]
    with tempfile.TemporaryDirectory() as directory:
        temporary = pathlib.Path(directory)
        write_folder(source, temporary / "many", list(range(last)), pictures)
        write_folder(source, temporary / "two", [last, last + 1], few)
        pretrained = temporary / "pretrained.safetensors"
        workdir = ["--workdir", temporary / "run-many"]
        run(*train, "--dataset", f"folder:{temporary}/many", "--epochs", epochs, *workdir)
        run(
            "tools/convert_torchvision.py", "--arch", arch, *workdir, "--out", pretrained,
        )  # fmt: skip
        short = [*train, "--dataset", f"folder:{temporary}/two", "--epochs", few_epochs]
        short += ["--batch-size", min(32, few)]
        start = ["--init-from", pretrained]
        ways = {
            "from scratch": ["--learning-rate", 0.05],
            "pretrained": ["--learning-rate", 0.01, *start],
            "pretrained, only the head trained": [
                "--learning-rate", 0.05, *start, "--freeze", *freeze,
            ],
        }  # fmt: skip
        accuracies = {}
        for number, (name, arguments) in enumerate(ways.items()):
            workdir = temporary / f"run-{number}"
            run(*short, *arguments, "--workdir", workdir)
            accuracies[name] = json.loads((workdir / "summary.json").read_text())["top1"]
    for name, top1 in accuracies.items():
        print(f"{name:32} top-1 {top1:.2%} on two classes after {few} pictures of each")
    if out is not None:
        out.write_text(json_text(accuracies, indent=2) + "\n")


if __name__ == "__main__":
    with one_sentence_errors():
        tyro.cli(main, args=arguments(), description=__doc__)
