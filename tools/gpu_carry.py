"""Pack what tools/gpu_check.py needs on a machine that has no internet connection.

    python tools/gpu_carry.py --out carried --wheels simplejpeg --data-dir my_tfds

It writes cifar10.npz, which has the images of TensorFlow Datasets' cifar10, and downloads wheels
for the other machine's Python. Images stored as PNG become lossless WebP, 105 MB in place of 138;
JPEGs stay as they are. On that machine:

    python3 -m pip install --no-index --no-deps --target site carried/*.whl
    PYTHONPATH=site python3 tools/gpu_check.py --out results --cifar carried/cifar10.npz
"""

if __name__ == "__main__":  # first, because the other imports take seconds
    from flaxnets.terminal import quiet

    quiet()

import argparse
import concurrent.futures
import io
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
from PIL import Image

from flaxnets.errors import InputError
from flaxnets.terminal import one_sentence_errors

PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="directory for the files")
    parser.add_argument("--wheels", nargs="*", default=[], metavar="NAME", help="packages to pack")
    parser.add_argument("--python-version", default="3.12", help="Python of the wheels (3.12)")
    parser.add_argument("--data-dir", help="directory in which TensorFlow Datasets has cifar10")
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
    """Download wheels for a version of Python. Raises InputError if pip has none."""
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    result = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
         "--python-version", version, "--implementation", "cp", *platforms, "-d", str(out),
         *packages],
    )  # fmt: skip
    if result.returncode:
        raise InputError(
            f"pip found no wheels of {', '.join(packages)} for Python {version}; choose another "
            "--python-version"
        )


def packed(builder: Any) -> Any:
    """Return the encoded images of both splits in one array each, their ends, and their labels."""
    import tensorflow_datasets as tfds

    arrays: dict[str, np.ndarray] = {}
    decoders: Any = {"image": tfds.decode.SkipDecoding()}
    for split in ("train", "test"):
        stream = builder.as_dataset(split=split, decoders=decoders)
        examples = list(tfds.as_numpy(stream))
        with concurrent.futures.ThreadPoolExecutor() as pool:
            encoded = list(pool.map(smaller, (e["image"] for e in examples)))
        arrays[f"encoded_{split}"] = np.frombuffer(b"".join(encoded), np.uint8)
        arrays[f"ends_{split}"] = np.cumsum([len(e) for e in encoded])
        arrays[f"labels_{split}"] = np.array([e["label"] for e in examples], np.int32)
    return arrays


def smaller(encoded: bytes) -> bytes:
    """Return a PNG as lossless WebP, and an image of another encoding as it is."""
    if not encoded.startswith(b"\x89PNG"):
        return encoded
    buffer = io.BytesIO()
    Image.open(io.BytesIO(encoded)).save(buffer, "WEBP", lossless=True, quality=100, method=4)
    return buffer.getvalue()


if __name__ == "__main__":
    with one_sentence_errors():
        main()
