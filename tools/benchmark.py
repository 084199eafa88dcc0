"""Measures networks on this machine, beside torchvision's in the same run.

    python tools/benchmark.py --arch resnet50 vgg19 --mode train
    python tools/benchmark.py --mode compile --out compile.csv
    python tools/benchmark.py --arch resnet20_cifar --mode learn --dataset cifar10

Modes:
    infer, train: median seconds of a batch, ours and others' in turns, ours divided by theirs, and
        the share of this machine's matrix products that ours reaches.
    compile: seconds to trace and to compile one training step at the network's native size, whose
        result must be finite, and the peak memory of the process.
    learn: training loss over the first and the last tenth of the first steps on a data set; seconds
        of the very first, compilation included, and the peak memory of the process.
    dense: the map of a larger picture, twice the network's size, beside the same predictions from
        separate crops: seconds and multiply-adds of both, and their ratios. The crops have zeros
        for padding where the map has the picture, so the numbers of padded networks differ.

Others (--vs): torchvision's network, the better of eager with channels_last and with torch's
default layout, or with "torch.compile" of the compiled ones too; "plain", ours with XLA's own
convolutions and pools, as linen has them.

Every network has a process of its own. Networks that torchvision lacks have no ratio.
"""

import concurrent.futures
import contextlib
import csv
import dataclasses
import functools
import json
import math
import multiprocessing
import pathlib
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, Literal
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.progress import track

from flaxnets import create_model, list_models
from flaxnets.errors import InputError
from flaxnets.inference.dense import cell_stride, convolutionize, map_shape
from flaxnets.layers import avg_pool
from flaxnets.recipes import recipe_for
from flaxnets.summary import summarize, totals
from flaxnets.terminal import one_sentence_errors, quiet, reuse_memory, versions
from flaxnets.training.optimizer import make_optimizer
from flaxnets.training.parallel import DataParallel
from flaxnets.training.state import create_state, init_variables
from flaxnets.training.step import make_eval_step, make_train_step

Row = dict[str, Any]
Contender = Callable[[], None]


@dataclasses.dataclass(frozen=True)
class Options:
    arch: tuple[str, ...] = ()
    """Names of networks; all of the library unless given."""
    mode: Literal["infer", "train", "compile", "learn", "dense"] = "train"
    """What to measure."""
    vs: tuple[Literal["torchvision", "torch.compile", "plain"], ...] = ("torchvision",)
    """Whom to measure beside ours (infer, train)."""
    batch_size: int = 8
    """Images in a step; crops at once (dense)."""
    image_size: int | None = None
    """Height and width in pixels; the network's native size, or twice it (dense), unless given."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the computation; torch's is then autocast."""
    remat: bool = False
    """Recompute activations in the backward pass."""
    rounds: int = 7
    """Timed repetitions (infer, train, dense)."""
    steps: int = 100
    """Training steps (learn)."""
    learning_rate: float | None = None
    """Of learning; the recipe's, smaller in proportion for a smaller batch, unless given."""
    dataset: str = "digits"
    """Data to learn, a name as in train.py."""
    data_dir: str | None = None
    """Where TensorFlow Datasets were prepared; TFDS_DATA_DIR otherwise."""
    out: pathlib.Path | None = None
    """File for the rows with versions and hardware, .csv or .json."""


# --------------------------------------------------------------------------- one network


@dataclasses.dataclass
class Ours:
    """A network of the library in training and in evaluation, on one device."""

    arch: str
    options: Options

    def __post_init__(self):
        options = self.options
        model = create_model(self.arch, dtype=jnp.dtype(options.dtype), remat=options.remat)
        *size, channels = model.input_shape
        side = options.image_size or (size[0] if size else 1)
        self.input_shape = (side, side, channels)
        recipe = recipe_for(self.arch, "small images")
        self.optimizer = make_optimizer(recipe, lambda _: jnp.float32(0.01))
        self.parallel = DataParallel(devices=jax.devices()[:1])
        variables = init_variables(model, self.input_shape, recipe, 0)
        self.state = self.parallel.replicate(create_state(variables, self.optimizer, recipe))
        pixel = (0.5,) * channels, (0.25,) * channels
        self.train_step = self.parallel.map(
            make_train_step(model, self.optimizer, pixel, recipe), donate_state=True
        )
        self.eval_step = self.parallel.map(make_eval_step(model, pixel, loss=recipe.loss))
        self.images = np.random.default_rng(0).integers(
            0, 256, (options.batch_size, *self.input_shape), np.uint8
        )
        self.labels = np.zeros(options.batch_size, np.int32)

    def batch(self) -> dict[str, Any]:
        return self.parallel.shard({"image": self.images, "label": self.labels})

    def train(self) -> None:
        self.state, metrics = self.train_step(self.state, self.batch())
        jax.block_until_ready((self.state, metrics))

    def infer(self) -> None:
        mask = self.parallel.shard({"mask": np.ones(len(self.labels), np.float32)})
        variables = {"params": self.state.params, **self.state.model_state}
        jax.block_until_ready(self.eval_step(variables, self.batch() | mask))


