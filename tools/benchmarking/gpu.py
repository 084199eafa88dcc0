"""What tools/gpu_check.py measures on a GPU, a part at a time. Each part has a process of its own
and gives rows: figures by name.

The peer is torchvision's network: in float32 without TF32 for exactness, for speed under
`torch.compile`, channels_last and autocast.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import io
import itertools
import multiprocessing
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarking import learning, speed
from benchmarking.common import Contender, Options, Row, alternate, peak_gigabytes, spread, timed
from benchmarking.profiling import TRACED, large_copy, nanoseconds_of_steps
from benchmarking.speed import Ours, matrix_product, multiply_adds, side_of_product
from benchmarking.traffic import traffic
from flaxnets import create_model, data, from_torch
from flaxnets.data.pixels.decode import fast_road
from flaxnets.kernels.folding import folded_norms
from flaxnets.kernels.platform import plain, platform
from flaxnets.recipes import Preprocessing, recipe_for
from flaxnets.terminal import reuse_memory
from flaxnets.training.on_device import cropped
from flaxnets.training.optimizer import make_optimizer
from flaxnets.training.parallel import DataParallel
from flaxnets.training.state import create_state, init_variables
from flaxnets.training.step import make_train_step

PIXEL = (0.5,) * 3, (0.25,) * 3  # mean and deviation
ROUNDS = 5
BATCH = {"vgg19": 128}  # images, where 256 do not fit beside torch's


# --------------------------------------------------------------------------- exactness


def logits(arch: str, tiny: bool) -> Iterator[Row]:
    """Errors of logits beside torch's on the same device: in float32 without TF32, the largest one
    as a share of the largest logit; in bfloat16 the deviation of the errors, ours and autocast's,
    as a share of the logits' own deviation. And what folding the norms changes.
    """
    import torch
    from torchvision_import import torchvision

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    device = "cuda" if platform() == "gpu" else "cpu"
    torch.manual_seed(0)
    reference = torchvision.models.get_model(arch, weights=None).eval()
    for module in reference.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.2, 0.2)
            module.running_mean = torch.empty_like(module.weight).uniform_(-0.2, 0.2).detach()
            module.running_var = torch.empty_like(module.weight).uniform_(0.5, 1.5).detach()
    side = 64 if tiny and arch != "googlenet" else 224
    x = np.random.default_rng(0).standard_normal((2 if tiny else 16, side, side, 3), np.float32)
    state = {key: value.clone() for key, value in reference.state_dict().items()}
    reference = reference.to(device)
    nchw = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))).to(device)
    with torch.inference_mode():
        exact = reference(nchw).cpu().numpy()
        with torch.autocast(device, torch.bfloat16):
            half = reference(nchw).float().cpu().numpy()
    model = create_model(arch)
    variables = from_torch(
        state, jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    )

    def ours(dtype: Any) -> np.ndarray:
        def forward(variables: Any, x: np.ndarray) -> Any:
            with folded_norms():
                return model.clone(dtype=dtype).apply(variables, x)

        compiled = jax.jit(forward, compiler_options=_untuned())
        return np.asarray(compiled(variables, x), np.float32)

    with jax.default_matmul_precision("highest"):
        float32 = ours(jnp.float32)
        with plain("folding"):
            apart = ours(jnp.float32)
    bfloat16 = ours(jnp.bfloat16)
    yield {
        "logits_error": _largest(float32, exact),
        "folded_error": _largest(float32, apart),
        "bfloat16_error": float((bfloat16 - exact).std() / exact.std()),
        "autocast_error": float((half - exact).std() / exact.std()),
        "bfloat16_correlation": float(np.corrcoef(bfloat16.ravel(), exact.ravel())[0, 1]),
    }


def _untuned() -> dict[str, Any]:
    """XLA tries no kernels out, which takes longer than what is asked here."""
    return {"xla_gpu_autotune_level": 0} if platform() == "gpu" else {}


def _largest(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def step(arch: str, tiny: bool) -> Iterator[Row]:
    """How far parameters and running statistics after one training step in float32 are from those
    on the CPU: the norm of the differences as a share of that of the values, and of that of the
    step's update; and the largest difference between both mappings.

    The update alone is no closer than a few percent, on one CPU by two formulations too: rounding
    moves values across a ReLU's zero.
    """
    side, count = (32, 4) if tiny else (96, 16)
    with tempfile.TemporaryDirectory() as directory:
        file = pathlib.Path(directory) / "cpu.npz"
        command = [sys.executable, __file__, arch, str(side), str(count), str(file)]
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        subprocess.run(command, check=True, env=environment)
        with np.load(file) as arrays:
            on_cpu = dict(arrays)
    with jax.default_matmul_precision("highest"):
        mapped = {name: one_step(arch, side, count, name) for name in ("shard_map", "pmap")}
    row: Row = {}
    here = mapped["shard_map"]
    for part in ("params", "statistics"):
        names = [name for name in on_cpu if name.startswith(part)]
        changes = [on_cpu[name] - on_cpu["before " + name] for name in names]
        errors = [here[name] - on_cpu[name] for name in names]
        row[f"{part}_error"] = _norm(errors) / _norm([on_cpu[name] for name in names])
        row[f"{part}_error_of_the_update"] = _norm(errors) / _norm(changes)
    row["mappings_differ"] = float(
        max(np.abs(here[name] - mapped["pmap"][name]).max() for name in here)
    )
    yield row


def _norm(arrays: list[np.ndarray]) -> float:
    return float(np.sqrt(sum(np.square(array, dtype=np.float64).sum() for array in arrays)))


def one_step(arch: str, side: int, count: int, mapping: Any) -> dict[str, np.ndarray]:
    """Parameters and statistics before and after it."""
    fields = {"dropout_rate": 0.0} if hasattr(create_model(arch), "dropout_rate") else {}
    model = create_model(arch, **fields)
    recipe = recipe_for(arch, "small images")
    optimizer = make_optimizer(recipe, lambda _: jnp.float32(0.01))
    # Drawn on the CPU, whose bits are the same everywhere.
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        variables = jax.device_get(init_variables(model, (side, side, 3), recipe, 0))
    parallel = DataParallel(mapping, jax.devices()[:1])
    state = create_state(variables, optimizer, recipe)
    if mapping == "shard_map":
        state = parallel.replicate(state)
    function = make_train_step(model, optimizer, PIXEL, recipe)
    images, labels = _pictures(count, side)
    state, _ = parallel.map(function)(state, parallel.shard({"image": images, "label": labels}))
    found = {}
    for prefix, tree in (("before ", variables), ("", state.variables)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            part = "params" if path[0].key == "params" else "statistics"
            found[f"{prefix}{part} {jax.tree_util.keystr(path)}"] = np.asarray(leaf)
    return found


def _pictures(count: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, side, side, 3), np.uint8)
    return images, random.integers(0, 10, count).astype(np.int32)


# --------------------------------------------------------------------------- speed


def _asked(arch: str, tiny: bool) -> Options:
    return Options(batch_size=2 if tiny else BATCH.get(arch, 256), dtype="bfloat16")


def speeds(arch: str, tiny: bool) -> Iterator[Row]:
    """Training step and inference in bfloat16: ours, torch.compile's, plain linen's, in turns."""
    count = _asked(arch, tiny).batch_size or 0
    while True:
        try:
            yield from _speeds(arch, count, tiny)
            return
        except Exception as error:  # jax's and torch's, in this process and in the other
            if "memory" not in str(error).lower() and "RESOURCE_EXHAUSTED" not in str(error):
                raise
            count //= 2
            jax.clear_caches()
            yield {"out_of_memory": f"{type(error).__name__}; next with {count} images"}


def _speeds(arch: str, count: int, tiny: bool) -> Iterator[Row]:
    asked = dataclasses.replace(_asked(arch, tiny), batch_size=count)
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
        start = time.perf_counter()
        ours = Ours(arch, asked)
        theirs = {
            mode: other.submit(prepare_torch, arch, ours.images, mode, tiny)
            for mode in ("train", "infer")
        }  # compiles while we do
        copied, copy = large_copy()
        limits = {"copy": copy, "product": matrix_product("bfloat16")}
        ceiling = {key: statistics.median(v) for key, v in alternate(limits, 3).items()}
        for mode in ("train", "infer"):
            compiled = {"ours": _compile(ours, mode)}
            first = time.perf_counter() - start
            if arch == "resnet50":
                with plain():
                    compiled["plain"] = _compile(Ours(arch, asked), mode)
            contenders = {name: contender for name, (contender, _) in compiled.items()}
            contenders["ours"]()
            peak = peak_gigabytes()
            torch_first = theirs[mode].result()
            contenders["torch.compile"] = functools.partial(run_torch, other, mode)
            seconds = alternate(contenders, 2 if tiny else ROUNDS)
            median = {name: statistics.median(values) for name, values in seconds.items()}
            moved = {name: sum(nbytes for *_, nbytes in traffic(c.as_text()))
                     for name, (_, c) in compiled.items()}  # fmt: skip
            passes = 3 if mode == "train" else 1
            products = passes * multiply_adds(arch, ours.input_shape) * count
            bound = {
                "bytes": moved["ours"] * ceiling["copy"] / copied,
                "products": products * ceiling["product"] / side_of_product() ** 3,
            }
            yield {
                "mode": mode,
                "batch_size": count,
                "image_size": ours.input_shape[0],
                **{f"{name}_images_per_second": count / value for name, value in median.items()},
                **{f"{name}_spread": spread(values) for name, values in seconds.items()},
                "speed_over_torch": median["torch.compile"] / median["ours"],
                "share_of_byte_bound": bound["bytes"] / median["ours"],
                "share_of_product_bound": bound["products"] / median["ours"],
                "gigabytes_moved": moved["ours"] / 1e9,
                "peak_gigabytes": peak,
                "torch_peak_gigabytes": other.submit(torch_peak).result(),
                "gigabytes_per_second": copied / ceiling["copy"] / 1e9,
                "teraflops": 2 * side_of_product() ** 3 / ceiling["product"] / 1e12,
                "first_seconds": first,
                "torch_first_seconds": torch_first,
            }


def _compile(ours: Ours, mode: str) -> tuple[Contender, Any]:
    """A contender that queues calls and waits for the last one, and the compiled program."""
    if mode == "train":
        ours.train_step = compiled = ours.train_step.lower(ours.state, ours.batch).compile()
        return timed(ours.queue_train, lambda: jax.block_until_ready(ours.state)), compiled
    variables = ours.state.variables
    compiled = ours.forward.lower(variables, ours.batch["image"]).compile()
    latest = []

    def queue() -> None:
        latest[:] = [compiled(variables, ours.batch["image"])]

    return timed(queue, lambda: jax.block_until_ready(latest)), compiled


_theirs: dict[str, Contender] = {}  # in the process that has torch


def prepare_torch(arch: str, images: np.ndarray, mode: Any, tiny: bool) -> float:
    """Seconds until torch.compile's network has made its first two steps."""
    import torch

    if torch.cuda.is_available():  # the rest is ours
        torch.cuda.set_per_process_memory_fraction(0.45)
    start = time.perf_counter()
    options = Options(mode=mode, batch_size=len(images), dtype="bfloat16", vs=("torch.compile",))
    found = speed.torch_network(arch)
    assert found is not None
    with mock.patch.object(torch, "compile", lambda model: model) if tiny else _nothing():
        contenders = speed.torchs(found[1], images, options, torch.cuda.is_available())
    _theirs[mode] = contenders["compiled channels_last"]
    _theirs[mode]()
    return time.perf_counter() - start


