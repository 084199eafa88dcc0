"""Pack what tools/gpu_check.py needs on a machine without a network.

    python tools/gpu_carry.py --out carried --wheels simplejpeg --data-dir my_tfds

It writes cifar10.npz, in which the images of TensorFlow Datasets' cifar10 are encoded as they are
stored, and downloads wheels for another Python, which are installed there by

    python3 -m pip install --no-index --no-deps --target site carried/*.whl
    PYTHONPATH=site python3 tools/gpu_check.py --out found --cifar carried/cifar10.npz
"""

if __name__ == "__main__":  # first, for the other imports take seconds
    from flaxnets.terminal import quiet

    quiet()

import argparse
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np

from flaxnets.errors import InputError
from flaxnets.terminal import one_sentence_errors

PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="directory of the files")
    parser.add_argument("--wheels", nargs="*", default=[], metavar="NAME", help="packages")
    parser.add_argument("--python-version", default="3.12", help="that the wheels are for (3.12)")
    parser.add_argument("--data-dir", help="where TensorFlow Datasets prepared cifar10")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.wheels:
        download(options.wheels, options.python_version, options.out)
    if options.data_dir:
        import tensorflow_datasets as tfds

        builder = tfds.builder("cifar10", data_dir=options.data_dir)
        np.savez_compressed(options.out / "cifar10.npz", **packed(builder))
    for path in sorted(options.out.iterdir()):
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def download(packages: list[str], version: str, out: pathlib.Path) -> None:
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    found = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
         "--python-version", version, "--implementation", "cp", *platforms, "-d", str(out),
         *packages],
    )  # fmt: skip
    if found.returncode:
        raise InputError(f"pip found no wheels of {', '.join(packages)} for Python {version}")


def packed(builder: Any) -> Any:
    """Return for both splits the files of all images one after another, the end of each, and the
    classes.
    """
    import tensorflow_datasets as tfds

    found: dict[str, np.ndarray] = {}
    decoders: Any = {"image": tfds.decode.SkipDecoding()}
    for split in ("train", "test"):
        stream = builder.as_dataset(split=split, decoders=decoders)
        examples = [(e["image"], e["label"]) for e in tfds.as_numpy(stream)]
        found[f"encoded_{split}"] = np.frombuffer(b"".join(e for e, _ in examples), np.uint8)
        found[f"ends_{split}"] = np.cumsum([len(e) for e, _ in examples])
        found[f"labels_{split}"] = np.array([label for _, label in examples], np.int32)
    return found


if __name__ == "__main__":
    with one_sentence_errors():
        main()