def torchvisions(arch: str, images: np.ndarray, options: Options) -> dict[str, Contender]:
    """torchvision's network of that name doing the same work, in both memory layouts."""
    try:
        import torch
        from torchvision_import import torchvision
    except ImportError:
        return {}
    if arch not in torchvision.models.list_models(module=torchvision.models):
        return {}
    on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    half = options.dtype == "bfloat16"

    def contender(memory_format, compiled: bool) -> Contender:
        model = torchvision.models.get_model(arch, weights=None).to(device)
        model = model.to(memory_format=memory_format).train(options.mode == "train")
        forward = torch.compile(model) if compiled else model
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
        x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        labels = torch.zeros(len(images), dtype=torch.long, device=device)

        def work() -> None:
            batch = ((x.to(device).float() / 255 - 0.5) / 0.25).to(memory_format=memory_format)
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                if options.mode == "infer":
                    with torch.inference_mode():
                        forward(batch)
                    return
                optimizer.zero_grad()
                outputs = forward(batch)
                outputs = outputs if isinstance(outputs, tuple) else (outputs,)
                losses = [torch.nn.functional.cross_entropy(each, labels) for each in outputs]
            torch.stack(losses).sum().backward()
            optimizer.step()

        def run() -> None:
            work()
            if on_gpu:
                torch.cuda.synchronize()

        return run

    return {
        f"{'compiled' if compiled else 'eager'} {layout}": contender(memory_format, compiled)
        for compiled in (False, True)[: 1 + ("torch.compile" in options.vs)]
        for layout, memory_format in {
            "channels_last": torch.channels_last,
            "default": torch.contiguous_format,
        }.items()
    }


def plain_layers() -> contextlib.AbstractContextManager[Any]:
    """What is traced inside has XLA's own operations, as on platforms without a cure."""

    def default_alone(*operands: Any, default: Callable[..., Any], **_: Any) -> Any:
        return default(*operands)

    return mock.patch.object(jax.lax, "platform_dependent", default_alone)


def plain(arch: str, options: Options) -> Contender:
    run = getattr(Ours(arch, options), options.mode)
    with plain_layers():
        run()  # traced here, once
    return run