_nothing = contextlib.nullcontext


def run_torch(other: concurrent.futures.ProcessPoolExecutor, mode: str) -> float:
    return other.submit(_run, mode).result()


def _run(mode: str) -> float:
    return _theirs[mode]()


def torch_peak() -> float | None:
    import torch

    if not torch.cuda.is_available():
        return None
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return peak


def variants(arch: str, tiny: bool) -> Iterator[Row]:
    """What folding, our pools and our ReLU bring, each left out alone, and the bytes moved."""
    asked = _asked(arch, tiny)
    left_out = {
        "infer": {
            "ours": _nothing,
            "unfolded": lambda: plain("folding"),
            "xla_stem": lambda: plain("convolution"),
        },
        "train": {
            "ours": _nothing,
            "xla_pools": lambda: plain("pooling"),
            "xla_relu": lambda: plain("activation"),
            "xla_stem": lambda: plain("convolution"),
        },
    }
    for mode, contexts in left_out.items():
        compiled = {}
        for name, context in contexts.items():
            with context():
                compiled[name] = _compile(Ours(arch, asked), mode)
        contenders = {name: contender for name, (contender, _) in compiled.items()}
        seconds = alternate(contenders, 2 if tiny else ROUNDS)
        moved = {name: sum(nbytes for *_, nbytes in traffic(c.as_text()))
                 for name, (_, c) in compiled.items()}  # fmt: skip
        for name, values in seconds.items():
            median = statistics.median(values)
            yield {
                "mode": mode,
                "variant": name,
                "batch_size": asked.batch_size,
                "seconds": median,
                "spread": spread(values),
                "over_ours": median / statistics.median(seconds["ours"]),
                "gigabytes_moved": moved[name] / 1e9,
                "bytes_over_ours": moved[name] / moved["ours"],
            }


def profile(arch: str, tiny: bool) -> Iterator[Row]:
    """The ten longest operations of a training step: their share, bytes and rates."""
    ours = Ours(arch, _asked(arch, tiny))
    ours.train_step = compiled = ours.train_step.lower(ours.state, ours.batch).compile()
    for _ in range(3):
        ours.train()
    nanoseconds = nanoseconds_of_steps(ours)
    kinds = {name: (kind, size) for name, kind, size in traffic(compiled.as_text())}
    total = nanoseconds.total()
    yield {"busy_seconds": total / TRACED / 1e9, "operations": len(nanoseconds)}
    by_kind: collections.Counter[str] = collections.Counter()
    for name, duration in nanoseconds.items():
        by_kind[kinds.get(name, ("unnamed", 0))[0]] += duration
    yield {"shares": {kind: value / total for kind, value in by_kind.most_common(15)}}
    for name, duration in nanoseconds.most_common(10):
        kind, size = kinds.get(name, ("unnamed", 0))
        seconds = duration / TRACED / 1e9
        yield {
            "operation": name,
            "kind": kind,
            "milliseconds": seconds * 1e3,
            "share": duration / total,
            "gigabytes": size / 1e9,
            "gigabytes_per_second": size / seconds / 1e9,
        }


# --------------------------------------------------------------------------- learning and reading