def alternate(contenders: dict[str, Contender], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, in turns after two unmeasured, so that all meet the same machine."""
    for run in [*contenders.values()] * 2:
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def matrix_product() -> Contender:
    a = jnp.ones((2048, 2048))
    product = jax.jit(lambda a: a @ a)
    return lambda: jax.block_until_ready(product(a))


def measure_speed(arch: str, options: Options) -> Row:
    ours = Ours(arch, options)
    contenders = {"ours": getattr(ours, options.mode), "ceiling": matrix_product()}
    if "plain" in options.vs:
        contenders["plain"] = plain(arch, options)
    theirs: dict[str, Contender] = {}
    if {"torchvision", "torch.compile"} & set(options.vs):
        theirs = torchvisions(arch, ours.images, options)
    seconds = alternate(contenders | theirs, options.rounds)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    multiply_adds = totals(summarize(create_model(arch), ours.input_shape))["multiply_adds"]
    passes = 3 if options.mode == "train" else 1  # the backward pass is two products a layer
    rate = 2 * multiply_adds * options.batch_size * passes / median["ours"]
    row = {
        "batch_size": options.batch_size,
        "image_size": ours.input_shape[0],
        "seconds": median["ours"],
        "spread": spread(seconds["ours"]),
        "images_per_second": options.batch_size / median["ours"],
        "gigaflops": rate / 1e9,
        "share_of_ceiling": rate / (2 * 2048**3 / median["ceiling"]),
    }
    if theirs:
        best = min(theirs, key=lambda name: median[name])
        row |= {
            "torch_seconds": median[best],
            "torch_spread": spread(seconds[best]),
            "torch_was": best,
            "ratio": median["ours"] / median[best],
        }
    if "plain" in options.vs:
        row["ratio_to_plain"] = median["ours"] / median["plain"]
    return row | {"peak_gigabytes": peak_gigabytes()}


def spread(seconds: list[float]) -> float:
    """Of the middle half, as a share of the median."""
    lower, median, upper = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
    return (upper - lower) / median


def measure_compilation(arch: str, options: Options) -> Row:
    ours = Ours(arch, options)
    start = time.perf_counter()
    traced = ours.train_step.lower(ours.state, ours.batch())
    middle = time.perf_counter()
    compiled = traced.compile()
    end = time.perf_counter()
    ours.state, metrics = compiled(ours.state, ours.batch())
    if not math.isfinite(float(metrics["loss"])):
        raise FloatingPointError(f"the loss of {arch} is {metrics['loss']}")
    return {
        "trace_seconds": middle - start,
        "compile_seconds": end - middle,
        "step_seconds": time.perf_counter() - end,
        "loss": float(metrics["loss"]),
        "peak_gigabytes": peak_gigabytes(),
    }


def peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure_learning(arch: str, options: Options) -> Row:
    from flaxnets import data

    source = data.open_source(options.dataset, options.data_dir)
    recipe = recipe_for(arch, source.kind)
    how = recipe.preprocessing
    if options.image_size is not None:
        how = dataclasses.replace(how, image_size=options.image_size, resize=options.image_size)
    # Smaller batches take a rate smaller in proportion (Goyal et al. 2017, section 2.1).
    rate = options.learning_rate
    if rate is None:
        rate = recipe.learning_rate * min(1, options.batch_size / recipe.batch_size)
    model = create_model(
        arch, num_classes=len(source.class_names) or 1, dtype=jnp.dtype(options.dtype)
    )
    optimizer = make_optimizer(recipe, lambda _: jnp.float32(rate))
    parallel = DataParallel(devices=jax.devices()[:1])
    pixels = recipe.normalization(source.statistics)
    step = parallel.map(make_train_step(model, optimizer, pixels, recipe), donate_state=True)
    input_shape = (how.image_size, how.image_size, source.channels)
    variables = init_variables(model, input_shape, recipe, 0)
    state = parallel.replicate(create_state(variables, optimizer, recipe))
    batches = data.train_batches(source, options.batch_size, how)
    losses, seconds = [], []
    for _ in range(options.steps):
        start = time.perf_counter()
        state, metrics = step(state, parallel.shard(next(batches)))
        losses.append(float(metrics["loss"]))
        seconds.append(time.perf_counter() - start)
    tenth = max(1, options.steps // 10)
    first, last = statistics.mean(losses[:tenth]), statistics.mean(losses[-tenth:])
    return {
        "dataset": options.dataset,
        "steps": options.steps,
        "batch_size": options.batch_size,
        "learning_rate": rate,
        "first_loss": first,
        "last_loss": last,
        "goes_down": last < first,
        "first_step_seconds": seconds[0],
        "step_seconds": statistics.median(seconds),
        "peak_gigabytes": peak_gigabytes(),
    }


def measure_dense(arch: str, options: Options) -> Row:
    model = create_model(arch, dtype=jnp.dtype(options.dtype))
    if not hasattr(model, "dense"):
        return {"note": "no map"}
    *size, channels = model.input_shape
    side = options.image_size or 2 * max(size)
    input_shape = (side, side, channels)
    variables = init_variables(model, model.input_shape, recipe_for(arch, "small images"), 0)
    # A prediction is the mean of the cells that the network has at its own size, often one.
    window, grid = map_shape(model, model.input_shape), map_shape(model, input_shape)
    down, right = map(round, cell_stride(model, model.input_shape))
    rows, columns = (cells - span + 1 for cells, span in zip(grid, window, strict=True))
    corners = [(row * down, column * right) for row, column in np.ndindex(rows, columns)]
    # The last crops may hang over the edge, where a padded network reads zeros.
    hang = [(0, max(0, corners[-1][axis] + size[axis] - side)) for axis in (0, 1)]
    picture = np.random.default_rng(0).normal(size=input_shape).astype(np.float32)
    padded = np.pad(picture, [*hang, (0, 0)])
    dense = convolutionize(model)

    @jax.jit
    def from_map(variables: Any, images: jax.Array) -> jax.Array:
        logits: Any = dense.apply(variables, images)
        return avg_pool(window, 1)(logits)

    from_crop = jax.jit(model.apply)

    def one_map() -> None:
        jax.block_until_ready(from_map(variables, picture[None]))

    def crops() -> None:
        for first in range(0, len(corners), options.batch_size):
            batch = [
                padded[top : top + size[0], left : left + size[1]]
                for top, left in corners[first : first + options.batch_size]
            ]
            batch += batch[-1:] * (options.batch_size - len(batch))  # one compiled program
            jax.block_until_ready(from_crop(variables, np.stack(batch)))

    seconds = alternate({"map": one_map, "crops": crops}, options.rounds)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    of_map = totals(summarize(dense, input_shape))["multiply_adds"]
    of_crops = len(corners) * totals(summarize(model, model.input_shape))["multiply_adds"]
    return {
        "image_size": side,
        "predictions": len(corners),
        "map_seconds": median["map"],
        "crops_seconds": median["crops"],
        "seconds_ratio": median["crops"] / median["map"],
        "map_multiply_adds": of_map,
        "crops_multiply_adds": of_crops,
        "multiply_adds_ratio": of_crops / of_map,
    }


MODES: dict[str, Callable[[str, Options], Row]] = {
    "infer": measure_speed,
    "train": measure_speed,
    "compile": measure_compilation,
    "learn": measure_learning,
    "dense": measure_dense,
}


def measure(options: Options, arch: str) -> Row:
    quiet()
    reuse_memory()
    return {"arch": arch, "mode": options.mode, **MODES[options.mode](arch, options)}


# --------------------------------------------------------------------------- all of them


def hardware() -> dict[str, Any]:
    cpu = pathlib.Path("/proc/cpuinfo")
    names = [line for line in cpu.read_text().splitlines() if line.startswith("model name")]
    return {
        "device": str(jax.devices()[0]),
        "processor": names[0].split(": ")[1] if names else platform.processor(),
        "cores": len(names) or multiprocessing.cpu_count(),
        "versions": versions(),
    }


def write(path: pathlib.Path, rows: list[Row], options: Options) -> None:
    if path.suffix == ".json":
        asked = {k: str(v) for k, v in dataclasses.asdict(options).items() if v is not None}
        found = {"options": asked, "hardware": hardware(), "rows": rows}
        path.write_text(json.dumps(found, indent=2) + "\n")
        return
    fields = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="") as file:
        file.write(f"# {json.dumps(hardware())}\n")
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(rows)


def show(row: Row) -> None:
    cells = [
        f"{key.replace('_', ' ')} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in row.items()
        if key not in ("arch", "mode")
    ]
    print(f"{row['arch']:24} {'  '.join(cells)}", flush=True)


def main(options: Options) -> None:
    names = options.arch or tuple(list_models())
    for name in names:
        create_model(name)  # a wrong name is answered before anything is measured
    if options.out is not None and options.out.suffix not in (".csv", ".json"):
        raise InputError(f"cannot write {options.out}; expected a name that ends in .csv or .json")
    if min(options.batch_size, options.rounds, options.steps) < 1:
        raise InputError("batch size, rounds and steps; expected at least 1 of each")
    rows = []
    watched = track(names, options.mode, disable=not sys.stderr.isatty())
    for name in watched:
        # A process each: peak memory is its own, and no cache of another's programs helps.
        with concurrent.futures.ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn")
        ) as pool:
            row = pool.submit(functools.partial(measure, options), name).result()
        rows.append(row)
        show(row)
        if options.out is not None:
            write(options.out, rows, options)


if __name__ == "__main__":
    quiet()
    with one_sentence_errors():
        main(tyro.cli(Options, description=__doc__))