def cifar(file: str, tiny: bool) -> Iterator[Row]:
    """The network and recipe that learn CIFAR-10 soonest, of three seeds (`benchmark.py --mode
    accuracy`), in bfloat16.
    """
    dataset = f"npz:{_decoded(file)}" if file else "digits"
    asked = Options(mode="accuracy", dataset=dataset, dtype="bfloat16", target=1.0)
    arch = "airbench94"
    if tiny:
        arch, asked = "lenet5", dataclasses.replace(asked, batch_size=64, epochs=1)
    for seed in range(1 if tiny else 3):
        with contextlib.redirect_stdout(sys.stderr):  # its progress
            row = learning.measure_accuracy(arch, asked, seed)
        yield row


def _decoded(file: str) -> pathlib.Path:
    """The data set that `tools/gpu_carry.py` packed, as a .npz of pixels."""
    from PIL import Image

    def pixels(encoded: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))

    arrays = {}
    with np.load(file) as packed, concurrent.futures.ThreadPoolExecutor() as pool:
        for split in ("train", "test"):
            ends = packed[f"ends_{split}"]
            encoded = packed[f"encoded_{split}"].tobytes()
            starts = np.concatenate([[0], ends[:-1]])
            parts = [encoded[a:b] for a, b in zip(starts, ends, strict=True)]
            arrays[f"x_{split}"] = np.stack(list(pool.map(pixels, parts)))
            arrays[f"y_{split}"] = packed[f"labels_{split}"]
    path = pathlib.Path(tempfile.mkdtemp()) / "cifar10.npz"
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
    return path


def feed(file: str, tiny: bool) -> Iterator[Row]:
    """Images a second that the input pipeline makes: JPEGs of 500x375 pixels to windows of 224, and
    images of 32 pixels that stay in the device's memory, cropped there.
    """
    reuse_memory()  # as the scripts do
    count, steps = (16, 2) if tiny else (256, 24)
    with tempfile.TemporaryDirectory() as directory:
        _write_photographs(pathlib.Path(directory))
        source = data.open_source(f"folder:{directory}")
        how = Preprocessing(224, resize=224, crop="random_resized", pca_std=0.0)
        batches = data.train_batches(source, count, data.training_plan(how, source))
        rate = _rate(batches, count, steps)
        host, _ = data.training_plan(how, source).split()
        raw, _ = source.read("train", 0)
        start = time.perf_counter()
        for index in range(100):
            host(raw, Random(index))
        yield {
            "of": "JPEG",
            "cores": os.cpu_count(),
            "images_per_second": rate,
            "milliseconds_alone": (time.perf_counter() - start) * 10,
            "fast_road": fast_road() is not None,
        }
    random = np.random.default_rng(0)
    path = pathlib.Path(tempfile.mkdtemp()) / "cifar10.npz"
    images = random.integers(0, 256, (5000, 32, 32, 3), np.uint8)
    labels = random.integers(0, 10, 5000)
    np.savez(path, x_train=images, y_train=labels, x_test=images[:10], y_test=labels[:10])
    source = data.open_source(f"npz:{path}")
    how = recipe_for("wrn_16_4", source.kind).preprocessing
    on_device = jax.jit(functools.partial(cropped, how=how))
    parallel = DataParallel(devices=jax.devices()[:1])
    batches = data.train_batches(source, count, data.training_plan(how, source), keep=parallel.keep)
    ready = (jax.block_until_ready(on_device(parallel.shard(batch))) for batch in batches)
    yield {"of": "memory", "images_per_second": _rate(ready, count, 10 * steps)}


def _rate(batches: Iterator[Any], size: int, steps: int) -> float:
    for _ in range(2):
        next(batches)
    start = time.perf_counter()
    collections.deque(itertools.islice(batches, steps), maxlen=0)
    return size * steps / (time.perf_counter() - start)


def _write_photographs(directory: pathlib.Path) -> None:
    """Crops of scikit-learn's two photographs, of the size and weight of ImageNet's."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    random = np.random.default_rng(0)
    for split, number in (("train", 64), ("val", 1)):
        for name, pixels in zip(("china", "flower"), load_sample_images().images, strict=True):
            folder = directory / split / name
            folder.mkdir(parents=True)
            for index in range(number):
                row, column = random.integers(0, 427 - 375), random.integers(0, 640 - 500)
                window = pixels[row : row + 375, column : column + 500]
                Image.fromarray(window).save(folder / f"{index}.jpg", quality=92)


PARTS: dict[str, Callable[[str, bool], Iterator[Row]]] = {
    "logits": logits,
    "step": step,
    "speed": speeds,
    "variants": variants,
    "profile": profile,
    "cifar": cifar,
    "feed": feed,
}


if __name__ == "__main__":  # the step on the CPU, for `step`
    arch, side, count, file = sys.argv[1:]
    parts: Any = one_step(arch, int(side), int(count), "shard_map")
    np.savez(file, **parts)
